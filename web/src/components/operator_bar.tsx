import { useState } from "preact/hooks";
import { type Api, type Cause, causeOf } from "../api.ts";
import { texts } from "../texts.ts";
import { Button } from "./button.tsx";
import { Failure } from "./failure.tsx";

/** Outside Jira there is nobody around the page who says who one is, and nobody else to log out from. */
export function OperatorBar({ api, onLoggedOut }: { api: Api; onLoggedOut: () => void }) {
  const [busy, setBusy] = useState(false);
  const [failure, setFailure] = useState<Cause | null>(null);

  const logOut = async () => {
    setBusy(true);
    setFailure(null);
    try {
      await api.logOut();
      onLoggedOut();
    } catch (error) {
      setFailure(causeOf(error));
      setBusy(false);
    }
  };

  return (
    <header class="operator-bar">
      <div class="page-header">
        <p>{texts.operator}</p>
        <Button busy={busy} onClick={logOut}>
          {texts.logOut}
        </Button>
      </div>
      {failure && <Failure cause={failure} />}
    </header>
  );
}
