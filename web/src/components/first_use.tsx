import type { Boot } from "../boot.ts";
import { texts } from "../texts.ts";
import { SetUp } from "./set_up.tsx";

export function FirstUse({ boot }: { boot: Boot }) {
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
        </li>
        <li>
          <h3>{texts.stepLink}</h3>
          <p class="subtle">{texts.stepLinkText}</p>
        </li>
      </ol>
    </section>
  );
}
