import { useId, useState } from "preact/hooks";
import { texts } from "../texts.ts";
import { Button } from "./button.tsx";

/** Takes the code that the GitLab window shows where it can't hand it over. */
export function PasteCode({ onPaste }: { onPaste: (text: string) => void }) {
  const [typed, setTyped] = useState("");
  const id = useId();

  return (
    <form
      class="field"
      onSubmit={(event) => {
        event.preventDefault();
        if (typed.trim()) {
          onPaste(typed);
        }
      }}
    >
      <label for={id}>{texts.pasteLabel}</label>
      <input
        id={id}
        class="text-field"
        type="text"
        autoComplete="off"
        spellcheck={false}
        aria-describedby={`${id}-help`}
        value={typed}
        onInput={(event) => setTyped(event.currentTarget.value)}
      />
      <p class="field-hint" id={`${id}-help`}>
        {texts.pasteHelp}
      </p>
      <div class="button-row">
        <Button type="submit">{texts.pasteUse}</Button>
      </div>
    </form>
  );
}
