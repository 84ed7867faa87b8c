import { useEffect, useId, useRef, useState } from "preact/hooks";
import { type Api, type Cause, CHECKS, type Check, causeOf, explained, type Link } from "../api.ts";
import type { Boot } from "../boot.ts";
import { sentence } from "../sentence.ts";
import { texts } from "../texts.ts";
import { Button } from "./button.tsx";
import { type CheckLine, type CheckLines, CheckList } from "./check_list.tsx";
import { Dialog } from "./dialog.tsx";
import { Failure } from "./failure.tsx";
import { SetUpHelp } from "./set_up.tsx";

interface AddDialogProps {
  api: Api;
  boot: Boot;
  onClose: () => void;
  onAdded: (link: Link) => void;
}

// Each of them tells whether the next is worth a try.
const FIRST_CHECKS: readonly Check[] = ["address", "reachable"];

export function AddDialog({ api, boot, onClose, onAdded }: AddDialogProps) {
  const [typed, setTyped] = useState("");
  const [instanceUrl, setInstanceUrl] = useState<string | null>(null);
  const [lines, setLines] = useState<CheckLines | null>(null);
  const [fieldError, setFieldError] = useState<string | null>(null);
  const [failure, setFailure] = useState<Cause | null>(null);
  const [adding, setAdding] = useState(false);
  // Answers to what was typed before are dropped.
  const run = useRef(0);
  const field = useRef<HTMLInputElement>(null);
  const id = useId();

  useEffect(() => {
    field.current?.focus();
  }, []);

  const type = (value: string) => {
    run.current += 1;
    setTyped(value);
    setInstanceUrl(null);
    setLines(null);
    setFieldError(null);
    setFailure(null);
  };

  const check = async () => {
    const url = typed.trim();
    if (!url) {
      setFieldError(texts.urlMissing);
      field.current?.focus();
      return;
    }
    run.current += 1;
    const mine = run.current;
    const show = (update: CheckLines) => {
      if (run.current === mine) {
        setLines((shown) => ({ ...shown, ...update }));
      }
    };
    const ask = async (name: Check) => {
      show({ [name]: "pending" });
      const line: CheckLine = await api.check(url, name).then(explained).catch(causeOf);
      show({ [name]: line });
      return line;
    };
    setFieldError(null);
    setFailure(null);
    setLines({});
    const address = await ask("address");
    if (run.current !== mine) {
      return;
    }
    if (!("verdict" in address)) {
      setLines(null);
      if (address.code === "instance_url_malformed") {
        setFieldError(sentence(address.message));
        field.current?.focus();
      } else {
        setFailure(address);
      }
      return;
    }
    setInstanceUrl(address.instance_url);
    // What is not reached fails all the others, for the same cause.
    if (!failed(address) && !failed(await ask("reachable"))) {
      await Promise.all(CHECKS.filter((name) => !FIRST_CHECKS.includes(name)).map(ask));
    }
  };

  const add = async () => {
    setAdding(true);
    setFailure(null);
    try {
      onAdded(await api.add(instanceUrl ?? typed.trim()));
    } catch (error) {
      setFailure(causeOf(error));
      setAdding(false);
    }
  };

  const results = CHECKS.map((name) => lines?.[name]).filter((line) => line !== undefined);
  const checking = results.includes("pending");
  const stoppedAt = FIRST_CHECKS.find((name) => failed(lines?.[name])) ?? null;
  const refused = stoppedAt === "address";
  const checked = !checking && (results.length === CHECKS.length || stoppedAt === "reachable");
  const attention = results.filter(needsAttention).length;
  const anyFailed = results.some(failed);
  const submit =
    checked && !anyFailed
      ? { text: attention > 0 ? texts.addAnyway : texts.addConfirm, busy: adding, disabled: false }
      : checking && instanceUrl
        ? { text: texts.addConfirm, busy: false, disabled: true }
        : {
            text: stoppedAt || checked ? texts.checkAgain : texts.check,
            busy: checking,
            disabled: adding,
          };
  const hintId = `${id}-hint`;
  const errorId = `${id}-error`;

  return (
    <Dialog
      title={texts.addTitle}
      busy={adding}
      onClose={onClose}
      onSubmit={() => {
        if (!checking && !adding) {
          checked && !anyFailed ? add() : check();
        }
      }}
      actions={
        <>
          <Button appearance="subtle" disabled={adding} onClick={onClose}>
            {texts.cancel}
          </Button>
          {checked && attention > 0 && !anyFailed && (
            <Button
              disabled={adding}
              onClick={() => {
                // The button goes while it is checked.
                field.current?.focus();
                check();
              }}
            >
              {texts.checkAgain}
            </Button>
          )}
          {checked && anyFailed && (
            <Button busy={adding} onClick={add}>
              {texts.addAnyway}
            </Button>
          )}
          <Button
            // Checking again changes nothing about an address that is refused.
            appearance={refused ? "default" : "primary"}
            type="submit"
            busy={submit.busy}
            disabled={submit.disabled}
          >
            {submit.text}
          </Button>
        </>
      }
    >
      <div class="field">
        <label for={id}>{texts.addUrlLabel}</label>
        <input
          ref={field}
          id={id}
          class="text-field"
          type="url"
          inputMode="url"
          autoComplete="off"
          autoCapitalize="none"
          spellcheck={false}
          readOnly={adding}
          value={typed}
          aria-describedby={fieldError ? errorId : hintId}
          aria-invalid={fieldError ? true : undefined}
          onInput={(event) => type(event.currentTarget.value)}
        />
        {fieldError ? (
          <p class="field-error" id={errorId} role="alert">
            {fieldError}
          </p>
        ) : (
          <p class="field-hint" id={hintId}>
            {texts.addUrlHint}
          </p>
        )}
      </div>
      {instanceUrl && !refused && <p class="will-link">{texts.willLink(instanceUrl)}</p>}
      {lines && <CheckList lines={lines} stoppedAt={checking ? null : stoppedAt} />}
      <p class={stoppedAt === "reachable" ? "subtle" : "assistive"} role="status">
        {checked && (stoppedAt === "reachable" ? texts.checksStopped : texts.checksDone(attention))}
      </p>
      {checked && attention > 0 && (
        <p class="subtle">{anyFailed ? texts.addFailedText : texts.addWarnedText}</p>
      )}
      {failure && <Failure cause={failure} />}
      <SetUpHelp boot={boot} />
    </Dialog>
  );
}

/** Nothing good can come of it; a check that could not be made counts. */
function failed(line: CheckLine | undefined): boolean {
  return typeof line === "object" && (!("verdict" in line) || line.verdict === "fail");
}

function needsAttention(line: CheckLine): boolean {
  return failed(line) || (typeof line === "object" && "verdict" in line && line.verdict !== "ok");
}
