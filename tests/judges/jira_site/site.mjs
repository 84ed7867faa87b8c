// One Jira Cloud site: its own address, where Connect apps call, and what it
// knows, by provider.

import { randomUUID } from "node:crypto";
import { Authority } from "./authority.mjs";
import { DEFAULT_MAX_BODY_BYTES, Door } from "./door.mjs";
import { Refused } from "./families.mjs";
import { checkMethod, perform, refusalBody } from "./rest.mjs";
import { Store } from "./store.mjs";

// The one Connect app that a site has here.
export const CONNECT = "connect";

export class Site {
  #authority = new Authority();
  #stores = new Map();
  #baseUrl = null;

  door = new Door(this);

  constructor(cloudId = randomUUID()) {
    this.cloudId = cloudId;
  }

  // What the site says of itself; a test can rename it.
  get baseUrl() {
    return this.#baseUrl ?? this.door.origin;
  }

  set baseUrl(url) {
    this.#baseUrl = url;
  }

  get providers() {
    return [...this.#stores.keys()];
  }

  // Protocol: Jira Software REST: an entity is known by its own ids within one
  // provider on one site; a provider is an app or an OAuth credential.
  store(provider = CONNECT) {
    if (!this.#stores.has(provider)) this.#stores.set(provider, new Store());
    return this.#stores.get(provider);
  }

  // Protocol: Jira Software REST: uninstalling an app deletes what it sent.
  forget(provider) {
    this.#stores.delete(provider);
  }

  configure({ app_key: appKey, secrets, max_body_bytes: maxBodyBytes }) {
    this.#authority.configure({ app_key: appKey, secrets });
    this.door.maxBodyBytes = maxBodyBytes ?? DEFAULT_MAX_BODY_BYTES;
  }

  examine(request, path, origin) {
    if (path === "/_edge/tenant_info") return { refusal: null, violations: [] };
    if (!path.startsWith("/rest/")) return { refusal: "no REST call", violations: [] };
    const refusal = this.#authority.refusal(request, origin);
    return { refusal, violations: refusal ? [refusal] : [] };
  }

  answer(call, admit) {
    // Protocol: github-for-jira, the Jenkins plugin: nobody has to sign in for it.
    if (call.path === "/_edge/tenant_info" && call.method === "GET") {
      return { status: 200, body: { cloudId: this.cloudId } };
    }
    if (!call.path.startsWith("/rest/")) throw new Refused(404, "not found");
    checkMethod(call);
    if (call.refusal) throw new Refused(401, call.refusal);
    return perform(call, call.path, { site: this, store: this.store() }, admit);
  }

  refusalBody({ path }, refused) {
    return refusalBody(path, refused);
  }
}
