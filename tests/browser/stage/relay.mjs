// The real program, as an operator runs it, on 127.0.0.2: another site than Jira and the instances.

import { execFile, spawn } from "node:child_process";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import net from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { until, within } from "./deadline.mjs";
import { call } from "./http.mjs";

const PUBLIC_HOST = "127.0.0.2";
const ADMIN_HOST = "127.0.0.1";
const BASE_PATH = "/-/jira_connect";
const START_TIMEOUT_MS = 40_000;
const STOP_TIMEOUT_MS = 20_000;
const PREFIX = "JIRA_CONNECT_PROXY__";

const root = fileURLToPath(new URL("../../../", import.meta.url));
const binary = resolve(root, process.env.JIRA_CONNECT_PROXY_BIN ?? "target/debug/jira-connect-proxy");
const guard = fileURLToPath(new URL("guard.mjs", import.meta.url));

export class Relay {
  #child;
  #gone;
  #folder;
  #environment;
  #chunks = [];

  // settings: more keys of proxy.toml, as {"PAGE__FRAME_ANCESTORS": "[]"}; null takes one back.
  static async start({ jira, settings = {} }) {
    const relay = new Relay();
    relay.#folder = await mkdtemp(join(tmpdir(), "jira-connect-proxy-"));
    relay.url = `http://${PUBLIC_HOST}:${await freePort(PUBLIC_HOST)}`;
    relay.baseUrl = relay.url + BASE_PATH;
    relay.adminUrl = `http://${ADMIN_HOST}:${await freePort(ADMIN_HOST)}`;
    relay.#environment = relay.#variables(jira, settings);
    try {
      await relay.up();
    } catch (error) {
      await relay.#end();
      throw error;
    }
    return relay;
  }

  // Everything it said so far, over all its starts.
  get log() {
    return this.#chunks.join("");
  }

  // Nothing, if it runs.
  async up() {
    if (this.#running) return;
    this.#child = spawn(process.execPath, [guard, binary, "serve"], {
      cwd: this.#folder,
      env: this.#environment,
      stdio: ["pipe", "pipe", "pipe"],
    });
    this.#gone = new Promise((resolve) => this.#child.once("exit", resolve));
    this.#child.stdin.on("error", () => {});
    for (const stream of [this.#child.stdout, this.#child.stderr]) {
      stream.setEncoding("utf8").on("data", (chunk) => this.#chunks.push(chunk));
    }
    await until("the relay to be ready", () => this.#ready(), { ms: START_TIMEOUT_MS });
  }

  // The exit code: 0 if all is well.
  async down() {
    this.#child.stdin.end();
    return within(STOP_TIMEOUT_MS, "end of the relay", this.#gone);
  }

  get #running() {
    return this.#child !== undefined && this.#child.exitCode === null && this.#child.signalCode === null;
  }

  async stop() {
    const code = await this.#end();
    if (code !== 0) throw new Error(`the relay ended with ${code}:\n${this.log}`);
  }

  // The operators' API: {status, body}.
  async admin(method, path, body) {
    const token = await readFile(join(this.#folder, "admin-token"), "utf8");
    const answer = await call(`${this.adminUrl}/api/v1/${path}`, {
      method,
      headers: { Authorization: `Bearer ${token.trim()}`, "Content-Type": "application/json" },
      body: body === undefined ? "" : JSON.stringify(body),
    });
    return { status: answer.status, body: answer.text === "" ? null : JSON.parse(answer.text) };
  }

  // What a command of the program's prints.
  async command(...words) {
    const options = { cwd: this.#folder, env: this.#environment };
    return (await promisify(execFile)(binary, words, options)).stdout;
  }

  async #end() {
    const code = await this.down();
    await rm(this.#folder, { recursive: true, force: true });
    return code;
  }

  async #ready() {
    if (this.#child.exitCode !== null) throw new Error(`the relay ended with ${this.#child.exitCode}:\n${this.log}`);
    try {
      return (await call(`${this.adminUrl}/readyz`)).status === 200;
    } catch {
      return false;
    }
  }

  #variables(jira, settings) {
    const all = {
      PUBLIC__URL: this.url,
      PUBLIC__LISTEN: new URL(this.url).host,
      ADMIN__LISTEN: new URL(this.adminUrl).host,
      ADMIN__TOKEN_FILE: "admin-token",
      STORE__PATH: "store",
      STORE__KEY_FILE: "store-key",
      JIRA__INSTALL_KEYS_URL: jira.keysUrl,
      JIRA__EXTRA_SITES: JSON.stringify([jira.origin]),
      // A purge waits so long before it looks a second time.
      JIRA__ANSWER_TIMEOUT_MS: "3000",
      PAGE__AP_JS_URL: jira.allJsUrl,
      INSTANCES__DANGEROUS_ALLOW_HTTP: "true",
      INSTANCES__DANGEROUS_ALLOW_PRIVATE_ADDRESSES: "true",
      INSTANCES__RETRY_MIN_MS: "200",
      INSTANCES__RETRY_MAX_MS: "1000",
      INSTANCES__CONNECT_TIMEOUT_MS: "2000",
      // A person may look at what waits for an instance.
      INSTANCES__REQUEST_TIMEOUT_MS: "30000",
      SPOOL__RETRY_MIN_MS: "200",
      SPOOL__RETRY_MAX_MS: "1000",
      LIMITS__DRAIN_DEADLINE_SECS: "3",
      // The louder the log, the better the proof that there is no token in it.
      LOG__FILTER: "info,jira_connect_proxy=trace",
      ...settings,
    };
    const set = Object.entries(all).filter(([, value]) => value !== null);
    return Object.fromEntries(set.map(([key, value]) => [PREFIX + key, value]));
  }
}

// Nobody else takes it meanwhile: the system hands out ports in turn.
async function freePort(host) {
  const server = net.createServer();
  await new Promise((resolve, reject) => server.once("error", reject).listen(0, host, resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}
