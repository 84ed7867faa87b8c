// The Forge platform as a remote sees it: apps, their installations, invocations
// with a token that says who calls, and the app's own tokens for Jira.

import { randomBytes, randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { call, TimedOut } from "../client.mjs";
import { familyOf, Refused } from "../jira_site/families.mjs";
import { CONNECT } from "../jira_site/site.mjs";
import { overlay } from "../overlay.mjs";
import { gatewayRefused } from "./grants.mjs";
import { ISSUER } from "./keys.mjs";

// Protocol: Forge Remote essentials: how long a remote may take.
const EVENT_TIMEOUT_MS = 5_000;
const UI_TIMEOUT_MS = 25_000;
// Protocol: Sending events to a remote: "up to a maximum of 4", 60 s apart.
const EVENT_RETRIES = 4;
// exp - iat of a real token (logged by a remote in October 2025).
const TOKEN_LIFETIME_SECS = 25;
// Protocol: Forge Remote essentials: at least 55 minutes.
const SYSTEM_TOKEN_LIFETIME_SECS = 3_300;

const ECOSYSTEM = "ari:cloud:ecosystem::";
const ENVIRONMENTS = ["PRODUCTION", "STAGING", "DEVELOPMENT"];

// Protocol: "Forge scopes", by family.
const SCOPES = {
  devinfo: "dev-info",
  builds: "build-info",
  deployments: "deployment-info",
  featureflags: "feature-flag-info",
  remotelinks: "remote-link-info",
};
const ALL_SCOPES = [
  "read:app-system-token",
  "read:jira-user",
  "read:permission:jira",
  "read:instance-configuration:jira",
  ...Object.values(SCOPES).flatMap((kind) => [`read:${kind}:jira`, `write:${kind}:jira`, `delete:${kind}:jira`]),
];
// By path below the site (Jira REST v3, granular ones where an app need not ask for more).
const PLATFORM_SCOPES = {
  "/rest/api/3/user": "read:jira-user",
  "/rest/api/3/permissions/check": "read:permission:jira",
  "/rest/api/3/serverInfo": "read:instance-configuration:jira",
};
const VERBS = { GET: "read", POST: "write", DELETE: "delete" };

// The module that each kind of invocation comes from.
const MODULES = {
  event: { type: "core:trigger", key: "lifecycle" },
  scheduled: { type: "core:scheduledTrigger", key: "hourly" },
  uninstall: { type: "core:preUninstall", key: "uninstall" },
  ui: { type: "jira:adminPage", key: "admin-page" },
};

class App {
  environments = Object.fromEntries(ENVIRONMENTS.map((type) => [type, randomUUID()]));

  constructor(id) {
    this.id = id;
  }

  configure({ remote, scopes, modules, connect_key: connectKey }) {
    this.remote = remote ?? this.remote;
    this.scopes = scopes ?? this.scopes ?? ALL_SCOPES;
    this.modules = modules ?? this.modules ?? Object.keys(SCOPES);
    this.connectKey = connectKey ?? this.connectKey ?? null;
  }

  get ari() {
    return `${ECOSYSTEM}app/${this.id}`;
  }

  environmentAri(type) {
    return `${ECOSYSTEM}environment/${this.id}/${this.environments[type]}`;
  }
}

class Installation {
  id = randomUUID();
  // The status that its tokens meet once it is gone.
  gone = null;

  constructor({ app, environment, site, version, account }) {
    Object.assign(this, { app, environment, site, version, account });
  }

  get ari() {
    return `${ECOSYSTEM}installation/${this.id}`;
  }

  get cloudId() {
    return this.site.cloudId;
  }

  // Protocol: an app that carries an old Connect key inherits its data.
  get provider() {
    return this.app.connectKey ? CONNECT : `forge:${this.app.id}:${this.environment}`;
  }

  // The first number, which an admin has to approve when it rises.
  get majorVersion() {
    return this.version.split(".")[0];
  }

  denial({ method, path, family }) {
    if (this.gone) return gatewayRefused(this.gone, "Unauthorized");
    if (!this.app.scopes.includes(scopeFor(method, path, family))) {
      return gatewayRefused(401, "Unauthorized; scope does not match");
    }
    if (!family || this.app.modules.includes(family.name)) return null;
    const message = "The token does not correspond to an app that defines the module for this data";
    return new Refused(403, message, {}, family.refusalBody([message]));
  }
}

function scopeFor(method, path, family) {
  if (family) return `${VERBS[method]}:${SCOPES[family.name]}:jira`;
  return PLATFORM_SCOPES[path] ?? "read:jira-work";
}

export class Forge {
  #apps = new Map();
  #installations = new Map();
  #grants;
  #keys;
  #tokenKeys;
  #apiOrigin;

  // Changed by the tests.
  retryDelayMs = 50;
  systemTokens = { lifetimeSecs: SYSTEM_TOKEN_LIFETIME_SECS, opaque: false };

  // Invocation tokens and the app's own are signed by different keys.
  constructor({ grants, keys, tokenKeys, apiOrigin }) {
    this.#grants = grants;
    this.#keys = keys;
    this.#tokenKeys = tokenKeys;
    this.#apiOrigin = apiOrigin;
  }

  app({ app_id: id = randomUUID(), ...settings }) {
    const bare = id.replace(`${ECOSYSTEM}app/`, "");
    const app = this.#apps.get(bare) ?? new App(bare);
    app.configure(settings);
    this.#apps.set(bare, app);
    const environments = Object.fromEntries(ENVIRONMENTS.map((type) => [type, app.environmentAri(type)]));
    return { app_id: app.ari, environments };
  }

  #appOf(id) {
    const app = this.#apps.get(id?.replace(`${ECOSYSTEM}app/`, ""));
    if (!app) throw new Error(`unknown app: ${JSON.stringify(id)}`);
    return app;
  }

  #installationOf(id) {
    const installation = this.#installations.get(id);
    if (!installation) throw new Error(`unknown installation: ${JSON.stringify(id)}`);
    return installation;
  }

  // The app comes to a site. Answers how the remote took the event.
  async install(site, { app, environment = "PRODUCTION", version = "1.0.0", account_id: account = "installer", ...how }) {
    if (!ENVIRONMENTS.includes(environment)) throw new Error(`unknown environment: ${JSON.stringify(environment)}`);
    const installation = new Installation({ app: this.#appOf(app), environment, site, version, account });
    this.#installations.set(installation.ari, installation);
    const told = await this.#lifecycle(installation, "installed", { installerAccountId: account }, how);
    const { cloudId, provider } = installation;
    const apiBaseUrl = this.#apiBaseUrl(installation);
    return { installation: installation.ari, cloud_id: cloudId, provider, api_base_url: apiBaseUrl, ...told };
  }

  async upgrade({ installation: id, version, account_id: account = "installer", ...how }) {
    const installation = this.#installationOf(id);
    installation.version = version ?? installation.version;
    return this.#lifecycle(installation, "upgraded", { upgraderAccountId: account }, how);
  }

  // Protocol: Forge "Life cycle events". eventType and context are not in the
  // documented payload; remotes have seen both.
  #lifecycle(installation, event, account, how) {
    if (how.silent) return { delivered: false, attempts: [] };
    const { app, environment, version, cloudId } = installation;
    const body = {
      id: installation.id,
      ...account,
      app: { id: app.id, version: installation.majorVersion, name: "relay", ownerAccountId: "owner" },
      environment: { id: app.environments[environment] },
      permissions: { scopes: app.scopes, external: {} },
      eventType: `avi:forge:${event}:app`,
      context: `ari:cloud:jira::site/${cloudId}`,
      selfGenerated: false,
    };
    return this.#deliver(installation, { kind: "event", path: "/-/jira_connect/forge/events", body, retries: EVENT_RETRIES }, how);
  }

  // Protocol: "Scheduled trigger events"; a failed one is not repeated.
  scheduled({ installation: id, ...how }) {
    const installation = this.#installationOf(id);
    const body = { ...contextBody(installation, "scheduled"), contextToken: randomBytes(24).toString("base64url") };
    return this.#deliver(installation, { kind: "scheduled", path: "/-/jira_connect/forge/scheduled", body, retries: 0 }, how);
  }

  // Protocol: "Pre-uninstall trigger": what the remote answers changes nothing.
  // Its body is not documented; taken to be like the scheduled trigger's.
  async uninstall({ installation: id, silent = false, status = 401, ...how }) {
    const installation = this.#installationOf(id);
    const invocation = {
      kind: "uninstall",
      path: "/-/jira_connect/forge/uninstall",
      body: contextBody(installation, "uninstall"),
      retries: 0,
    };
    const told = silent ? { delivered: false, attempts: [] } : await this.#deliver(installation, invocation, how);
    installation.gone = status;
    installation.site.forget(installation.provider);
    return told;
  }

  // invokeRemote brings the app's token, requestRemote of the bridge does not.
  async invoke({ installation: id, method = "GET", path, body, via = "invokeRemote", ...how }) {
    const installation = this.#installationOf(id);
    const invocation = { kind: "ui", method, path, body, retries: 0 };
    const told = await this.#deliver(installation, invocation, { system_token: via === "invokeRemote", ...how });
    const attempt = told.attempts[0];
    if (attempt.error) throw new Error(attempt.error);
    return { ...attempt, swallowed: swallowed(attempt) };
  }

  // An invocation token as it would be sent, and whatever a test makes of it.
  async token({ installation: id, kind = "ui", principal, claims, header, signer }) {
    if (!Object.hasOwn(MODULES, kind)) throw new Error(`unknown kind: ${JSON.stringify(kind)}`);
    const installation = this.#installationOf(id);
    const all = overlay(this.#claims(installation, kind, principal ?? "admin"), claims);
    return this.#keys.sign(all, { header, signer });
  }

  #claims(installation, kind, principal) {
    const { app, environment, version, site } = installation;
    const now = Math.floor(Date.now() / 1000);
    const apiBaseUrl = this.#apiBaseUrl(installation);
    const claims = {
      app: {
        id: app.ari,
        version: installation.majorVersion,
        appVersion: version,
        installationId: installation.ari,
        apiBaseUrl,
        environment: { type: environment, id: app.environmentAri(environment) },
        module: MODULES[kind],
        installation: { id: installation.ari, contexts: [{ name: "jira", cloudId: site.cloudId, apiBaseUrl }] },
      },
      aud: app.ari,
      iss: ISSUER,
      iat: now,
      nbf: now,
      exp: now + TOKEN_LIFETIME_SECS,
      jti: randomBytes(20).toString("hex"),
    };
    if (kind !== "ui") return claims;
    // Only who comes from a page is somebody, and somewhere.
    const context = {
      cloudId: site.cloudId,
      localId: `${app.ari}/${MODULES.ui.key}`,
      environmentId: app.environments[environment],
      environmentType: environment,
      moduleKey: MODULES.ui.key,
      siteUrl: site.baseUrl,
      appVersion: version,
      extension: { type: MODULES.ui.type },
      accountId: principal,
    };
    return { ...claims, context, principal };
  }

  #apiBaseUrl({ cloudId }) {
    return `${this.#apiOrigin()}/ex/jira/${cloudId}`;
  }

  // A new token of the app's own for this site.
  async systemToken({ installation: id }) {
    return { token: await this.#issue(this.#installationOf(id)) };
  }

  async #issue(installation) {
    const { lifetimeSecs, opaque } = this.systemTokens;
    if (opaque) return this.#grants.issue(installation, lifetimeSecs);
    const now = Math.floor(Date.now() / 1000);
    const claims = { iss: "forge", aud: installation.app.ari, jti: randomUUID(), iat: now, exp: now + lifetimeSecs };
    const { token } = await this.#tokenKeys.sign(claims);
    return this.#grants.issue(installation, lifetimeSecs, token);
  }

  expire(id) {
    this.#grants.expire((owner) => owner instanceof Installation && owner.ari === (id ?? owner.ari));
  }

  // how: claims, header, signer and principal go into the token, or token is used
  // as it is; body and path replace what would be sent; system_token: false
  // leaves the app's token out.
  async #deliver(installation, invocation, how) {
    const attempts = [];
    for (let retry = 0; ; retry += 1) {
      const attempt = await this.#attempt(installation, invocation, how, retry && { retry, reason: attempts.at(-1).reason });
      attempts.push(attempt);
      if (attempt.taken || retry >= (how.retries ?? invocation.retries)) break;
      await sleep(this.retryDelayMs);
    }
    const { taken, status } = attempts.at(-1);
    return { delivered: taken, status, attempts };
  }

  async #attempt(installation, { kind, method = "POST", path, body }, how, again) {
    const { token } = how.token ? how : await this.token({ ...how, installation: installation.ari, kind });
    // Protocol: invokeRemote and endpoints: a path is resolved against baseUrl.
    const url = new URL(how.path ?? path, installation.app.remote);
    const text = textOf(kind === "ui" ? body : overlay({ ...body, ...retryContext(again) }, how.body));
    const headers = {
      authorization: `Bearer ${token}`,
      "x-b3-traceid": randomBytes(16).toString("hex"),
      "x-b3-spanid": randomBytes(8).toString("hex"),
      ...(text !== undefined && { "content-type": "application/json", "content-length": Buffer.byteLength(text) }),
      ...(how.system_token !== false && { "x-forge-oauth-system": await this.#issue(installation) }),
      ...how.headers,
    };
    const timeoutMs = kind === "ui" ? UI_TIMEOUT_MS : EVENT_TIMEOUT_MS;
    const sent = { token, system_token: headers["x-forge-oauth-system"] ?? null };
    try {
      const answer = await call(method, url, headers, text, how.timeout_ms ?? timeoutMs);
      const taken = answer.status >= 200 && answer.status < 300;
      return { ...answer, taken, reason: taken ? null : reasonOf(answer.status), ...sent };
    } catch (error) {
      const reason = error instanceof TimedOut ? "TIMEOUT_ERROR" : "INVALID_REMOTE_INVOCATION_ERROR";
      return { status: null, taken: false, error: error.message || error.code || String(error), reason, ...sent };
    }
  }

  get state() {
    const installations = [...this.#installations.values()].map((known) => ({
      installation: known.ari,
      app_id: known.app.ari,
      environment: known.environment,
      cloud_id: known.cloudId,
      version: known.version,
      provider: known.provider,
      gone: known.gone,
    }));
    return { installations };
  }
}

// Protocol: invokeRemote: why the page would hear nothing of this answer, or null.
function swallowed({ status, headers, body, taken }) {
  if (status === 401) return "INVALID_FORGE_INVOCATION_TOKEN";
  if (taken && body === "") return null;
  if (headers["content-type"]?.startsWith("application/json") && isJson(body)) return null;
  return "INVALID_REMOTE_INVOCATION_ERROR";
}

function isJson(text) {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

function contextBody({ cloudId }, kind) {
  return { context: { cloudId, moduleKey: MODULES[kind].key } };
}

function textOf(body) {
  if (body === undefined || body === null) return undefined;
  return typeof body === "string" ? body : JSON.stringify(body);
}

// Protocol: "Sending events to a remote", Handling retries.
function retryContext(again) {
  if (!again) return {};
  return { retryContext: { retryCount: again.retry, retryReason: again.reason, retryData: null } };
}

function reasonOf(status) {
  return status === 401 ? "INVALID_FORGE_INVOCATION_TOKEN" : "INVALID_REMOTE_INVOCATION_ERROR";
}
