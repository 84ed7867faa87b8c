import { render } from "preact";
import { App } from "./app.tsx";
import { forgeHost } from "./hosts/forge.ts";

const root = document.getElementById("app");
if (root) {
  const base = root.dataset.base ?? "";
  root.replaceChildren();
  render(<App findHost={() => forgeHost(base)} />, root);
}
