// OAuth 2.0 credentials that Jira admins make, and the token endpoint for them.

import { randomBytes, randomUUID } from "node:crypto";
import { FAMILIES } from "../jira_site/store.mjs";
import { familyOf, Refused } from "../jira_site/families.mjs";
import { gatewayRefused } from "./grants.mjs";

const AUDIENCE = "api.atlassian.com";

// Protocol: "Integrating Jira Software Cloud with on-premises tools": 15 minutes.
const LIFETIME_SECS = 900;

// Protocol: RFC 6749 5.2, in the words of Auth0, which answers there.
function oauthRefused(status, error, description) {
  return new Refused(status, description, {}, { error, error_description: description });
}

class Credential {
  constructor({ clientId, site, provider }) {
    this.clientId = clientId;
    this.cloudId = site.cloudId;
    this.site = site;
    this.provider = provider;
    this.deleted = false;
  }

  denial({ path }) {
    if (this.deleted) return gatewayRefused(401, "Unauthorized");
    const family = familyOf(path);
    if (!family) return gatewayRefused(401, "Unauthorized; scope does not match");
    if (this.permissions.includes(family.name)) return null;
    const message = "The token does not correspond to credentials with the permission for this data";
    return new Refused(403, message, {}, family.refusalBody([message]));
  }
}

export class OAuth {
  #credentials = new Map();
  #grants;
  #fetches = 0;
  #granted = new Map();

  lifetimeSecs = LIFETIME_SECS;

  constructor(grants) {
    this.#grants = grants;
  }

  // Makes a credential, or changes one that is known.
  credential(site, { client_id: clientId = randomUUID().replaceAll("-", ""), client_secret: secret, permissions }) {
    const known = this.#credentials.get(clientId);
    const credential = known ?? new Credential({ clientId, site, provider: `oauth:${clientId}` });
    credential.secret = secret ?? credential.secret ?? randomBytes(32).toString("base64url");
    credential.permissions = permissions ?? credential.permissions ?? FAMILIES;
    this.#credentials.set(clientId, credential);
    return { client_id: clientId, client_secret: credential.secret, provider: credential.provider };
  }

  // Protocol: not established whether Jira then deletes what was sent; kept here.
  deleteCredential(clientId) {
    this.#find(clientId).deleted = true;
    this.#credentials.delete(clientId);
  }

  expire(clientId) {
    this.#grants.expire((owner) => owner instanceof Credential && owner.clientId === (clientId ?? owner.clientId));
  }

  get stats() {
    return { fetches: this.#fetches, granted: Object.fromEntries(this.#granted) };
  }

  #find(clientId) {
    const credential = this.#credentials.get(clientId);
    if (!credential) throw new Error(`unknown client_id: ${JSON.stringify(clientId)}`);
    return credential;
  }

  // Protocol: the same page: JSON with these four members.
  token({ text }) {
    this.#fetches += 1;
    const request = parsed(text);
    if (request.grant_type !== "client_credentials") {
      throw oauthRefused(403, "unauthorized_client", `Grant type '${request.grant_type}' not allowed for the client.`);
    }
    if (request.audience !== AUDIENCE) {
      throw oauthRefused(403, "access_denied", `Service not enabled within domain: ${request.audience}`);
    }
    const credential = this.#credentials.get(request.client_id);
    if (!credential || credential.secret !== request.client_secret) {
      throw oauthRefused(401, "access_denied", "Unauthorized");
    }
    this.#granted.set(credential.clientId, (this.#granted.get(credential.clientId) ?? 0) + 1);
    const body = {
      access_token: this.#grants.issue(credential, this.lifetimeSecs),
      scope: credential.permissions.join(" "),
      expires_in: this.lifetimeSecs,
      token_type: "Bearer",
    };
    return { status: 200, headers: { "Cache-Control": "no-store" }, body };
  }
}

function parsed(text) {
  try {
    const request = JSON.parse(text);
    if (typeof request === "object" && request !== null) return request;
  } catch {
    // Said below.
  }
  throw oauthRefused(400, "invalid_request", "The body is no JSON object");
}
