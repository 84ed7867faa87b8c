// The bearer tokens that are out: who may do what with them, and until when.

import { randomBytes } from "node:crypto";
import { Refused } from "../jira_site/families.mjs";

// What api.atlassian.com itself answers, before any product is asked.
export function gatewayRefused(status, message) {
  return new Refused(status, message, {}, { code: status, message });
}

export class Grants {
  #grants = new Map();

  // owner: {cloudId, provider, denial(request)}; the last is the Refused that a
  // request of {method, path, family} meets, or null.
  issue(owner, lifetimeSecs, token = randomBytes(48).toString("base64url")) {
    this.#grants.set(token, { owner, expiresAtMs: Date.now() + lifetimeSecs * 1000 });
    return token;
  }

  find(token) {
    return this.#grants.get(token);
  }

  // From now on they are worth nothing, as if their time were over.
  expire(mine = () => true) {
    for (const grant of this.#grants.values()) {
      if (mine(grant.owner)) grant.expiresAtMs = 0;
    }
  }

  // Every token that was ever given out, for those who watch for leaks.
  get tokens() {
    return [...this.#grants.keys()];
  }
}
