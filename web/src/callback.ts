// The page that GitLab's OAuth sends the popup to. It hands what it got to the page that opened it, which
// checks it; to nobody but the relay's own origin and those that the relay names in this document.

import {
  CALLBACK_HELLO,
  CALLBACK_TYPE,
  CALLBACK_WAITING,
  type CallbackMessage,
  pasteOf,
} from "./callback_message.ts";
import { callbackTexts } from "./texts.ts";

const OPENER_MAX_MS = 3_000;

const query = new URLSearchParams(window.location.search);
// The code is worth nothing without the verifier; still it has no place in the history.
window.history.replaceState(null, "", window.location.pathname);

const message = messageOf(query);
const { openers, paste } = document.body.dataset;
const allowed = [window.location.origin, ...(openers ?? "").split(" ").filter(Boolean)];
const opener = window.opener as Window | null;

if (opener) {
  const alone = setTimeout(unheard, OPENER_MAX_MS);
  window.addEventListener("message", (event) => {
    if (event.source !== opener || event.data?.type !== CALLBACK_WAITING) {
      return;
    }
    clearTimeout(alone);
    if (allowed.includes(event.origin)) {
      opener.postMessage(message, event.origin);
      say(
        message.success ? callbackTexts.signedIn : callbackTexts.notSignedIn,
        callbackTexts.closeWindow,
      );
      window.close();
    } else {
      unheard();
    }
  });
  opener.postMessage({ type: CALLBACK_HELLO }, "*");
} else {
  unheard();
}

// Nobody is there who may know. Where the page in Jira asks for it, a person can carry the code.
function unheard() {
  if (paste === undefined) {
    say(callbackTexts.noOpener, callbackTexts.startAgain);
  } else if (message.success) {
    say(callbackTexts.almostSignedIn, callbackTexts.pasteCode);
    offer(pasteOf(message.code, message.state));
  } else {
    say(callbackTexts.notSignedIn, message.errorDescription || message.error);
  }
}

function messageOf(query: URLSearchParams): CallbackMessage {
  const state = query.get("state") ?? "";
  const code = query.get("code");
  return code
    ? { type: CALLBACK_TYPE, success: true, code, state }
    : {
        type: CALLBACK_TYPE,
        success: false,
        error: query.get("error") ?? "code_missing",
        errorDescription: query.get("error_description") ?? "",
        state,
      };
}

function offer(text: string) {
  const code = document.createElement("code");
  code.id = "code";
  code.textContent = text;
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = callbackTexts.copy;
  const said = document.createElement("p");
  said.setAttribute("role", "status");
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text);
    said.textContent = callbackTexts.copied;
  });
  const line = document.createElement("p");
  line.append(code);
  document.querySelector("main")?.append(line, button, said);
}

function say(title: string, text: string) {
  document.title = title;
  for (const [id, content] of [
    ["title", title],
    ["text", text],
  ] as const) {
    const element = document.getElementById(id);
    if (element) {
      element.textContent = content;
    }
  }
}
