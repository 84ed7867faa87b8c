import { type Cause, CHECKS, type Check, type CheckResult } from "../api.ts";
import { texts } from "../texts.ts";
import { RequestId } from "./failure.tsx";
import { Icon, type IconName } from "./icon.tsx";
import { Spinner } from "./spinner.tsx";

/** What came of a check; a plain cause when the check itself could not be made. */
export type CheckLine = "pending" | CheckResult | Cause;
export type CheckLines = Partial<Record<Check, CheckLine>>;

type Verdict = keyof typeof texts.verdicts;

const ICONS: Record<Exclude<Verdict, "pending">, IconName> = {
  waiting: "waiting",
  ok: "success",
  warn: "warning",
  fail: "error",
  unknown: "unknown",
};

interface CheckListProps {
  lines: CheckLines;
  /** The address was refused, so nothing more is asked. */
  stopped: boolean;
}

export function CheckList({ lines, stopped }: CheckListProps) {
  return (
    <ul class="checks" aria-label={texts.checklist}>
      {(stopped ? CHECKS.slice(0, 1) : CHECKS).map((name) => (
        <Line key={name} name={name} line={lines[name]} />
      ))}
    </ul>
  );
}

function Line({ name, line }: { name: Check; line: CheckLine | undefined }) {
  const verdict = verdictOf(line);
  const result = typeof line === "object" && verdict !== "ok" ? line : null;
  return (
    <li class={`check check-${verdict}`}>
      {verdict === "pending" ? <Spinner /> : <Icon name={ICONS[verdict]} />}
      <div>
        <p>
          {texts.checkNames[name]} <span class="assistive">{texts.verdicts[verdict]}</span>
        </p>
        {result && <p class="check-message">{result.message}</p>}
        {result?.hint && <p class="check-hint">{result.hint}</p>}
        {result && verdict !== "warn" && <RequestId id={result.id} />}
      </div>
    </li>
  );
}

function verdictOf(line: CheckLine | undefined): Verdict {
  if (!line) {
    return "waiting";
  }
  if (line === "pending") {
    return "pending";
  }
  return "verdict" in line ? line.verdict : "unknown";
}
