import { render } from "preact";
import { App } from "./app.tsx";
import { readBoot } from "./boot.ts";
import { watchFocus } from "./focus.ts";
import { connectHost } from "./hosts/connect.ts";
import { outsideHost } from "./hosts/outside.ts";

const root = document.getElementById("app");
if (root) {
  const boot = readBoot(root);
  root.replaceChildren();
  watchFocus(root);
  const { pageToken } = boot;
  const findHost = (again: boolean) =>
    pageToken ? outsideHost(boot, pageToken) : connectHost(boot, again);
  render(<App findHost={findHost} />, root);
}
