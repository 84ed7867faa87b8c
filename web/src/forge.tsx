import { render } from "preact";
import { App } from "./app.tsx";
import { watchFocus } from "./focus.ts";
import { forgeHost } from "./hosts/forge.ts";

const root = document.getElementById("app");
if (root) {
  const base = root.dataset.base ?? "";
  root.replaceChildren();
  watchFocus(root);
  render(<App findHost={() => forgeHost(base)} />, root);
}
