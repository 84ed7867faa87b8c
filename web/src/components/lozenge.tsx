import type { ComponentChildren } from "preact";

interface LozengeProps {
  appearance: "default" | "success" | "warning" | "danger" | "information";
  children: ComponentChildren;
}

export function Lozenge({ appearance, children }: LozengeProps) {
  return <span class={`lozenge lozenge-${appearance}`}>{children}</span>;
}
