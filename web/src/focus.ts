/** Puts a focus that was lost with the control that had it on the heading of the view. */
export function rescueFocus() {
  // The change that takes the control away is drawn first.
  setTimeout(() => {
    if (document.activeElement === document.body) {
      document.querySelector("h1")?.focus();
    }
  }, 50);
}

/** Does so whenever something takes away what has the focus, be it an act of the user's or a poll. */
export function watchFocus(root: HTMLElement) {
  let last: EventTarget | null = null;
  root.addEventListener("focusin", ({ target }) => {
    last = target;
  });
  // Who points elsewhere gives it up.
  document.addEventListener("pointerdown", () => {
    last = null;
  });
  new MutationObserver(() => {
    if (last instanceof Element && !last.isConnected) {
      last = null;
      // Not if it is outside of the frame by now.
      if (document.hasFocus()) {
        rescueFocus();
      }
    }
  }).observe(root, { childList: true, subtree: true });
}
