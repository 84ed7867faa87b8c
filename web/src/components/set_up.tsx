import type { Boot } from "../boot.ts";
import { texts } from "../texts.ts";
import { CopyField } from "./copy_field.tsx";

/** What a GitLab administrator sets up, with the values to copy. */
export function SetUp({ boot }: { boot: Boot }) {
  return (
    <ul class="set-up">
      <li>
        <p>{texts.setUpProxyUrl}</p>
        <CopyField label={texts.proxyUrlLabel} value={boot.proxyUrl} />
      </li>
      <li>
        <p>{texts.setUpOauth}</p>
        <CopyField label={texts.redirectUriLabel} value={boot.redirectUri} />
      </li>
      <li>
        <p>{texts.setUpApplicationId}</p>
      </li>
    </ul>
  );
}

/** The same, for who asks for it. */
export function SetUpHelp({ boot }: { boot: Boot }) {
  return (
    <details class="disclosure">
      <summary>{texts.setUpSummary}</summary>
      <SetUp boot={boot} />
    </details>
  );
}
