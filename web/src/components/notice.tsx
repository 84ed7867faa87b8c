import { texts } from "../texts.ts";
import { Button } from "./button.tsx";
import { Heading } from "./heading.tsx";
import { SectionMessage } from "./section_message.tsx";

interface NoticeProps {
  appearance?: "warning" | "success";
  title: string;
  text: string | null;
  action?: string;
  onAct?: () => void;
}

/** All that there is to say, in place of the page. */
export function Notice({ appearance = "warning", title, text, action, onAct }: NoticeProps) {
  return (
    <main class="page">
      <Heading takeFocus={false}>{texts.appName}</Heading>
      <SectionMessage
        appearance={appearance}
        title={title}
        alert
        actions={onAct && <Button onClick={onAct}>{action}</Button>}
      >
        <p>{text}</p>
      </SectionMessage>
    </main>
  );
}
