// Calls from the browser to an instance, as the signed-in GitLab user. Cross-origin: GitLab allows any
// origin on /oauth/token and /api/, without cookies.

import type { SignIn } from "./api.ts";
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
 */
export type GitlabFailure = "unreachable" | "signed_out" | "refused";

export class GitlabError extends Error {
  constructor(
    readonly failure: GitlabFailure,
    message: string,
  ) {
    super(message);
  }
}

export interface AccessToken {
  access_token: string;
  expires_in?: number;
}

const MAINTAINER = "40";
const PER_PAGE = 20;
const SEARCH_MIN_CHARS = 3;
const ANSWER_MAX_MS = 30_000;

// GitLab's `jira_connect_subscription.rb`: a namespace is unique among the subscriptions of a site.
const ALREADY_LINKED = /^Namespace has already been taken\b/;

/** The token lives in this closure and nowhere else; dropping the session forgets it. */
export async function openSession(signIn: SignIn, token: AccessToken): Promise<GitlabSession> {
  const expiresAt = token.expires_in ? Date.now() + token.expires_in * 1000 : Infinity;

  async function call(path: string, init: RequestInit = {}): Promise<Response> {
    if (Date.now() >= expiresAt) {
      throw new GitlabError("signed_out", texts.gitlabSignedOut);
    }
    return gitlabFetch(signIn.api_url + path, {
      ...init,
      headers: { ...init.headers, Authorization: `Bearer ${token.access_token}` },
    });
  }

  async function read(path: string, init: RequestInit = {}): Promise<Response> {
    const response = await call(path, init);
    if (response.status === 401) {
      throw new GitlabError("signed_out", texts.gitlabSignedOut);
    }
    if (!response.ok) {
      throw new GitlabError("refused", (await refusalOf(response)).message);
    }
    return response;
  }

  const user = (await (await read("/user")).json()) as GitlabUser;

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
      const response = await read(`/groups?${query}`, { signal });
      const groups = (await response.json()) as Group[];
      return { groups, page, ...paging(response.headers, groups.length, page) };
    },
    async link(fullPath, contextToken) {
      const response = await call("/integrations/jira_connect/subscriptions", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ jwt: contextToken, namespace_path: fullPath }),
      });
      if (response.ok) {
        return;
      }
      const { code, message } = await refusalOf(response);
      // Somebody else was faster, or only another group's name told that it was linked.
      if (response.status === 422 && ALREADY_LINKED.test(message)) {
        return;
      }
      // 401 also means "cannot find namespace" and "JWT authentication failed" here.
      const tokenOver = code === "invalid_token" || message === "401 Unauthorized";
      throw response.status === 401 && tokenOver
        ? new GitlabError("signed_out", texts.gitlabSignedOut)
        : new GitlabError("refused", message);
    },
  };
}

export async function exchangeCode(
  signIn: SignIn,
  code: string,
  codeVerifier: string,
): Promise<AccessToken> {
  const response = await gitlabFetch(signIn.token_url, {
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
  if (!response.ok) {
    throw new GitlabError("refused", (await refusalOf(response)).message);
  }
  return (await response.json()) as AccessToken;
}

async function gitlabFetch(url: string, init: RequestInit): Promise<Response> {
  const abort = new AbortController();
  const timer = setTimeout(() => abort.abort(), ANSWER_MAX_MS);
  init.signal?.addEventListener("abort", () => abort.abort());
  try {
    return await fetch(url, {
      ...init,
      credentials: "omit",
      cache: "no-store",
      referrerPolicy: "no-referrer",
      signal: abort.signal,
    });
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

// Grape answers with `message`, or `error`, either of which may be an object; OAuth with a code as `error`
// and `error_description`; a reverse proxy with HTML.
async function refusalOf(response: Response): Promise<{ code: unknown; message: string }> {
  try {
    const body = await response.json();
    const said = body.error_description ?? body.message ?? body.error;
    return {
      code: body.error,
      message: typeof said === "string" ? said : JSON.stringify(said ?? body),
    };
  } catch {
    return { code: null, message: texts.answerStatus(response.status) };
  }
}
