// Atlassian Forge around the page that `forge init` writes: its CDN with the policy that Atlassian's own @forge/csp
// makes, Jira's page with the frame, the bridge, and the way of a call to the remote. The page's @forge/bridge is real.
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

const { CSPInjectionService } = createRequire(import.meta.url)("@forge/csp");

const JIRA_HOST = "127.0.0.1";
const CDN_HOST = "127.0.0.6";

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

  // What the relay says first, as long as it has no page/boot of its own; see Forge.#boot.
  lacks = ["workspace_search", "repository_search", "create_branch"];

  // Whom the manifest lets the page call (permissions.external.fetch.client).
  egress = [];

  // How the next calls go: "ok", "refused" (the relay does not believe the token), "silent", "broken".
  invocations = "ok";

  #folder;
  #prove;
  #relay;
  #jira = new Server((request, response) => this.#serveJira(request, response));
  #cdn = new Server((request, response) => this.#serveCdn(request, response));

  static async start() {
    const forge = new Forge();
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
      FORGE__APP_ID: "ari:cloud:ecosystem::app/8db33809-1f32-48bb-8c52-5877dab48107",
      FORGE__PAGE_ORIGINS: JSON.stringify([this.origin]),
    };
  }

  // prove: what an account's calls carry as Authorization.
  attach({ relay, gitlabs, prove }) {
    this.#relay = relay;
    this.#prove = prove;
    this.egress = gitlabs.map(({ url }) => new URL(url).origin);
  }

  async stop() {
    await Promise.all([this.#jira.down(), this.#cdn.down()]);
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
    if (this.invocations === "refused") return { error: NOT_VERIFIED };
    if (this.invocations === "broken") return { error: NOT_UNDERSTOOD };
    if (url.pathname === "/-/jira_connect/page/boot") return this.#boot();
    const answer = await fetch(url, {
      method,
      headers: { ...headers, Authorization: await this.#prove(account) },
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

  // The one address that the relay does not have yet.
  #boot() {
    const body = {
      base: "/-/jira_connect",
      origins: this.egress,
      proxyUrl: this.#relay.url,
      redirectUri: `${this.#relay.baseUrl}/oauth_callbacks`,
      upstream: "forge",
      lacks: this.lacks,
    };
    return { value: { success: true, payload: { status: 200, headers: {}, body } } };
  }
}
