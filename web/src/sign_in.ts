// Signing in to an instance: OAuth 2 authorization code with PKCE (RFC 7636, S256), in a popup.

import type { SignIn } from "./api.ts";
import {
  CALLBACK_HELLO,
  CALLBACK_TYPE,
  CALLBACK_WAITING,
  type CallbackMessage,
  type Next,
  pasted,
} from "./callback_message.ts";
import type { Host } from "./host.ts";

export type SignInFailure =
  | "no_web_crypto"
  | "popup_blocked"
  | "popup_closed"
  | "denied"
  | "state_mismatch"
  | "failed";

export class SignInError extends Error {
  constructor(
    readonly failure: SignInFailure,
    readonly detail: string | null = null,
  ) {
    super(detail ?? failure);
  }
}

/** One attempt, made ready before the click: browsers allow a popup only straight from the click. */
export interface Attempt {
  url: string;
  state: string;
  codeVerifier: string;
  /** Where the popup comes back to: the relay. */
  callback: URL;
}

/** An attempt that waits for its authorization code. */
export interface Authorization {
  code: Promise<string>;
  /** Takes the code from a person, where the popup can't hand it over; null where it always can. */
  paste: ((text: string) => void) | null;
}

const VERIFIER_BYTES = 64;
const STATE_BYTES = 32;
const CLOSED_POLL_MS = 500;
// The message of a callback page that closed itself may arrive after we see that it is closed.
const CLOSED_GRACE_MS = 1_500;
const POPUP_FEATURES = "popup,width=800,height=800";

export async function prepareAttempt(signIn: SignIn): Promise<Attempt> {
  // WebCrypto is missing in insecure contexts: plain http anywhere but on loopback.
  if (!window.crypto?.subtle) {
    throw new SignInError("no_web_crypto");
  }
  const codeVerifier = base64url(crypto.getRandomValues(new Uint8Array(VERIFIER_BYTES)));
  const state = base64url(crypto.getRandomValues(new Uint8Array(STATE_BYTES)));
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(codeVerifier));
  const url = new URL(signIn.authorize_url);
  url.search = new URLSearchParams({
    client_id: signIn.application_id,
    response_type: "code",
    scope: signIn.scope,
    redirect_uri: signIn.redirect_uri,
    state,
    code_challenge: base64url(new Uint8Array(digest)),
    code_challenge_method: "S256",
  }).toString();
  return { url: url.href, state, codeVerifier, callback: new URL(signIn.redirect_uri) };
}

/**
 * Opens the popup, straight from the click. `inTwo`: it stays at our origin and opens the instance in another, for
 * an instance that cuts its windows off from what opened them.
 */
export function authorize(
  attempt: Attempt,
  { openElsewhere }: Host,
  inTwo: boolean,
  signal: AbortSignal,
): Authorization {
  const { url, state, callback } = attempt;
  const popup = window.open(inTwo ? callback : url, "_blank", POPUP_FEATURES);
  const waiting = inTwo
    ? { type: CALLBACK_WAITING, next: { url, state } satisfies Next }
    : { type: CALLBACK_WAITING };
  let paste = (_text: string) => {};
  const code = new Promise<string>((resolve, reject) => {
    const finish = (outcome: () => void) => {
      window.removeEventListener("message", onMessage);
      signal.removeEventListener("abort", onAbort);
      clearInterval(closedPoll);
      popup?.close();
      outcome();
    };
    const fail = (error: SignInError) => finish(() => reject(error));

    const onMessage = (event: MessageEvent) => {
      if (!popup || event.origin !== callback.origin || event.source !== popup) {
        return;
      }
      const message = event.data as CallbackMessage | { type: typeof CALLBACK_HELLO } | null;
      if (message?.type === CALLBACK_HELLO) {
        popup.postMessage(waiting, callback.origin);
      } else if (message?.type !== CALLBACK_TYPE) {
        return;
      } else if (message.state !== state) {
        fail(new SignInError("state_mismatch"));
      } else if (message.success) {
        finish(() => resolve(message.code));
      } else if (message.error === "access_denied") {
        fail(new SignInError("denied"));
      } else {
        fail(new SignInError("failed", message.errorDescription || message.error));
      }
    };

    paste = (text) => {
      const carried = pasted(text);
      if (carried?.state === state) {
        finish(() => resolve(carried.code));
      } else {
        fail(new SignInError("state_mismatch"));
      }
    };

    const onAbort = () => fail(new SignInError("popup_closed"));

    // A Cross-Origin-Opener-Policy on the instance also makes the popup look closed, for good, and its callback
    // page has no opener: `inTwo` is the way then. Who can paste has read the code in a window that may be gone.
    const closedPoll = setInterval(() => {
      if (popup?.closed && !openElsewhere) {
        clearInterval(closedPoll);
        setTimeout(onAbort, CLOSED_GRACE_MS);
      }
    }, CLOSED_POLL_MS);

    window.addEventListener("message", onMessage);
    signal.addEventListener("abort", onAbort);
    if (!popup) {
      const blocked = () => fail(new SignInError("popup_blocked"));
      openElsewhere ? openElsewhere(url).catch(blocked) : blocked();
    }
  });
  return { code, paste: openElsewhere && paste };
}

function base64url(bytes: Uint8Array): string {
  return btoa(String.fromCharCode(...bytes))
    .replaceAll("+", "-")
    .replaceAll("/", "_")
    .replaceAll("=", "");
}
