// What a Jira site can be asked, below /rest, whoever asks and through which
// door. README.md lists the endpoints.

import { families, familyOf, parseBulk, Refused } from "./families.mjs";

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

// Protocol: Jira Cloud REST v3, "Get Jira instance info", as far as it tells
// which site this is.
function serverInfo({ site }) {
  const body = {
    baseUrl: site.baseUrl,
    version: "1001.0.0-SNAPSHOT",
    versionNumbers: [1001, 0, 0],
    deploymentType: "Cloud",
    serverTitle: "Jira",
  };
  return { status: 200, body };
}

const [devinfo, ...flat] = families;
const routes = [
  ...families.flatMap(familyRoutes),
  ...devinfoRoutes(devinfo),
  ...flat.flatMap(oneRoutes),
  ["GET", "/rest/api/3/user", user],
  ["POST", "/rest/api/3/permissions/check", permissionsCheck],
  ["GET", "/rest/api/3/serverInfo", serverInfo],
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

// Protocol: Atlassian changelog CHANGE-2328: no body with GET.
export function checkMethod({ method, size }) {
  if (method === "GET" && size > 0) throw new Refused(403, "GET with a body");
}

// Carries out the call of somebody who was let in. The path is the one below the
// site, the store is the caller's own.
export function perform(call, path, { site, store }, admit) {
  if (call.size > call.limit) throw new Refused(413, `body exceeds ${call.limit} bytes`);
  const found = find(call.method, path);
  if (!found) throw new Refused(404, "not found");
  admit(found.route.path);
  return found.route.handle({ ...call, segments: found.segments, site, store });
}

// Protocol: Jira Software REST: what a 400 or 413 looks like differs by family.
export function refusalBody(path, { status, message }) {
  const family = [400, 413].includes(status) ? familyOf(path) : undefined;
  return family?.refusalBody([message]) ?? { errorMessages: [message] };
}
