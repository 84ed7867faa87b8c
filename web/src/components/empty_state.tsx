import type { ComponentChildren } from "preact";

interface EmptyStateProps {
  title: string;
  text: string;
  children?: ComponentChildren;
}

export function EmptyState({ title, text, children }: EmptyStateProps) {
  return (
    <div class="empty-state">
      <h2>{title}</h2>
      <p class="subtle">{text}</p>
      {children}
    </div>
  );
}
