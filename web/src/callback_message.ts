// What the OAuth callback page tells the page that opened it.

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
