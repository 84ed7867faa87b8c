// api.atlassian.com: the token endpoint, and the sites' REST calls for those who
// come with a bearer token.

import { Door } from "../jira_site/door.mjs";
import { families, familyOf } from "../jira_site/families.mjs";
import { checkMethod, perform, refusalBody } from "../jira_site/rest.mjs";
import { gatewayRefused } from "./grants.mjs";

const TOKEN_PATH = "/oauth/token";

// Protocol: "Integrating Jira Software Cloud with on-premises tools"; devinfo is
// 0.1 here, other than on the site. Remote links have the permission, but their
// path is written down nowhere: taken to be like the others.
const OAUTH_PATH = /^\/jira\/([a-z]+)\/0\.1\/cloud\/([^/]+)\/(.+)$/;
// Protocol: Forge Remote, apiBaseUrl.
const SITE_PATH = /^\/ex\/jira\/([^/]+)(\/rest\/.+)$/;

// {cloudId, path}: which site is meant, and which path there.
function targetOf(path) {
  const [, name, cloudId, rest] = OAUTH_PATH.exec(path) ?? [];
  const family = families.find((known) => known.name === name);
  if (family) return { cloudId, path: `${family.path}/${rest}` };
  const [, site, below] = SITE_PATH.exec(path) ?? [];
  return site && { cloudId: site, path: below };
}

function bearerOf(request) {
  const values = request.rawHeaders.filter(
    (_, index, all) => index % 2 === 1 && all[index - 1].toLowerCase() === "authorization",
  );
  return values.length === 1 ? /^Bearer (\S+)$/.exec(values[0])?.[1] : undefined;
}

export class Gateway {
  #sites;
  #grants;
  #oauth;

  door = new Door(this);

  constructor({ sites, grants, oauth }) {
    this.#sites = sites;
    this.#grants = grants;
    this.#oauth = oauth;
  }

  // What no honest client does: to call without a token that it was given, or
  // with one that is for another site. An old one is only old.
  examine(request, path) {
    if (path === TOKEN_PATH) return { refusal: null, violations: [] };
    const target = targetOf(path);
    if (!target) return { refusal: "no such path", violations: [] };
    const grant = this.#grants.find(bearerOf(request));
    const seen = { target, owner: grant?.owner };
    if (!grant) return refused(seen, gatewayRefused(401, "Unauthorized"), ["no token that was ever given out"]);
    if (!this.#siteOf(target.cloudId)) return refused(seen, gatewayRefused(404, "Not Found"), ["no such site"]);
    if (grant.owner.cloudId !== target.cloudId) {
      return refused(seen, gatewayRefused(403, "Forbidden"), ["the token is for another site"]);
    }
    if (grant.expiresAtMs <= Date.now()) return refused(seen, gatewayRefused(401, "Unauthorized"), []);
    const denial = grant.owner.denial({ method: request.method, path: target.path, family: familyOf(target.path) });
    return denial ? refused(seen, denial, []) : { ...seen, refusal: null, violations: [] };
  }

  answer(call, admit) {
    if (call.path === TOKEN_PATH && call.method === "POST") return this.#oauth.token(call);
    const { target, owner, denial } = call;
    if (!target) throw gatewayRefused(404, "Not Found");
    checkMethod(call);
    if (denial) throw denial;
    const site = this.#siteOf(target.cloudId);
    const store = site.store(owner.provider);
    return perform(call, target.path, { site, store }, (endpoint) => admit(`${target.cloudId} ${endpoint}`));
  }

  refusalBody({ target }, refused) {
    return refused.body ?? refusalBody(target?.path ?? "", refused);
  }

  #siteOf(cloudId) {
    return [...this.#sites.values()].find((site) => site.cloudId === cloudId);
  }
}

function refused(seen, denial, violations) {
  return { ...seen, denial, refusal: denial.message, violations };
}
