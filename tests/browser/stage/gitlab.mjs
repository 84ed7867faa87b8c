// A self-managed GitLab whose Jira Connect Proxy URL is the relay, as far as the page, the relay and the admin's
// browser meet it. It shares no code with the relay, and each one is a site of its own.

import { randomBytes } from "node:crypto";
import { corsHeaders, preflight } from "./gitlab/cors.mjs";
import { makeGroups, MAINTAINER, pageOfGroups } from "./gitlab/groups.mjs";
import { Hold } from "./gitlab/hold.mjs";
import { Installations } from "./gitlab/installations.mjs";
import { OAuth } from "./gitlab/oauth.mjs";
import { Refused } from "./gitlab/refused.mjs";
import { readText, send, Server } from "./http.mjs";

const NOT_ADMIN = "The Jira user is not a site or organization administrator. Check the permissions in Jira and try again.";
const NO_JIRA_USER = "Could not fetch user information from Jira. Check the permissions in Jira and try again.";
const NO_NAMESPACE = "Cannot find namespace. Make sure you have sufficient permissions.";

export class Gitlab {
  // Settings of its admin. applicationId null: no OAuth application id is set. callbackOrigin: where the OAuth
  // application's redirect URI points.
  proxyUrl;
  callbackOrigin;
  applicationId = randomBytes(32).toString("hex");
  tokenLifetimeSecs = 7200;

  // What goes wrong. refusesEvents: 401, though the key was fetched; without the fetch it is proxyUrl that is wrong.
  // isolatesPopups: the window that opened the authorization page loses it. instead: {path, answer}, path a regular
  // expression on what comes after the root; what it answers there whatever is asked, as http.mjs sends it, or null,
  // which cuts the connection.
  refusesEvents = false;
  isolatesPopups = false;
  withoutTotals = false;
  instead = null;

  // {full path: [status, message]}: groups that can't be linked.
  refusedGroups = {};

  // Who signs in.
  user = { id: 7, username: "mona", name: "Mona Lisa Octocat", state: "active" };

  // {id, clientKey, group, created_at}
  subscriptions = [];

  // Every request: {method, target, headers, body, status}; status null while there is no answer.
  calls = [];

  installations = new Installations(this);
  oauth = new OAuth(this);

  #first;
  #nextSubscription = 1;
  #holds = [];
  #server = new Server((request, response) => this.#serve(request, response));

  // host: a loopback address of its own; root: a relative URL root like "/gitlab".
  static async start({ host, root = "", proxyUrl, version = "17.8.1" }) {
    const gitlab = new Gitlab();
    Object.assign(gitlab, { root, proxyUrl, callbackOrigin: new URL(proxyUrl).origin, version });
    gitlab.origin = await gitlab.#server.listen(host);
    gitlab.url = gitlab.origin + root;
    gitlab.#first = { ...gitlab };
    await gitlab.reset();
    return gitlab;
  }

  // As it was at first: up, set up rightly, nothing linked. What sites and tokens it knows stays.
  async reset() {
    const groups = makeGroups(this.url);
    Object.assign(this, { ...this.#first, groups, subscriptions: [], calls: [], refusedGroups: {} });
    for (const hold of this.#holds.splice(0)) hold.release();
    await this.#server.up();
  }

  async down() {
    await this.#server.down();
  }

  async up() {
    await this.#server.up();
  }

  async stop() {
    await this.#server.down();
  }

  // Has what is asked for there wait: a Hold. See there.
  hold(path, { after = 0 } = {}) {
    const hold = new Hold(path, after);
    this.#holds.push(hold);
    return hold;
  }

  get linkedGroups() {
    return this.subscriptions.map(({ group }) => group.full_path);
  }

  // A push to a project: tells Jira about a commit, as an instance does, for every site that it knows. The statuses.
  async push({ issue = "ABC-1" } = {}) {
    const sent = Object.values(this.installations.known).map((installation) =>
      this.installations.toJira(installation, "POST", "/rest/devinfo/0.10/bulk", this.#devinfo(issue)),
    );
    return (await Promise.all(sent)).map((answer) => answer?.status ?? null);
  }

  async #serve(request, response) {
    const entry = { method: request.method, target: request.url, headers: request.headers, body: "", status: null };
    this.calls.push(entry);
    entry.body = await readText(request);
    const answer = await this.#answer(entry);
    if (answer === null) return response.destroy();
    entry.status = answer.status ?? 200;
    send(response, answer);
  }

  async #answer({ method, target, headers, body }) {
    const url = new URL(target, this.origin);
    if (!url.pathname.startsWith(`${this.root}/`)) return { status: 404 };
    const request = { method, target, headers, url, path: url.pathname.slice(this.root.length) };
    // A preflight is not what one waits for.
    if (method !== "OPTIONS") for (const hold of this.#holds) await hold.pass(request.path);
    const instead = this.instead?.path.test(request.path) ? this.instead.answer : undefined;
    if (instead === null) return null;
    const early = preflight(request, this.proxyUrl);
    if (early) return early;
    request.parameters = { ...Object.fromEntries(url.searchParams), ...bodyParameters(headers, body) };
    const answer = instead ?? (await this.#dispatch(request));
    return { ...answer, headers: { ...answer.headers, ...corsHeaders(request, this.proxyUrl) } };
  }

  async #dispatch(request) {
    for (const [method, path, handle] of ROUTES) {
      const found = request.method === method && path.exec(request.path);
      if (!found) continue;
      try {
        return await handle(this, request, ...found.slice(1));
      } catch (error) {
        if (error instanceof Refused) return error.answer;
        throw error;
      }
    }
    return { status: 404, html: "<h1>404: Page not found</h1>" };
  }

  // Protocol: GitLab app_descriptor_controller.rb.
  descriptor() {
    const host = new URL(this.proxyUrl).hostname;
    return {
      name: `GitLab for Jira (${host})`,
      key: `gitlab-jira-connect-${host}`,
      description: "Integrate commits, branches and merge requests from GitLab into Jira",
      baseUrl: `https://${new URL(this.url).host}${this.root}/-/jira_connect`,
      lifecycle: { installed: "/events/installed", uninstalled: "/events/uninstalled" },
      vendor: { name: "GitLab", url: "https://gitlab.com" },
      authentication: { type: "jwt" },
      scopes: ["READ", "WRITE", "DELETE"],
      apiVersion: 1,
      apiMigrations: { "context-qsh": true, "signed-install": true, gdpr: true },
      modules: { postInstallPage: { key: "gitlab-configuration", url: "/subscriptions" } },
    };
  }

  subscriptionsOf({ clientKey }) {
    return this.subscriptions
      .filter((one) => one.clientKey === clientKey)
      .map(({ id, created_at, group: { name, avatar_url, full_name, description } }) => ({
        created_at,
        unlink_path: `${this.root}/-/jira_connect/subscriptions/${id}`,
        group: { name, avatar_url, full_name, description },
      }));
  }

  // Protocol: GitLab jira_connect_subscriptions/create_service.rb.
  async link({ installation, claims }, namespacePath) {
    const jiraUser = await this.installations.jiraUser(installation, claims.sub);
    if (jiraUser === null) throw new Refused(403, { json: { message: NO_JIRA_USER } });
    if (jiraUser !== "admin") throw new Refused(403, { json: { message: NOT_ADMIN } });
    const refusal = this.refusedGroups[namespacePath];
    if (refusal) throw new Refused(refusal[0], { json: { message: refusal[1] } });
    const group = this.groups.find(({ full_path }) => full_path === namespacePath);
    const mayLink = group && (this.user.is_admin || group.access_level >= MAINTAINER);
    if (!mayLink) throw new Refused(401, { json: { message: NO_NAMESPACE } });
    if (this.linkedGroups.includes(namespacePath)) {
      throw new Refused(422, { json: { message: "Namespace has already been taken" } });
    }
    const { clientKey } = installation;
    this.subscriptions.push({ id: this.#nextSubscription++, clientKey, group, created_at: new Date().toISOString() });
    return { status: 201, json: { success: true } };
  }

  // Protocol: GitLab subscriptions_controller.rb.
  async unlink({ installation, claims }, id) {
    const jiraUser = await this.installations.jiraUser(installation, claims.sub);
    if (jiraUser !== "admin") throw new Refused(403, { json: { error: "Forbidden" } });
    const found = this.subscriptions.find((one) => one.id === id && one.clientKey === installation.clientKey);
    if (!found) throw new Refused(404);
    this.subscriptions = this.subscriptions.filter((one) => one !== found);
    return { json: { success: true } };
  }

  #devinfo(issue) {
    const at = new Date().toISOString();
    const sha = randomBytes(20).toString("hex");
    const commit = {
      id: sha,
      issueKeys: [issue],
      updateSequenceId: Date.now(),
      hash: sha,
      displayId: sha.slice(0, 8),
      message: `${issue} Mend the roof`,
      author: { name: this.user.name, email: "mona@example.com" },
      authorTimestamp: at,
      fileCount: 1,
      url: `${this.url}/roof/-/commit/${sha}`,
    };
    const repository = { id: "42", name: "roof", url: `${this.url}/roof`, updateSequenceId: Date.now(), commits: [commit] };
    return { repositories: [repository], providerMetadata: { product: `GitLab ${this.version}` } };
  }
}

function bodyParameters({ "content-type": type = "" }, body) {
  if (body === "") return {};
  return type.startsWith("application/json") ? JSON.parse(body) : Object.fromEntries(new URLSearchParams(body));
}

function knownSite(gitlab, request, options) {
  const found = gitlab.installations.symmetric(request, options);
  if (!found) throw new Refused(403, { html: "<h1>403: You don't have the permission to access this page</h1>" });
  return found;
}

// [method, path below the root, (gitlab, request, ...parts of the path) => answer]
const ROUTES = [
  ["GET", /^\/-\/jira_connect\/app_descriptor(?:\.json)?$/, (gitlab) => ({ json: gitlab.descriptor() })],
  ["POST", /^\/-\/jira_connect\/events\/(installed|uninstalled)$/, (gitlab, request, event) =>
    gitlab.installations.take(event, request),
  ],
  ["GET", /^\/-\/jira_connect\/installations$/, (gitlab, request) => {
    knownSite(gitlab, request);
    return { json: { gitlab_com: true, instance_url: null } };
  }],
  ["GET", /^\/-\/jira_connect\/oauth_application_id$/, (gitlab) =>
    gitlab.applicationId === null ? { status: 404 } : { json: { application_id: gitlab.applicationId } },
  ],
  ["GET", /^\/-\/jira_connect\/subscriptions\.json$/, (gitlab, request) => {
    const { installation } = knownSite(gitlab, request, { hashes: ["context", "request"] });
    return { json: { subscriptions: gitlab.subscriptionsOf(installation) } };
  }],
  ["DELETE", /^\/-\/jira_connect\/subscriptions\/(\d+)$/, (gitlab, request, id) =>
    gitlab.unlink(knownSite(gitlab, request), Number(id)),
  ],
  ["GET", /^\/oauth\/authorize$/, (gitlab, request) => gitlab.oauth.page(request)],
  ["POST", /^\/oauth\/authorize$/, (gitlab, request) => gitlab.oauth.decide(request)],
  ["POST", /^\/oauth\/token$/, (gitlab, request) => gitlab.oauth.token(request)],
  ["GET", /^\/api\/v4\/user$/, (gitlab, request) => {
    gitlab.oauth.checkBearer(request);
    return { json: gitlab.user };
  }],
  ["GET", /^\/api\/v4\/groups$/, (gitlab, request) => {
    gitlab.oauth.checkBearer(request);
    return pageOfGroups(gitlab.groups, { ...request, withoutTotals: gitlab.withoutTotals });
  }],
  ["POST", /^\/api\/v4\/integrations\/jira_connect\/subscriptions$/, (gitlab, request) => {
    gitlab.oauth.checkBearer(request);
    // The header holds the GitLab token here, so the other one can only be a parameter.
    const withoutHeader = { ...request, headers: { ...request.headers, authorization: undefined } };
    const site = gitlab.installations.symmetric(withoutHeader, { hashes: ["context"] });
    if (!site) throw new Refused(401, { json: { message: "401 Unauthorized - JWT authentication failed" } });
    return gitlab.link(site, request.parameters.namespace_path);
  }],
];
