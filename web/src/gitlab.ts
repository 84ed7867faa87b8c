// Calls from the browser to an instance, as the signed-in GitLab user. Cross-origin: GitLab allows any
// origin on /oauth/token and /api/, without cookies.

import { type Cause, causeOf, type SignIn } from "./api.ts";
import {
  flag,
  listOf,
  number,
  oneOf,
  orMissing,
  orNothing,
  parsed,
  record,
  type Shape,
  text,
} from "./shapes.ts";
import { texts } from "./texts.ts";

export interface GitlabUser {
  name: string;
  username: string;
  is_admin?: boolean;
}

export interface Group {
  id: number;
  name: string;
  full_name: string;
  full_path: string;
  description: string | null;
}

export interface GroupPage {
  groups: Group[];
  page: number;
  nextPage: number | null;
  /** GitLab leaves the totals out when there are more than 10,000. */
  total: number | null;
  totalPages: number | null;
}

export interface GitlabSession {
  user: GitlabUser;
  /** The relay sees the instance at a private address. */
  privateNetwork: boolean;
  groups(search: string, page: number, signal: AbortSignal): Promise<GroupPage>;
  link(fullPath: string, contextToken: string): Promise<void>;
}

/**
 * `unreachable`: the browser got no answer that it may read; it does not tell the page why.
 * `signed_out`: the access token is over. `refused`: GitLab said no, `message` in its words.
 * `not_gitlab`: something else answered.
 */
export type GitlabFailure = "unreachable" | "signed_out" | "refused" | "not_gitlab";

export class GitlabError extends Error {
  constructor(
    readonly failure: GitlabFailure,
    message: string,
    readonly hint: string | null = null,
  ) {
    super(message);
  }
}

/** As `causeOf`, for calls to the relay and to GitLab. */
export function causeOfGitlab(error: unknown): Cause {
  return error instanceof GitlabError
    ? { code: error.failure, message: error.message, hint: error.hint, id: null }
    : causeOf(error);
}

export interface AccessToken {
  access_token: string;
  expires_in?: number;
}

const accessToken = record<AccessToken>({ access_token: text, expires_in: orMissing(number) });
const gitlabUser = record<GitlabUser>({ name: text, username: text, is_admin: orMissing(flag) });
const group = record<Group>({
  id: number,
  name: text,
  full_name: text,
  full_path: text,
  description: orNothing(text),
});
const success = record({ success: oneOf([true]) });
const fields = record<Record<string, unknown>>({});

const MAINTAINER = "40";
const PER_PAGE = 20;
const SEARCH_MIN_CHARS = 3;
const ANSWER_MAX_MS = 30_000;

// GitLab's `jira_connect_subscription.rb`: a namespace is unique among the subscriptions of a site.
const ALREADY_LINKED = /^Namespace has already been taken\b/;

/** The token lives in this closure and nowhere else; dropping the session forgets it. */
export async function openSession(signIn: SignIn, token: AccessToken): Promise<GitlabSession> {
  const expiresAt = token.expires_in ? Date.now() + token.expires_in * 1000 : Infinity;

  async function call(path: string, init: RequestInit = {}): Promise<Answer> {
    if (Date.now() >= expiresAt) {
      throw new GitlabError("signed_out", texts.gitlabSignedOut);
    }
    return ask(signIn.api_url + path, {
      ...init,
      headers: { ...init.headers, Authorization: `Bearer ${token.access_token}` },
    });
  }

  async function read(path: string, init: RequestInit = {}): Promise<Answer> {
    const answer = await call(path, init);
    if (answer.status === 401) {
      throw new GitlabError("signed_out", texts.gitlabSignedOut);
    }
    if (!answer.ok) {
      throw refusal(answer);
    }
    return answer;
  }

  const user = understood(await read("/user"), gitlabUser);

  return {
    user,
    privateNetwork: signIn.private_network,
    async groups(search, page, signal) {
      const query = new URLSearchParams({
        page: String(page),
        per_page: String(PER_PAGE),
        order_by: "name",
        sort: "asc",
      });
      if (search.length >= SEARCH_MIN_CHARS) {
        query.set("search", search);
      }
      // A GitLab admin may link any group, without being its member.
      if (!user.is_admin) {
        query.set("min_access_level", MAINTAINER);
      }
      const answer = await read(`/groups?${query}`, { signal });
      const groups = understood(answer, listOf(group));
      return { groups, page, ...paging(answer.headers, groups.length, page) };
    },
    async link(fullPath, contextToken) {
      const answer = await call("/integrations/jira_connect/subscriptions", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ jwt: contextToken, namespace_path: fullPath }),
      });
      if (answer.ok) {
        understood(answer, success);
        return;
      }
      const { code, message } = refusalOf(answer);
      // Somebody else was faster, or only another group's name told that it was linked.
      if (answer.status === 422 && ALREADY_LINKED.test(message)) {
        return;
      }
      // 401 also means "cannot find namespace" and "JWT authentication failed" here.
      const tokenOver = code === "invalid_token" || message === "401 Unauthorized";
      throw answer.status === 401 && tokenOver
        ? new GitlabError("signed_out", texts.gitlabSignedOut)
        : refusal(answer);
    },
  };
}

export async function exchangeCode(
  signIn: SignIn,
  code: string,
  codeVerifier: string,
): Promise<AccessToken> {
  const answer = await ask(signIn.token_url, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({
      grant_type: "authorization_code",
      client_id: signIn.application_id,
      redirect_uri: signIn.redirect_uri,
      code,
      code_verifier: codeVerifier,
    }),
  });
  if (!answer.ok) {
    throw refusal(answer);
  }
  return understood(answer, accessToken);
}

interface Answer {
  status: number;
  ok: boolean;
  headers: Headers;
  text: string;
}

async function ask(url: string, init: RequestInit): Promise<Answer> {
  const abort = new AbortController();
  const timer = setTimeout(() => abort.abort(), ANSWER_MAX_MS);
  init.signal?.addEventListener("abort", () => abort.abort());
  try {
    const response = await fetch(url, {
      ...init,
      credentials: "omit",
      cache: "no-store",
      referrerPolicy: "no-referrer",
      signal: abort.signal,
    });
    const { status, ok, headers } = response;
    return { status, ok, headers, text: await response.text() };
  } catch (error) {
    if (init.signal?.aborted) {
      throw error;
    }
    throw new GitlabError("unreachable", texts.instanceUnreachable);
  } finally {
    clearTimeout(timer);
  }
}

function paging(headers: Headers, length: number, page: number) {
  const number = (name: string) => Number.parseInt(headers.get(name) ?? "", 10) || null;
  // Headers that a reverse proxy does not expose read as missing: then a full page promises another.
  const hasPaging = headers.has("X-Next-Page");
  return {
    nextPage: hasPaging ? number("X-Next-Page") : length === PER_PAGE ? page + 1 : null,
    total: headers.has("X-Total") ? Number(headers.get("X-Total")) : null,
    totalPages: number("X-Total-Pages"),
  };
}

// A portal that wants a log-in, or a proxy, answers 200 as well.
function understood<T>(answer: Answer, shape: Shape<T>): T {
  const value = parsed(answer.text);
  if (!shape(value)) {
    throw new GitlabError("not_gitlab", texts.notGitlab.message, texts.notGitlab.hint);
  }
  return value;
}

function refusal(answer: Answer): GitlabError {
  const { message } = refusalOf(answer);
  return new GitlabError("refused", message, texts.gitlabRefusal(answer.status, message));
}

// Grape answers with `message`, or `error`, either of which may be an object; OAuth with a code as `error`
// and `error_description`; a reverse proxy with HTML.
function refusalOf({ status, text }: Answer): { code: unknown; message: string } {
  const body = parsed(text);
  if (!fields(body)) {
    return { code: null, message: texts.answerStatus(status) };
  }
  const said = body.error_description ?? body.message ?? body.error;
  return {
    code: body.error,
    message: typeof said === "string" ? said : JSON.stringify(said ?? body),
  };
}
