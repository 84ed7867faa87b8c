// The relay's API for this page.

import { type Answer, type Host, HostError } from "./host.ts";
import { capitalised, sentence } from "./sentence.ts";
import {
  flag,
  listOf,
  nothing,
  number,
  oneOf,
  orNull,
  parsed,
  record,
  type Shape,
  text,
} from "./shapes.ts";
import { texts } from "./texts.ts";

const STATES = ["pending", "connected", "failing", "removing"] as const;
export type LinkState = (typeof STATES)[number];

export interface Cause {
  code: string;
  message: string;
  hint: string | null;
  /** The request's id, which finds its line in the relay's log. */
  id: string | null;
}

export interface Link {
  id: string;
  instance_url: string;
  state: LinkState;
  gitlab_version: string | null;
  last_seen_at: string | null;
  created_at: string;
  attempts: number;
  next_attempt_at: string | null;
  last_error: (Cause & { at: string }) | null;
  purge: { state: "pending" | "done"; last_error: Cause | null } | null;
  can_purge: boolean;
  can_undo: boolean;
  /** What the relay found broken when it last looked at the instance. */
  faults: Cause[];
}

export interface Links {
  site: string;
  may_change: boolean;
  reason: Cause | null;
  links: Link[];
}

export interface LinkedGroup {
  id: number;
  name: string;
  full_name: string;
  description: string | null;
  created_at: string | null;
}

export const CHECKS = [
  "address",
  "reachable",
  "gitlab",
  "proxy_url",
  "public_key",
  "oauth_application",
] as const;
export type Check = (typeof CHECKS)[number];

export interface CheckResult extends Cause {
  check: Check;
  instance_url: string;
  verdict: "ok" | "warn" | "fail" | "unknown";
}

export interface SignIn {
  application_id: string;
  authorize_url: string;
  token_url: string;
  api_url: string;
  redirect_uri: string;
  scope: string;
  private_network: boolean;
}

export interface ContextToken {
  token: string;
  expires_at: string;
}

const causeFields = {
  code: text,
  message: text,
  hint: orNull(text),
  id: orNull(text),
};
const cause = record<Cause>(causeFields);
const link = record<Link>({
  id: text,
  instance_url: text,
  state: oneOf(STATES),
  gitlab_version: orNull(text),
  last_seen_at: orNull(text),
  created_at: text,
  attempts: number,
  next_attempt_at: orNull(text),
  last_error: orNull(record({ ...causeFields, at: text })),
  purge: orNull(record({ state: oneOf(["pending", "done"]), last_error: orNull(cause) })),
  can_purge: flag,
  can_undo: flag,
  faults: listOf(cause),
});
const linkList = record<Links>({
  site: text,
  may_change: flag,
  reason: orNull(cause),
  links: listOf(link),
});
const checkResult = record<CheckResult>({
  ...causeFields,
  check: oneOf(CHECKS),
  instance_url: text,
  verdict: oneOf(["ok", "warn", "fail", "unknown"]),
});
const linkedGroup = record<LinkedGroup>({
  id: number,
  name: text,
  full_name: text,
  description: orNull(text),
  created_at: orNull(text),
});
const signIn = record<SignIn>({
  application_id: text,
  authorize_url: text,
  token_url: text,
  api_url: text,
  redirect_uri: text,
  scope: text,
  private_network: flag,
});
const refused = record({ error: record({ code: text, message: text }) });
const contextToken = record<ContextToken>({ token: text, expires_at: text });

/** Why a call to the relay gave nothing; the relay's own words where it had a say. */
export class RelayError extends Error implements Cause {
  readonly code: string;
  readonly hint: string | null;
  readonly id: string | null;

  constructor(cause: Cause) {
    super(cause.message);
    this.code = cause.code;
    this.hint = cause.hint;
    this.id = cause.id;
  }
}

export interface Api {
  links(): Promise<Links>;
  add(instanceUrl: string): Promise<Link>;
  remove(linkId: string, purge: boolean): Promise<Link>;
  /** Takes a removal back, as long as the instance has not heard of it. */
  undo(linkId: string): Promise<Link>;
  resend(linkId: string): Promise<Link>;
  /** Looks at the instance before the relay's next round does. */
  look(linkId: string): Promise<Link>;
  check(instanceUrl: string, check: Check): Promise<CheckResult>;
  groups(linkId: string): Promise<LinkedGroup[]>;
  unlinkGroup(linkId: string, groupId: number): Promise<void>;
  signIn(linkId: string): Promise<SignIn>;
  contextToken(linkId: string): Promise<ContextToken>;
  /** Outside Jira: ends the session. */
  logOut(): Promise<void>;
}

// Above the relay's own deadlines, so that its explanation arrives rather than ours.
const ANSWER_MAX_MS = 60_000;

/** `onSessionExpired`: an act of the user's needs a session, and there is none. */
export function relayApi(host: Host, onSessionExpired: () => void): Api {
  const links = "links";
  const of = (linkId: string) => `${links}/${encodeURIComponent(linkId)}`;

  async function call<T>(method: string, path: string, shape: Shape<T>, body?: object): Promise<T> {
    try {
      try {
        return await callOnce(method, path, shape, body);
      } catch (error) {
        if (!isTokenError(error)) {
          throw error;
        }
        return await callOnce(method, path, shape, body);
      }
    } catch (error) {
      // One who only looks can look again, and what they have done so far is not thrown away for it.
      if (isTokenError(error) && method !== "GET") {
        onSessionExpired();
      }
      throw error;
    }
  }

  async function callOnce<T>(
    method: string,
    path: string,
    shape: Shape<T>,
    body?: object,
  ): Promise<T> {
    const abort = new AbortController();
    const timer = setTimeout(() => abort.abort(), ANSWER_MAX_MS);
    try {
      return understood(await host.request({ method, path, body }, abort.signal), shape);
    } catch (error) {
      // Offline, Jira is out of reach too, which says nothing of the session.
      const told = error instanceof HostError && navigator.onLine;
      throw told || error instanceof RelayError ? error : silence(error);
    } finally {
      clearTimeout(timer);
    }
  }

  return {
    links: () => call("GET", links, linkList),
    add: (instance_url) => call("POST", links, link, { instance_url }),
    remove: (linkId, purge) => call("DELETE", of(linkId) + (purge ? "?purge=true" : ""), link),
    undo: (linkId) => call("POST", `${of(linkId)}/undo`, link),
    resend: (linkId) => call("POST", `${of(linkId)}/resend`, link),
    look: (linkId) => call("POST", `${of(linkId)}/look`, link),
    check: (instance_url, check) =>
      call("POST", `${links}/check`, checkResult, { instance_url, check }),
    groups: async (linkId) =>
      (await call("GET", `${of(linkId)}/groups`, record({ groups: listOf(linkedGroup) }))).groups,
    unlinkGroup: (linkId, groupId) => call("DELETE", `${of(linkId)}/groups/${groupId}`, nothing),
    signIn: (linkId) => call("POST", `${of(linkId)}/sign_in`, signIn),
    contextToken: (linkId) => call("POST", `${of(linkId)}/context_token`, contextToken),
    logOut: () => call("DELETE", "page/session", nothing),
  };
}

/** What the relay answered, or its refusal as a failure. */
export function understood<T>({ status, text }: Answer, shape: Shape<T>): T {
  if (status < 200 || status > 299) {
    throw refusal(status, text);
  }
  const value = parsed(text);
  if (shape(value)) {
    return value;
  }
  throw notUnderstood(status);
}

/** What is known about any failure, in the form that the page shows. */
export function causeOf(error: unknown): Cause {
  if (error instanceof RelayError) {
    return explained({ ...error, message: error.message });
  }
  if (error instanceof HostError) {
    return {
      code: error.failure,
      ...texts.hostFailures(error.scriptHost)[error.failure],
      id: null,
    };
  }
  return { code: "page_failed", ...texts.pageFailed(String(error)), id: null };
}

/** The relay's words, or better ones for a Jira admin: the message for a title, the hint as text. */
export function explained<T extends Cause>(cause: T): T {
  const { message, hint } = { ...cause, ...texts.relayErrors[cause.code] };
  return { ...cause, message: capitalised(message), hint: hint && sentence(hint) };
}

/** Nobody vouches for the user (any more). */
export function isSessionOver({ code }: Cause): boolean {
  return /^(token|session)_/.test(code);
}

function isTokenError(error: unknown) {
  return error instanceof HostError || (error instanceof RelayError && isSessionOver(error));
}

function refusal(status: number, text: string): RelayError {
  const answer = parsed(text);
  // A load balancer in front of the relay answers in its own words, usually HTML.
  return refused(answer)
    ? new RelayError({ hint: null, id: null, ...answer.error })
    : notUnderstood(status);
}

function notUnderstood(status: number): RelayError {
  const { message, hint } = texts.notUnderstood(status);
  return new RelayError({ code: "answer_not_understood", message, hint, id: null });
}

/** No answer of the relay's. */
export function silence(error: unknown): RelayError {
  const timedOut = error instanceof DOMException && error.name === "AbortError";
  if (timedOut) {
    return new RelayError({ code: "relay_timed_out", ...texts.relayTimedOut, id: null });
  }
  return navigator.onLine
    ? new RelayError({ code: "relay_unreachable", ...texts.relayUnreachable, id: null })
    : offline();
}

function offline(): RelayError {
  return new RelayError({ code: "offline", ...texts.offline, id: null });
}
