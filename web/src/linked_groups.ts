// The groups of an instance that are linked to this Jira site. The relay asks the instance.

import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { type Api, type Cause, causeOf, type LinkedGroup, type LinkState } from "./api.ts";

// What lies between the browser and the relay says nothing of the instance.
const NOT_OF_THE_INSTANCE =
  /^(token_|session_|relay_|offline$|answer_not_understood$|script_|not_framed$|page_)/;

export interface LinkedGroups {
  linked: LinkedGroup[] | null;
  failure: Cause | null;
  /** What ails the instance itself, as far as anybody knows: it outlasts a relay that can't be asked. */
  fault: Cause | null;
  reload(): Promise<void>;
  /** Drops one that was just unlinked. */
  drop(groupId: number): void;
}

export function useLinkedGroups(api: Api, linkId: string, wanted: boolean): LinkedGroups {
  const [linked, setLinked] = useState<LinkedGroup[] | null>(null);
  const [failure, setFailure] = useState<Cause | null>(null);
  const [fault, setFault] = useState<Cause | null>(null);

  const reload = useCallback(async () => {
    try {
      setLinked(await api.groups(linkId));
      setFailure(null);
      setFault(null);
    } catch (error) {
      const cause = causeOf(error);
      setFailure(cause);
      if (!NOT_OF_THE_INSTANCE.test(cause.code)) {
        setFault(cause);
      }
    }
  }, [api, linkId]);

  const drop = useCallback((groupId: number) => {
    setLinked((groups) => groups?.filter(({ id }) => id !== groupId) ?? null);
  }, []);

  useEffect(() => {
    if (wanted) {
      reload();
    }
  }, [reload, wanted]);

  return { linked, failure, fault, reload, drop };
}

const LOOK_MS = 60_000;
const LOOK_FAILED_MS = 15_000;

/** The same, looked at again and again: it is what tells whether an instance still answers. */
export function useWatchedGroups(api: Api, linkId: string, state: LinkState): LinkedGroups {
  const wanted = state === "connected" || state === "failing";
  const groups = useLinkedGroups(api, linkId, wanted);
  const { reload, failure } = groups;
  // What hindered the answer before may be over.
  const before = useRef(state);
  useEffect(() => {
    if (wanted && before.current !== state) {
      reload();
    }
    before.current = state;
  }, [reload, wanted, state]);
  useEffect(() => {
    if (!wanted) {
      return;
    }
    const look = () => {
      if (!document.hidden) {
        reload();
      }
    };
    const timer = setInterval(look, failure ? LOOK_FAILED_MS : LOOK_MS);
    return () => clearInterval(timer);
  }, [reload, wanted, failure]);
  return groups;
}
