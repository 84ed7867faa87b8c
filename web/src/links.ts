// The list of links, kept up to date while somebody looks at it.

import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { type Api, type Cause, causeOf, type Link, type Links } from "./api.ts";

const POLL_CHANGING_MS = 2_000;
const POLL_SETTLED_MS = 15_000;

export interface LinkList {
  answer: Links | null;
  failure: Cause | null;
  refresh(): Promise<void>;
  /** Shows what a change answered without waiting for the next poll. */
  put(link: Link): void;
}

function isChanging({ state }: Link): boolean {
  return state === "pending" || state === "removing";
}

/** But for the request that it came of. */
function isSame(one: Cause | null, other: Cause | null): boolean {
  return one?.code === other?.code && one?.message === other?.message && one?.hint === other?.hint;
}

export function useLinks(api: Api): LinkList {
  const [answer, setAnswer] = useState<Links | null>(null);
  const [failure, setFailure] = useState<Cause | null>(null);
  const changing = useRef(false);
  // Answers may come in another order than they were asked for, and one that was on its way while something changed
  // is older than what is shown. So all are numbered: how many were asked for, which one is shown, and which one was the
  // last before a change.
  const asked = useRef(0);
  const told = useRef(0);
  const outdated = useRef(0);

  const pollSoon = useRef(() => {});

  changing.current = answer?.links.some(isChanging) ?? false;

  const refresh = useCallback(async () => {
    asked.current += 1;
    const mine = asked.current;
    const { latest, cause } = await api.links().then(
      (latest) => ({ latest, cause: null }),
      (error) => ({ latest: null, cause: causeOf(error) }),
    );
    if (mine < told.current) {
      return;
    }
    told.current = mine;
    // The same again is no news: whoever has it read out would hear it at every poll.
    setFailure((shown) => (isSame(shown, cause) ? shown : cause));
    if (latest && mine > outdated.current) {
      setAnswer(latest);
    }
  }, [api]);

  const put = useCallback((link: Link) => {
    outdated.current = asked.current;
    setAnswer((shown) => {
      if (!shown) {
        return shown;
      }
      const known = shown.links.some(({ id }) => id === link.id);
      const links = known
        ? shown.links.map((other) => (other.id === link.id ? link : other))
        : [...shown.links, link];
      return { ...shown, links };
    });
    if (isChanging(link)) {
      pollSoon.current();
    }
  }, []);

  useEffect(() => {
    let timer: ReturnType<typeof setTimeout> | undefined;
    let stopped = false;
    let polling = false;
    const poll = async () => {
      if (polling) {
        return;
      }
      polling = true;
      clearTimeout(timer);
      if (!document.hidden) {
        await refresh();
      }
      polling = false;
      if (!stopped) {
        timer = setTimeout(poll, changing.current ? POLL_CHANGING_MS : POLL_SETTLED_MS);
      }
    };
    pollSoon.current = () => {
      if (!polling && !stopped) {
        clearTimeout(timer);
        timer = setTimeout(poll, POLL_CHANGING_MS);
      }
    };
    poll();
    document.addEventListener("visibilitychange", poll);
    window.addEventListener("online", poll);
    return () => {
      stopped = true;
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", poll);
      window.removeEventListener("online", poll);
    };
  }, [refresh]);

  return { answer, failure, refresh, put };
}
