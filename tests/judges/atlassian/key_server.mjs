// Where Forge publishes its keys.

import { Door } from "../jira_site/door.mjs";
import { Refused } from "../jira_site/families.mjs";

const PATH = "/.well-known/jwks.json";

export class KeyServer {
  #keys;
  cacheControl = null;
  door = new Door(this);

  constructor(keys) {
    this.#keys = keys;
  }

  get url() {
    return `${this.door.origin}${PATH}`;
  }

  examine() {
    return { refusal: null, violations: [] };
  }

  answer({ method, path }) {
    if (method !== "GET" || path !== PATH) throw new Refused(404, "not found");
    const headers = this.cacheControl ? { "Cache-Control": this.cacheControl } : {};
    return { status: 200, headers, body: this.#keys.published };
  }

  refusalBody(_call, { message }) {
    return message;
  }
}
