// Who may call the site: Atlassian's own library decides over the token.

import jwt from "atlassian-jwt";

// Protocol: Atlassian "Understanding JWT" advises three minutes for app -> Jira.
// What is longer than this is no short-lived token any more.
const MAX_LIFETIME_S = 300;
const LEEWAY_S = 60;

// Protocol: RFC 9110 7.6.1. These are between an instance and the relay; a
// relay that copies them is no relay.
const HOP_BY_HOP = /^(keep-alive|te|upgrade|proxy-.*)$/;

export class Authority {
  #appKey = null;
  #secrets = [];

  configure({ app_key: appKey, secrets }) {
    if (typeof appKey !== "string" || !Array.isArray(secrets)) {
      throw new Error("configure wants app_key and secrets");
    }
    this.#appKey = appKey;
    this.#secrets = secrets;
  }

  // The reason to answer 401, or null.
  refusal(request, origin) {
    try {
      const claims = this.#verify(tokenOf(request));
      this.#checkIssuer(claims);
      checkTimes(claims, Date.now() / 1000);
      checkHash(claims, request, origin);
      return null;
    } catch (error) {
      return error.message;
    }
  }

  #verify(token) {
    // Without a signature check first, because the library's message for a bad
    // signature says neither which secret it was nor anything else of use.
    jwt.decodeSymmetric(token, "", jwt.SymmetricAlgorithm.HS256, true);
    for (const secret of this.#secrets) {
      try {
        return jwt.decodeSymmetric(token, secret, jwt.SymmetricAlgorithm.HS256);
      } catch {
        // The next one may fit.
      }
    }
    throw new Error("no accepted secret made the signature");
  }

  // Protocol: Atlassian "Understanding JWT": iss of app -> Jira is the app key.
  #checkIssuer({ iss }) {
    if (iss !== this.#appKey) throw new Error(`iss is ${JSON.stringify(iss)}`);
  }
}

function tokenOf(request) {
  const values = request.rawHeaders.filter(
    (_, index, all) => index % 2 === 1 && all[index - 1].toLowerCase() === "authorization",
  );
  if (values.length !== 1) throw new Error(`${values.length} Authorization headers`);
  const token = /^JWT (\S+)$/.exec(values[0])?.[1];
  if (!token) throw new Error("Authorization is not exactly JWT and a token");
  return token;
}

// Protocol: Atlassian's com.atlassian.jwt: iat and exp are required, as numbers.
function checkTimes({ iat, exp }, now) {
  if (!Number.isFinite(iat) || !Number.isFinite(exp)) throw new Error("iat or exp is no number");
  if (exp <= iat || exp - iat > MAX_LIFETIME_S) throw new Error(`exp is ${exp - iat} s after iat`);
  if (exp < now - LEEWAY_S) throw new Error("token has expired");
  if (iat > now + LEEWAY_S) throw new Error("iat is in the future");
}

// Protocol: Atlassian "Understanding JWT", query string hash. A Jira Cloud site
// has no base path.
function checkHash({ qsh }, request, origin) {
  const target = jwt.fromMethodAndUrl(request.method, origin + request.url);
  const expected = jwt.createQueryStringHash(target, false);
  if (qsh !== expected) {
    throw new Error(`qsh does not match ${jwt.createCanonicalRequest(target, false)}`);
  }
}

// What no client of Jira should send, whether or not it is let in. Length
// together with chunks never gets here: Node's parser refuses it.
export function transportViolations(request, origin) {
  const found = [];
  const { host } = new URL(origin);
  if (request.headers.host !== host) found.push(`Host is ${JSON.stringify(request.headers.host)}`);
  for (const name of Object.keys(request.headers)) {
    if (HOP_BY_HOP.test(name)) found.push(`hop-by-hop header ${name}`);
  }
  return found;
}
