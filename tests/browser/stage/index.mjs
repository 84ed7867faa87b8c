// The whole stage: Jira, the relay, two instances of which one has a relative URL root, and a browser.

import { Browser } from "./browser.mjs";
import { until } from "./deadline.mjs";
import { Forge } from "./forge.mjs";
import { Gitlab } from "./gitlab.mjs";
import { call } from "./http.mjs";
import { Jira } from "./jira.mjs";
import { Relay } from "./relay.mjs";

// An instance that did not hear of a link at once is told later that it is over.
const UNLINKED_WITHIN_MS = 40_000;

export class Stage {
  #browser;
  #parts = [];
  #views = [];

  // settings: for the relay; addressSpaces: for the browser, a function of the stage.
  // forge: the site is reached through a Forge app, and its page can be opened in Forge too, see openInForge.
  static async start({ settings = {}, addressSpaces = () => ({}), installed = true, forge = false } = {}) {
    const stage = new Stage();
    try {
      if (forge) stage.forge = await stage.#keep(Forge.start());
      await stage.#build({ ...settings, ...stage.forge?.settings });
      if (installed) await stage.#install();
      stage.#browser = await stage.#keep(Browser.launch({ addressSpaces: addressSpaces(stage) }));
    } catch (error) {
      await stage.stop().catch((second) => console.error(second));
      throw error;
    }
    return stage;
  }

  // Jira's page with ours in it. account, sandbox, allow: see Jira.adminUrl; the rest: see Browser.open.
  async open({ account, sandbox, allow, theme = "light", ...window } = {}) {
    return this.visit(this.jira.adminUrl({ account, sandbox, allow, theme }), { theme, ...window });
  }

  // The same page in Forge's frame. sandbox, navigation: see Forge.adminUrl.
  async openInForge({ account, sandbox, navigation, theme = "light", ...window } = {}) {
    return this.visit(this.forge.adminUrl({ account, sandbox, navigation, theme }), { theme, ...window });
  }

  // Any address, in a window of its own.
  async visit(url, window = {}) {
    const view = await this.#browser.open(url, window);
    this.#views.push(view);
    return view;
  }

  // A call of the page's without the page: {status, headers, text, body}. token null: without one.
  async api(method, path, { body, token, headers = {}, ...whose } = {}) {
    const proof = token === undefined ? await this.jira.contextToken(whose) : token;
    const answer = await call(`${this.relay.baseUrl}/${path}`, {
      method,
      headers: { ...(proof && { Authorization: `JWT ${proof}` }), "Content-Type": "application/json", ...headers },
      body: body === undefined ? "" : JSON.stringify(body),
    });
    const isJson = answer.headers["content-type"]?.startsWith("application/json");
    return { ...answer, body: isJson ? JSON.parse(answer.text) : null };
  }

  // Instances that are linked already when a page opens; their links.
  async link(...gitlabs) {
    const link = ({ url }) => this.api("POST", "links", { body: { instance_url: url } });
    const made = await Promise.all(gitlabs.map(link));
    return made.map(({ status, text, body }) => {
      if (body?.state !== "connected") throw new Error(`link was answered ${status}: ${text}`);
      return body;
    });
  }

  // How the relay reaches the site from now on.
  async reach(upstream) {
    const path = `installations/${this.jira.clientKey}/move`;
    const { status, body } = await this.relay.admin("POST", path, { to: upstream });
    if (status !== 200 && body?.error?.code !== "already_there") throw new Error(`move was answered ${status}`);
  }

  // No window, nothing wrong, no link: for the next test.
  async reset() {
    await this.closeViews();
    this.forge?.reset();
    if (this.forge) await this.reach("forge");
    await Promise.all([this.jira.reset(), ...this.gitlabs.map((gitlab) => gitlab.reset())]);
    await this.relay.up();
    const { body: links } = await this.relay.admin("GET", "links");
    for (const { id } of links) await this.relay.admin("DELETE", `links/${id}`);
    const gone = async () => (await this.relay.admin("GET", "links")).body.length === 0;
    await until("no links", gone, { ms: UNLINKED_WITHIN_MS });
    for (const { installations } of this.gitlabs) installations.events = [];
  }

  // Of all windows; see View.problems.
  problems(options) {
    return this.#views.flatMap((view) => view.problems(options));
  }

  // What each window shows now.
  async screenshots(state) {
    for (const view of this.#views) await view.screenshot(state);
  }

  // Whatever must not be in an address or a log: all that proves something.
  get secrets() {
    const instances = this.gitlabs.flatMap((gitlab) => [
      ...gitlab.oauth.issued,
      ...Object.values(gitlab.installations.known).map(({ sharedSecret }) => sharedSecret),
    ]);
    return [this.jira.secret, ...this.jira.tokens, ...(this.forge?.tokens ?? []), ...instances];
  }

  async closeViews() {
    await Promise.all(this.#views.splice(0).map((view) => view.close()));
  }

  // Ends all, the last one started first; tells of the first that did not end well.
  async stop() {
    await this.closeViews();
    const failures = [];
    for (const part of this.#parts.splice(0).reverse()) {
      await part.stop().catch((error) => failures.push(error));
    }
    if (failures.length > 0) throw failures[0];
  }

  async #build(settings) {
    this.jira = await this.#keep(Jira.start());
    this.relay = await this.#keep(Relay.start({ jira: this.jira, settings }));
    this.jira.relay = this.relay;
    const proxyUrl = this.relay.url;
    this.plain = await this.#keep(Gitlab.start({ host: "127.0.0.3", proxyUrl }));
    this.below = await this.#keep(Gitlab.start({ host: "127.0.0.4", root: "/gitlab", proxyUrl, version: "16.11.3" }));
    this.gitlabs = [this.plain, this.below];
    this.forge?.attach({ relay: this.relay, gitlabs: this.gitlabs });
  }

  async #install() {
    const { status, body } = await this.jira.install();
    if (![200, 204].includes(status)) throw new Error(`installed was answered ${status}: ${body}`);
    if (!this.forge) return;
    await this.forge.install(this.jira.origin);
    await this.reach("forge");
  }

  async #keep(starting) {
    const part = await starting;
    this.#parts.push(part);
    return part;
  }
}
