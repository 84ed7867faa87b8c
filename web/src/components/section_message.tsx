import type { ComponentChildren } from "preact";
import { Icon, type IconName } from "./icon.tsx";

interface SectionMessageProps {
  appearance: Extract<IconName, "information" | "warning" | "error" | "success">;
  title: string;
  children?: ComponentChildren;
  actions?: ComponentChildren;
  /** Appears because of what just happened, so it is read out at once. */
  alert?: boolean;
}

export function SectionMessage({
  appearance,
  title,
  children,
  actions,
  alert = false,
}: SectionMessageProps) {
  return (
    <div class={`section-message section-message-${appearance}`} role={alert ? "alert" : undefined}>
      <Icon name={appearance} />
      <div class="section-message-body">
        <p class="section-message-title">{title}</p>
        {children}
        {actions && <div class="button-row">{actions}</div>}
      </div>
    </div>
  );
}
