// What is known of the instances' groups, for as long as the page lives: a card that is left and met again asks anew, and
// until the answer comes it shows what it knew.

import { useEffect } from "preact/hooks";
import type { LinkedGroups } from "./linked_groups.ts";

/** By the id of the link. */
export type KnownGroups = Map<string, Pick<LinkedGroups, "linked" | "fault">>;

export function useKnownGroups(
  known: KnownGroups,
  linkId: string,
  groups: LinkedGroups,
): LinkedGroups {
  const before = known.get(linkId);
  const linked = groups.linked ?? before?.linked ?? null;
  const fault = groups.fault ?? (groups.linked ? null : (before?.fault ?? null));
  useEffect(() => {
    known.set(linkId, { linked, fault });
  }, [known, linkId, linked, fault]);
  return { ...groups, linked, fault };
}

/** Somebody goes to change them. */
export function forgetLinked(known: KnownGroups, linkId: string) {
  const before = known.get(linkId);
  if (before) {
    known.set(linkId, { ...before, linked: null });
  }
}
