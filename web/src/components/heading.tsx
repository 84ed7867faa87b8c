import type { ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";

/** The heading of a view. Takes the focus when the view takes another's place. */
export function Heading({
  children,
  takeFocus,
}: {
  children: ComponentChildren;
  takeFocus: boolean;
}) {
  const heading = useRef<HTMLHeadingElement>(null);
  useEffect(() => {
    if (takeFocus) {
      heading.current?.focus();
    }
  }, [takeFocus]);
  return (
    <h1 ref={heading} tabIndex={-1}>
      {children}
    </h1>
  );
}
