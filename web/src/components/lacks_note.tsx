import type { Lack } from "../boot.ts";
import { texts } from "../texts.ts";
import { SectionMessage } from "./section_message.tsx";

/** What Jira can't do with this way to it, so that nobody looks for it. */
export function LacksNote({ lacks }: { lacks: Lack[] }) {
  if (lacks.length === 0) {
    return null;
  }
  return (
    <SectionMessage appearance="information" title={texts.lacksTitle}>
      <ul class="causes">
        {lacks.map((lack) => (
          <li key={lack}>{texts.lacks[lack]}</li>
        ))}
      </ul>
    </SectionMessage>
  );
}
