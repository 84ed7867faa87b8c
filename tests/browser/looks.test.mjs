// Every state of the page, as people see, hear and reach it: screenshots in both themes, axe, narrow and zoomed
// windows, a screen reader's view, reduced motion, and what the first load weighs.

import assert from "node:assert/strict";
import { test } from "node:test";
import { heard as heardIn } from "./stage/admin.mjs";
import { until } from "./stage/deadline.mjs";
import { Gitlab } from "./stage/gitlab.mjs";
import { Stage } from "./stage/index.mjs";

const WIDE = { width: 1280, height: 800 };
const FITTED = {
  narrow: { width: 320, height: 640 },
  // 1280 x 800 at 200 %.
  zoomed: { width: 640, height: 400 },
};

const FIRST_LOAD_MAX_BYTES = 60 * 1024;

let stage;
let view;
let views;

// What look() found, so that one run tells all.
let flaws;

// A test on a stage of its own, that ends without a problem in any window.
function staged(name, act, settings = {}) {
  test(name, async (t) => {
    views = [];
    flaws = [];
    stage = await Stage.start({ settings });
    t.after(() => stage.stop());
    await act(t);
    assert.deepEqual([...flaws, ...views.flatMap((one) => one.problems())], []);
  });
}

async function open(window) {
  view = await stage.open(window);
  views.push(view);
}

async function visit(url) {
  view = await stage.visit(url);
  views.push(view);
}

const address = (gitlab) => gitlab.url.replace("http://", "");
const heading = (name) => view.frame.getByRole("heading", { name, exact: true });
const button = (name) => view.frame.getByRole("button", { name, exact: true });
const dialog = () => view.frame.getByRole("dialog");
const inDialog = (name) => dialog().getByRole("button", { name, exact: true });
const card = (gitlab) => view.frame.getByRole("listitem").filter({ has: heading(address(gitlab)) });
const text = (wanted) => view.frame.getByText(wanted);
const checkbox = (name) => view.frame.getByRole("checkbox", { name, exact: true });

// STATE-light.png and STATE-dark.png, without anything serious by axe. target: the document, if it is not the frame's.
// whole: as high as the document is. fitted: STATE-narrow and STATE-zoomed too. while: what a state has that passes.
async function look(state, { target, whole = false, fitted = false, while: mark } = {}) {
  const content = target ?? (await view.content());
  if (whole) await view.setSize({ ...WIDE, height: Math.max(WIDE.height, await heightOf(content)) });
  await view.look(state, content);
  if (mark && (await mark.count()) === 0) flaws.push(`${state} passed before it was looked at`);
  for (const landmark of ["main", "h1"]) {
    const count = await content.locator(landmark).count();
    if (count !== 1) flaws.push(`${state} has ${count} ${landmark}`);
  }
  if (fitted) {
    for (const [name, size] of Object.entries(FITTED)) await fits(`${state}-${name}`, size, content);
  }
  if (whole || fitted) await view.setSize(WIDE);
}

// What a window needs to show the document without scrolling, below Jira's header.
async function heightOf(content) {
  const own = await content.evaluate(() => document.documentElement.scrollHeight);
  const { y } = await view.page.locator("iframe.ap-iframe").boundingBox();
  return Math.ceil(y + own);
}

// Nothing is wider than its window: neither the document nor what scrolls in it.
async function fits(state, size, content) {
  await view.setSize(size);
  await view.screenshot(state);
  const wider = await content.evaluate(() => {
    const scrolls = (element) =>
      element.scrollWidth > element.clientWidth && /auto|scroll/.test(getComputedStyle(element).overflowX);
    const found = [...document.querySelectorAll("body *")].filter(scrolls).map((element) => `.${element.className}`);
    // What can be done in a dialog is in sight, however much there is to read.
    const actions = document.querySelector(".dialog-actions");
    if (actions && actions.getBoundingClientRect().bottom > window.innerHeight) found.push("its dialog's buttons, down");
    const { scrollWidth, clientWidth } = document.documentElement;
    return scrollWidth > clientWidth ? [...found, `document: ${scrollWidth} > ${clientWidth}`] : found;
  });
  flaws.push(...wider.map((name) => `${state} scrolls sideways: ${name}`));
}

async function linkId(gitlab) {
  const { body } = await stage.relay.admin("GET", "links");
  return body.find(({ instance_url }) => instance_url === gitlab.url).id;
}

async function link(gitlab) {
  const body = { client_key: stage.jira.clientKey, instance_url: gitlab.url };
  assert.equal((await stage.relay.admin("POST", "links", body)).status, 201);
}

// Groups are linked on the instance, as if the page had done it some days ago.
function linkGroups(gitlab, count) {
  const { clientKey } = stage.jira;
  const day = 86_400_000;
  gitlab.subscriptions = gitlab.groups.slice(0, count).map((group, index) => {
    return { id: 1000 + index, clientKey, group, created_at: new Date(Date.now() - index * day).toISOString() };
  });
}

async function openDialog() {
  await button("Add GitLab instance").click();
  await dialog().waitFor();
}

async function check(url) {
  await dialog().getByLabel("Address of the GitLab instance").fill(url);
  await inDialog("Check").click();
}

async function closeDialog() {
  await inDialog("Cancel").click();
  await dialog().waitFor({ state: "detached" });
}

async function openSignIn(gitlab) {
  await button(`Link groups of ${address(gitlab)}`).click();
  await button("Sign in to GitLab").and(view.frame.locator(":not([aria-disabled])")).waitFor();
}

// By its name, as a mouse does: the whole row is the checkbox's label.
async function choose(group) {
  await view.frame.getByText(group, { exact: true }).click();
  await until(`${group} to be selected`, () => checkbox(group).isChecked());
}

async function signIn() {
  const popup = await view.popup(() => button("Sign in to GitLab").click());
  await decide(popup, "Authorize");
}

async function decide(popup, decision) {
  await Promise.all([popup.waitForEvent("close"), popup.getByRole("button", { name: decision }).click()]);
}

staged("while it starts, and when Jira does not answer", async () => {
  stage.jira.allJs = "missing";
  await open();
  await text("Connecting to Jira…").waitFor();
  await look("connecting", { while: text("Connecting to Jira…") });
  await text("Jira did not answer").waitFor({ timeout: 40_000 });
  await look("ap-js-missing", { fitted: true });
  stage.jira.allJs = "ok";
  stage.jira.contextTokens = "silent";
  await open();
  await text("Loading…").waitFor();
  await look("loading", { while: text("Loading…") });
});

staged("the first instance is added", async () => {
  await open();
  await heading("Connect your first GitLab instance").waitFor();
  await look("first-use", { whole: true, fitted: true });

  await openDialog();
  await look("add", { fitted: true });
  await dialog().getByText("What must be set up in GitLab first?").click();
  await look("add-set-up", { fitted: true });
  await dialog().getByText("What must be set up in GitLab first?").click();

  await check("gitlab example");
  await dialog().getByRole("alert").waitFor();
  await look("add-malformed");

  const some = stage.plain.hold(/app_descriptor|events/);
  await check(stage.plain.url);
  await dialog().getByText("OAuth application Passed").waitFor();
  await look("add-checking", { while: dialog().getByText("Checking…") });
  await closeDialog();
  some.release();

  await openDialog();
  await check(stage.plain.url);
  await dialog().getByText("All checks are done.").waitFor();
  await look("add-ok", { fitted: true });
  await stage.relay.down();
  await inDialog("Add instance").click();
  await dialog().getByText("The relay cannot be reached").waitFor();
  await look("add-error");
  await stage.relay.up();
  await closeDialog();

  stage.plain.applicationId = null;
  await openDialog();
  await check(stage.plain.url);
  await dialog().getByText("All checks are done. 1 needs attention.").waitFor();
  await look("add-warned");
  await closeDialog();

  stage.plain.proxyUrl = "https://other.example.com";
  await openDialog();
  await check(stage.plain.url);
  await dialog().getByText("All checks are done.").waitFor();
  await look("add-failed", { whole: true, fitted: true });
  await closeDialog();

  await stage.below.down();
  await openDialog();
  await check(stage.below.url);
  await dialog().getByText("The other checks were not made").waitFor({ timeout: 40_000 });
  await look("add-unreachable", { whole: true, fitted: true });
});

staged(
  "instances in every state",
  async (t) => {
    const start = async (host) => {
      const gitlab = await Gitlab.start({ host, proxyUrl: stage.relay.url });
      t.after(() => gitlab.stop());
      return gitlab;
    };
    const [connected, failing] = stage.gitlabs;
    const leaving = await start("127.0.0.5");
    const slow = await start("127.0.0.6");
    failing.proxyUrl = "https://other.example.com";
    for (const gitlab of [connected, failing, leaving]) await link(gitlab);
    for (const gitlab of [connected, leaving]) assert.deepEqual(await gitlab.push(), [202]);
    linkGroups(connected, 3);
    slow.hold(/events/);
    // The admin API waits longer for it than we for the admin API.
    link(slow).catch(() => {});

    await open();
    await card(slow).getByText("Waiting for the instance").waitFor();
    await button(`Remove ${address(leaving)}`).click();
    await dialog().getByLabel("Also delete its development information from Jira").check();
    await look("remove", { fitted: true });
    await inDialog("Remove instance").click();
    await card(leaving).getByText("Removing").waitFor();
    await card(connected).getByText("3 groups linked").waitFor();
    await leaving.down();
    // The relay gives ten seconds to undo it; what the page knows stays for as long as a look takes.
    await view.page.route(/\/links$/, () => {});
    await look("instances", { whole: true, fitted: true, while: button(`Undo the removal of ${address(leaving)}`) });
    await view.page.unroute(/\/links$/);
    await button("Add GitLab instance").click();
    await check(connected.url);
    await dialog().getByText("connected to this Jira site already").waitFor();
    await look("add-refused");
    await closeDialog();

    // With its data, so that nothing can be undone any more.
    await card(leaving).getByText("The instance is being told").waitFor({ timeout: 40_000 });
    await look("removing-told", { whole: true });
  },
  // As an operator has them.
  { INSTANCES__RETRY_MIN_MS: "5000", INSTANCES__RETRY_MAX_MS: "3600000" },
);

staged("names that are longer than any window", async () => {
  await link(stage.plain);
  const { body } = await stage.api("GET", "links");
  const host = `${"gitlab-of-the-department-of-long-names.".repeat(5)}example.com`;
  const url = (n) => `https://${host}/${"below/a/path/".repeat(n)}gitlab`;
  const cause = { code: "dns_failed", message: `the name ${host} is not known`, hint: `see ${url(4)}`, id: "x".repeat(60) };
  const states = [
    { state: "connected" },
    { state: "failing", attempts: 3, last_error: { ...cause, at: new Date().toISOString() } },
    { state: "removing", can_undo: true },
  ];
  const links = states.map((more, n) => ({ ...body.links[0], id: `long-${n}`, instance_url: url(n), ...more }));
  await visit("about:blank");
  const { page } = view;
  await page.route(/\/links$/, (route) => route.fulfill({ json: { ...body, links, site: `https://${host}` } }));
  await page.route(/\/groups$/, (route) => route.fulfill({ json: { groups: [] } }));
  await page.route(/\/links\/check$/, (route) => {
    const { check } = route.request().postDataJSON();
    route.fulfill({ json: { ...cause, check, instance_url: url(5), verdict: check === "reachable" ? "fail" : "ok" } });
  });
  await page.goto(stage.jira.adminUrl());
  await text("No groups linked").first().waitFor();
  await look("long-names", { whole: true, fitted: true });
  await openDialog();
  await check(url(5));
  await dialog().getByText("The other checks were not made").waitFor();
  await look("long-names-add", { fitted: true });
  await closeDialog();
  await button(`Remove ${url(0).slice("https://".length)}`).click();
  await dialog().waitFor();
  await look("long-names-remove", { fitted: true });
});

staged("who may only look", async () => {
  await link(stage.plain);
  linkGroups(stage.plain, 3);
  await open({ account: "member" });
  await text("3 groups linked").waitFor();
  await look("read-only", { fitted: true });
  await button(`View groups of ${address(stage.plain)}`).click();
  await text("Accounting / Web").waitFor();
  await look("read-only-groups");
  await stage.jira.fault({ mode: "status", status: 503, match: { path_prefix: "/rest/api/3/permissions" } });
  await open({ account: "somebody" });
  await text("You can look, but not change anything").waitFor();
  await text("3 groups linked").waitFor();
  await look("jira-unavailable");
  await stage.jira.heal();
});

staged("when the network or a session ends", async () => {
  await link(stage.plain);
  await link(stage.below);
  await stage.below.down();
  await open();
  await card(stage.below).getByText("Groups unknown").waitFor();
  await look("groups-unknown", { fitted: true });

  await view.page.context().setOffline(true);
  await text("You are offline").waitFor();
  await look("offline", { fitted: true });
  await view.page.context().setOffline(false);
  await text("You are offline").waitFor({ state: "detached" });

  await stage.relay.down();
  await button(`Link groups of ${address(stage.plain)}`).click();
  await text("The relay cannot be reached").first().waitFor();
  await look("sign-in-relay-unreachable");
  await button("Back to linked groups").click();
  await text("The relay cannot be reached").first().waitFor();
  await button("Back to instances").click();
  await text("The list could not be updated").waitFor({ timeout: 40_000 });
  await look("relay-unreachable", { fitted: true });
  await stage.relay.up();
  await button("Try again").click();
  await text("The list could not be updated").waitFor({ state: "detached" });

  stage.jira.contextTokens = "expired";
  await button(`Remove ${address(stage.plain)}`).click();
  await inDialog("Remove instance").click();
  await text("Your session has expired").waitFor();
  await look("session-expired", { fitted: true });

  stage.jira.contextTokens = "ok";
  const links = /\/-\/jira_connect\/links$/;
  await visit("about:blank");
  await view.page.route(links, (route) => route.abort());
  await view.page.goto(stage.jira.adminUrl());
  await text("The relay cannot be reached").first().waitFor();
  await look("relay-unreachable-at-first");
});

staged("groups that are linked", async () => {
  const gitlab = stage.plain;
  await link(gitlab);
  await open();
  await card(gitlab).getByText("No groups linked").waitFor();
  await openSignIn(gitlab);
  await button("Back to linked groups").click();
  await text("No groups are linked yet").waitFor();
  await look("groups-none", { fitted: true });

  linkGroups(gitlab, 47);
  await button("Back to instances").click();
  await button(`Manage groups of ${address(gitlab)}`).click();
  await text("47 groups linked").waitFor();
  await look("groups-many", { whole: true, fitted: true });
  for (const name of ["Accounting / Web", "Backoffice"]) await choose(name);
  await view.frame.getByLabel("Filter linked groups").fill("catalogue");
  await text("3 of 47 groups").waitFor();
  await look("groups-filtered", { fitted: true });
  await view.frame.getByLabel("Filter linked groups").fill("");
  await text("47 groups linked").waitFor();
  await look("groups-many-selected", { fitted: true });
  await view.frame.getByLabel("Filter linked groups").fill("nothing like it");
  await text("No linked group matches the filter.").waitFor();
  await look("groups-filtered-none");

  linkGroups(gitlab, 11);
  await button("Back to instances").click();
  await button(`Manage groups of ${address(gitlab)}`).click();
  await text("11 groups linked").waitFor();
  await choose("Accounting");
  await choose("Backoffice");
  await look("groups", { whole: true, fitted: true });
  await checkbox("Select all").check();
  await button("Unlink 11 groups").click();
  await dialog().waitFor();
  await look("unlink", { fitted: true });

  gitlab.instead = { path: /subscriptions\/1010$/, answer: { status: 403, json: { message: "Forbidden" } } };
  const unlinkings = gitlab.hold(/subscriptions\/\d/, { after: 4 });
  await inDialog("Unlink 11 groups").click();
  await text("Unlinking 4 of 11…").waitFor();
  await look("unlinking", { while: text("Unlinking 4 of 11…") });
  unlinkings.release();
  await text("Some groups could not be unlinked").waitFor();
  gitlab.instead = null;
  await look("unlinked-some", { fitted: true });
  linkGroups(gitlab, 2);
  await button("Back to instances").click();
  await button(`Manage groups of ${address(gitlab)}`).click();
  await choose("Accounting");
  await button("Unlink 1 group").click();
  await inDialog("Unlink 1 group").click();
  await text("1 group unlinked.").waitFor();
  await look("unlinked");

  await gitlab.down();
  await button("Back to instances").click();
  await button(`Manage groups of ${address(gitlab)}`).click();
  await view.frame.getByRole("alert").waitFor();
  await look("groups-failed", { fitted: true });
});

staged("groups are linked", async () => {
  const gitlab = stage.plain;
  await link(gitlab);
  linkGroups(gitlab, 1);
  gitlab.applicationId = null;
  const openPicker = async () => {
    await open();
    await button(`Manage groups of ${address(gitlab)}`).click();
    await button("Link groups").click();
  };
  await openPicker();
  await view.frame.getByRole("alert").waitFor();
  await look("sign-in-not-set-up");
  gitlab.applicationId = "a".repeat(64);

  await openPicker();
  await button("Sign in to GitLab").and(view.frame.locator(":not([aria-disabled])")).waitFor();
  await look("sign-in", { fitted: true });
  const popup = await view.popup(() => button("Sign in to GitLab").click());
  await text("Continue in the GitLab window.").waitFor();
  await look("sign-in-waiting", { fitted: true });
  await decide(popup, "Deny");
  await text("Access was denied in GitLab").waitFor();
  await look("sign-in-denied", { fitted: true });
  const content = await view.content();
  await content.evaluate(() => {
    window.open = () => null;
  });
  await button("Sign in to GitLab").click();
  await text("Your browser blocked the sign-in window").waitFor();
  await look("popup-blocked", { fitted: true });

  await openPicker();
  await signIn();
  await text("Signed in as Mona Lisa Octocat (@mona)").waitFor();
  await text("Backoffice").first().waitFor();
  await look("picker", { whole: true, fitted: true });
  await view.frame.getByLabel("Search groups").fill("no such group");
  await text("No group matches the search.").waitFor();
  await look("picker-none");
  await view.frame.getByLabel("Search groups").fill("");
  for (const name of ["Backoffice", "Catalogue", "Data Warehouse"]) await choose(name);
  await button("Next").click();
  await choose("Fleet");
  await look("picker-selected", { fitted: true });

  gitlab.refusedGroups = { catalogue: [422, "Group can not be linked at the moment."] };
  const linkings = gitlab.hold(/integrations/, { after: 2 });
  await button("Link 4 groups").click();
  await text("Linking 2 of 4…").waitFor();
  await look("linking", { while: text("Linking 2 of 4…") });
  linkings.release();
  await text("Some groups could not be linked").waitFor();
  await look("linked-some", { whole: true, fitted: true });
  gitlab.refusedGroups = {};
  await button("Link 1 group").click();
  await text(/^1 group linked/).waitFor();
  await look("linked", { fitted: true });

  await gitlab.down();
  await view.frame.getByLabel("Search groups").fill("android");
  await text("Your browser does not reach").waitFor();
  await look("picker-unreachable", { whole: true, fitted: true });
  await gitlab.up();
  gitlab.oauth.revokeAll();
  await button("Try again").click();
  await text("Your sign-in to GitLab has ended").waitFor();
  await look("sign-in-ended");
});

staged("pages beside the page", async () => {
  const base = stage.relay.baseUrl;
  for (const [state, path, title] of [
    ["outside-jira", "subscriptions", "This page lives inside Jira"],
    ["callback-without-opener", "oauth_callbacks?code=1&state=2", "This window lost its connection to the page"],
  ]) {
    await visit(`${base}/${path}`);
    await view.page.getByRole("heading", { name: title }).waitFor();
    await look(state, { target: view.page.mainFrame(), fitted: true });
  }
  for (const gitlab of stage.gitlabs) await link(gitlab);
  const branch = new URLSearchParams({
    issue_key: "ABC-1",
    issue_summary: "Mend the roof before the autumn rain",
    jwt: await stage.jira.contextToken(),
  });
  await visit(`${base}/branches/route?${branch}`);
  await view.page.getByRole("link", { name: address(stage.below) }).waitFor();
  await look("branches", { target: view.page.mainFrame(), fitted: true });
  stage.jira.frameTokens = "expired";
  await open();
  await look("frame-expired", { fitted: true });
});

staged("a screen reader hears what happens, and who everything is", async () => {
  const gitlab = stage.plain;
  await link(stage.below);
  await open();
  await heading(address(stage.below)).waitFor();
  const main = view.frame.getByRole("main");
  assert.equal(await main.count(), 1);

  await openDialog();
  await view.frame.getByRole("dialog", { name: "Add GitLab instance", exact: true }).waitFor();
  await check("not a url");
  await heard("alert", /is not a URL/);
  await check(gitlab.url);
  await heard("status", "All checks are done.");
  for (const line of await dialog().getByRole("list", { name: "Checks" }).getByRole("listitem").all()) {
    assert.match(await line.textContent(), / Passed$/);
  }
  await inDialog("Add instance").click();
  await heard("status", `${address(gitlab)} was added.`);

  const list = main.getByRole("region", { name: "Instances" }).getByRole("list").first();
  for (const one of stage.gitlabs) {
    const item = list.getByRole("listitem").filter({ has: view.frame.getByRole("heading", { name: address(one) }) });
    await item.getByRole("button").nth(1).waitFor();
    const named = await item.getByRole("button").evaluateAll((all) => all.map((one) => [one.ariaLabel, one.innerText]));
    // Who says what is written reaches it too.
    for (const [name, seen] of named) assert.ok(name?.startsWith(seen) && name.includes(address(one)), `${name}, ${seen}`);
  }

  await view.page.reload();
  await openSignIn(gitlab);
  const popup = await view.popup(() => button("Sign in to GitLab").click());
  await heard("status", "Continue in the GitLab window.");
  await decide(popup, "Authorize");
  await heard("status", "47 groups found. Page 1 of 3");
  await view.frame.getByLabel("Search groups").fill("an");
  await heard("status", "Type at least 3 characters to search.");
  await view.frame.getByLabel("Search groups").fill("android");
  await heard("status", "15 groups found. Page 1 of 1");
  await choose("Maps / Android");
  await heard("status", "1 group selected");
  const linking = gitlab.hold(/integrations/);
  await button("Link 1 group").click();
  await heard("status", "Linking 0 of 1…");
  await view.frame.getByRole("progressbar", { name: "Linking 0 of 1…" }).waitFor();
  linking.release();
  await heard("alert", /^1 group linked/);

  await button("Back to linked groups").click();
  await heard("status", "1 group linked");
  await view.frame.getByLabel("Filter linked groups").fill("nothing like it");
  await heard("status", "0 of 1 group");
  await view.frame.getByLabel("Filter linked groups").fill("");
  await choose("Maps / Android");
  await button("Unlink 1 group").click();
  await view.frame.getByRole("dialog", { name: "Unlink 1 group?", exact: true }).waitFor();
  await inDialog("Unlink 1 group").click();
  await heard("alert", "1 group unlinked.");
  await button("Back to instances").click();
  await button(`Remove ${address(gitlab)}`).click();
  await view.frame.getByRole("dialog", { name: `Remove ${address(gitlab)}?`, exact: true }).waitFor();
  await inDialog("Remove instance").click();
  await heard("status", `${address(gitlab)} is being removed.`);
  await button(`Undo the removal of ${address(gitlab)}`).click();
  await heard("status", `${address(gitlab)} stays.`);
});

staged("a screen reader hears what comes by itself, and the same twice", async () => {
  const [gitlab, other] = stage.gitlabs;
  await link(gitlab);
  await link(other);
  await open();
  await card(other).getByText("No groups linked").waitFor();
  const said = [];
  const content = await view.content();
  await view.page.exposeFunction("said", (text) => said.push(text));
  await content.evaluate(() => {
    const region = document.querySelector('[role="status"][aria-atomic="false"]');
    new MutationObserver((changes) => {
      for (const { addedNodes } of changes) for (const node of addedNodes) window.said(node.textContent);
    }).observe(region, { childList: true, subtree: true });
  });
  const hears = (wanted, times = 1) =>
    until(`${wanted} to be said ${times} times`, () => said.filter((one) => wanted.test(one)).length === times || null, {
      ms: 40_000,
    });
  const name = address(gitlab).replaceAll(".", "\\.");

  // Somebody else removes one, and adds it again.
  const removed = await linkId(gitlab);
  await stage.relay.admin("DELETE", `links/${removed}`);
  await hears(new RegExp(`^${name} (is being|has been) removed\\.$`), 1);
  await card(gitlab).waitFor({ state: "detached", timeout: 40_000 });
  await hears(new RegExp(`^${name} has been removed\\.$`));

  // One can't be reached; looked at twice, it says so twice.
  await other.down();
  await stage.relay.admin("POST", `links/${await linkId(other)}/resend`);
  await content.evaluate(() => window.dispatchEvent(new Event("online")));
  await hears(new RegExp(`^${address(other).replaceAll(".", "\\.")} has a problem: .*can't be reached`));
  for (const times of [1, 2]) {
    await button(`Try again to connect ${address(other)}`).click();
    await hears(/^The relay tried again to connect .*: .*can't be reached/, times);
  }
  await other.up();
  await hears(new RegExp(`^${address(other).replaceAll(".", "\\.")} is connected\\.$`));

  await other.down();
  await view.page.reload();
  await card(other).getByText("Needs attention").waitFor();
  await button(`Check again: ${address(other)}`).click();
  await heard("status", /The relay looked at .* again: .*can't be reached/);
  await other.up();
  await button(`Check again: ${address(other)}`).click();
  await heard("status", /The relay looked at .* again: All is well\./);
});

staged("the theme is Jira's, whatever the system's is", async () => {
  await open({ theme: "dark" });
  await heading("Connect your first GitLab instance").waitFor();
  const content = await view.content();
  const background = () => content.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const dark = await background();
  await view.page.emulateMedia({ colorScheme: "light" });
  assert.equal(await background(), dark);
  await view.setTheme("light");
  const light = await background();
  assert.ok(luminance(light) > 0.8 && luminance(dark) < 0.2, `${light}, ${dark}`);
  await view.page.emulateMedia({ colorScheme: "dark" });
  assert.equal(await background(), light);
  await view.setTheme("dark");
  assert.equal(await background(), dark);
});

staged("nothing moves for who wants less motion", async () => {
  const gitlab = stage.plain;
  const moving = async () =>
    (await view.content()).evaluate(() =>
      document
        .getAnimations()
        .filter(({ playState, effect }) => playState === "running" && effect.getTiming().duration > 0)
        .map(({ animationName, effect }) => `${animationName}: ${effect.getTiming().duration} ms`),
    );
  stage.jira.contextTokens = "silent";
  await open({ reducedMotion: "reduce" });
  await text("Loading…").waitFor();
  assert.deepEqual(await moving(), []);
  stage.jira.contextTokens = "ok";
  await open({ reducedMotion: "reduce" });
  await openDialog();
  assert.deepEqual(await moving(), []);
  gitlab.hold(/./);
  await check(gitlab.url);
  await dialog().getByText("Checking…").first().waitFor({ state: "attached" });
  assert.deepEqual(await moving(), []);
});

staged("the first load is light, and the second asks for the page alone", async (t) => {
  await visit("about:blank");
  const answers = [];
  view.page.on("response", (response) => {
    if (response.url().startsWith(stage.relay.baseUrl)) answers.push(response);
  });
  const load = async () => {
    answers.length = 0;
    await view.page.goto(stage.jira.adminUrl());
    await heading("Connect your first GitLab instance").waitFor();
    const content = await view.content();
    const entries = await content.evaluate(() =>
      [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")].map((entry) => {
        const { name, transferSize, encodedBodySize, decodedBodySize } = entry;
        return { path: new URL(name).pathname, transferSize, encodedBodySize, decodedBodySize };
      }),
    );
    return entries.filter(({ path }) => /\/subscriptions$|\/assets\//.test(path));
  };

  const first = await load();
  assert.deepEqual(first.map(({ path }) => path.replace(/-[0-9a-f]+\./, ".").split("/").at(-1)).sort(), [
    "page.css",
    "page.js",
    "subscriptions",
  ]);
  const bytes = first.reduce((sum, { transferSize }) => sum + transferSize, 0);
  t.diagnostic(`first load: ${bytes} bytes`);
  assert.ok(bytes > 0 && bytes < FIRST_LOAD_MAX_BYTES, `${bytes} bytes`);
  const assets = answers.filter((answer) => answer.url().includes("/assets/"));
  assert.equal(assets.length, 2);
  for (const asset of assets) {
    const headers = await asset.allHeaders();
    assert.equal(headers["content-encoding"], "gzip");
    assert.match(headers["cache-control"], /immutable/);
    assert.match(headers["cache-control"], /max-age=31536000/);
  }

  const second = await load();
  const asked = second.filter(({ transferSize }) => transferSize > 0).map(({ path }) => path);
  assert.deepEqual(asked, [`${new URL(stage.relay.baseUrl).pathname}/subscriptions`]);
});

// A live region says it.
async function heard(role, said) {
  await heardIn(view.frame, role, said);
}

function luminance(color) {
  const [red, green, blue] = color.match(/\d+/g).map((part) => part / 255);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}
