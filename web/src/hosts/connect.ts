// Jira's Connect frame: the only file that knows Atlassian's AP.js.

import type { Boot } from "../boot.ts";
import { type Host, HostError } from "../host.ts";
import { fetched } from "./fetched.ts";

// https://developer.atlassian.com/cloud/jira/platform/jsapi/context/
// The host adds `context` and `navigator` per product, so they are missing outside of a Jira frame.
interface Ap {
  context?: { getToken(callback: (token: string) => void): void };
  navigator?: { reload(): void };
  theming?: { initializeTheming(): void };
}

declare global {
  interface Window {
    AP?: Ap;
  }
}

const SCRIPT_ID = "ac-iframe-options";
const CONNECT_MAX_MS = 10_000;
const TOKEN_MAX_MS = 10_000;
const POLL_MS = 50;

/** Waits for AP.js. Its script may have loaded or failed before we ran, so events alone do not tell. */
export async function connectHost(boot: Boot, again: boolean): Promise<Host> {
  if (again) {
    retryScript();
  }
  const deadline = Date.now() + CONNECT_MAX_MS;
  while (!window.AP?.context) {
    if (Date.now() > deadline) {
      throw window.AP ? new HostError("not_framed") : new HostError("script_missing", scriptHost());
    }
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
  const ap = window.AP;
  // The address holds Jira's signed token, and AP.js logs the address whenever our policy refuses it
  // something. Neither of us needs it any more: reloading goes through Jira, which signs anew.
  window.history.replaceState(null, "", window.location.pathname);
  // Sets data-color-mode and data-theme on <html>, now and whenever the user changes Jira's theme.
  // It also adds <link>s to Atlassian's CDN. page.css has the same values, so nothing is missing when they do not load.
  ap.theming?.initializeTheming();
  return {
    boot,
    async request(call, signal) {
      const token = await tokenOf(ap);
      return fetched(boot.base, call, { Authorization: `JWT ${token}` }, signal);
    },
    mayCall: (origin) => boot.origins.includes(origin),
    openElsewhere: null,
    reload: () => (ap.navigator ? ap.navigator.reload() : window.location.reload()),
  };
}

function scriptHost(): string {
  const script = document.getElementById(SCRIPT_ID);
  return script instanceof HTMLScriptElement ? new URL(script.src).host : "";
}

/** Asks for AP.js again: a script element runs once, so a new one takes the old one's place. */
function retryScript() {
  const old = document.getElementById(SCRIPT_ID);
  if (!(old instanceof HTMLScriptElement) || window.AP) {
    return;
  }
  const script = document.createElement("script");
  script.id = old.id;
  // A request that got no answer holds back another one for the same address.
  const url = new URL(old.src);
  url.searchParams.set("retry", String(Date.now()));
  script.src = url.href;
  script.async = true;
  // AP.js reads its options from the element with this id.
  script.dataset.options = old.dataset.options ?? "";
  old.replaceWith(script);
}

// AP.js keeps a token until less than 60 s of it are left. Its callback has no place for a failure, so
// silence and an empty answer are taken for one.
function tokenOf(ap: Ap): Promise<string> {
  return new Promise((resolve, reject) => {
    const missing = () => reject(new HostError("token_missing"));
    const timer = setTimeout(missing, TOKEN_MAX_MS);
    ap.context?.getToken((token) => {
      clearTimeout(timer);
      if (token) {
        resolve(token);
      } else {
        missing();
      }
    });
  });
}
