// The page that GitLab's OAuth sends the popup to. It hands what it got to the page that opened it,
// which checks it; to the same origin only.

import { CALLBACK_TYPE, type CallbackMessage } from "./callback_message.ts";
import { callbackTexts } from "./texts.ts";

const query = new URLSearchParams(window.location.search);
// The code is worth nothing without the verifier; still it has no place in the history.
window.history.replaceState(null, "", window.location.pathname);

const message = messageOf(query);
const opener = window.opener as Window | null;
if (opener) {
  opener.postMessage(message, window.location.origin);
  say(
    message.success ? callbackTexts.signedIn : callbackTexts.notSignedIn,
    callbackTexts.closeWindow,
  );
  window.close();
} else {
  say(callbackTexts.noOpener, callbackTexts.startAgain);
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
