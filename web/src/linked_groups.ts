// The groups of an instance that are linked to this Jira site. The relay asks the instance.

import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { type Api, type Cause, causeOf, type LinkedGroup, type LinkState } from "./api.ts";
import type { Group } from "./gitlab.ts";

// What lies between the browser and the relay says nothing of the instance.
const NOT_OF_THE_INSTANCE =
  /^(token_|session_|relay_|offline$|answer_not_understood$|script_|not_framed$|page_)/;

export interface LinkedGroups {
  linked: LinkedGroup[] | null;
  failure: Cause | null;
  /** What ails the instance itself, as far as anybody knows: it outlasts a relay that can't be asked. */
  fault: Cause | null;
  reload(): Promise<void>;
  /** The same, unless an answer is on its way. */
  poll(): void;
  /** Drops one that was just unlinked. */
  drop(groupId: number): void;
}

export function useLinkedGroups(api: Api, linkId: string, wanted: boolean): LinkedGroups {
  const [linked, setLinked] = useState<LinkedGroup[] | null>(null);
  const [failure, setFailure] = useState<Cause | null>(null);
  const [fault, setFault] = useState<Cause | null>(null);

  // What was asked for last, until it is answered: an older answer tells nothing new.
  const newest = useRef<Promise<LinkedGroup[]> | null>(null);
  // An answer that was on its way may still have them.
  const dropped = useRef(new Set<number>());

  const reload = useCallback(async () => {
    const asked = api.groups(linkId);
    newest.current = asked;
    const tell = (act: () => void) => {
      if (newest.current === asked) {
        newest.current = null;
        act();
      }
    };
    try {
      const groups = await asked;
      tell(() => {
        setLinked(groups.filter(({ id }) => !dropped.current.has(id)));
        setFailure(null);
        setFault(null);
      });
    } catch (error) {
      const cause = causeOf(error);
      tell(() => {
        setFailure(cause);
        if (!NOT_OF_THE_INSTANCE.test(cause.code)) {
          setFault(cause);
        }
      });
    }
  }, [api, linkId]);

  const poll = useCallback(() => {
    if (!newest.current) {
      reload();
    }
  }, [reload]);

  const drop = useCallback((groupId: number) => {
    dropped.current.add(groupId);
    setLinked((groups) => groups?.filter(({ id }) => id !== groupId) ?? null);
  }, []);

  useEffect(() => {
    if (wanted) {
      reload();
    }
  }, [reload, wanted]);

  return { linked, failure, fault, reload, poll, drop };
}

const LOOK_MS = 60_000;
const LOOK_FAILED_MS = 15_000;

/** The same, looked at again and again: it is what tells whether an instance still answers. */
export function useWatchedGroups(api: Api, linkId: string, state: LinkState): LinkedGroups {
  const wanted = state === "connected" || state === "failing";
  const groups = useLinkedGroups(api, linkId, wanted);
  const { reload, poll, failure } = groups;
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
        poll();
      }
    };
    const timer = setInterval(look, failure ? LOOK_FAILED_MS : LOOK_MS);
    return () => clearInterval(timer);
  }, [poll, wanted, failure]);
  return groups;
}

/**
 * Whether a group of GitLab's is one of the linked, of which GitLab tells the names only (its
 * `subscription_entity.rb`). Those it keeps apart only within a parent, and not at the top.
 */
export function isLinked(
  group: Group,
  linked: LinkedGroup[],
  seen: Iterable<Group>,
): "yes" | "maybe" | "no" {
  const named = linked.filter(({ full_name }) => full_name === group.full_name);
  const alike = named.filter((one) => described(one) === described(group));
  const rivals = sameNamed(group, seen).filter((one) => described(one) === described(group));
  if (alike.length > rivals.length) {
    return "yes";
  }
  return named.length > 0 ? "maybe" : "no";
}

/** The others that are called the same. */
export function sameNamed(group: Group, among: Iterable<Group>): Group[] {
  return [...among].filter(({ id, full_name }) => id !== group.id && full_name === group.full_name);
}

function described({ description }: { description: string | null }): string {
  return description ?? "";
}
