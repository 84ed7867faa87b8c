import type { ComponentChildren } from "preact";
import { useEffect, useId, useRef, useState } from "preact/hooks";

interface DialogProps {
  title: string;
  children: ComponentChildren;
  actions: ComponentChildren;
  /** Something is under way that closing would not take back: it stays until that has ended. */
  busy?: boolean;
  onClose: () => void;
  /** Enter in a field does this. */
  onSubmit: () => void;
}

/** A modal dialog; the browser's <dialog> keeps the focus inside. */
export function Dialog({ title, children, actions, busy = false, onClose, onSubmit }: DialogProps) {
  const dialog = useRef<HTMLDialogElement>(null);
  const body = useRef<HTMLDivElement>(null);
  const end = useRef<HTMLDivElement>(null);
  const [hasMore, setHasMore] = useState(false);
  const titleId = useId();

  useEffect(() => {
    const opener = document.activeElement;
    dialog.current?.showModal();
    return () => {
      // Preact has taken the element away by now, so closing it would not give the focus back.
      if (opener instanceof HTMLElement) {
        opener.focus();
      }
    };
  }, []);

  useEffect(() => {
    const observer = new IntersectionObserver(
      (entries) => setHasMore(!entries.at(-1)?.isIntersecting),
      { root: body.current },
    );
    if (end.current) {
      observer.observe(end.current);
    }
    return () => observer.disconnect();
  }, []);

  return (
    <dialog
      ref={dialog}
      class="dialog"
      aria-labelledby={titleId}
      onKeyDown={(event) => {
        // Chromium closes a dialog at the second Escape, whatever is said to the first.
        if (busy && event.key === "Escape") {
          event.preventDefault();
        }
      }}
      onCancel={(event) => {
        event.preventDefault();
        if (!busy) {
          onClose();
        }
      }}
      // The browser's own way out, for example a gesture, asks nobody.
      onClose={() => (busy ? dialog.current?.showModal() : onClose())}
    >
      <form
        class="dialog-form"
        // The document's policy refuses to send forms, and the browser must not judge the address.
        noValidate
        onSubmit={(event) => {
          event.preventDefault();
          onSubmit();
        }}
      >
        <h2 id={titleId}>{title}</h2>
        <div ref={body} class="dialog-body">
          {children}
          <div ref={end} class="dialog-end" />
        </div>
        <div class={hasMore ? "dialog-actions dialog-actions-below-more" : "dialog-actions"}>
          {actions}
        </div>
      </form>
    </dialog>
  );
}
