import { useRef, useState } from "preact/hooks";
import { texts } from "../texts.ts";
import { Button } from "./button.tsx";

export function CopyField({ label, value }: { label: string; value: string }) {
  const shown = useRef<HTMLElement>(null);
  const [copied, setCopied] = useState(false);

  return (
    <div class="copy-field">
      <p class="copy-label">{label}</p>
      <div class="copy-field-row" onFocusOut={() => setCopied(false)}>
        <code ref={shown} class="copy-value">
          {value}
        </code>
        <Button
          label={copied ? texts.copiedOf(label) : texts.copyOf(label)}
          onClick={async () => setCopied(await copy(value, shown.current))}
        >
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
async function copy(value: string, shown: HTMLElement | null): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(value);
    return true;
  } catch {
    if (!shown) {
      return false;
    }
    window.getSelection()?.selectAllChildren(shown);
    return document.execCommand("copy");
  }
}
