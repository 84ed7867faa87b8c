import type { LinkedGroups } from "../linked_groups.ts";
import { texts } from "../texts.ts";

/** How many groups an instance has linked. What hinders the answer is said below, or for the page as a whole. */
export function GroupsCount({ groups }: { groups: LinkedGroups }) {
  if (groups.fault || (groups.failure && !groups.linked)) {
    return <>{texts.groupsUnknown}</>;
  }
  return <>{groups.linked ? texts.groupsLinked(groups.linked.length) : texts.groupsLoading}</>;
}
