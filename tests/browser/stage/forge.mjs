// Atlassian Forge around the page that `forge init` writes: its CDN with the policy that Atlassian's own @forge/csp
// makes, Jira's page with the frame, the bridge, and the way of a call to the remote. The page's @forge/bridge is real,
// and the judge of tests/judges is the platform: it installs the app, signs what calls carry, and is Jira to its tokens.
//
// Jira is on 127.0.0.1 and the CDN on 127.0.0.6: other sites than the relay and the instances, as they are.

import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { build } from "../../forge/build.mjs";
import { escapeHtml, readText, send, Server } from "./http.mjs";
import { Judge } from "./judge.mjs";

const { CSPInjectionService } = createRequire(import.meta.url)("@forge/csp");

const JIRA_HOST = "127.0.0.1";
const CDN_HOST = "127.0.0.6";
const SITE = "acme";

// As @forge/csp puts it into the policy; the frame's own list may be shorter.
const SANDBOX =
  "allow-popups allow-popups-to-escape-sandbox allow-downloads allow-forms allow-modals allow-pointer-lock " +
  "allow-same-origin allow-scripts";
const SANDBOXES = { "": SANDBOX, popupless: SANDBOX.replace("allow-popups allow-popups-to-escape-sandbox ", "") };

// Only what Atlassian's page on invokeRemote names: 401 is Forge's own, and an answer that failed must be JSON.
const NOT_VERIFIED = "Remote could not verify the Forge Invocation Token";
const NOT_UNDERSTOOD = "Invalid response from remote";

const own = (name) => readFileSync(new URL(`forge/${name}`, import.meta.url), "utf8");
const bridgeJs = own("bridge.js");
const hostJs = own("host.js");
const root = fileURLToPath(new URL("../../../", import.meta.url));

export class Forge {
  // Every call of the page's to the relay: {account, method, path, body, status}.
  calls = [];

  // Every token that was given out.
  tokens = [];

  // Whom the manifest lets the page call (permissions.external.fetch.client).
  egress = [];

  // How the next calls go: "ok", "refused" (signed by a stranger), "silent", "broken".
  invocations = "ok";

  #cloud;
  #app;
  #installation;
  #folder;
  #relay;
  #jira = new Server((request, response) => this.#serveJira(request, response));
  #cdn = new Server((request, response) => this.#serveCdn(request, response));

  static async start() {
    const forge = new Forge();
    forge.#cloud = await Judge.start("atlassian.mjs");
    await forge.#cloud.ask({ cmd: "site", name: SITE });
    forge.#app = (await forge.#cloud.ask({ cmd: "app" })).app_id;
    forge.#folder = await mkdtemp(join(tmpdir(), "jira-connect-proxy-forge-"));
    const binary = resolve(root, process.env.JIRA_CONNECT_PROXY_BIN ?? "target/debug/jira-connect-proxy");
    await promisify(execFile)(binary, ["forge", "init", forge.#folder], {
      cwd: tmpdir(),
      env: { JIRA_CONNECT_PROXY__PUBLIC__URL: "https://relay.example.org" },
    });
    // Puts the page and the real @forge/bridge together.
    await build(forge.#folder);
    forge.jiraOrigin = await forge.#jira.listen(JIRA_HOST);
    forge.origin = await forge.#cdn.listen(CDN_HOST);
    return forge;
  }

  // What the relay must know of the app.
  get settings() {
    return {
      JIRA__API_URL: this.#cloud.ready.api_url,
      FORGE__JWKS_URL: this.#cloud.ready.jwks_url,
      FORGE__APP_ID: this.#app,
      FORGE__PAGE_ORIGINS: JSON.stringify([this.origin]),
    };
  }

  attach({ relay, gitlabs }) {
    this.#relay = relay;
    this.egress = gitlabs.map(({ url }) => new URL(url).origin);
  }

  // The app comes to the site that is known by this address.
  async install(siteUrl) {
    await this.#cloud.ask({ cmd: "rename", site: SITE, base_url: siteUrl });
    await this.#cloud.ask({ cmd: "app", app_id: this.#app, remote: this.#relay.url });
    const told = await this.#cloud.ask({ cmd: "install", app: this.#app, site: SITE });
    if (!told.delivered) throw new Error(`the event was answered ${told.status}`);
    this.#installation = told.installation;
  }

  async stop() {
    await Promise.all([this.#jira.down(), this.#cdn.down(), this.#cloud.stop()]);
    await rm(this.#folder, { recursive: true, force: true });
  }

  // Nothing wrong.
  reset() {
    this.calls = [];
    this.invocations = "ok";
  }

  // Jira's page with the app's: sandbox "popupless"; navigation "declined".
  adminUrl({ account = "admin", theme = "light", sandbox = "", navigation = "" } = {}) {
    return `${this.jiraOrigin}/admin?${new URLSearchParams({ account, theme, sandbox, navigation })}`;
  }

  async #serveJira(request, response) {
    const url = new URL(request.url, this.jiraOrigin);
    switch (url.pathname) {
      case "/admin":
        return send(response, { html: this.#adminPage(url.searchParams) });
      case "/host.js":
        return send(response, { js: hostJs });
      case "/invoke":
        if (this.invocations === "silent") return;
        return send(response, {
          json: await this.#invoke(url.searchParams.get("account"), JSON.parse(await readText(request))),
        });
      default:
        return send(response, { status: 404 });
    }
  }

  #adminPage(parameters) {
    const theme = parameters.get("theme") === "dark" ? "dark" : "light";
    const script = {
      src: "/host.js",
      "data-account": parameters.get("account"),
      "data-origin": this.origin,
      "data-navigation": parameters.get("navigation"),
    };
    const written = Object.entries(script).map(([name, value]) => `${name}="${escapeHtml(value ?? "")}"`);
    return `<!DOCTYPE html>
<html lang="en" data-color-mode="${theme}">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Apps - Jira</title><link rel="icon" href="data:,">
<style>body { margin: 0 } iframe { border: 0; width: 100%; height: 100vh; display: block }</style></head>
<body><iframe class="ap-iframe" data-testid="hosted-resources-iframe" title="GitLab"
  sandbox="${SANDBOXES[parameters.get("sandbox") ?? ""]}" src="${this.origin}/page/index.html"></iframe>
<script ${written.join(" ")}></script></body></html>`;
  }

  async #serveCdn(request, response) {
    const { pathname, search } = new URL(request.url, this.origin);
    if (pathname === "/bridge.js") return send(response, { js: bridgeJs });
    const name = pathname.match(/^\/page\/(index\.html|page\.js|page\.css)$/)?.[1];
    if (name === undefined) return send(response, { status: 404 });
    const text = await readFile(join(this.#folder, "static/page", name), "utf8");
    if (name === "page.js") return send(response, { js: text });
    if (name === "page.css") return send(response, { css: text });
    const policy = new CSPInjectionService().getInjectableCSP({
      existingCSPDetails: { "connect-src": this.egress },
      microsEnv: "prod",
      hostname: new URL(this.jiraOrigin).host,
    });
    // Atlassian's puts its own script first; "?bare" leaves it out.
    const script = `<script src="/bridge.js" data-host="${this.jiraOrigin}"></script>`;
    const bridge = search === "?bare" ? "" : script;
    return send(response, {
      html: text.replace("<head>", `<head>${bridge}`),
      headers: { "Content-Security-Policy": policy.filter((part) => !part.startsWith("report-uri")).join("; ") },
    });
  }

  // A call as Forge makes it: the path from the remote's baseUrl on, the body as JSON, a proof of its own.
  async #invoke(account, { invokeType, path, method, headers, body }) {
    if (invokeType !== "ui-remote-fetch") return { error: `no such function: ${invokeType}` };
    if (body !== undefined && (typeof body !== "object" || body === null)) return { error: "body must be an object" };
    const url = new URL(path, this.#relay.url);
    if (this.invocations === "broken") return { error: NOT_UNDERSTOOD };
    const answer = await fetch(url, {
      method,
      headers: { ...headers, ...(await this.#proof(account)) },
      body: body === undefined ? null : JSON.stringify(body),
      redirect: "manual",
    }).catch(() => null);
    this.calls.push({ account, method, path, body, status: answer?.status });
    if (answer === null) return { error: NOT_UNDERSTOOD };
    if (answer.status === 401) return { error: NOT_VERIFIED };
    const text = await answer.text();
    const isJson = answer.headers.get("content-type")?.startsWith("application/json");
    if (!answer.ok && !isJson) return { error: NOT_UNDERSTOOD };
    const payload = {
      status: answer.status,
      headers: Object.fromEntries([...answer.headers].map(([name, value]) => [name, [value]])),
      body: text === "" ? undefined : JSON.parse(text),
    };
    return { value: answer.ok ? { success: true, payload } : { success: false, error: payload } };
  }

  async #proof(principal) {
    const signer = this.invocations === "refused" ? "stranger" : "current";
    const { token } = await this.#cloud.ask({ cmd: "fit", installation: this.#installation, principal, signer });
    const system = await this.#cloud.ask({ cmd: "system_token", installation: this.#installation });
    this.tokens.push(token, system.token);
    return { Authorization: `Bearer ${token}`, "x-forge-oauth-system": system.token };
  }
}
