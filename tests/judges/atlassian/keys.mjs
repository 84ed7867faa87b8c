// Keys that Forge signs with, made and used by npm jose, and what it publishes
// of them.

import { randomUUID } from "node:crypto";
import * as jose from "jose";
import { overlay } from "../overlay.mjs";

export const ISSUER = "forge/invocation-token";
const ALGORITHM = "RS256";

async function makeKey() {
  const { privateKey, publicKey } = await jose.generateKeyPair(ALGORITHM, { extractable: true });
  // Protocol: a key id has slashes in real tokens (logged by a remote in October
  // 2025): forge/invocation-token/wf-UUID.
  const kid = `${ISSUER}/wf-${randomUUID()}`;
  const jwk = { ...(await jose.exportJWK(publicKey)), kid, alg: ALGORITHM, use: "sig" };
  return { kid, privateKey, publicKey, jwk };
}

const encoded = (value) => jose.base64url.encode(JSON.stringify(value));

// Who signs, by the word that a test uses. All but the first are no honest Forge.
const SIGNERS = {
  current: ({ key, header, claims }) => signed(header, claims, key.privateKey),
  // A key of one's own under the name of the real one.
  stranger: async ({ header, claims }) => signed(header, claims, (await makeKey()).privateKey),
  // The public key as the secret: what a verifier falls for that lets the token choose.
  hs256_public: async ({ key, header, claims }) => {
    const secret = new TextEncoder().encode(await jose.exportSPKI(key.publicKey));
    return signed({ ...header, alg: "HS256" }, claims, secret);
  },
  none: ({ header, claims }) => `${encoded({ ...header, alg: "none" })}.${encoded(claims)}.`,
};

function signed(header, claims, key) {
  return new jose.SignJWT(claims).setProtectedHeader(header).sign(key);
}

export class Keys {
  #keys;
  cacheControl = null;

  static async create() {
    const keys = new Keys();
    keys.#keys = [await makeKey()];
    return keys;
  }

  get kid() {
    return this.#keys[0].kid;
  }

  // The old keys stay published, unless they are forgotten.
  async rotate({ forget = false } = {}) {
    const known = forget ? [] : this.#keys;
    this.#keys = [await makeKey(), ...known];
    return this.kid;
  }

  // Keys that are never used, to make the set as large as a test wants.
  async pad(count) {
    for (let made = 0; made < count; made += 1) this.#keys.push(await makeKey());
  }

  // The key set as it is served now.
  get published() {
    return { keys: this.#keys.map(({ jwk }) => jwk) };
  }

  // {token, header, claims}, as they were signed.
  async sign(claims, { header: changes, signer = "current" } = {}) {
    if (!Object.hasOwn(SIGNERS, signer)) throw new Error(`unknown signer: ${JSON.stringify(signer)}`);
    const key = this.#keys[0];
    const header = overlay({ alg: ALGORITHM, kid: key.kid }, changes);
    const token = await SIGNERS[signer]({ key, header, claims });
    return { token, header: jose.decodeProtectedHeader(token), claims };
  }
}

// What npm jose says of an invocation token by the keys that are published, as
// Atlassian's pages have remotes check it.
export async function verify(token, url, audience) {
  const published = jose.createRemoteJWKSet(new URL(url));
  try {
    const { payload } = await jose.jwtVerify(token, published, { issuer: ISSUER, audience, algorithms: [ALGORITHM] });
    return { valid: true, claims: payload };
  } catch (error) {
    return { valid: false, code: error.code };
  }
}
