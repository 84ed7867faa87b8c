// Jira Cloud in front of a browser: the judges sign, verify and keep data; this adds what an admin sees, which is a
// page that frames the app as Atlassian's connect host does, and all.js.
//
// It is another origin and another site than the relay, as Jira is.

import { randomBytes, randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import http from "node:http";
import { escapeHtml, send, Server } from "./http.mjs";
import { Judge } from "./judge.mjs";

const HOST = "127.0.0.1";
const MODULE_KEY = "gitlab-configuration";

// What Jira and Confluence hand their connect host as options.sandbox.
const SANDBOX =
  "allow-downloads allow-forms allow-modals allow-popups allow-popups-to-escape-sandbox allow-scripts " +
  "allow-same-origin allow-top-navigation-by-user-activation allow-storage-access-by-user-activation";

// The list in the tests of npm atlassian-connect-js 5.3.190, where popups inherit the sandbox.
const NARROW_SANDBOX = SANDBOX.replace("allow-popups-to-escape-sandbox ", "");

// What a browser does that blocks popups, because it tells the page the same.
const POPUPLESS_SANDBOX = NARROW_SANDBOX.replace("allow-popups ", "");

const SANDBOXES = { "": SANDBOX, narrow: NARROW_SANDBOX, popupless: POPUPLESS_SANDBOX };

// atlassian-connect-js 5.3.190, host/modules/theming.js: the state that the host reads from its own html element, in
// the order in which @atlaskit/tokens writes it.
const THEME = "dark:dark light:light spacing:spacing typography:typography-modernized";

const own = (name) => readFileSync(new URL(`jira/${name}`, import.meta.url), "utf8");
const hostJs = own("host.js");
const hostCss = own("host.css");

// The stub speaks as Atlassian's own does (dist/iframe.js of npm atlassian-connect-js), which can take its place.
const CDN_URL = '"https://" + CDN_DOMAIN';
const { JIRA_CONNECT_PROXY_ALL_JS: theirs } = process.env;
const allJs = theirs === undefined ? own("all.js") : readFileSync(theirs, "utf8");

export class Jira {
  // How AP.context.getToken answers: "ok", "expired" (a token that was good once), "expired_once" (then ok), "failing",
  // "silent".
  contextTokens = "ok";

  // "ok"; "expired": the frame's own token was signed ten minutes ago.
  frameTokens = "ok";

  // "ok", "missing" (404), "silent" (never answers).
  allJs = "ok";

  clientKey = randomUUID();
  secret = randomBytes(32).toString("hex");

  // Every token that was given out, so that a test can look for them where they must not be.
  tokens = [];

  #signer;
  #site;
  #relay;
  #secrets = new Map();
  #server = new Server((request, response) => this.#serve(request, response));

  static async start() {
    const jira = new Jira();
    jira.#signer = await Judge.start("jira.mjs");
    jira.#site = await Judge.start("jira_site.mjs");
    jira.origin = await jira.#server.listen(HOST);
    jira.keysUrl = jira.#signer.ready.keys_url;
    jira.allJsUrl = `${jira.origin}/all.js`;
    return jira;
  }

  async stop() {
    await this.#server.down();
    await Promise.all([this.#signer.stop(), this.#site.stop()]);
  }

  // The relay whose app is shown. Its key is the one that a GitLab under the same URL would have.
  set relay(relay) {
    this.#relay = relay;
    this.appKey = `gitlab-jira-connect-${new URL(relay.url).hostname}`;
  }

  // Nothing wrong. What it gave out and keeps stays.
  async reset() {
    Object.assign(this, { contextTokens: "ok", frameTokens: "ok", allJs: "ok" });
    await this.heal();
  }

  // The admin installs the app: {status, body}. more: fields of the body; with another clientKey it is another site.
  async install(more = {}) {
    const body = this.#lifecycleBody("installed", { sharedSecret: this.secret, ...more });
    this.#secrets.set(body.clientKey, body.sharedSecret);
    await this.#site.ask({ cmd: "configure", app_key: this.appKey, secrets: [...this.#secrets.values()] });
    return this.#lifecycle("installed", body);
  }

  async uninstall() {
    return this.#lifecycle("uninstalled", this.#lifecycleBody("uninstalled"));
  }

  // The page inside Jira: account "admin", "member" or none, any other is an admin too; theme "light" or "dark"; sandbox
  // "narrow" or "popupless"; allow, what the frame may do, of which Atlassian's frame says nothing.
  adminUrl({ account = "admin", theme = "light", sandbox = "", allow = "" } = {}) {
    return `${this.origin}/admin?${new URLSearchParams({ account, theme, sandbox, allow })}`;
  }

  // What Jira puts into the frame.
  async frameUrl({ account = "admin", claims = {} } = {}) {
    const url = new URL(`${this.#relay.baseUrl}/subscriptions`);
    const parameters = {
      xdm_e: this.origin,
      xdm_c: `channel-${this.appKey}__${MODULE_KEY}`,
      cp: "",
      xdm_deprecated_addon_key_do_not_use: this.appKey,
      lic: "none",
      cv: "1001.0.0-SNAPSHOT",
    };
    for (const [name, value] of Object.entries(parameters)) url.searchParams.set(name, value);
    const old = this.frameTokens === "expired" ? expired() : {};
    url.searchParams.set("jwt", await this.#sign("GET", url.href, account, { ...old, ...claims }));
    return url.href;
  }

  // What AP.context.getToken gives. clientKey: of another site.
  async contextToken({ account = "admin", clientKey = this.clientKey, claims = {} } = {}) {
    const old = this.contextTokens.startsWith("expired") ? expired() : {};
    if (this.contextTokens === "expired_once") this.contextTokens = "ok";
    const all = { iss: clientKey, qsh: "context-qsh", ...old, ...claims };
    return this.#sign("GET", `${this.#relay.baseUrl}/`, account, all);
  }

  // The REST side goes wrong, as jira_site.mjs has it: {mode: "status", status: 503, match: {path_prefix: ".."}}.
  async fault(fault) {
    await this.#site.ask({ cmd: "fault", ...fault });
  }

  async heal() {
    await this.fault({ mode: "ok" });
  }

  // The requests that the relay made, and what the site keeps; see jira_site.mjs.
  async requests() {
    return (await this.#site.ask({ cmd: "requests" })).requests;
  }

  async state() {
    return this.#site.ask({ cmd: "state" });
  }

  #lifecycleBody(event, more = {}) {
    return {
      key: this.appKey,
      clientKey: this.clientKey,
      eventType: event,
      baseUrl: this.origin,
      productType: "jira",
      ...more,
    };
  }

  async #lifecycle(event, body) {
    const { status, body: text } = await this.#signer.ask({
      cmd: "lifecycle",
      base_url: this.#relay.baseUrl,
      event,
      body,
    });
    return { status, body: text };
  }

  async #sign(method, url, account, claims) {
    const { token } = await this.#signer.ask({
      cmd: "sign_request",
      method,
      url,
      base_url: this.#relay.baseUrl,
      secret: this.#secrets.get(claims.iss ?? this.clientKey) ?? this.secret,
      claims: { iss: this.clientKey, sub: account || null, ...claims },
    });
    this.tokens.push(token);
    return token;
  }

  async #serve(request, response) {
    const url = new URL(request.url, this.origin);
    if (url.pathname.startsWith("/rest/")) return this.#pass(request, response);
    if (/^\/(themes\/|surfaces\.css$)/.test(url.pathname)) return send(response, { css: "" });
    switch (url.pathname) {
      case "/admin":
        return send(response, { html: await this.#adminPage(url.searchParams) });
      case "/token":
        return this.#serveToken(url.searchParams, response);
      case "/all.js":
        return this.#serveAllJs(response);
      case "/host.js":
        return send(response, { js: hostJs });
      case "/host.css":
        return send(response, { css: hostCss });
      default:
        return send(response, { status: 404 });
    }
  }

  // Site and pages are one origin, as in Jira; the judge insists on its own name in Host.
  async #pass(request, response) {
    const target = new URL(request.url, this.#site.ready.url);
    const headers = request.rawHeaders.flatMap((value, index, all) =>
      index % 2 === 1 ? [[all[index - 1], all[index - 1].toLowerCase() === "host" ? target.host : value]] : [],
    );
    const onward = http.request(target, { method: request.method, headers: headers.flat(), agent: false }, (answer) => {
      response.writeHead(answer.statusCode, answer.rawHeaders);
      answer.pipe(response);
    });
    onward.on("error", () => request.socket.destroy());
    response.on("close", () => onward.destroy());
    request.pipe(onward);
  }

  async #serveToken(parameters, response) {
    switch (this.contextTokens) {
      case "silent":
        return;
      case "failing":
        return send(response, { status: 500 });
      default:
        return send(response, { json: { token: await this.contextToken({ account: parameters.get("account") }) } });
    }
  }

  #serveAllJs(response) {
    if (this.allJs === "silent") return;
    if (this.allJs === "missing") send(response, { status: 404 });
    // Theirs asks the CDN for styles, and the relay allows those of the script's own origin.
    else send(response, { js: allJs.replace(CDN_URL, JSON.stringify(this.origin)) });
  }

  // atlassian-connect-js 5.3.190 makes the element in host/components/iframe.js and its name in simple-xdm: the
  // program inside learns from the name who hosts it and what it may call.
  async #adminPage(parameters) {
    const account = parameters.get("account") ?? "admin";
    const frameId = `${this.appKey}__${MODULE_KEY}__${randomBytes(4).toString("hex")}`;
    const attributes = {
      id: frameId,
      name: JSON.stringify({
        extension_id: frameId,
        api: API,
        origin: this.origin,
        options: {
          isFullPage: true,
          hostOrigin: this.origin,
          moduleType: "postInstallPage",
          globalOptions: { check_init: true },
        },
      }),
      src: await this.frameUrl({ account }),
      class: "ap-iframe",
      sandbox: SANDBOXES[parameters.get("sandbox") ?? ""],
      referrerpolicy: "no-referrer",
      allow: parameters.get("allow"),
    };
    const given = Object.entries(attributes).filter(([, value]) => value);
    const written = given.map(([name, value]) => `${name}="${escapeHtml(value)}"`);
    const theme = parameters.get("theme") === "dark" ? "dark" : "light";
    return `<!DOCTYPE html>
<html lang="en" data-color-mode="${theme}" data-theme="${THEME}">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Apps - Jira</title><link rel="icon" href="data:,"><link rel="stylesheet" href="/host.css"></head>
<body><header>Jira</header>
<div class="ap-iframe-container"><iframe ${written.join(" ")}></iframe></div>
<script src="/host.js" data-account="${escapeHtml(account)}" data-app-origin="${this.#relay.url}"></script>
</body></html>`;
  }
}

// What the program inside may call: {module: {function: {returnsPromise}}}.
const API = {
  _globals: { sizeToParent: {} },
  context: { getToken: { returnsPromise: true } },
  navigator: { reload: {} },
  env: { sizeToParent: {} },
  theming: { initializeTheming: {} },
};

function expired() {
  const iat = Math.floor(Date.now() / 1000) - 600;
  return { iat, exp: iat + 180 };
}
