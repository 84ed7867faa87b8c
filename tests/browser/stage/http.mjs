// What the simulated servers have in common: a socket that can go away and come back, and whole messages.

import http from "node:http";

const MAX_BODY_BYTES = 1 << 20;
const CALL_TIMEOUT_MS = 20_000;

export class Server {
  #server;
  #host;
  #port = 0;

  // Handlers are async and get Node's pair. One that throws is a mistake of the simulator: loud, and a 500.
  constructor(handle) {
    this.#server = http.createServer((request, response) => {
      handle(request, response).catch((error) => {
        if (request.destroyed && !request.complete) return;
        console.error(`simulator failed at ${request.method} ${request.url}: ${error.stack}`);
        response.destroy();
      });
    });
  }

  get origin() {
    return `http://${this.#host}:${this.#port}`;
  }

  async listen(host) {
    this.#host = host;
    await this.up();
    return this.origin;
  }

  // Refuses and cuts connections, as a host does whose service is stopped.
  async down() {
    if (!this.#server.listening) return;
    const closed = new Promise((resolve) => this.#server.close(resolve));
    this.#server.closeAllConnections();
    await closed;
  }

  // On the port it had before.
  async up() {
    if (this.#server.listening) return;
    await new Promise((resolve, reject) => {
      this.#server.once("error", reject);
      this.#server.listen(this.#port, this.#host, () => {
        this.#server.off("error", reject);
        resolve();
      });
    });
    this.#port = this.#server.address().port;
  }
}

export async function readText(stream) {
  const chunks = [];
  let size = 0;
  for await (const chunk of stream) {
    size += chunk.length;
    if (size > MAX_BODY_BYTES) throw new Error(`body exceeds ${MAX_BODY_BYTES} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString("utf8");
}

const TYPES = { json: "application/json", html: "text/html; charset=utf-8", js: "text/javascript", css: "text/css" };

// answer: {status = 200, headers, and one of json, html, js, css}; neither means an empty body.
export function send(response, { status = 200, headers = {}, ...content }) {
  const [kind, value] = Object.entries(content)[0] ?? [];
  const text = kind === undefined ? "" : kind === "json" ? JSON.stringify(value) : value;
  const type = kind === undefined ? {} : { "Content-Type": TYPES[kind] };
  response.writeHead(status, { "Content-Length": Buffer.byteLength(text), "Cache-Control": "no-store", ...type, ...headers });
  response.end(text);
}

// One request on a connection of its own, so that a peer that restarts can't fail the next one with a stale socket.
export async function call(url, { method = "GET", headers = {}, body = "" } = {}) {
  const signal = AbortSignal.timeout(CALL_TIMEOUT_MS);
  const length = body === "" ? {} : { "Content-Length": Buffer.byteLength(body) };
  const response = await new Promise((resolve, reject) => {
    const request = http.request(url, { method, headers: { ...headers, ...length }, agent: false, signal }, resolve);
    request.on("error", reject);
    request.end(body);
  });
  return { status: response.statusCode, headers: response.headers, text: await readText(response) };
}

export function escapeHtml(text) {
  const names = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
  return text.replace(/[&<>"']/g, (character) => names[character]);
}
