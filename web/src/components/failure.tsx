import type { ComponentChildren } from "preact";
import type { Cause } from "../api.ts";
import { sentence } from "../sentence.ts";
import { texts } from "../texts.ts";
import { SectionMessage } from "./section_message.tsx";

interface FailureProps {
  cause: Cause;
  appearance?: "error" | "warning" | "information";
  title?: string;
  children?: ComponentChildren;
  actions?: ComponentChildren;
  alert?: boolean;
}

/** What went wrong, what to do, and the id that finds it in the relay's log. */
export function Failure({
  cause,
  appearance = "error",
  title,
  children,
  actions,
  alert = true,
}: FailureProps) {
  return (
    <SectionMessage
      appearance={appearance}
      title={title ?? cause.message}
      alert={alert}
      actions={actions}
    >
      {title && <p>{sentence(cause.message)}</p>}
      {cause.hint && <p>{cause.hint}</p>}
      {children}
      <RequestId id={cause.id} />
    </SectionMessage>
  );
}

export function RequestId({ id }: { id: string | null }) {
  return id ? (
    <p class="request-id">
      {texts.requestId} <code>{id}</code>
    </p>
  ) : null;
}
