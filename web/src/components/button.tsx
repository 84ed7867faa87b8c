import type { ComponentChildren } from "preact";
import { Spinner } from "./spinner.tsx";

interface ButtonProps {
  children: ComponentChildren;
  appearance?: "default" | "primary" | "danger" | "subtle" | "link";
  type?: "button" | "submit";
  /** For a reader who meets the button without what stands around it. */
  label?: string;
  /** Works on it: keeps the focus, does nothing more. */
  busy?: boolean;
  disabled?: boolean;
  onClick?: () => void;
}

export function Button({
  children,
  appearance = "default",
  type = "button",
  label,
  busy = false,
  disabled = false,
  onClick,
}: ButtonProps) {
  const inert = busy || disabled;
  return (
    <button
      type={type}
      class={`button button-${appearance}`}
      aria-label={label}
      aria-busy={busy || undefined}
      aria-disabled={inert || undefined}
      onClick={(event) => {
        if (inert) {
          event.preventDefault();
        } else {
          onClick?.();
        }
      }}
    >
      {busy && <Spinner />}
      {children}
    </button>
  );
}
