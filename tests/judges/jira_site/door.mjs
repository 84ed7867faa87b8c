// One listening server: it reads each request whole, writes it down, fails when
// a test says so, and else has its judge answer.
//
// The judge has three functions:
// - examine(request, path, origin): {refusal, violations, ..}: why the caller is
//   not let in, or null; and what no client should send. The rest is handed on.
// - answer(call, admit): {status, headers, body}, or throws Refused. It calls
//   admit(endpoint) before the work, for the quota.
// - refusalBody(call, refused): what a refusal looks like on the wire.

import http from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import { transportViolations } from "./authority.mjs";
import { depthOf, MAX_DEPTH, Refused } from "./families.mjs";
import { Faults, Quota } from "./faults.mjs";

// Jira's own limit is not published.
export const DEFAULT_MAX_BODY_BYTES = 5 << 20;

// Reads to the end whatever it is, so that the client hears the answer; keeps
// no more than the limit.
async function readBody(request, limit) {
  const chunks = [];
  let size = 0;
  for await (const chunk of request) {
    size += chunk.length;
    if (size <= limit) chunks.push(chunk);
  }
  return { size, bytes: size <= limit ? Buffer.concat(chunks) : null };
}

function decodeUtf8(bytes) {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return null;
  }
}

// For the list of requests: JSON if it can be shown as such.
function readable(bytes) {
  if (!bytes || bytes.length === 0) return null;
  const text = bytes.toString("utf8");
  try {
    const value = JSON.parse(text);
    return depthOf(value) > MAX_DEPTH ? text : value;
  } catch {
    return text;
  }
}

function send(response, { status, headers = {}, body }) {
  if (body === undefined) {
    response.writeHead(status, { "Content-Length": 0, ...headers }).end();
    return;
  }
  const isText = typeof body === "string";
  const bytes = Buffer.from(isText ? body : JSON.stringify(body));
  const type = isText ? "text/plain" : "application/json";
  response.writeHead(status, { "Content-Type": type, "Content-Length": bytes.length, ...headers });
  response.end(bytes);
}

function splitTarget(target) {
  const cut = target.indexOf("?");
  if (cut < 0) return [target, new URLSearchParams()];
  return [target.slice(0, cut), new URLSearchParams(target.slice(cut))];
}

export class Door {
  #judge;
  #quota = new Quota();
  #requests = [];
  // A missing Host is judged here, and a connection is kept as long as its
  // client wants: a close of ours must not look like a fault.
  #server = http.createServer({ requireHostHeader: false, keepAliveTimeout: 0 }, (request, response) => {
    this.#serve(request, response).catch((error) => this.#broken(request, error));
  });

  faults = new Faults();
  violations = [];
  origin;
  maxBodyBytes = DEFAULT_MAX_BODY_BYTES;

  constructor(judge) {
    this.#judge = judge;
  }

  async listen() {
    this.#server.on("clientError", (error, socket) => this.#malformed(error, socket));
    await new Promise((resolve, reject) => {
      this.#server.once("error", reject);
      this.#server.listen(0, "127.0.0.1", resolve);
    });
    this.origin = `http://127.0.0.1:${this.#server.address().port}`;
    return this.origin;
  }

  set quota(settings) {
    this.#quota.configure(settings);
  }

  get requests() {
    return this.#requests.map(({ bytes, ...entry }) => ({ ...entry, body: readable(bytes) }));
  }

  clearRequests() {
    this.#requests = [];
  }

  async #serve(request, response) {
    const at = Date.now();
    const { size, bytes } = await readBody(request, this.maxBodyBytes);
    const call = this.#examine(request, size, bytes);
    const fault = this.faults.take(call);
    const entry = {
      method: call.method,
      path: request.url,
      status: null,
      authorization_ok: call.refusal === null,
      headers: Object.keys(request.headers),
      at_ms: at,
      fault: fault?.mode ?? null,
      bytes,
    };
    this.#requests.push(entry);

    const respond = (answer) => {
      entry.status = answer.status;
      send(response, answer);
    };
    if (fault) await this.#fail(fault, call, request.socket, respond);
    else respond(this.#answer(call, entry));
  }

  #examine(request, size, bytes) {
    const [path, query] = splitTarget(request.url);
    const seen = this.#judge.examine(request, path, this.origin);
    const found = [...transportViolations(request, this.origin), ...seen.violations];
    this.violations.push(...found.map((reason) => `${request.method} ${request.url}: ${reason}`));
    const text = bytes && decodeUtf8(bytes);
    return { ...seen, method: request.method, path, query, size, limit: this.maxBodyBytes, text };
  }

  async #fail(fault, call, socket, respond) {
    // The lost answer: what was sent counts, and the client can't know.
    if (fault.mode.endsWith("_after_store")) this.#answer(call);
    if (fault.delay_ms) await sleep(fault.delay_ms);
    switch (fault.mode) {
      case "delay":
        respond(this.#answer(call));
        break;
      case "silence":
        this.faults.silence(socket);
        break;
      case "reset":
      case "reset_after_store":
        socket.resetAndDestroy();
        break;
      default:
        respond({ status: fault.status ?? 503, headers: fault.headers, body: fault.body });
    }
  }

  #answer(call, entry = {}) {
    try {
      return this.#judge.answer(call, (endpoint) => this.#admit(call.method, endpoint, entry));
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      return { status: error.status, headers: error.headers, body: this.#judge.refusalBody(call, error) };
    }
  }

  #admit(method, endpoint, entry) {
    if (method === "GET") return;
    const headers = this.#quota.refusal(`${method} ${endpoint}`, Date.now());
    if (!headers) return;
    entry.fault = "quota";
    throw new Refused(429, "rate limit exceeded", headers);
  }

  // What the parser refuses. A client that died in mid-sentence did nothing wrong.
  #malformed(error, socket) {
    if (error.code?.startsWith("HPE_") && error.code !== "HPE_INVALID_EOF_STATE") {
      this.violations.push(`malformed request: ${error.code} ${error.reason ?? error.message}`);
    }
    if (socket.writable) socket.end("HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    else socket.destroy();
  }

  // A client that goes away while it is read is no fault of anybody's; the
  // rest is a mistake of the judge, and must not pass for an answer.
  #broken(request, error) {
    if (!request.destroyed || request.complete) {
      this.violations.push(`judge failed at ${request.method} ${request.url}: ${error.stack}`);
    }
    request.socket.destroy();
  }
}

// What a test does with a door, whichever it is.
export const doorCommands = {
  fault: (door, command) => door.faults.add(command),
  flap: (door, command) => door.faults.flap(command),
  quota: (door, command) => {
    door.quota = command;
  },
  max_body_bytes: (door, { bytes }) => {
    door.maxBodyBytes = bytes ?? DEFAULT_MAX_BODY_BYTES;
  },
  requests: (door) => ({ requests: door.requests }),
  clear_requests: (door) => door.clearRequests(),
};
