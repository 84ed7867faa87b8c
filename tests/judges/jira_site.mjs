// The REST side of one simulated Jira Cloud site: takes development data, keeps
// it as Jira does, and fails on request. Tokens are judged by Atlassian's own
// library. README.md lists the commands and the endpoints.

import http from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import { say, serveCommands } from "./commands.mjs";
import { Authority, transportViolations } from "./jira_site/authority.mjs";
import { depthOf, families, familyOf, MAX_DEPTH, parseBulk, Refused } from "./jira_site/families.mjs";
import { Faults, Quota } from "./jira_site/faults.mjs";
import { Store } from "./jira_site/store.mjs";

// Jira's own limit is not published.
const DEFAULT_MAX_BODY_BYTES = 5 << 20;
const LAST_WORDS_MS = 1000;

// Account ids that mean something.
const UNKNOWN_ACCOUNT = "nobody";
const PLAIN_ACCOUNT = "member";

// A path of "literal/:/literal", where ":" is one segment.
function pattern(path) {
  const escaped = path.replace(/[.]/g, "\\.").replace(/:/g, "([^/]+)");
  return new RegExp(`^${escaped}$`);
}

function numberOf(value, name) {
  if (value === null) return undefined;
  if (!/^\d+$/.test(value)) throw new Refused(400, `${name} is no number`);
  return Number(value);
}

// Protocol: Jira Software REST, bulkByProperties: at least one pair, no key
// twice, and no _updateSequenceId any more.
function propertyPairs(query) {
  const pairs = [...query];
  if (pairs.length === 0) throw new Refused(400, "no property given");
  if (new Set(pairs.map(([name]) => name)).size < pairs.length) throw new Refused(400, "a property is given twice");
  const reserved = pairs.find(([name]) => name.startsWith("_"));
  if (reserved) throw new Refused(400, `${reserved[0]} is no property`);
  return pairs;
}

const accepted = { status: 202 };

function familyRoutes(family) {
  const { path, name } = family;
  return [
    ["POST", `${path}/bulk`, ({ store, text }) => ({ status: 202, body: family.submit(store, parseBulk(text)) })],
    ["DELETE", `${path}/bulkByProperties`, ({ store, query }) => {
      store.removeByProperties(name, propertyPairs(query));
      return accepted;
    }],
  ];
}

function oneRoutes(family) {
  const path = `${family.path}/${family.one}`;
  const limit = `_${family.sequence}`;
  return [
    ["GET", path, ({ store, segments }) => ({ status: 200, body: family.read(store, segments.join("/")) })],
    ["DELETE", path, ({ store, segments, query }) => {
      store.remove(family.name, segments.join("/"), numberOf(query.get(limit), limit));
      return accepted;
    }],
  ];
}

function devinfoRoutes(devinfo) {
  const { path, name } = devinfo;
  const upTo = (query) => numberOf(query.get("_updateSequenceId"), "_updateSequenceId");
  return [
    ["GET", `${path}/existsByProperties`, ({ store, query }) => {
      const limit = upTo(query);
      query.delete("_updateSequenceId");
      const found = store.keysByProperties(name, propertyPairs(query), limit);
      return { status: 200, body: { hasDataMatchingProperties: found.length > 0 } };
    }],
    ["GET", `${path}/repository/:`, ({ store, segments: [id] }) => ({ status: 200, body: devinfo.read(store, id) })],
    ["DELETE", `${path}/repository/:`, ({ store, segments: [id], query }) => {
      store.removeRepository(id, upTo(query));
      return accepted;
    }],
    ...["commit", "branch", "pull_request"].map((type) => [
      "DELETE", `${path}/repository/:/${type}/:`, ({ store, segments: [repository, id], query }) => {
        store.remove(name, `${repository}/${type}/${id}`, upTo(query));
        return accepted;
      },
    ]),
  ];
}

// Protocol: Jira Cloud REST v3, "Get user", as far as GitLab asks for it. Its
// admins are told by the name of a group.
function user({ query }) {
  const accountId = query.get("accountId");
  if (!accountId || accountId === UNKNOWN_ACCOUNT) throw new Refused(404, "no such user");
  const groups = accountId === PLAIN_ACCOUNT ? ["jira-software-users"] : ["jira-software-users", "site-admins"];
  const body = { accountId, accountType: "atlassian", active: true };
  if (query.get("expand")?.split(",").includes("groups")) {
    body.groups = { size: groups.length, items: groups.map((name) => ({ name })) };
  }
  return { status: 200, body };
}

// Protocol: Jira Cloud REST v3, "Get bulk permissions". An app may ask about any
// user; whoever names nobody is told about the caller, and this app may do all.
function permissionsCheck({ text }) {
  const { accountId, globalPermissions = [] } = parseBulk(text);
  if (accountId === UNKNOWN_ACCOUNT) throw new Refused(400, "no such user");
  const held = accountId === PLAIN_ACCOUNT ? [] : ["ADMINISTER"];
  return {
    status: 200,
    body: { projectPermissions: [], globalPermissions: held.filter((name) => globalPermissions.includes(name)) },
  };
}

const [devinfo, ...flat] = families;
const routes = [
  ...families.flatMap(familyRoutes),
  ...devinfoRoutes(devinfo),
  ...flat.flatMap(oneRoutes),
  ["GET", "/rest/api/3/user", user],
  ["POST", "/rest/api/3/permissions/check", permissionsCheck],
].map(([method, path, handle]) => ({ method, path, pattern: pattern(path), handle }));

// {route, segments}, or nothing when there is no such endpoint.
function find(method, path) {
  for (const route of routes) {
    const found = route.method === method && route.pattern.exec(path);
    if (found) return { route, segments: found.slice(1).map(decode) };
  }
  return undefined;
}

function decode(segment) {
  try {
    return decodeURIComponent(segment);
  } catch {
    throw new Refused(400, "the path is malformed");
  }
}

// Reads to the end whatever it is, so that the client hears the answer; keeps
// no more than the limit.
async function readBody(request, limit) {
  const chunks = [];
  let size = 0;
  for await (const chunk of request) {
    size += chunk.length;
    if (size <= limit) chunks.push(chunk);
  }
  return { size, bytes: size <= limit ? Buffer.concat(chunks) : null };
}

function decodeUtf8(bytes) {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return null;
  }
}

// For the list of requests: JSON if it can be shown as such.
function readable(bytes) {
  if (!bytes || bytes.length === 0) return null;
  const text = bytes.toString("utf8");
  try {
    const value = JSON.parse(text);
    return depthOf(value) > MAX_DEPTH ? text : value;
  } catch {
    return text;
  }
}

function send(response, { status, headers = {}, body }) {
  if (body === undefined) {
    response.writeHead(status, { "Content-Length": 0, ...headers }).end();
    return;
  }
  const isText = typeof body === "string";
  const bytes = Buffer.from(isText ? body : JSON.stringify(body));
  const type = isText ? "text/plain" : "application/json";
  response.writeHead(status, { "Content-Type": type, "Content-Length": bytes.length, ...headers });
  response.end(bytes);
}

class Site {
  #store = new Store();
  #authority = new Authority();
  #quota = new Quota();
  #maxBodyBytes = DEFAULT_MAX_BODY_BYTES;
  #requests = [];
  #violations = [];
  #origin;
  // A missing Host is judged here, and a connection is kept as long as its
  // client wants: a close of ours must not look like a fault.
  #server = http.createServer({ requireHostHeader: false, keepAliveTimeout: 0 }, (request, response) => {
    this.#serve(request, response).catch((error) => this.#broken(request, error));
  });

  faults = new Faults();

  async listen() {
    this.#server.on("clientError", (error, socket) => this.#malformed(error, socket));
    await new Promise((resolve, reject) => {
      this.#server.once("error", reject);
      this.#server.listen(0, "127.0.0.1", resolve);
    });
    this.#origin = `http://127.0.0.1:${this.#server.address().port}`;
    return this.#origin;
  }

  configure(settings) {
    this.#authority.configure(settings);
    this.#maxBodyBytes = settings.max_body_bytes ?? DEFAULT_MAX_BODY_BYTES;
  }

  set quota(settings) {
    this.#quota.configure(settings);
  }

  get state() {
    return { ...this.#store.snapshot(), violations: this.#violations };
  }

  get requests() {
    return this.#requests.map(({ bytes, ...entry }) => ({ ...entry, body: readable(bytes) }));
  }

  clearRequests() {
    this.#requests = [];
  }

  async #serve(request, response) {
    const at = Date.now();
    const { size, bytes } = await readBody(request, this.#maxBodyBytes);
    const call = this.#examine(request, size, bytes);
    const fault = this.faults.take(call);
    const entry = {
      method: call.method,
      path: request.url,
      status: null,
      authorization_ok: call.refusal === null,
      headers: Object.keys(request.headers),
      at_ms: at,
      fault: fault?.mode ?? null,
      bytes,
    };
    this.#requests.push(entry);

    const respond = (answer) => {
      entry.status = answer.status;
      send(response, answer);
    };
    if (fault) await this.#fail(fault, call, request.socket, respond);
    else respond(this.#answer(call, entry));
  }

  #examine(request, size, bytes) {
    const [path, query] = splitTarget(request.url);
    const refusal = path.startsWith("/rest/") ? this.#authority.refusal(request, this.#origin) : "no REST call";
    const found = transportViolations(request, this.#origin);
    if (refusal && path.startsWith("/rest/")) found.push(refusal);
    this.#violations.push(...found.map((reason) => `${request.method} ${request.url}: ${reason}`));
    const text = bytes && decodeUtf8(bytes);
    return { method: request.method, path, query, size, tooLarge: bytes === null, text, refusal };
  }

  async #fail(fault, call, socket, respond) {
    // The lost answer: what was sent counts, and the client can't know.
    if (fault.mode.endsWith("_after_store")) this.#answer(call);
    if (fault.delay_ms) await sleep(fault.delay_ms);
    switch (fault.mode) {
      case "delay":
        respond(this.#answer(call));
        break;
      case "silence":
        this.faults.silence(socket);
        break;
      case "reset":
      case "reset_after_store":
        socket.resetAndDestroy();
        break;
      default:
        respond({ status: fault.status ?? 503, headers: fault.headers, body: fault.body });
    }
  }

  #answer(call, entry = {}) {
    try {
      return this.#handle(call, entry);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      return { status: error.status, headers: error.headers, body: refusalBody(call.path, error) };
    }
  }

  #handle(call, entry) {
    if (!call.path.startsWith("/rest/")) throw new Refused(404, "not found");
    // Protocol: Atlassian changelog CHANGE-2328: no body with GET.
    if (call.method === "GET" && call.size > 0) throw new Refused(403, "GET with a body");
    if (call.refusal) throw new Refused(401, call.refusal);
    if (call.tooLarge) throw new Refused(413, `body exceeds ${this.#maxBodyBytes} bytes`);
    const found = find(call.method, call.path);
    if (!found) throw new Refused(404, "not found");
    this.#admit(call.method, found.route, entry);
    return found.route.handle({ ...call, segments: found.segments, store: this.#store });
  }

  #admit(method, route, entry) {
    if (method === "GET") return;
    const headers = this.#quota.refusal(`${method} ${route.path}`, Date.now());
    if (!headers) return;
    entry.fault = "quota";
    throw new Refused(429, "rate limit exceeded", headers);
  }

  // What the parser refuses. A client that died in mid-sentence did nothing wrong.
  #malformed(error, socket) {
    if (error.code?.startsWith("HPE_") && error.code !== "HPE_INVALID_EOF_STATE") {
      this.#violations.push(`malformed request: ${error.code} ${error.reason ?? error.message}`);
    }
    if (socket.writable) socket.end("HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    else socket.destroy();
  }

  // A client that goes away while it is read is no fault of anybody's; the
  // rest is a mistake of the judge, and must not pass for an answer.
  #broken(request, error) {
    if (!request.destroyed || request.complete) {
      this.#violations.push(`judge failed at ${request.method} ${request.url}: ${error.stack}`);
    }
    request.socket.destroy();
  }
}

function splitTarget(target) {
  const cut = target.indexOf("?");
  if (cut < 0) return [target, new URLSearchParams()];
  return [target.slice(0, cut), new URLSearchParams(target.slice(cut))];
}

// Protocol: Jira Software REST: what a 400 or 413 looks like differs by family.
function refusalBody(path, { status, message }) {
  const family = [400, 413].includes(status) ? familyOf(path) : undefined;
  return family?.refusalBody([message]) ?? { errorMessages: [message] };
}

const commands = {
  configure: (site, command) => {
    site.configure(command);
    return {};
  },
  fault: (site, command) => {
    site.faults.add(command);
    return {};
  },
  flap: (site, command) => {
    site.faults.flap(command);
    return {};
  },
  quota: (site, command) => {
    site.quota = command;
    return {};
  },
  state: (site) => site.state,
  requests: (site) => ({ requests: site.requests }),
  clear_requests: (site) => {
    site.clearRequests();
    return {};
  },
};

const site = new Site();
say({ ready: true, url: await site.listen() });
serveCommands(site, commands, LAST_WORDS_MS);
