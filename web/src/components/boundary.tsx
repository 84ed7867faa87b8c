import type { ComponentChildren } from "preact";
import { useErrorBoundary } from "preact/hooks";
import { causeOf } from "../api.ts";
import { texts } from "../texts.ts";
import { Notice } from "./notice.tsx";

/** A mistake of ours in drawing the page ends in words, not in half a page. */
export function Boundary({
  reload,
  children,
}: {
  reload: () => void;
  children: ComponentChildren;
}) {
  const [error] = useErrorBoundary();
  if (error) {
    const { message, hint } = causeOf(error);
    return <Notice title={message} text={hint} action={texts.reloadPage} onAct={reload} />;
  }
  return <>{children}</>;
}
