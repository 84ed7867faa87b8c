// The instance as an OAuth 2 provider for public clients. Protocol: RFC 6749, RFC 7636; answers as Doorkeeper gives
// them.

import { createHash, randomBytes } from "node:crypto";
import { escapeHtml } from "../http.mjs";
import { Refused } from "./refused.mjs";

const CODE_LIFETIME_MS = 600_000;
const CHALLENGE = /^[A-Za-z0-9_-]{43}$/;
const VERIFIER = /^[A-Za-z0-9._~-]{43,128}$/;

export class OAuth {
  #gitlab;
  #codes = new Map();
  #tokens = new Map();

  constructor(gitlab) {
    this.#gitlab = gitlab;
  }

  // Every token ever given out.
  get issued() {
    return [...this.#tokens.keys()];
  }

  revokeAll() {
    for (const token of this.#tokens.values()) token.revoked = true;
  }

  // Lets calls of the API pass, or not. Protocol: GitLab lib/api/api_guard.rb.
  checkBearer({ headers }) {
    const bearer = /^Bearer (\S+)$/.exec(headers.authorization ?? "")?.[1];
    if (bearer === undefined) throw new Refused(401, { json: { message: "401 Unauthorized" } });
    const token = this.#tokens.get(bearer);
    if (token !== undefined && !token.revoked && token.expiresAt > Date.now()) return;
    const reason = token === undefined ? "Token is invalid" : token.revoked ? "Token was revoked" : "Token is expired";
    const json = { error: "invalid_token", error_description: `${reason}. You can either do re-authorization or token refresh.` };
    throw new Refused(401, { json });
  }

  // The page that asks the person.
  page({ parameters, target }) {
    const wrong = this.#check(parameters);
    if (wrong) return wrong;
    const button = (decision, text) => `<button name="decision" value="${decision}">${text}</button>`;
    const headers = { "X-Frame-Options": "SAMEORIGIN" };
    if (this.#gitlab.isolatesPopups) headers["Cross-Origin-Opener-Policy"] = "same-origin";
    return {
      headers,
      html: `<!DOCTYPE html><html lang="en"><head><title>Authorize · GitLab</title><link rel="icon" href="data:,"></head><body>
<h1>Authorize GitLab for Jira to use your account?</h1>
<form method="post" action="${escapeHtml(target)}">${button("authorize", "Authorize")} ${button("deny", "Deny")}</form>
</body></html>`,
    };
  }

  // What the person decided.
  decide({ parameters }) {
    const wrong = this.#check(parameters);
    if (wrong) return wrong;
    if (parameters.decision !== "authorize") return redirect(parameters, DENIED);
    const code = randomBytes(32).toString("hex");
    this.#codes.set(code, {
      redirectUri: parameters.redirect_uri,
      challenge: parameters.code_challenge,
      goodUntil: Date.now() + CODE_LIFETIME_MS,
    });
    return redirect(parameters, { code });
  }

  token({ parameters }) {
    if (parameters.grant_type !== "authorization_code") throw new Refused(400, oauthError("unsupported_grant_type"));
    if (parameters.client_id !== this.#gitlab.applicationId) throw new Refused(401, oauthError("invalid_client"));
    const grant = this.#codes.get(parameters.code);
    // Once, whatever comes of it.
    this.#codes.delete(parameters.code);
    const good =
      grant !== undefined &&
      grant.goodUntil > Date.now() &&
      grant.redirectUri === parameters.redirect_uri &&
      VERIFIER.test(parameters.code_verifier) &&
      createHash("sha256").update(parameters.code_verifier).digest("base64url") === grant.challenge;
    if (!good) throw new Refused(400, oauthError("invalid_grant"));
    const token = randomBytes(32).toString("hex");
    const lifetime = this.#gitlab.tokenLifetimeSecs;
    this.#tokens.set(token, { revoked: false, expiresAt: Date.now() + lifetime * 1000 });
    return {
      json: {
        access_token: token,
        token_type: "Bearer",
        expires_in: lifetime,
        refresh_token: randomBytes(32).toString("hex"),
        scope: "api",
        created_at: Math.floor(Date.now() / 1000),
      },
    };
  }

  // RFC 6749 4.1.2.1: whoever can't be trusted to be the client is not sent anything; the person sees it.
  #check(parameters) {
    const registered = `${this.#gitlab.callbackOrigin}/-/jira_connect/oauth_callbacks`;
    if (this.#gitlab.applicationId === null || parameters.client_id !== this.#gitlab.applicationId) {
      return errorPage("Client authentication failed due to unknown client.");
    }
    if (parameters.redirect_uri !== registered) return errorPage("The redirect URI included is not valid.");
    if (parameters.response_type !== "code") return redirect(parameters, { error: "unsupported_response_type" });
    if (parameters.scope !== "api") return redirect(parameters, { error: "invalid_scope" });
    const challenged = parameters.code_challenge_method === "S256" && CHALLENGE.test(parameters.code_challenge);
    return challenged ? undefined : redirect(parameters, { error: "invalid_request" });
  }
}

const DENIED = {
  error: "access_denied",
  error_description: "The resource owner or authorization server denied the request.",
};

function redirect({ redirect_uri: target, state }, outcome) {
  const url = new URL(target);
  for (const [name, value] of Object.entries({ ...outcome, state })) {
    if (value !== undefined) url.searchParams.set(name, value);
  }
  return { status: 302, headers: { Location: url.href } };
}

function errorPage(text) {
  return { status: 401, html: `<!DOCTYPE html><html lang="en"><title>Error · GitLab</title><h1>An error has occurred</h1><p>${text}</p></html>` };
}

function oauthError(error) {
  return { json: { error, error_description: `Refused: ${error}.` } };
}
