// Forge's Custom UI: a document on Atlassian's CDN in a sandboxed frame, which reaches its host through npm
// @forge/bridge. Calls to the relay go by way of Forge, which adds the invocation token that says who asks
// and for which site (https://developer.atlassian.com/platform/forge/apis-reference/ui-api-bridge/invokeRemote/).

import { silence, understood } from "../api.ts";
import { bootShape } from "../boot.ts";
import { type Answer, type Call, type Host, HostError } from "../host.ts";

type Bridge = typeof import("@forge/bridge");

// Forge gives up a call after 25 s.
const BOOT_MAX_MS = 30_000;

/** `base`: the relay's base path, which `forge init` wrote into the document. */
export async function forgeHost(base: string): Promise<Host> {
  const bridge = await bridgeOf();
  // Sets data-color-mode and data-theme on <html>, now and whenever the user changes Jira's theme. A page in
  // other colours than Jira's is still a page.
  const themed = bridge.view.theme.enable().catch(() => {});
  const request = (call: Call, signal: AbortSignal) => requested(bridge, base, call, signal);
  const asked = request({ method: "GET", path: "page/boot" }, AbortSignal.timeout(BOOT_MAX_MS));
  const told = await asked.catch((error) => {
    throw error instanceof HostError ? error : silence(error);
  });
  const boot = understood(told, bootShape);
  await themed;
  return {
    boot,
    request,
    // The manifest decides it (permissions.external.fetch.client), and the document can't read that.
    mayCall: () => true,
    // The frame's sandbox has allow-popups in Atlassian's @forge/csp, and has none in the documentation
    // (https://developer.atlassian.com/platform/forge/custom-ui/iframe/). Jira asks the user first, unless the
    // address is in the manifest's permissions.external.navigation.
    openElsewhere: (url) => bridge.router.open(url),
    reload: () => {
      bridge.router.reload();
    },
  };
}

// The package looks for its host when it is loaded, and throws if there is none.
async function bridgeOf(): Promise<Bridge> {
  try {
    return await import("@forge/bridge");
  } catch {
    throw new HostError("not_framed");
  }
}

async function requested(
  { invokeRemote }: Bridge,
  base: string,
  { method, path, body }: Call,
  signal: AbortSignal,
): Promise<Answer> {
  const input = {
    method: method as Parameters<typeof invokeRemote>[0]["method"],
    // Taken from the remote's baseUrl on, whatever the endpoint's own path is.
    path: `${base}/${path}`,
    ...(body ? { body, headers: { "Content-Type": "application/json" } } : {}),
  };
  const answer = await unlessAborted(invokeRemote(input).catch(refused), signal);
  const { status, body: said, message } = (answer ?? {}) as ForgeAnswer;
  if (typeof status !== "number") {
    throw new TypeError(message ?? "no answer");
  }
  return { status, text: said === undefined || said === null ? "" : JSON.stringify(said) };
}

interface ForgeAnswer {
  status?: number;
  body?: unknown;
  message?: string;
}

// Forge keeps the status 401 for itself: the relay did not believe the invocation token.
function refused(error: unknown): never {
  throw /invocation token/i.test(String(error)) ? new HostError("token_missing") : error;
}

// The bridge takes no signal.
function unlessAborted<T>(answer: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const abort = () => reject(new DOMException("aborted", "AbortError"));
    if (signal.aborted) {
      abort();
    }
    signal.addEventListener("abort", abort, { once: true });
    answer.then(resolve, reject).finally(() => signal.removeEventListener("abort", abort));
  });
}
