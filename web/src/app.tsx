// The page from the outside in: Jira must answer, then the session must hold, then the work begins.

import { useCallback, useEffect, useState } from "preact/hooks";
import { type Api, type Cause, causeOf, relayApi } from "./api.ts";
import { Boundary } from "./components/boundary.tsx";
import { Notice } from "./components/notice.tsx";
import { OperatorBar } from "./components/operator_bar.tsx";
import { SessionExpired } from "./components/session_expired.tsx";
import { Starting } from "./components/starting.tsx";
import { Workspace } from "./components/workspace.tsx";
import type { FindHost, Host } from "./host.ts";
import { texts } from "./texts.ts";

export function App({ findHost }: { findHost: FindHost }) {
  const [host, setHost] = useState<Host | null>(null);
  const [api, setApi] = useState<Api | null>(null);
  const [failure, setFailure] = useState<Cause | null>(null);
  const [expired, setExpired] = useState(false);
  const [loggedOut, setLoggedOut] = useState(false);

  const connect = useCallback(
    async (again: boolean) => {
      setFailure(null);
      try {
        const found = await findHost(again);
        setApi(relayApi(found, () => setExpired(true)));
        setHost(found);
      } catch (error) {
        setFailure(causeOf(error));
      }
    },
    [findHost],
  );

  useEffect(() => {
    connect(false);
  }, [connect]);

  if (failure) {
    return (
      <Notice
        title={failure.message}
        text={failure.hint}
        action={texts.tryAgain}
        onAct={() => connect(true)}
      />
    );
  }
  if (!host || !api) {
    return (
      <main class="page">
        <Starting text={texts.connecting} />
      </main>
    );
  }
  if (loggedOut) {
    return <Notice appearance="success" title={texts.loggedOutTitle} text={texts.loggedOut} />;
  }
  if (expired) {
    return <SessionExpired host={host} />;
  }
  return (
    <Boundary reload={host.reload}>
      {host.outside && <OperatorBar api={api} onLoggedOut={() => setLoggedOut(true)} />}
      <Workspace host={host} api={api} />
    </Boundary>
  );
}
