import { render } from "preact";
import { App } from "./app.tsx";
import { readBoot } from "./boot.ts";
import { connectHost } from "./hosts/connect.ts";

const root = document.getElementById("app");
if (root) {
  const boot = readBoot(root);
  root.replaceChildren();
  render(<App findHost={(again) => connectHost(boot, again)} />, root);
}
