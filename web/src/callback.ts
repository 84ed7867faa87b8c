// The page that GitLab's OAuth sends the popup to. It hands what it got to the page that opened it, which
// checks it; to nobody but the relay's own origin and those that the relay names in this document.

import {
  CALLBACK_CHANNEL,
  CALLBACK_HELLO,
  CALLBACK_TYPE,
  CALLBACK_WAITING,
  type CallbackMessage,
  type Next,
  pasteOf,
} from "./callback_message.ts";
import { callbackTexts } from "./texts.ts";

const OPENER_MAX_MS = 3_000;
const CHANNEL_MAX_MS = 1_000;

const query = new URLSearchParams(window.location.search);
// The code is worth nothing without the verifier; still it has no place in the history.
window.history.replaceState(null, "", window.location.pathname);

const message = messageOf(query);
const { openers, paste } = document.body.dataset;
const allowed = [window.location.origin, ...(openers ?? "").split(" ").filter(Boolean)];
const opener = window.opener as Window | null;

const channel = new BroadcastChannel(CALLBACK_CHANNEL);

if (opener) {
  const alone = setTimeout(unheard, OPENER_MAX_MS);
  window.addEventListener("message", (event) => {
    if (event.source !== opener || event.data?.type !== CALLBACK_WAITING) {
      return;
    }
    clearTimeout(alone);
    if (!allowed.includes(event.origin)) {
      unheard();
    } else if (event.data.next) {
      goOn(opener, event.origin, event.data.next);
    } else {
      opener.postMessage(message, event.origin);
      told(message);
      window.close();
    }
  });
  opener.postMessage({ type: CALLBACK_HELLO }, "*");
} else {
  // The opener may be cut off, but not a window that goes on for it.
  const alone = setTimeout(unheard, CHANNEL_MAX_MS);
  channel.addEventListener("message", ({ data }) => {
    if (data?.type === CALLBACK_WAITING && data.state === message.state) {
      clearTimeout(alone);
      told(message);
      window.close();
    }
  });
  channel.postMessage(message);
}

// An instance with a Cross-Origin-Opener-Policy cuts a window off from what opened it. So this one stays with the
// opener, and the instance gets another, which comes back to our origin and is heard by the channel.
function goOn(opener: Window, origin: string, { url, state }: Next) {
  if (!/^https?:/.test(url)) {
    return;
  }
  say(callbackTexts.keepOpen, callbackTexts.keepOpenText);
  const link = document.createElement("a");
  link.href = url;
  link.target = "_blank";
  link.rel = "noopener noreferrer";
  link.textContent = callbackTexts.goOn;
  const line = document.createElement("p");
  line.append(link);
  document.querySelector("main")?.append(line);
  channel.addEventListener("message", ({ data }) => {
    if (data?.type === CALLBACK_TYPE && data.state === state) {
      channel.postMessage({ type: CALLBACK_WAITING, state });
      opener.postMessage(data, origin);
      line.remove();
      told(data);
      window.close();
    }
  });
}

function told({ success }: CallbackMessage) {
  say(success ? callbackTexts.signedIn : callbackTexts.notSignedIn, callbackTexts.closeWindow);
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
