// The five families of Jira Software's REST interface for development tools:
// what a bulk call may hold, what becomes of it, and how it is answered.

const MAX_PROPERTIES = 5;
const MAX_PROPERTY_KEY = 255;
const MAX_ENTITIES = 1000;
const MAX_OF_ONE_KIND = 400;
const MAX_DEVINFO_ID = 1024;
const MAX_ID = 255;
const ID = /^[A-Za-z0-9~.\-_]+$/;

// Jira's store takes what XML 1.0 takes in the basic plane. A character beyond
// it comes as two surrogates, which the pattern sees one by one.
const INVALID_CHARACTER = /[^\t\n\r\u0020-\uD7FF\uE000-\uFFFD]/;
// Deeper than any payload, and shallow enough for every recursion.
export const MAX_DEPTH = 64;

// The whole request is refused. Without a body, the door says what it looks like.
export class Refused extends Error {
  constructor(status, message, headers = {}, body = undefined) {
    super(message);
    this.status = status;
    this.headers = headers;
    this.body = body;
  }
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isPresent(value) {
  return value !== undefined && value !== null;
}

function at(entity, path) {
  return path.split(".").reduce((value, name) => (isObject(value) ? value[name] : undefined), entity);
}

export function depthOf(value, limit = MAX_DEPTH) {
  if (typeof value !== "object" || value === null) return 0;
  if (limit === 0) return 1;
  // Not Math.max(...): a list can be longer than a call has room for arguments.
  return 1 + Object.values(value).reduce((deepest, inner) => Math.max(deepest, depthOf(inner, limit - 1)), 0);
}

function hasInvalidCharacter(value) {
  if (typeof value === "string") return INVALID_CHARACTER.test(value);
  if (typeof value !== "object" || value === null) return false;
  return Object.entries(value).some(([name, inner]) => hasInvalidCharacter(name) || hasInvalidCharacter(inner));
}

// GitLab sends null for a list that the event says nothing about.
function listOf(parent, name, { required = false } = {}) {
  const list = parent[name];
  if (!isPresent(list) && !required) return [];
  if (!Array.isArray(list) || !list.every(isObject)) throw new Refused(400, `${name} is no list of objects`);
  return list;
}

// Protocol: Jira Software REST, properties: what Jira keeps for itself is
// refused, not ignored.
function propertiesOf(body) {
  const properties = body.properties ?? {};
  if (!isObject(properties)) throw new Refused(400, "properties is no object");
  const names = Object.keys(properties);
  if (names.length > MAX_PROPERTIES) throw new Refused(400, `more than ${MAX_PROPERTIES} properties`);
  for (const name of names) {
    if (name === "" || name.length > MAX_PROPERTY_KEY || name.includes(":") || name.startsWith("_")) {
      throw new Refused(400, `bad property key ${JSON.stringify(name)}`);
    }
  }
  return properties;
}

function checkId(name, value, longest) {
  if (typeof value !== "string" || !ID.test(value)) return [`${name} is no string of [A-Za-z0-9~.-_]`];
  return value.length > longest ? [`${name} is longer than ${longest}`] : [];
}

function checkInteger(name, value) {
  return Number.isSafeInteger(value) ? [] : [`${name} is no integer`];
}

// What is wrong with one entity, which fails alone.
function errorsOf(entity, { ids, integers, required, longestId }) {
  const missing = [...ids, ...integers, ...required].filter((path) => !isPresent(at(entity, path)));
  if (missing.length) return missing.map((path) => `${path} is required`);
  const errors = [
    ...ids.flatMap((path) => checkId(path, at(entity, path), longestId)),
    ...integers.flatMap((path) => checkInteger(path, at(entity, path))),
  ];
  if (isPresent(entity.issueKeys) && isPresent(entity.associations)) {
    errors.push("issueKeys and associations are mutually exclusive");
  }
  return errors;
}

function asMessages(errors) {
  return errors.map((message) => ({ message }));
}

// Protocol: Jira Software REST, devinfo: the required fields.
const DEVINFO_RULE = { ids: ["id"], integers: ["updateSequenceId"], longestId: MAX_DEVINFO_ID };
const REPOSITORY = { ...DEVINFO_RULE, required: ["name", "url"] };
const KINDS = [
  {
    list: "commits",
    type: "commit",
    ...DEVINFO_RULE,
    required: ["message", "author", "authorTimestamp", "displayId", "url", "fileCount"],
  },
  { list: "branches", type: "branch", ...DEVINFO_RULE, required: ["name", "lastCommit", "url"] },
  {
    list: "pullRequests",
    type: "pull_request",
    ...DEVINFO_RULE,
    required: [
      "status", "title", "author", "lastUpdate", "url", "displayId", "sourceBranch", "commentCount",
    ],
  },
];
const [COMMIT] = KINDS;

function kindErrors(kind, entity) {
  const errors = errorsOf(entity, kind);
  if (kind.type !== "branch" || errors.length) return errors;
  if (!isObject(entity.lastCommit)) return ["lastCommit is no object"];
  return errorsOf(entity.lastCommit, COMMIT).map((error) => `lastCommit: ${error}`);
}

function checkDevinfoLimits(repositories) {
  let count = repositories.length;
  for (const repository of repositories) {
    for (const { list } of KINDS) {
      const size = listOf(repository, list).length;
      if (size > MAX_OF_ONE_KIND) throw new Refused(400, `more than ${MAX_OF_ONE_KIND} ${list} in a repository`);
      count += size;
    }
  }
  if (count > MAX_ENTITIES) throw new Refused(400, `more than ${MAX_ENTITIES} entities`);
}

class Devinfo {
  path = "/rest/devinfo/0.10";
  name = "devinfo";

  refusalBody(messages) {
    return { errorMessages: messages };
  }

  submit(store, body) {
    const properties = propertiesOf(body);
    const repositories = listOf(body, "repositories", { required: true });
    checkDevinfoLimits(repositories);
    const accepted = new Map();
    const failed = new Map();
    for (const repository of repositories) {
      this.#take(store, repository, properties, accepted, failed);
    }
    return {
      acceptedDevinfoEntities: Object.fromEntries(accepted),
      failedDevinfoEntities: Object.fromEntries(failed),
      unknownIssueKeys: [],
      unknownAssociations: [],
    };
  }

  #take(store, repository, properties, accepted, failed) {
    const errors = errorsOf(repository, REPOSITORY);
    if (errors.length) {
      failed.set(String(repository.id), { errorMessages: asMessages(errors) });
      return;
    }
    this.#put(store, repository.id, withoutChildren(repository), properties);
    const good = accepted.get(repository.id) ?? { commits: [], branches: [], pullRequests: [] };
    const bad = failed.get(repository.id) ?? { errorMessages: [], commits: [], branches: [], pullRequests: [] };
    for (const kind of KINDS) {
      for (const entity of listOf(repository, kind.list)) {
        const wrong = kindErrors(kind, entity);
        if (wrong.length) {
          bad[kind.list].push({ id: entity.id, errorMessages: asMessages(wrong) });
          continue;
        }
        good[kind.list].push(entity.id);
        this.#putChild(store, repository.id, kind, entity, properties);
      }
    }
    accepted.set(repository.id, good);
    if (KINDS.some(({ list }) => bad[list].length)) failed.set(repository.id, bad);
  }

  // Protocol: Jira Software REST, devinfo: a branch's last commit is a commit of
  // the repository, under the same key.
  #putChild(store, repositoryId, kind, entity, properties) {
    this.#put(store, `${repositoryId}/${kind.type}/${entity.id}`, entity, properties);
    if (kind.type === "branch") {
      this.#put(store, `${repositoryId}/commit/${entity.lastCommit.id}`, entity.lastCommit, properties);
    }
  }

  #put(store, key, data, properties) {
    store.put(this.name, key, { seq: data.updateSequenceId, data, properties });
  }

  // Protocol: Jira Software REST, devinfo: the newest 400 of each kind.
  read(store, id) {
    const repository = store.get(this.name, id);
    if (!repository) throw new Refused(404, `no repository ${id}`);
    const answer = { ...repository.data };
    for (const { list, type } of KINDS) {
      answer[list] = store
        .entries(this.name)
        .filter(([key]) => key.startsWith(`${id}/${type}/`))
        .map(([, { data }]) => data)
        .sort((a, b) => b.updateSequenceId - a.updateSequenceId)
        .slice(0, MAX_OF_ONE_KIND);
    }
    return answer;
  }
}

function withoutChildren(repository) {
  const { commits, branches, pullRequests, ...own } = repository;
  return own;
}

// Four families that differ in nothing but names.
class Flat {
  longestId = MAX_ID;

  constructor(names) {
    Object.assign(this, names);
  }

  // Protocol: GitLab lib/atlassian/jira_connect/client.rb: older ones raise at
  // anything but an array.
  refusalBody(messages) {
    return asMessages(messages);
  }

  submit(store, body) {
    const properties = propertiesOf(body);
    const accepted = [];
    const rejected = [];
    for (const entity of listOf(body, this.list, { required: true })) {
      const errors = errorsOf(entity, this);
      if (errors.length) {
        rejected.push([this.idOf(entity), asMessages(errors)]);
        continue;
      }
      const seq = at(entity, this.sequence);
      store.put(this.name, this.keyPaths.map((path) => at(entity, path)).join("/"), { seq, data: entity, properties });
      accepted.push(this.idOf(entity));
    }
    return {
      [this.accepted]: accepted,
      [this.rejected]: this.rejections(rejected),
      unknownIssueKeys: [],
      unknownAssociations: [],
    };
  }

  read(store, key) {
    const entity = store.get(this.name, key);
    if (!entity) throw new Refused(404, `no ${this.name} ${key}`);
    return entity.data;
  }
}

const listed = (rejected) => rejected.map(([key, errors]) => ({ key, errors }));
const byId = (rejected) => Object.fromEntries(rejected.map(([id, errors]) => [String(id), errors]));

export const families = [
  new Devinfo(),
  new Flat({
    name: "builds",
    path: "/rest/builds/0.1",
    list: "builds",
    sequence: "updateSequenceNumber",
    keyPaths: ["pipelineId", "buildNumber"],
    ids: ["pipelineId"],
    integers: ["buildNumber", "updateSequenceNumber"],
    required: ["displayName", "url", "state", "lastUpdated"],
    idOf: ({ pipelineId, buildNumber }) => ({ pipelineId, buildNumber }),
    accepted: "acceptedBuilds",
    rejected: "rejectedBuilds",
    rejections: listed,
    one: "pipelines/:/builds/:",
  }),
  new Flat({
    name: "deployments",
    path: "/rest/deployments/0.1",
    list: "deployments",
    sequence: "updateSequenceNumber",
    keyPaths: ["pipeline.id", "environment.id", "deploymentSequenceNumber"],
    ids: ["pipeline.id", "environment.id"],
    integers: ["deploymentSequenceNumber", "updateSequenceNumber"],
    required: [
      "displayName", "url", "description", "lastUpdated", "state", "pipeline.displayName", "pipeline.url",
      "environment.displayName", "environment.type",
    ],
    idOf: (entity) => ({
      pipelineId: at(entity, "pipeline.id"),
      environmentId: at(entity, "environment.id"),
      deploymentSequenceNumber: entity.deploymentSequenceNumber,
    }),
    accepted: "acceptedDeployments",
    rejected: "rejectedDeployments",
    rejections: listed,
    one: "pipelines/:/environments/:/deployments/:",
  }),
  new Flat({
    name: "featureflags",
    path: "/rest/featureflags/0.1",
    list: "flags",
    sequence: "updateSequenceId",
    keyPaths: ["id"],
    ids: ["id"],
    integers: ["updateSequenceId"],
    required: ["key", "displayName", "summary", "details"],
    idOf: ({ id }) => id,
    accepted: "acceptedFeatureFlags",
    rejected: "failedFeatureFlags",
    rejections: byId,
    one: "flag/:",
  }),
  new Flat({
    name: "remotelinks",
    path: "/rest/remotelinks/1.0",
    list: "remoteLinks",
    sequence: "updateSequenceNumber",
    keyPaths: ["id"],
    ids: ["id"],
    integers: ["updateSequenceNumber"],
    required: ["displayName", "url", "type", "lastUpdated"],
    idOf: ({ id }) => id,
    accepted: "acceptedRemoteLinks",
    rejected: "rejectedRemoteLinks",
    rejections: byId,
    one: "remotelink/:",
  }),
];

export function familyOf(path) {
  return families.find((family) => path.startsWith(`${family.path}/`));
}

// The body of a bulk call, as far as all families want the same of it.
export function parseBulk(text) {
  const body = parseJson(text);
  if (!isObject(body)) throw new Refused(400, "body is no object");
  if (hasInvalidCharacter(body)) throw new Refused(400, "Invalid binary character");
  return body;
}

function parseJson(text) {
  if (text === null) throw new Refused(400, "body is not UTF-8");
  let body;
  try {
    body = JSON.parse(text);
  } catch {
    throw new Refused(400, "body is not JSON");
  }
  if (depthOf(body) > MAX_DEPTH) throw new Refused(400, "body is nested too deeply");
  return body;
}
