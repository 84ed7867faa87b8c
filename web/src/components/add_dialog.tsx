import { useEffect, useId, useRef, useState } from "preact/hooks";
import { type Api, type Cause, CHECKS, causeOf, explained, type Link } from "../api.ts";
import type { Boot } from "../boot.ts";
import { texts } from "../texts.ts";
import { Button } from "./button.tsx";
import { type CheckLine, type CheckLines, CheckList } from "./check_list.tsx";
import { Dialog } from "./dialog.tsx";
import { Failure } from "./failure.tsx";
import { SetUp } from "./set_up.tsx";

interface AddDialogProps {
  api: Api;
  boot: Boot;
  onClose: () => void;
  onAdded: (link: Link) => void;
}

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
    const ask = async (name: (typeof CHECKS)[number]) => {
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
      if (address.code === "instance_url_malformed") {
        setLines(null);
        setFieldError([address.message, address.hint].filter(Boolean).join(" "));
        field.current?.focus();
      } else {
        setLines(null);
        setFailure(address);
      }
      return;
    }
    setInstanceUrl(address.instance_url);
    if (address.verdict !== "fail") {
      await Promise.all(CHECKS.filter((name) => name !== "address").map(ask));
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
  const attention = results.filter(
    (line) => line !== "pending" && (!("verdict" in line) || line.verdict !== "ok"),
  ).length;
  const address = lines?.address;
  const refused = typeof address === "object" && "verdict" in address && address.verdict === "fail";
  const checked = results.length === CHECKS.length && !checking;
  const hintId = `${id}-hint`;
  const errorId = `${id}-error`;

  return (
    <Dialog
      title={texts.addTitle}
      onClose={onClose}
      onSubmit={() => {
        if (!checking && !adding) {
          checked ? add() : check();
        }
      }}
      actions={
        <>
          <Button appearance="subtle" onClick={onClose}>
            {texts.cancel}
          </Button>
          {checked || (lines && checking && instanceUrl) ? (
            <Button appearance="primary" type="submit" busy={adding} disabled={checking}>
              {attention > 0 && checked ? texts.addAnyway : texts.addConfirm}
            </Button>
          ) : (
            <Button appearance="primary" type="submit" busy={checking}>
              {refused ? texts.checkAgain : texts.check}
            </Button>
          )}
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
          value={typed}
          aria-describedby={fieldError ? `${errorId} ${hintId}` : hintId}
          aria-invalid={fieldError ? true : undefined}
          onInput={(event) => type(event.currentTarget.value)}
        />
        {fieldError && (
          <p class="field-error" id={errorId} role="alert">
            {fieldError}
          </p>
        )}
        <p class="field-hint" id={hintId}>
          {texts.addUrlHint}
        </p>
      </div>
      {instanceUrl && <p class="will-link">{texts.willLink(instanceUrl)}</p>}
      {lines && <CheckList lines={lines} stopped={refused} />}
      <p class="assistive" role="status">
        {checked && texts.checksDone(attention)}
      </p>
      {checked && attention > 0 && (
        <div class="with-action">
          <p class="subtle">{texts.addAnywayText}</p>
          <Button onClick={check}>{texts.checkAgain}</Button>
        </div>
      )}
      {failure && <Failure cause={failure} />}
      <details class="disclosure">
        <summary>{texts.setUpSummary}</summary>
        <SetUp boot={boot} />
      </details>
    </Dialog>
  );
}
