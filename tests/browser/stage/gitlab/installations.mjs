// The Jira sites that an instance knows: takes lifecycle events, judges tokens, asks Jira about people. Tokens are
// verified and made by Atlassian's own library.

import jwt from "atlassian-jwt";
import { call } from "../http.mjs";
import { Refused } from "./refused.mjs";

const CONNECT_PATH = "/-/jira_connect";
const CONTEXT_QSH = "context-qsh";
const ADMIN_GROUPS = ["site-admins", "org-admins"];
const TOKEN_LIFETIME_S = 60;

// GitLab up to 17 takes no other kid (lib/atlassian/jira_connect/jwt/asymmetric.rb).
const KID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

export class Installations {
  #gitlab;
  #known = new Map();

  // Every event that came in: {event, clientKey, status, reason, claims}.
  events = [];

  constructor(gitlab) {
    this.#gitlab = gitlab;
  }

  get known() {
    return Object.fromEntries(this.#known);
  }

  // Protocol: GitLab events_controller.rb.
  async take(event, request) {
    const { clientKey, sharedSecret, baseUrl } = request.parameters;
    const entry = { event, clientKey, status: 401, reason: null, claims: null };
    this.events.push(entry);
    try {
      entry.claims = await this.#verifyEvent(request, clientKey);
      if (this.#gitlab.refusesEvents) throw new Error("refused for the test");
    } catch (error) {
      entry.reason = error.message;
      throw new Refused(401);
    }
    entry.status = 200;
    if (event === "uninstalled") {
      // GitLab calls a method of nil for one that it does not know.
      if (!this.#known.delete(clientKey)) entry.status = 500;
      this.#gitlab.subscriptions = this.#gitlab.subscriptions.filter((one) => one.clientKey !== clientKey);
    } else if (!clientKey || !sharedSecret || !baseUrl) {
      entry.status = 422;
    } else {
      this.#known.set(clientKey, { clientKey, sharedSecret, baseUrl });
    }
    return { status: entry.status };
  }

  // {installation, claims} of a token that an app's page or backend holds, or undefined. hashes: which hashes of the
  // query string are good, "context" (the fixed text) and "request"; none: it is not looked at. Protocol: GitLab
  // jira_connect/application_controller.rb: the parameter wins over the header, of which the last word counts.
  symmetric(request, { hashes = [] } = {}) {
    const token = request.parameters.jwt ?? request.headers.authorization?.split(" ").at(-1);
    try {
      const { iss } = jwt.decodeSymmetric(token, "", jwt.SymmetricAlgorithm.HS256, true);
      const installation = this.#known.get(iss);
      const claims = jwt.decodeSymmetric(token, installation.sharedSecret, jwt.SymmetricAlgorithm.HS256);
      checkExpiry(claims);
      const good = { context: CONTEXT_QSH, request: this.#hashOf(request) };
      if (hashes.length > 0 && !hashes.some((name) => claims.qsh === good[name])) return undefined;
      return { installation, claims };
    } catch {
      return undefined;
    }
  }

  // What Jira says about a person: "admin", "member", or null if it says nothing.
  async jiraUser(installation, accountId) {
    const query = new URLSearchParams({ accountId: accountId ?? "", expand: "groups" });
    const answer = await this.toJira(installation, "GET", `/rest/api/3/user?${query}`);
    if (answer?.status !== 200) return null;
    const groups = JSON.parse(answer.text).groups?.items ?? [];
    return groups.some(({ name }) => ADMIN_GROUPS.includes(name)) ? "admin" : "member";
  }

  // A call to Jira, or to whom the installation's baseUrl says is Jira; null if nobody answers. Protocol: GitLab
  // lib/atlassian/jira_connect/client.rb.
  async toJira({ sharedSecret, baseUrl }, method, target, body) {
    const url = new URL(target, baseUrl).href;
    const iat = Math.floor(Date.now() / 1000);
    const claims = {
      iss: this.#appKey(),
      iat,
      exp: iat + TOKEN_LIFETIME_S,
      qsh: jwt.createQueryStringHash(jwt.fromMethodAndUrl(method, url), false, baseUrl),
    };
    const token = jwt.encodeSymmetric(claims, sharedSecret, jwt.SymmetricAlgorithm.HS256);
    const headers = { Authorization: `JWT ${token}`, "Content-Type": "application/json", Accept: "application/json" };
    try {
      return await call(url, { method, headers, body: body === undefined ? "" : JSON.stringify(body) });
    } catch {
      return null;
    }
  }

  async #verifyEvent(request, clientKey) {
    const token = request.parameters.jwt ?? request.headers.authorization?.split(" ").at(-1);
    const { kid } = JSON.parse(Buffer.from(token?.split(".")[0] ?? "", "base64url"));
    if (!KID.test(kid)) throw new Error(`kid is ${JSON.stringify(kid)}`);
    const key = await call(appendPath(this.#gitlab.proxyUrl, `${CONNECT_PATH}/public_keys/${kid}`));
    const claims = jwt.decodeAsymmetric(token, key.text, jwt.AsymmetricAlgorithm.RS256);
    checkExpiry(claims);
    const audience = this.#baseUrl(request);
    if (!claims.aud.includes(audience)) throw new Error(`aud is ${claims.aud}, not ${audience}`);
    if (claims.iss !== clientKey) throw new Error(`iss is ${claims.iss}`);
    if (claims.qsh !== this.#hashOf(request)) throw new Error(`qsh is ${claims.qsh}`);
    return claims;
  }

  #hashOf(request) {
    const target = jwt.fromMethodAndUrl(request.method, `https://${request.headers.host}${request.target}`);
    return jwt.createQueryStringHash(target, false, this.#baseUrl(request));
  }

  // Protocol: GitLab jira_connect_base_url: https whatever the request came by, because gitlab.yml's
  // enforce_jira_base_url_https is on as it comes.
  #baseUrl({ headers }) {
    return `https://${headers.host}${this.#gitlab.root}${CONNECT_PATH}`;
  }

  // Protocol: GitLab lib/atlassian/jira_connect.rb: host and path of the setting, cut.
  #appKey() {
    const { hostname, pathname } = new URL(this.#gitlab.proxyUrl);
    return `gitlab-jira-connect-${hostname}${pathname === "/" ? "" : pathname}`.slice(0, 64);
  }
}

function appendPath(base, path) {
  return base.replace(/\/$/, "") + path;
}

function checkExpiry({ exp }) {
  if (exp !== undefined && exp < Date.now() / 1000) throw new Error("expired");
}
