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

export function useLinks(api: Api): LinkList {
  const [answer, setAnswer] = useState<Links | null>(null);
  const [failure, setFailure] = useState<Cause | null>(null);
  const changing = useRef(false);
  // An answer that was on its way while something changed is older than what is shown.
  const changes = useRef(0);

  changing.current =
    answer?.links.some(({ state }) => state === "pending" || state === "removing") ?? false;

  const refresh = useCallback(async () => {
    const before = changes.current;
    try {
      const latest = await api.links();
      if (changes.current === before) {
        setAnswer(latest);
      }
      setFailure(null);
    } catch (error) {
      setFailure(causeOf(error));
    }
  }, [api]);

  const put = useCallback((link: Link) => {
    changes.current += 1;
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
  }, []);

  useEffect(() => {
    let timer: ReturnType<typeof setTimeout> | undefined;
    let stopped = false;
    const poll = async () => {
      clearTimeout(timer);
      if (!document.hidden) {
        await refresh();
      }
      // A poll that was asked for meanwhile has set its own timer.
      clearTimeout(timer);
      if (!stopped) {
        timer = setTimeout(poll, changing.current ? POLL_CHANGING_MS : POLL_SETTLED_MS);
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
