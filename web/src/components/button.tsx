import type { ComponentChildren } from "preact";
import { useLayoutEffect, useRef } from "preact/hooks";
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
  /** From the moment that it is there. */
  takeFocus?: boolean;
  onClick?: () => void;
}

export function Button({
  children,
  appearance = "default",
  type = "button",
  label,
  busy = false,
  disabled = false,
  takeFocus = false,
  onClick,
}: ButtonProps) {
  const inert = busy || disabled;
  const button = useRef<HTMLButtonElement>(null);
  // Before anything else gets it.
  useLayoutEffect(() => {
    if (takeFocus) {
      button.current?.focus();
    }
  }, [takeFocus]);
  return (
    <button
      ref={button}
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
