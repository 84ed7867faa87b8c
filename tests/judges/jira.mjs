// A simulated Jira Cloud, built on Atlassian's own token library, so that the
// relay's tokens are judged by code that shares nothing with it.
//
// README.md lists the commands.

import { generateKeyPairSync, randomUUID } from "node:crypto";
import http from "node:http";
import jwt from "atlassian-jwt";
import { call } from "./client.mjs";
import { say, serveCommands } from "./commands.mjs";
import { overlay } from "./overlay.mjs";

const CALL_TIMEOUT_MS = 15_000;

// Jira gives its tokens three minutes (official test vectors of atlassian-jwt).
const TOKEN_LIFETIME_S = 180;

// Atlassian never changes a key under its kid; rotation makes a new kid. So
// published keys are only ever added.
class KeyServer {
  #published = new Map();
  #fetches = new Map();
  #mode = "ok";
  #current;
  #server = http.createServer((request, response) => this.#serve(request, response));

  constructor() {
    this.rotate();
  }

  get kid() {
    return this.#current.kid;
  }

  get privateKey() {
    return this.#current.privateKey;
  }

  get fetches() {
    return Object.fromEntries(this.#fetches);
  }

  set mode(mode) {
    if (!["ok", "error", "hang"].includes(mode)) {
      throw new Error(`unknown key_server mode: ${JSON.stringify(mode)}`);
    }
    this.#mode = mode;
  }

  rotate() {
    const { privateKey, publicKey } = generateKeyPairSync("rsa", {
      modulusLength: 2048,
      privateKeyEncoding: { type: "pkcs8", format: "pem" },
      publicKeyEncoding: { type: "spki", format: "pem" },
    });
    const kid = randomUUID();
    this.#published.set(`/${kid}`, publicKey);
    this.#current = { kid, privateKey };
    return kid;
  }

  async listen() {
    await new Promise((resolve, reject) => {
      this.#server.once("error", reject);
      this.#server.listen(0, "127.0.0.1", resolve);
    });
    return `http://127.0.0.1:${this.#server.address().port}`;
  }

  #serve(request, response) {
    this.#fetches.set(request.url, (this.#fetches.get(request.url) ?? 0) + 1);
    if (this.#mode === "hang") return;

    const pem = request.method === "GET" ? this.#published.get(request.url) : undefined;
    const status = this.#mode === "error" ? 500 : pem ? 200 : 404;
    response.writeHead(status, { "content-type": "text/plain" });
    response.end(status === 200 ? pem : "");
  }
}

function lifetime() {
  const iat = Math.floor(Date.now() / 1000);
  return { iat, exp: iat + TOKEN_LIFETIME_S };
}

async function lifecycle(keys, { base_url, event, body, claims, carrier = "header" }) {
  if (!["installed", "uninstalled"].includes(event)) {
    throw new Error(`unknown event: ${JSON.stringify(event)}`);
  }
  if (!["header", "query"].includes(carrier)) {
    throw new Error(`unknown carrier: ${JSON.stringify(carrier)}`);
  }
  const url = new URL(`${base_url.replace(/\/$/, "")}/events/${event}`);
  const request = jwt.fromMethodAndUrl("POST", url.href);
  const token = jwt.encodeAsymmetric(
    overlay(
      {
        iss: body.clientKey,
        aud: [base_url],
        ...lifetime(),
        // false: Jira's hash never covers a JSON body (atlassian-jwt's
        // checkBodyForParams is about form fields only).
        qsh: jwt.createQueryStringHash(request, false, base_url),
      },
      claims,
    ),
    keys.privateKey,
    jwt.AsymmetricAlgorithm.RS256,
    { kid: keys.kid },
  );

  const text = JSON.stringify(body);
  const headers = {
    "content-type": "application/json",
    "content-length": Buffer.byteLength(text),
  };
  if (carrier === "header") headers.authorization = `JWT ${token}`;
  else url.searchParams.set("jwt", token);

  return { ...(await call("POST", url, headers, text, CALL_TIMEOUT_MS)), token };
}

function signRequest({ method, url, base_url, secret, claims }) {
  const request = jwt.fromMethodAndUrl(method, url);
  const qsh = jwt.createQueryStringHash(request, false, base_url);
  const token = jwt.encodeSymmetric(
    overlay({ ...lifetime(), qsh }, claims),
    secret,
    jwt.SymmetricAlgorithm.HS256,
  );
  return { token, qsh, canonical: jwt.createCanonicalRequest(request, false, base_url) };
}

const commands = {
  lifecycle,
  sign_request: (_keys, command) => signRequest(command),
  verify_symmetric: (_keys, { token, secret }) => ({
    claims: jwt.decodeSymmetric(token, secret, jwt.SymmetricAlgorithm.HS256),
  }),
  verify_asymmetric: (_keys, { token, public_pem }) => ({
    claims: jwt.decodeAsymmetric(token, public_pem, jwt.AsymmetricAlgorithm.RS256),
  }),
  stats: (keys) => ({ fetches: keys.fetches }),
  rotate_key: (keys) => ({ kid: keys.rotate() }),
  key_server: (keys, { mode }) => {
    keys.mode = mode;
    return {};
  },
};

const keys = new KeyServer();
const keysUrl = await keys.listen();
say({ ready: true, keys_url: keysUrl, kid: keys.kid });
serveCommands(keys, commands, CALL_TIMEOUT_MS);
