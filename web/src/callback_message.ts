// What the OAuth callback page and the page that opened it tell each other. The callback speaks first, because
// it can't know where its opener lives: inside Jira that is the relay itself, in Forge it is Atlassian's CDN.

/** From the callback, to anybody: says nothing but that it is there. */
export const CALLBACK_HELLO = "jiraConnectOauthCallbackHello";
/** From the opener: that it waits, which also tells its origin. */
export const CALLBACK_WAITING = "jiraConnectOauthCallbackWaiting";
/** From the opener too, to a callback page that nobody came back to yet: where to go on, in another window. */
export interface Next {
  url: string;
  state: string;
}
/** Where callback pages of one browser hear each other, though the instance cut what else ties them together. */
export const CALLBACK_CHANNEL = "jiraConnectOauthCallbacks";
/** From the callback, to the origin that waits, if it is one that may know. */
export const CALLBACK_TYPE = "jiraConnectOauthCallback";

export type CallbackMessage =
  | { type: typeof CALLBACK_TYPE; success: true; code: string; state: string }
  | {
      type: typeof CALLBACK_TYPE;
      success: false;
      error: string;
      errorDescription: string;
      state: string;
    };

/** What a person carries to the page by hand, where windows can't hear each other. */
export function pasteOf(code: string, state: string): string {
  return `${code}.${state}`;
}

/** The state is base64url, so what stands behind the last dot is all of it. */
export function pasted(text: string): { code: string; state: string } | null {
  const dot = text.trim().lastIndexOf(".");
  return dot > 0 ? { code: text.trim().slice(0, dot), state: text.trim().slice(dot + 1) } : null;
}
