// Debian's Chromium, and the page as an admin sees it: in Jira's frame.

import { mkdir } from "node:fs/promises";
import { resolve } from "node:path";
import { fileURLToPath } from "node:url";
import axe from "axe-core";
import { chromium } from "playwright-core";
import { until } from "./deadline.mjs";

const FRAME = "iframe.ap-iframe";
const ACTION_TIMEOUT_MS = 20_000;

const THEMES = ["light", "dark"];
const SERIOUS = ["serious", "critical"];

const ARGUMENTS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--no-proxy-server",
  // Nothing leaves the loopback device, whatever a page asks for.
  "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.*",
];

const WINDOW = {
  theme: "light",
  size: { width: 1280, height: 800 },
  reducedMotion: "no-preference",
  scale: 1,
  ownClock: false,
  waitUntil: "load",
};

export const SCREENSHOTS = resolve(
  fileURLToPath(new URL("../../../", import.meta.url)),
  process.env.JIRA_CONNECT_PROXY_SCREENSHOTS ?? "target/screenshots",
);

export class Browser {
  #browser;

  // addressSpaces: {origin: "public" | "local" | "loopback"}, what Chromium shall take an address for.
  static async launch({ addressSpaces = {} } = {}) {
    const browser = new Browser();
    const overrides = Object.entries(addressSpaces).map(([origin, space]) => `${new URL(origin).host}=${space}`);
    const more = overrides.length === 0 ? [] : [`--ip-address-space-overrides=${overrides.join(",")}`];
    browser.#browser = await chromium.launch({
      executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
      args: [...ARGUMENTS, ...more],
    });
    return browser;
  }

  async stop() {
    await this.#browser.close();
  }

  // A window on any address, with nothing remembered. Third-party storage is blocked in it, as in any window of its
  // kind: localStorage throws in the frame, cookies are not kept.
  // ownClock: its time can be moved, see View.passTime. waitUntil: Playwright's word for what counts as open.
  async open(url, window = {}) {
    const { theme, size, reducedMotion, scale, ownClock, waitUntil } = { ...WINDOW, ...window };
    const context = await this.#browser.newContext({
      viewport: size,
      colorScheme: theme,
      reducedMotion,
      deviceScaleFactor: scale,
    });
    context.setDefaultTimeout(ACTION_TIMEOUT_MS);
    if (ownClock) await context.clock.install();
    const view = new View(context, theme);
    await view.start(url, waitUntil);
    return view;
  }
}

export class View {
  #context;
  #theme;
  #violations = [];
  #errors = [];
  #requests = [];
  #failures = [];
  #flaws = [];

  constructor(context, theme) {
    this.#context = context;
    this.#theme = theme;
  }

  async start(url, waitUntil) {
    await this.#context.exposeBinding("reportViolation", (_source, violation) => this.#violations.push(violation));
    await this.#context.addInitScript(() => {
      window.addEventListener("securitypolicyviolation", ({ violatedDirective, blockedURI, documentURI }) => {
        window.reportViolation(`${violatedDirective} blocked ${blockedURI} in ${documentURI.split("?")[0]}`);
      });
    });
    this.#context.on("request", (request) => this.#requests.push({ method: request.method(), url: request.url() }));
    this.#context.on("response", (response) => {
      if (response.status() >= 400) this.#failures.push({ url: response.url(), status: response.status() });
    });
    this.#context.on("requestfailed", (request) => {
      this.#failures.push({ url: request.url(), status: request.failure()?.errorText });
    });
    this.#context.on("weberror", (error) => this.#errors.push(`exception: ${error.error().message}`));
    this.#context.on("console", (message) => {
      const failure = message.text().startsWith("Failed to load resource");
      if (message.type() === "error" && !failure) this.#errors.push(`console: ${message.text()}`);
    });
    this.page = await this.#context.newPage();
    await this.page.goto(url, { waitUntil });
  }

  async close() {
    await this.#context.close();
  }

  // The page inside Jira, for locators: they find it again after a reload.
  get frame() {
    return this.page.frameLocator(FRAME);
  }

  // The same, for scripts.
  async content() {
    const element = await this.page.waitForSelector(FRAME);
    return element.contentFrame();
  }

  // The window that opens when something is done.
  async popup(act) {
    const [popup] = await Promise.all([this.page.waitForEvent("popup"), act()]);
    await popup.waitForLoadState();
    return popup;
  }

  // Its scripts live through so much time at once; the other parts of the stage do not.
  async passTime(ms) {
    await this.#context.clock.fastForward(ms);
  }

  async setOffline(offline) {
    await this.#context.setOffline(offline);
  }

  // Every request of all its windows: {method, url}.
  get requests() {
    return this.#requests;
  }

  // Requests that failed or were refused: {url, status}, where status may be Chromium's word for it.
  get failures() {
    return this.#failures;
  }

  // What went wrong in the scripts and with the content security policy, and what look() found. Chromium calls an
  // answer that may not be read across origins an error as well; `except` names what is expected.
  problems({ except = [] } = {}) {
    const all = [...this.#violations, ...this.#errors, ...this.#flaws];
    return all.filter((text) => !except.some((pattern) => pattern.test(text)));
  }

  // What the frame keeps beyond its life, or could: names only.
  async stored() {
    const { cookies, origins } = await this.#context.storageState();
    const inFrame = await (await this.content()).evaluate(() => {
      const names = (get) => {
        try {
          return Object.keys(get());
        } catch {
          return [];
        }
      };
      return [...names(() => localStorage), ...names(() => sessionStorage), document.cookie].filter(Boolean);
    });
    const local = origins.flatMap(({ localStorage }) => localStorage.map(({ name }) => name));
    return [...cookies.map(({ name }) => name), ...local, ...inFrame];
  }

  // Jira's theme and the system's, changed while the page is open.
  async setTheme(theme, page = this.page) {
    this.#theme = theme;
    await page.emulateMedia({ colorScheme: theme });
    if (page !== this.page) return;
    const themed = await this.page.evaluate((mode) => {
      const { dataset } = document.documentElement;
      if ("colorMode" in dataset) dataset.colorMode = mode;
      return "colorMode" in dataset;
    }, theme);
    // A page without AP.js has no theme of Jira's to follow.
    const followed = `html:not([data-color-mode]), html[data-color-mode="${theme}"]`;
    if (themed) await this.frame.locator(followed).waitFor({ state: "attached" });
  }

  // Resizes the window, and the frame with it.
  async setSize(size) {
    await this.page.setViewportSize(size);
    const element = this.page.locator(FRAME);
    if ((await element.count()) === 0) return;
    // Jira's script sets the height, after the event.
    await this.page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
    const frame = await this.content();
    const outer = await element.evaluate(({ clientWidth, clientHeight }) => `${clientWidth} x ${clientHeight}`);
    await until("the frame's new size", async () => {
      return (await frame.evaluate(() => `${innerWidth} x ${innerHeight}`)) === outer;
    });
  }

  // A state as people meet it: screenshots in both themes, and what axe finds serious in either is a problem.
  async look(state, target = undefined, page = this.page) {
    const theme = this.#theme;
    for (const one of THEMES) {
      await this.setTheme(one, page);
      await this.screenshot(state, page);
      const serious = (await this.axe(target)).filter(({ impact }) => SERIOUS.includes(impact));
      this.#flaws.push(...serious.map(({ id, nodes }) => `axe: ${state}-${one}: ${id}: ${nodes.join("; ")}`));
    }
    await this.setTheme(theme, page);
  }

  // The same of another window, as a sign-in opens it.
  async lookAtPopup(state, popup) {
    await this.look(state, popup.mainFrame(), popup);
  }

  // What axe finds in the frame or, outside of Jira, in the page: [{id, impact, help, nodes}]. The debugger puts axe
  // there, which no policy forbids.
  async axe(target = undefined) {
    const frame = target ?? (await this.content());
    await frame.evaluate(axe.source);
    const { violations } = await frame.evaluate(() => window.axe.run(document, { preload: false }));
    return violations.map(({ id, impact, help, nodes }) => ({
      id,
      impact,
      help,
      nodes: nodes.map(({ target, failureSummary }) => `${target.join(" ")}: ${failureSummary}`),
    }));
  }

  // STATE-light.png or STATE-dark.png.
  async screenshot(state, page = this.page) {
    await mkdir(SCREENSHOTS, { recursive: true });
    const path = resolve(SCREENSHOTS, `${state}-${this.#theme}.png`);
    await page.screenshot({ path, animations: "disabled" });
    return path;
  }
}
