import { useId, useRef, useState } from "preact/hooks";
import { texts } from "../texts.ts";
import { Button } from "./button.tsx";

export function CopyField({ label, value }: { label: string; value: string }) {
  const field = useRef<HTMLInputElement>(null);
  const id = useId();
  const [copied, setCopied] = useState(false);

  const copy = async () => {
    setCopied(await copyFrom(field.current));
  };

  return (
    <div class="copy-field">
      <label for={id}>{label}</label>
      <div class="copy-field-row">
        <input
          ref={field}
          id={id}
          class="text-field text-field-code"
          readOnly
          value={value}
          onFocus={(event) => event.currentTarget.select()}
          onBlur={() => setCopied(false)}
        />
        <Button label={texts.copyOf(label)} onClick={copy}>
          {copied ? texts.copied : texts.copy}
        </Button>
      </div>
      <span class="assistive" role="status">
        {copied && texts.copied}
      </span>
    </div>
  );
}

// The clipboard API needs the parent's permission (clipboard-write), which the frame that Connect makes
// does not give; the old way needs none.
async function copyFrom(field: HTMLInputElement | null): Promise<boolean> {
  if (!field) {
    return false;
  }
  try {
    await navigator.clipboard.writeText(field.value);
    return true;
  } catch {
    field.select();
    return document.execCommand("copy");
  }
}
