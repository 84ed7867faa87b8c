import type { Boot } from "../boot.ts";
import { texts } from "../texts.ts";
import { Button } from "./button.tsx";
import { SetUp } from "./set_up.tsx";

interface FirstUseProps {
  boot: Boot;
  /** Null where nothing may be changed. */
  onAdd: (() => void) | null;
}

export function FirstUse({ boot, onAdd }: FirstUseProps) {
  return (
    <section class="first-use" aria-labelledby="first-use">
      <h2 id="first-use">{texts.firstUseTitle}</h2>
      <p>{texts.firstUseText}</p>
      <ol class="steps">
        <li>
          <h3>{texts.stepSetUp}</h3>
          <p class="subtle">{texts.stepSetUpText}</p>
          <SetUp boot={boot} />
        </li>
        <li>
          <h3>{texts.stepAdd}</h3>
          <p class="subtle">{texts.stepAddText}</p>
          {onAdd && (
            <Button appearance="primary" onClick={onAdd}>
              {texts.addInstance}
            </Button>
          )}
        </li>
        <li>
          <h3>{texts.stepLink}</h3>
          <p class="subtle">{texts.stepLinkText}</p>
        </li>
      </ol>
    </section>
  );
}
