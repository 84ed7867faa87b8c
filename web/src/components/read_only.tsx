import type { Cause } from "../api.ts";
import { texts } from "../texts.ts";
import { Button } from "./button.tsx";
import { Failure } from "./failure.tsx";
import { SectionMessage } from "./section_message.tsx";

/** Why somebody may look, and no more. */
export function ReadOnly({ reason, onRefresh }: { reason: Cause; onRefresh: () => void }) {
  // A rule, not a failure: there is nothing to look up in a log.
  if (reason.code === "not_jira_admin" || reason.code === "admins_unknown") {
    return (
      <SectionMessage appearance="information" title={reason.message}>
        <p>{reason.hint}</p>
      </SectionMessage>
    );
  }
  return (
    <Failure
      cause={reason}
      appearance="information"
      title={texts.readOnlyTitle}
      alert={false}
      actions={<Button onClick={onRefresh}>{texts.tryAgain}</Button>}
    />
  );
}
