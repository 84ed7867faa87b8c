import type { Cause } from "../api.ts";
import { RequestId } from "./failure.tsx";
import { SectionMessage } from "./section_message.tsx";

export interface Outcome {
  name: string;
  cause: Cause | null;
}

interface OutcomesProps {
  outcomes: Outcome[];
  summary: (done: number, failed: number) => string;
  failedTitle: string;
  failedText: string | null;
}

/** What came of an act on several groups, with the cause for each that failed. */
export function Outcomes({ outcomes, summary, failedTitle, failedText }: OutcomesProps) {
  const failed = outcomes.filter(({ cause }) => cause !== null);
  if (outcomes.length === 0) {
    return null;
  }
  const text = summary(outcomes.length - failed.length, failed.length);
  if (failed.length === 0) {
    return <SectionMessage appearance="success" title={text} alert />;
  }
  return (
    <SectionMessage appearance="error" title={failedTitle} alert>
      <p>
        {text} {failedText}
      </p>
      <ul class="outcomes">
        {failed.map(({ name, cause }) => (
          <li key={name}>
            <strong>{name}</strong>
            <p>{cause?.message}</p>
            {cause?.hint && <p>{cause.hint}</p>}
            <RequestId id={cause?.id ?? null} />
          </li>
        ))}
      </ul>
    </SectionMessage>
  );
}
