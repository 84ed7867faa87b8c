import { type Cause, CHECKS, type Check, type CheckResult } from "../api.ts";
import { sentence } from "../sentence.ts";
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
  skipped: "waiting",
  ok: "success",
  warn: "warning",
  fail: "error",
  unknown: "unknown",
};

interface CheckListProps {
  lines: CheckLines;
  /** What nothing more was asked after. */
  stoppedAt: Check | null;
}

export function CheckList({ lines, stoppedAt }: CheckListProps) {
  const shown = stoppedAt === "address" ? CHECKS.slice(0, 1) : CHECKS;
  return (
    <ul class="checks" aria-label={texts.checklist}>
      {shown.map((name) => (
        <Line key={name} name={name} line={lines[name] ?? (stoppedAt ? "skipped" : "waiting")} />
      ))}
    </ul>
  );
}

function Line({ name, line }: { name: Check; line: CheckLine | "waiting" | "skipped" }) {
  const verdict = verdictOf(line);
  const result = typeof line === "object" && verdict !== "ok" ? line : null;
  return (
    <li class={`check check-${verdict}`}>
      {verdict === "pending" ? <Spinner /> : <Icon name={ICONS[verdict]} />}
      <div>
        <p>
          <span>{texts.checkNames[name]}</span>{" "}
          <span class="assistive">{texts.verdicts[verdict]}</span>
        </p>
        {result && <p class="check-message">{sentence(result.message)}</p>}
        {result?.hint && <p class="check-hint">{result.hint}</p>}
        {result && verdict !== "warn" && <RequestId id={result.id} />}
      </div>
    </li>
  );
}

function verdictOf(line: CheckLine | "waiting" | "skipped"): Verdict {
  if (typeof line === "string") {
    return line;
  }
  return "verdict" in line ? line.verdict : "unknown";
}
