/** Puts a focus that was lost with the control that had it on the heading of the view. */
export function rescueFocus() {
  // The change that takes the control away is drawn first.
  setTimeout(() => {
    if (document.activeElement === document.body) {
      document.querySelector("h1")?.focus();
    }
  }, 50);
}
