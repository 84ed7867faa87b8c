import type { ComponentChildren } from "preact";
import { useEffect, useId, useRef } from "preact/hooks";
import { rescueFocus } from "../focus.ts";

interface DialogProps {
  title: string;
  children: ComponentChildren;
  actions: ComponentChildren;
  onClose: () => void;
  /** Enter in a field does this. */
  onSubmit: () => void;
}

/** A modal dialog; the browser's <dialog> keeps the focus inside. */
export function Dialog({ title, children, actions, onClose, onSubmit }: DialogProps) {
  const dialog = useRef<HTMLDialogElement>(null);
  const titleId = useId();

  useEffect(() => {
    const opener = document.activeElement;
    dialog.current?.showModal();
    return () => {
      // Preact has taken the element away by now, so closing it would not give the focus back.
      if (opener instanceof HTMLElement) {
        opener.focus();
      }
      // What opened the dialog may be gone because of it.
      rescueFocus();
    };
  }, []);

  return (
    <dialog
      ref={dialog}
      class="dialog"
      aria-labelledby={titleId}
      onCancel={(event) => {
        event.preventDefault();
        onClose();
      }}
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
        <div class="dialog-body">{children}</div>
        <div class="dialog-actions">{actions}</div>
      </form>
    </dialog>
  );
}
