// The keyboard alone is enough: it reaches everything, the focus is always seen, and nothing that goes takes it along.

import assert from "node:assert/strict";
import { Admin, addressOf, counted } from "./stage/admin.mjs";
import { until } from "./stage/deadline.mjs";
import { Gitlab } from "./stage/gitlab.mjs";
import { scenes } from "./stage/scene.mjs";

// More than there is to go through on any view.
const STEPS_MAX = 80;

// A focus may be lost for as long as the page needs to draw.
const REDRAWN_WITHIN_MS = 5_000;

const scene = scenes();

scene("an instance is added, and the dialog keeps the focus until it closes", async (stage) => {
  const { admin, keys } = await atTheKeyboard(stage);
  const address = admin.dialog.getByLabel("Address of the GitLab instance");
  await admin.heading("Connect your first GitLab instance").waitFor();

  await counted(admin.button("Add GitLab instance"), 1);
  await keys.tabTo(admin.button("Add GitLab instance"));
  await keys.press("Enter");
  await keys.focusIs(address);
  await keys.staysInDialog();
  await keys.press("Escape");
  await admin.dialog.waitFor({ state: "detached" });
  await keys.focusIs(admin.button("Add GitLab instance"));

  await keys.press("Enter");
  await keys.focusIs(address);
  stage.plain.proxyUrl = "http://127.0.0.9:9";
  await keys.type(stage.plain.url);
  await keys.press("Enter");
  await admin.dialog.getByText("All checks are done.").waitFor({ state: "attached" });
  await keys.focusIs(address);
  stage.plain.proxyUrl = stage.relay.url;
  await keys.tabTo(inDialog(admin, "Check again"));
  await keys.press("Enter");
  await inDialog(admin, "Add instance").and(admin.frame.locator(":not([aria-disabled])")).waitFor();
  await keys.focusIs(inDialog(admin, "Add instance"));
  await keys.press("Enter");
  await admin.seeIn(admin.card(stage.plain), "Connected");
  // The button that opened the dialog has gone with the first use.
  await keys.focusIs(admin.heading("GitLab for Jira"));

  // The page is older than the link, so its policy does not let it talk to the instance yet.
  await keys.tabTo(admin.button(`Link groups of ${addressOf(stage.plain)}`));
  await keys.press("Enter");
  await keys.focusIs(admin.heading(`Link groups of ${addressOf(stage.plain)}`));
  await keys.tabTo(admin.button("Reload page"));
  await keys.press("Enter");
  await admin.seeIn(admin.card(stage.plain), "No groups linked");
  assert.deepEqual(keys.flaws, []);
});

scene("groups are linked and unlinked", async (stage) => {
  const gitlab = stage.plain;
  await stage.link(gitlab);
  const { admin, keys } = await atTheKeyboard(stage);
  await keys.tabTo(admin.button(`Link groups of ${addressOf(gitlab)}`));
  await keys.press("Enter");
  await keys.focusIs(admin.heading(`Link groups of ${addressOf(gitlab)}`));

  await keys.tabTo(admin.button("Sign in to GitLab"));
  const popup = await admin.view.popup(() => keys.press("Enter"));
  await popup.keyboard.press("Tab");
  await Promise.all([popup.waitForEvent("close"), popup.keyboard.press("Enter")]);
  await keys.focusIs(admin.frame.getByLabel("Search groups"));
  for (const name of ["Accounting / Android", "Catalogue"]) {
    await keys.tabTo(admin.group(name));
    await keys.press("Space");
    await until(`${name} to be selected`, () => admin.group(name).isChecked());
  }
  await keys.tabTo(admin.button("Link 2 groups"));
  await keys.press("Enter");
  await admin.see(/^2 groups linked/);
  await keys.focusIsKept();
  assert.deepEqual([...gitlab.linkedGroups].sort(), ["accounting/android", "catalogue"]);

  await keys.tabTo(admin.button("Back to linked groups"), "Shift+Tab");
  await keys.press("Enter");
  await keys.focusIs(admin.heading(`Groups of ${addressOf(gitlab)}`));
  await admin.see("2 groups linked");
  await keys.tabTo(admin.group("Catalogue"));
  await keys.press("Space");
  await keys.tabTo(admin.button("Unlink 1 group"));
  await keys.press("Enter");
  await admin.dialog.waitFor();
  await keys.focusIsKept();
  await keys.staysInDialog();
  await keys.tabTo(inDialog(admin, "Unlink 1 group"));
  await keys.press("Enter");
  await admin.see("1 group unlinked.");
  await keys.focusIsKept();
  assert.deepEqual(gitlab.linkedGroups, ["accounting/android"]);

  await keys.tabTo(admin.button("Back to instances"), "Shift+Tab");
  await keys.press("Enter");
  await keys.focusIs(admin.heading("GitLab for Jira"));
  assert.deepEqual(keys.flaws, []);
});

scene("an instance is removed, and the removal is taken back", async (stage) => {
  await stage.link(stage.plain);
  const { admin, keys } = await atTheKeyboard(stage);
  const remove = admin.button(`Remove ${addressOf(stage.plain)}`);
  await keys.tabTo(remove);
  await keys.press("Enter");
  await admin.dialog.waitFor();
  await keys.focusIsKept();
  await keys.press("Escape");
  await admin.dialog.waitFor({ state: "detached" });
  await keys.focusIs(remove);
  await keys.press("Enter");
  await keys.tabTo(inDialog(admin, "Remove instance"));
  await keys.press("Enter");
  await admin.seeIn(admin.card(stage.plain), "Removing");
  await keys.focusIs(admin.button(`Undo the removal of ${addressOf(stage.plain)}`));
  await keys.press("Enter");
  await admin.seeIn(admin.card(stage.plain), "Connected");
  await keys.focusIsKept();
  assert.deepEqual(keys.flaws, []);
});

scene("of several cards, the one that was removed offers to take it back at once", async (stage) => {
  const more = [];
  try {
    for (const host of ["127.0.0.7", "127.0.0.8"]) more.push(await Gitlab.start({ host, proxyUrl: stage.relay.url }));
    await stage.link(stage.plain, stage.below, ...more);
    const { admin, keys } = await atTheKeyboard(stage);
    for (const gitlab of [more[0], stage.plain]) {
      await keys.tabTo(admin.button(`Remove ${addressOf(gitlab)}`));
      await keys.press("Enter");
      await keys.tabTo(inDialog(admin, "Remove instance"));
      await keys.press("Enter");
      await keys.focusIs(admin.button(`Undo the removal of ${addressOf(gitlab)}`));
    }
    // What goes by itself takes the focus of others along as little.
    await admin.card(more[0]).waitFor({ state: "detached", timeout: 40_000 });
    await admin.card(stage.plain).waitFor({ state: "detached", timeout: 40_000 });
    await keys.focusIs(admin.heading("GitLab for Jira"));
    assert.deepEqual(keys.flaws, []);
  } finally {
    await stage.reset();
    for (const gitlab of more) await gitlab.stop();
  }
});

scene("a button that mends what it stands beside goes with it, and leaves the focus on the heading", async (stage) => {
  await stage.link(stage.plain, stage.below);
  await stage.below.down();
  await stage.jira.fault({ mode: "status", status: 503, match: { path_prefix: "/rest/api/3/permissions/check" } });
  const { admin, keys } = await atTheKeyboard(stage, { account: "somebody at the keyboard", ownClock: true });
  const heading = admin.heading("GitLab for Jira");
  const mend = async (button, mended) => {
    await keys.tabTo(button);
    await mended();
    await keys.press("Enter");
    await button.waitFor({ state: "detached" });
    await keys.focusIs(heading);
  };
  await mend(admin.button("Try again"), () => stage.jira.heal());
  await mend(admin.button(`Check again: ${addressOf(stage.below)}`), () => stage.below.up());

  const { page } = admin.view;
  await page.route(/\/links$/, (route) => route.fulfill({ status: 502, body: "" }));
  await admin.view.passTime(16_000);
  await mend(admin.button("Try again"), () => page.unroute(/\/links$/));

  await page.route(/\/links$/, (route) => route.fulfill({ status: 502, body: "" }));
  await page.reload();
  await mend(admin.button("Try again"), () => page.unroute(/\/links$/));

  stage.jira.allJs = "missing";
  await page.reload({ waitUntil: "commit" });
  await admin.see("Connecting to Jira…");
  await admin.view.passTime(16_000);
  await mend(admin.button("Try again"), () => (stage.jira.allJs = "ok"));
  await admin.seeIn(admin.card(stage.plain), "Connected");
  assert.deepEqual(keys.flaws, []);
});

async function atTheKeyboard(stage, window) {
  const admin = await Admin.open(stage, window);
  return { admin, keys: new Keyboard(admin.view) };
}

function inDialog({ dialog }, name) {
  return dialog.getByRole("button", { name, exact: true });
}

class Keyboard {
  // Where the focus could not be seen, so that one run tells all.
  flaws = [];

  #view;

  constructor(view) {
    this.#view = view;
  }

  // A key; what has the focus then shows it.
  async press(key) {
    await this.#view.page.keyboard.press(key);
  }

  async type(text) {
    await this.#view.page.keyboard.type(text);
  }

  // Step by step, never out of sight.
  async tabTo(locator, key = "Tab") {
    await locator.waitFor();
    for (let steps = 0; steps < STEPS_MAX; steps += 1) {
      await this.press(key);
      this.#judge(await this.#focused());
      if (await locator.evaluate(hasFocus)) return;
    }
    throw new Error(`${locator} is not reached by ${key}`);
  }

  async focusIs(locator) {
    await until(`the focus on ${locator}`, () => locator.evaluate(hasFocus));
    await this.focusIsKept();
  }

  async focusIsKept() {
    this.#judge(await until("something to have the focus", () => this.#focused(), { ms: REDRAWN_WITHIN_MS }));
  }

  // The focus leaves a dialog for the browser and Jira only, never for what is behind it.
  async staysInDialog() {
    const content = await this.#view.content();
    const seen = new Set();
    for (let steps = 0; steps < 20; steps += 1) {
      await this.press("Tab");
      const behind = await content.evaluate(() => {
        const element = document.activeElement;
        return element === document.body || element.closest("dialog") ? null : element.outerHTML;
      });
      assert.equal(behind, null);
      seen.add((await this.#focused())?.what ?? "elsewhere");
    }
    assert.ok(seen.size > 2, [...seen].join());
  }

  #judge(at) {
    if (at && !at.visible) this.flaws.push(`the focus can't be seen on ${at.what}`);
  }

  // What has the focus: its tag and name, and whether that can be seen. Null while nothing has.
  async #focused() {
    const content = await this.#view.content();
    return content.evaluate(() => {
      const element = document.activeElement;
      if (!document.hasFocus() || element === document.body) return null;
      const { outlineStyle, outlineWidth, outlineColor } = getComputedStyle(element);
      const transparent = /^rgba\(.*, 0\)$/.test(outlineColor);
      const outlined = outlineStyle !== "none" && Number.parseFloat(outlineWidth) >= 1 && !transparent;
      const { left, top, width, height } = element.getBoundingClientRect();
      // Neither out of the window nor behind what keeps its place while the rest scrolls.
      const inFront = element.contains(document.elementFromPoint(left + width / 2, top + height / 2));
      const name = element.ariaLabel ?? element.labels?.[0]?.textContent ?? element.textContent;
      return { what: `${element.localName} ${name}`, visible: element.matches(":focus-visible") && outlined && inFront };
    });
  }
}

function hasFocus(element) {
  return element === document.activeElement;
}
