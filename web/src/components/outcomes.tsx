import { useEffect, useRef } from "preact/hooks";
import { sentence } from "../sentence.ts";
import type { Outcome } from "../several.ts";
import { texts } from "../texts.ts";
import { RequestId } from "./failure.tsx";
import { SectionMessage } from "./section_message.tsx";

interface OutcomesProps {
  outcomes: Outcome[];
  done: (n: number) => string;
  doneInPart: (done: number, failed: number) => string;
  failedTitle: (done: number, failed: number) => string;
  failedText?: (failed: number) => string;
}

/** What came of an act on several groups, with the cause for each that failed. */
export function Outcomes({ outcomes, done, doneInPart, failedTitle, failedText }: OutcomesProps) {
  const place = useRef<HTMLDivElement>(null);
  const any = outcomes.length > 0;
  // The act was chosen further down.
  useEffect(() => {
    if (any) {
      place.current?.scrollIntoView({ block: "start" });
    }
  }, [any]);

  const failures = outcomes.filter(({ cause }) => cause !== null);
  const failed = failures.length;
  const succeeded = outcomes.length - failed;
  if (!any) {
    return null;
  }
  if (failed === 0) {
    return (
      <div ref={place}>
        <SectionMessage appearance="success" title={done(succeeded)} alert />
      </div>
    );
  }
  const said = [succeeded > 0 && doneInPart(succeeded, failed), failedText?.(failed)];
  const text = said.filter(Boolean).join(" ");
  return (
    <div ref={place}>
      <SectionMessage appearance="error" title={failedTitle(succeeded, failed)} alert>
        {text && <p>{text}</p>}
        <ul class="outcomes">
          {byCause(failures).map(({ id, name, cause }) => (
            <li key={id}>
              <strong>{name}</strong>
              <p>{cause && sentence(cause.message)}</p>
              {cause?.hint && <p>{cause.hint}</p>}
              <RequestId id={cause?.id ?? null} />
            </li>
          ))}
        </ul>
      </SectionMessage>
    </div>
  );
}

// A cause that many share is said once.
function byCause(failures: Outcome[]): Outcome[] {
  const found = new Map<string, Outcome>();
  for (const failure of failures) {
    const key = JSON.stringify(failure.cause);
    const same = found.get(key);
    const name = same ? same.name + texts.listSeparator + failure.name : failure.name;
    found.set(key, { ...failure, name });
  }
  return [...found.values()];
}
