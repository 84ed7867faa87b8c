// Every way in which it goes wrong before a Jira admin's eyes: the page says what, why and what to do, and is itself
// again when the cause is gone.

import assert from "node:assert/strict";
import { randomBytes, randomUUID } from "node:crypto";
import { describe } from "node:test";
import { Admin, addressOf, counted, heard } from "./stage/admin.mjs";
import { until } from "./stage/deadline.mjs";
import { scenes } from "./stage/scene.mjs";

// What the relay tries again by itself, it tries later than a person does.
const PATIENT = { INSTANCES__RETRY_MIN_MS: "12000", INSTANCES__RETRY_MAX_MS: "12000" };

// Longer than the page waits for Jira, or until it asks for the list again.
const A_WHILE_MS = 16_000;

// How long the page waits for the relay.
const ANSWER_MAX_MS = 60_000;

// Long enough for a search to begin.
const A_MOMENT_MS = 1_000;

const SIGN_IN_AGAIN = "Your sign-in to GitLab has ended. Sign in again.";

describe("adding an instance", () => {
  const scene = scenes({ settings: PATIENT });

  scene("an address that is none is said to be so beside its field", async (stage) => {
    const admin = await Admin.open(stage);
    await admin.check("");
    const field = admin.dialog.getByLabel("Address of the GitLab instance");
    await admin.seeIn(admin.dialog, "Enter the address of the GitLab instance.");
    for (const address of ["two words", "ftp://gitlab.example.com"]) {
      await field.fill(address);
      await admin.confirm("Check");
      await until("the field to be invalid", async () => (await field.getAttribute("aria-invalid")) === "true");
      const described = await field.getAttribute("aria-describedby");
      assert.equal(await admin.dialog.getByRole("alert").getAttribute("id"), described.split(" ")[0]);
      assert.notEqual(await admin.dialog.getByRole("alert").innerText(), "");
      await until("the field to have the focus", () => field.evaluate((element) => element === document.activeElement));
    }
    assert.equal(await admin.dialog.getByRole("listitem").filter({ hasText: "Passed" }).count(), 0);
    await admin.view.look("add-malformed");
  });

  scene("an address as it was copied is cut to size, and shown as it will be linked", async (stage) => {
    const admin = await Admin.open(stage);
    const { port } = new URL(stage.below.url);
    await admin.check(`  HTTP://127.0.0.4:${port}/gitlab/users/sign_in?redirect=1#top `);
    await admin.seeIn(admin.dialog, `We will link ${stage.below.url}`);
    await admin.dialog.getByText("All checks are done.", { exact: true }).waitFor();
    await admin.confirm("Add instance");
    await admin.seeIn(admin.card(stage.below), "Connected");
  });

  scene("one that is down: the checks say that it can't be reached, and what to look at", async (stage) => {
    await stage.plain.down();
    const admin = await Admin.open(stage);
    await admin.check(stage.plain.url);
    await admin.seeIn(admin.line("Address"), "Passed");
    const reachable = admin.line("Reachable from the relay");
    await admin.seeIn(reachable, "Failed", "can't be reached", "check that the instance runs", "Request ID");
    await admin.dialog.getByRole("button", { name: "Add anyway" }).waitFor();
    await admin.view.look("add-down");

    await stage.plain.up();
    await admin.confirm("Check again");
    await admin.dialog.getByText("All checks are done.", { exact: true }).waitFor();
    await admin.confirm("Add instance");
    await admin.seeIn(admin.card(stage.plain), "Connected");
  });

  scene("one with another Jira Connect Proxy URL: the checks say what to set", async (stage) => {
    stage.plain.proxyUrl = "http://127.0.0.9:9";
    const admin = await Admin.open(stage);
    await admin.check(stage.plain.url);
    const proxyUrl = admin.line("Jira Connect Proxy URL");
    await admin.seeIn(proxyUrl, "Failed", `set Jira Connect Proxy URL to exactly ${stage.relay.url}`, "Request ID");
    const publicKey = admin.line("Public key (GitLab 15.7 or later)");
    await admin.seeIn(publicKey, "Failed", `its Jira Connect Proxy URL must be ${stage.relay.url}`, "Request ID");
    await admin.seeIn(admin.line("A GitLab instance"), "Passed");
    await admin.view.look("add-proxy-url");

    await admin.confirm("Add anyway");
    const card = admin.card(stage.plain);
    await admin.seeIn(card, "Needs attention", `set its Jira Connect Proxy URL to exactly ${stage.relay.url}`);
    stage.plain.proxyUrl = stage.relay.url;
    await admin.button(`Try again to connect ${addressOf(stage.plain)}`).click();
    await admin.seeIn(card, "Connected");
  });

  scene("one without an OAuth application is added with a warning; signing in says what is missing", async (stage) => {
    stage.plain.applicationId = null;
    const admin = await Admin.open(stage);
    await admin.check(stage.plain.url);
    const application = admin.line("OAuth application");
    const redirectUri = `${stage.relay.baseUrl}/oauth_callbacks`;
    await admin.seeIn(application, "Warning", "it has no OAuth application", redirectUri);
    await admin.seeIn(admin.line("Public key (GitLab 15.7 or later)"), "Passed");
    await admin.confirm("Add anyway");
    await admin.seeIn(admin.card(stage.plain), "Connected");

    await admin.view.page.reload();
    await admin.goToSignIn(stage.plain);
    await admin.see("the instance has no OAuth application for GitLab for Jira", "a GitLab admin creates one");
    await admin.frame.getByText("What must be set up in GitLab first?").click();
    await admin.see(redirectUri);
    await admin.view.look("sign-in-no-application");
    stage.plain.applicationId = "4711";
    await admin.button("Try again").click();
    await admin.finishSignIn(await admin.openSignIn());
  });

  scene("an address without GitLab, or with one of long ago: the checks say which, and what to do", async (stage) => {
    stage.plain.instead = { path: /app_descriptor/, answer: { status: 404, html: "<h1>404: Page not found</h1>" } };
    const admin = await Admin.open(stage);
    await admin.check(stage.plain.url);
    const gitlab = admin.line("A GitLab instance");
    await admin.seeIn(gitlab, "Failed", "no GitLab at this address", "check host and sub-path", "Request ID");
    await admin.view.look("add-not-gitlab");
    const json = { ...stage.plain.descriptor(), apiMigrations: {} };
    stage.plain.instead = { path: /app_descriptor/, answer: { json } };
    await admin.confirm("Check again");
    await admin.seeIn(gitlab, "Failed", "it is a GitLab older than 15.7", "update it", "Request ID");
    await admin.view.look("add-too-old");
  });

  scene("an address that leads elsewhere, or whose front server answers: the checks say so", async (stage) => {
    const headers = { Location: "http://gitlab.example.com/" };
    stage.plain.instead = { path: /oauth_application_id/, answer: { status: 301, headers } };
    const admin = await Admin.open(stage);
    await admin.check(stage.plain.url);
    const reachable = admin.line("Reachable from the relay");
    await admin.seeIn(reachable, "Failed", "redirects to http://gitlab.example.com/", "the address that it really has");
    await admin.view.look("add-redirected");
    stage.plain.instead = { path: /oauth_application_id/, answer: { status: 502, html: "<h1>Bad gateway</h1>" } };
    await admin.confirm("Check again");
    await admin.seeIn(reachable, "Failed", "what stands before the instance answers 502", "try again later");
  });

  scene("one that refuses events needs attention, says why, and is connected once that is mended", async (stage) => {
    stage.plain.refusesEvents = true;
    const admin = await Admin.open(stage);
    await admin.check(stage.plain.url);
    const publicKey = admin.line("Public key (GitLab 15.7 or later)");
    await admin.seeIn(publicKey, "Failed", "does not believe what it signs", "Host header", "Request ID");
    await admin.view.look("add-refuses-events");
    await admin.confirm("Add anyway");
    const card = admin.card(stage.plain);
    await admin.seeIn(card, "Needs attention", "refused what it signs with 401", "Host header", "Request ID");
    await admin.view.look("refuses-events");
    const id = await card.locator("code").innerText();
    assert.ok(id.length >= 8 && stage.relay.log.includes(id), `${id} is in the relay's log`);

    const told = () => stage.plain.installations.events.filter(({ clientKey }) => clientKey === stage.jira.clientKey);
    await admin.button(`Try again to connect ${addressOf(stage.plain)}`).click();
    await until("the instance to be told again", () => told().length === 2);
    await until("its refusal to be shown", async () => (await card.locator("code").innerText()) !== id);
    stage.plain.refusesEvents = false;
    await admin.button(`Try again to connect ${addressOf(stage.plain)}`).click();
    await admin.seeIn(card, "Connected");
    await counted(card.getByText("Request ID"), 0);
  });

  scene("one that is there already can't be added again", async (stage) => {
    await stage.link(stage.plain);
    const admin = await Admin.open(stage);
    await admin.check(`${stage.plain.url}/`);
    const address = admin.line("Address");
    await admin.seeIn(address, "Failed", "connected to this Jira site already", "look for it in the list");
    assert.equal(await admin.dialog.getByRole("button", { name: /^Add/ }).count(), 0);
    await admin.confirm("Cancel");
    await counted(admin.card(stage.plain), 1);
  });
});

describe("an operator who allows one instance only", () => {
  const scene = scenes({ settings: { INSTANCES__ALLOW: '["127.0.0.3"]' } });

  scene("another one can't be added, and the page says whom to ask", async (stage) => {
    const admin = await Admin.open(stage);
    await admin.check(stage.below.url);
    await admin.seeIn(admin.line("Address"), "Failed", "allow", "Request ID");
    await admin.view.look("add-not-allowed");
    // Checking again would change nothing.
    assert.equal(await admin.dialog.locator(".button-primary").count(), 0);
    assert.equal(await admin.dialog.getByRole("button", { name: /^Add/ }).count(), 0);
    assert.equal(stage.below.calls.length, 0);
    const { status, body } = await stage.api("POST", "links", { body: { instance_url: stage.below.url } });
    assert.deepEqual([status, body.error.code], [403, "instance_not_allowed"]);

    await admin.confirm("Cancel");
    await admin.check(stage.plain.url);
    await admin.dialog.getByText("All checks are done.", { exact: true }).waitFor();
  });
});

describe("rights", () => {
  const scene = scenes();

  scene("somebody who is no Jira admin may look, is told so, and finds nothing to change", async (stage) => {
    await stage.link(stage.plain);
    stage.plain.subscriptions = manyLinked(stage, stage.plain, 2);
    const admin = await Admin.open(stage, { account: "member" });
    await admin.see("Only Jira administrators can change this", "ask a Jira administrator of this site");
    assert.equal(await admin.frame.getByText("Request ID").count(), 0);
    await admin.seeIn(admin.card(stage.plain), "Connected", "2 groups linked");
    await admin.view.look("read-only");
    for (const name of [/^Add/, /^Remove/, /^Link/, /^Manage/, /^Try again/]) {
      assert.equal(await admin.frame.getByRole("button", { name }).count(), 0, String(name));
    }
    await admin.button(`View groups of ${addressOf(stage.plain)}`).click();
    await admin.see("2 groups linked", "Many 1");
    await admin.see("Only Jira administrators can change this", "ask a Jira administrator of this site");
    assert.equal(await admin.frame.getByRole("checkbox").count(), 0);
    assert.equal(await admin.frame.getByRole("button", { name: /link/i }).filter({ hasNotText: "Back" }).count(), 0);
  });

  scene("when Jira can't be asked who is an admin the page says so, and works again after", async (stage) => {
    await stage.link(stage.plain);
    await stage.jira.fault({ mode: "status", status: 503, match: { path_prefix: "/rest/api/3/permissions/check" } });
    const admin = await Admin.open(stage, { account: "somebody whom nobody asked about" });
    await admin.see("You can look, but not change anything", "Jira could not be asked whether you are an admin");
    await admin.seeIn(admin.card(stage.plain), "Connected");
    assert.equal(await admin.button("Add GitLab instance").count(), 0);
    await admin.view.look("jira-unavailable");
    await stage.jira.heal();
    await admin.button("Try again").click();
    await admin.button("Add GitLab instance").waitFor();
    await counted(admin.frame.getByText("You can look, but not change anything"), 0);
  });
});

describe("rights that end while somebody works", () => {
  const scene = scenes();

  scene("the view of groups says so and why, and nothing can be changed until they are back", async (stage) => {
    await stage.link(stage.plain);
    stage.plain.subscriptions = manyLinked(stage, stage.plain, 2);
    const admin = await Admin.open(stage, { ownClock: true });
    await admin.button(`Manage groups of ${addressOf(stage.plain)}`).click();
    await admin.select("Many 1");
    const { page } = admin.view;
    const reason = { code: "jira_unavailable", message: "Jira could not be asked", hint: "try again later", id: "req-1" };
    const [known] = (await stage.api("GET", "links")).body.links;
    const list = { site: stage.jira.origin, may_change: false, reason, links: [known] };
    await page.route(/\/links$/, (route) => route.fulfill({ json: list }));
    await admin.view.passTime(A_WHILE_MS);
    await admin.see("You can look, but not change anything", "Jira could not be asked", "Many 1");
    await heard(admin.frame, "status", "You can look");
    await counted(admin.frame.getByRole("checkbox"), 0);
    await admin.view.look("groups-read-only-now");
    await page.unroute(/\/links$/);
    await admin.button("Try again").click();
    await admin.group("Many 1").waitFor();
    await heard(admin.frame, "status", "You can make changes.");
  });
});

describe("instances that come and go", () => {
  const scene = scenes();

  scene("one that goes down shows its cause, the other is as it was, and it recovers", async (stage) => {
    await stage.link(stage.plain, stage.below);
    await stage.plain.down();
    const admin = await Admin.open(stage, { ownClock: true });
    const cause = admin.card(stage.plain).getByText("can't be reached");
    await cause.first().waitFor({ state: "attached" });
    await admin.seeIn(admin.card(stage.below), "Connected", "No groups linked");
    assert.equal(await admin.card(stage.below).getByText("can't be reached").count(), 0);
    await admin.view.look("instance-down");

    await stage.plain.up();
    await admin.view.passTime(A_WHILE_MS);
    await admin.seeIn(admin.card(stage.plain), "Connected", "No groups linked");
    await counted(cause, 0);
  });

  scene("what is known of an instance outlasts a look at another's groups, and what isn't is not called connected", async (stage) => {
    await stage.link(stage.plain, stage.below);
    await stage.below.down();
    const admin = await Admin.open(stage);
    await admin.seeIn(admin.card(stage.plain), "Connected", "No groups linked");
    await admin.seeIn(admin.card(stage.below), "Needs attention", "can't be reached");
    await admin.button(`Link groups of ${addressOf(stage.plain)}`).click();
    // From now on nobody answers.
    const held = [];
    await admin.view.page.route(/\/links\/[^/]+\/groups$/, (route) => void held.push(route));
    await admin.button("Back to linked groups").click();
    await admin.button("Back to instances").click();
    await until("the cards to ask", () => held.length >= 3);
    await admin.seeIn(admin.card(stage.below), "Needs attention", "can't be reached");
    await admin.seeIn(admin.card(stage.plain), "Checking", "Counting groups…");
    for (const gitlab of stage.gitlabs) {
      await counted(admin.card(gitlab).getByText("Connected", { exact: true }), 0);
    }
    await admin.view.look("checking");
    for (const route of held) await route.abort();
    await admin.seeIn(admin.card(stage.plain), "Not known", "Groups unknown");
    await admin.seeIn(admin.card(stage.below), "Needs attention", "can't be reached");
    await admin.view.look("not-known");
  });

  scene("one that somebody else removes while its groups are looked at: the page says so, there and in the list", async (stage) => {
    const [link] = await stage.link(stage.plain);
    const admin = await Admin.open(stage);
    await admin.button(`Link groups of ${addressOf(stage.plain)}`).click();
    await admin.heading("Sign in to GitLab").waitFor();
    await stage.plain.down();
    await stage.relay.admin("DELETE", `links/${link.id}`);
    const content = await admin.view.content();
    await content.evaluate(() => window.dispatchEvent(new Event("online")));
    await admin.see(`${addressOf(stage.plain)} is being removed`, "Its groups are unlinked with it.");
    await admin.heading("Sign in to GitLab").waitFor();
    await admin.view.look("leaving");
    await stage.plain.up();
    await admin.heading("Connect your first GitLab instance").waitFor({ timeout: 40_000 });
    await admin.see(`${addressOf(stage.plain)} has been removed`, "That happened while you looked at its groups.");
    await admin.view.look("lost");
  });

  scene("an instance that two sites have: each sees its own groups, and one's removal leaves the other's", async (stage) => {
    const clientKey = randomUUID();
    const sharedSecret = randomBytes(32).toString("hex");
    assert.equal((await stage.jira.install({ clientKey, sharedSecret })).status, 204);
    await stage.link(stage.plain);
    const body = { instance_url: stage.plain.url };
    const { status, body: theirs } = await stage.api("POST", "links", { clientKey, body });
    assert.deepEqual([status, theirs.state], [201, "connected"]);
    const [one, two, three] = manyLinked(stage, stage.plain, 3);
    stage.plain.subscriptions = [one, two, { ...three, clientKey }];

    const admin = await Admin.open(stage);
    await admin.seeIn(admin.card(stage.plain), "Connected", "2 groups linked");
    await counted(admin.frame.getByRole("heading", { level: 2 }), 1);
    await remove(admin, stage.plain, { purge: true });
    await admin.heading("Connect your first GitLab instance").waitFor({ timeout: 40_000 });
    assert.deepEqual(Object.keys(stage.plain.installations.known), [clientKey]);
    const { body: left } = await stage.api("GET", "links", { clientKey });
    assert.deepEqual(left.links.map(({ id, state }) => [id, state]), [[theirs.id, "connected"]]);
    const { body: groups } = await stage.api("GET", `links/${theirs.id}/groups`, { clientKey });
    assert.deepEqual(groups.groups.map(({ name }) => name), ["Many 3"]);
  });

  scene("a removal is taken back in time, and the instance has not heard of it", async (stage) => {
    await stage.link(stage.plain);
    const admin = await Admin.open(stage);
    await remove(admin, stage.plain, { purge: true });
    await admin.seeIn(admin.card(stage.plain), "Until then you can undo this.", "will be deleted from Jira.");
    await admin.button(`Undo the removal of ${addressOf(stage.plain)}`).click();
    await admin.seeIn(admin.card(stage.plain), "Connected");
    assert.ok(!stage.plain.installations.events.some(({ event }) => event === "uninstalled"));
    assert.deepEqual(Object.keys(stage.plain.installations.known), [stage.jira.clientKey]);
  });

  scene("an undo that comes too late says so, makes no new link, and the card goes with its removal", async (stage) => {
    const links = await stage.link(stage.plain, stage.below);
    const admin = await Admin.open(stage);
    const { page } = admin.view;
    let added = 0;
    await page.route(/\/links$/, (route) => {
      if (route.request().method() === "POST") added += 1;
      route.fallback();
    });
    const undoneBy = async (gitlab, status, code) => {
      await page.route(/\/undo$/, (route) =>
        route.fulfill({ status, json: { error: { code, message: "the relay's words", hint: null, id: "req-1" } } }),
      );
      await remove(admin, gitlab, { purge: false });
      await admin.button(`Undo the removal of ${addressOf(gitlab)}`).click();
    };
    await undoneBy(stage.plain, 409, "too_late_to_undo");
    await admin.see(`${addressOf(stage.plain)}: It is too late to undo this`, "To connect it again, add it", "req-1");
    await admin.view.look("undo-too-late");
    await undoneBy(stage.below, 404, "link_unknown");
    const gone = `${addressOf(stage.below)}: This instance is not connected to this Jira site any more`;
    await admin.see(gone);
    await counted(admin.frame.getByText("It is too late to undo this"), 0);
    for (const { id } of links) assert.equal((await stage.relay.admin("DELETE", `links/${id}`)).status, 202);
    for (const gitlab of stage.gitlabs) await admin.card(gitlab).waitFor({ state: "detached", timeout: 40_000 });
    await admin.see(gone);
    assert.equal(added, 0);
  });

  scene("a removal that nobody takes back reaches the instance, deletes what it sent, and ends", async (stage) => {
    await stage.link(stage.plain, stage.below);
    assert.deepEqual(await Promise.all(stage.gitlabs.map((gitlab) => gitlab.push())), [[202], [202]]);
    const admin = await Admin.open(stage);
    await remove(admin, stage.plain, { purge: true });
    await admin.card(stage.plain).waitFor({ state: "detached", timeout: 40_000 });
    await admin.seeIn(admin.card(stage.below), "Connected");
    assert.deepEqual(stage.plain.installations.known, {});
    const { entities } = await stage.jira.state();
    const urls = Object.values(entities.devinfo).map(({ data }) => data.url);
    assert.ok(urls.some((url) => url.startsWith(stage.below.url)));
    assert.ok(!urls.some((url) => url.startsWith(stage.plain.url)));
  });

  scene("a removal that is being told can't be undone, and the instance is kept by adding it again", async (stage) => {
    const [link] = await stage.link(stage.plain);
    const admin = await Admin.open(stage);
    stage.plain.instead = { path: /events\/uninstalled/, answer: { status: 503 } };
    await remove(admin, stage.plain, { purge: false });
    await admin.card(stage.plain).getByText("answered 503").waitFor({ timeout: 40_000 });
    await counted(admin.button(`Undo the removal of ${addressOf(stage.plain)}`), 0);
    await admin.seeIn(admin.card(stage.plain), "The relay tries until it has heard.");
    await admin.check(stage.plain.url);
    // One of the checks asks where it would be told.
    await admin.seeIn(admin.dialog, "All checks are done.");
    await admin.confirm("Add anyway");
    await admin.seeIn(admin.card(stage.plain), "Connected");
    assert.deepEqual(Object.keys(stage.plain.installations.known), [stage.jira.clientKey]);
    assert.deepEqual((await stage.api("GET", "links")).body.links.map(({ id }) => id), [link.id]);
  });

  scene("data that Jira does not delete: the card says so until it is gone", async (stage) => {
    await stage.link(stage.plain);
    assert.deepEqual(await stage.plain.push(), [202]);
    const match = { path_prefix: "/rest/devinfo/0.10/bulkByProperties" };
    await stage.jira.fault({ mode: "status", status: 500, match });
    const admin = await Admin.open(stage);
    await remove(admin, stage.plain, { purge: true });
    const card = admin.card(stage.plain);
    await card.getByText("Jira answered 500").waitFor({ timeout: 40_000 });
    await admin.seeIn(card, "The instance has been told.", "tried again by itself", "Request ID");
    await admin.view.look("removing-purge-failing");
    await stage.jira.heal();
    await card.waitFor({ state: "detached", timeout: 40_000 });
    // An earlier test's may be there.
    const left = Object.values((await stage.jira.state()).entities.devinfo);
    assert.ok(!left.some(({ data }) => data.url.startsWith(stage.plain.url)));
  });

  scene("a removal of one that is down says that it waits, and ends when it is back", async (stage) => {
    await stage.link(stage.plain);
    const admin = await Admin.open(stage);
    await stage.plain.down();
    await remove(admin, stage.plain, { purge: false });
    await admin.card(stage.plain).getByText("can't be reached").waitFor({ timeout: 40_000 });
    const said = await admin.card(stage.plain).innerText();
    await admin.view.look("removing-down");
    await stage.plain.up();
    await admin.card(stage.plain).waitFor({ state: "detached", timeout: 40_000 });
    assert.deepEqual(stage.plain.installations.known, {});
    // Between two attempts it can be undone.
    assert.match(said, /The relay tries until it has( heard\.|, and until then you can undo this\.)/);
  });
});

describe("a removal of which an instance that is down has not heard", () => {
  const scene = scenes({ settings: PATIENT });

  scene("can be undone, and the instance is as it was when it is back", async (stage) => {
    await stage.link(stage.plain);
    stage.plain.subscriptions = manyLinked(stage, stage.plain, 2);
    const admin = await Admin.open(stage);
    await stage.plain.down();
    await remove(admin, stage.plain, { purge: false });
    const card = admin.card(stage.plain);
    await card.getByText("can't be reached").waitFor({ timeout: 40_000 });
    await admin.seeIn(card, "The instance has not heard of it yet.");
    await admin.view.look("removing-unheard");
    await admin.button(`Undo the removal of ${addressOf(stage.plain)}`).click();
    await admin.seeIn(card, "Needs attention", "can't be reached");
    await stage.plain.up();
    await admin.button(`Try again to connect ${addressOf(stage.plain)}`).click();
    await admin.seeIn(card, "Connected", "2 groups linked");
    assert.ok(!stage.plain.installations.events.some(({ event }) => event === "uninstalled"));
  });
});

describe("a relay that looks after its instances", () => {
  const scene = scenes();

  scene("one that is set up wrongly later on needs attention, with the cause, until it is mended", async (stage) => {
    const [link] = await stage.link(stage.plain);
    stage.plain.proxyUrl = "http://127.0.0.9:9";
    // As a round does, an hour later.
    assert.equal((await stage.api("POST", `links/${link.id}/look`)).status, 200);
    const admin = await Admin.open(stage);
    const card = admin.card(stage.plain);
    await admin.seeIn(card, "Needs attention", "Its Jira Connect Proxy URL is not this relay");
    await admin.seeIn(card, `exactly ${stage.relay.url}`, "No groups linked");
    await admin.view.look("set-up-changed");
    const again = admin.button(`Check again: ${addressOf(stage.plain)}`);
    await again.click();
    await again.and(admin.frame.locator(":not([aria-disabled])")).waitFor();
    await admin.seeIn(card, "Needs attention");
    stage.plain.proxyUrl = stage.relay.url;
    await again.click();
    await admin.seeIn(card, "Connected");
    await counted(admin.frame.getByText("Needs attention"), 0);
  });
});

describe("signing in to an instance", () => {
  const scene = scenes();

  async function atSignIn(stage, window) {
    await stage.link(stage.plain);
    const admin = await Admin.open(stage, window);
    await admin.goToSignIn(stage.plain);
    return admin;
  }

  const exchanges = ({ plain }) => plain.calls.filter(({ target }) => target === "/oauth/token").length;

  scene(
    "a browser that blocks the window: the page says how to allow it",
    async (stage) => {
      const admin = await atSignIn(stage, { sandbox: "popupless" });
      await admin.button("Sign in to GitLab").click();
      await admin.see("Your browser blocked the sign-in window", "Allow pop-up windows for this page");
      await admin.view.look("popup-blocked");
    },
    { except: [/Blocked opening .* sandboxed/] },
  );

  scene("a window that has to keep the frame's sandbox will do", async (stage) => {
    const admin = await atSignIn(stage, { sandbox: "narrow" });
    await admin.finishSignIn(await admin.openSignIn());
  });

  scene("a window that is closed: the page says so, and the next one will do", async (stage) => {
    const admin = await atSignIn(stage);
    const popup = await admin.openSignIn();
    await admin.see("Continue in the GitLab window.");
    await popup.close();
    await admin.see("The sign-in window was closed", "Try again and allow access in the window that opens.");
    await admin.finishSignIn(await admin.openSignIn());
  });

  scene("a person who cancels closes the window", async (stage) => {
    const admin = await atSignIn(stage);
    const popup = await admin.openSignIn();
    await admin.button("Cancel").click();
    await admin.closed(popup);
    await counted(admin.alert, 0);
    await admin.finishSignIn(await admin.openSignIn());
  });

  scene("a person who denies access: the page says so, and the next window will do", async (stage) => {
    const admin = await atSignIn(stage);
    const popup = await admin.openSignIn();
    await popup.getByRole("button", { name: "Deny" }).click();
    await admin.see("Access was denied in GitLab", "Try again and choose Authorize.");
    await admin.closed(popup);
    await admin.view.look("denied");
    await admin.finishSignIn(await admin.openSignIn());
  });

  scene("an answer with another state is not used", async (stage) => {
    const admin = await atSignIn(stage);
    const popup = await admin.openSignIn();
    const forged = `${stage.relay.baseUrl}/oauth_callbacks?code=stolen&state=of-somebody-else`;
    await popup.evaluate((url) => location.assign(url), forged);
    await admin.see("The answer did not belong to this sign-in", "It was ignored for your safety.");
    await admin.closed(popup);
    assert.equal(exchanges(stage), 0);
    await admin.finishSignIn(await admin.openSignIn());
  });

  scene("a token endpoint that fails: the page says how GitLab answered; the next window will do", async (stage) => {
    const admin = await atSignIn(stage);
    stage.plain.instead = { path: /^\/oauth\/token$/, answer: { status: 503, html: "<h1>Deploy in progress</h1>" } };
    const popup = await admin.openSignIn();
    await popup.getByRole("button", { name: "Authorize" }).click();
    await admin.see("GitLab refused the sign-in: GitLab answered with HTTP 503.", "check the OAuth application");
    stage.plain.instead = { path: /^\/oauth\/token$/, answer: { status: 401, json: CONFIDENTIAL } };
    const second = await admin.openSignIn();
    await second.getByRole("button", { name: "Authorize" }).click();
    await admin.see("GitLab refused the sign-in: Client authentication failed.", "not confidential");
    await admin.view.look("token-refused");
    stage.plain.instead = null;
    await admin.finishSignIn(await admin.openSignIn());
  });

  scene("an application without the scope: the page says how GitLab refused, and what to look at", async (stage) => {
    const admin = await atSignIn(stage);
    const popup = await admin.openSignIn();
    const refused = new URLSearchParams({
      error: "invalid_scope",
      error_description: "The requested scope is invalid, unknown, or malformed.",
      state: new URL(popup.url()).searchParams.get("state"),
    });
    await popup.evaluate((url) => location.assign(url), `${stage.relay.baseUrl}/oauth_callbacks?${refused}`);
    await admin.see("GitLab refused the sign-in: The requested scope is invalid", "check the OAuth application");
    await admin.closed(popup);
    assert.equal(exchanges(stage), 0);

    const answer = { status: 403, json: { error: "insufficient_scope", error_description: "Too few privileges." } };
    stage.plain.instead = { path: /^\/api\/v4\/user$/, answer };
    const second = await admin.openSignIn();
    await second.getByRole("button", { name: "Authorize" }).click();
    await admin.see("GitLab refused the sign-in: Too few privileges.", "scope api");
    await admin.view.look("sign-in-scope");
    stage.plain.instead = null;
    await admin.finishSignIn(await admin.openSignIn());
  });

  scene("a browser without cryptography: the page says that the relay must be served by https", async (stage) => {
    await stage.link(stage.plain);
    const admin = await Admin.open(stage);
    // As on a page that came by http from anywhere but this machine.
    const content = await admin.view.content();
    await content.evaluate(() => Object.defineProperty(crypto, "subtle", { value: undefined }));
    await admin.goToSignIn(stage.plain);
    await admin.see("Your browser cannot sign in safely here", "must serve it by https");
    await admin.view.look("sign-in-no-crypto");
  });

  scene("an instance that goes down meanwhile: the page lists what it may be", async (stage) => {
    const admin = await atSignIn(stage);
    const popup = await admin.openSignIn();
    stage.plain.instead = { path: /^\/oauth\/token$/, answer: null };
    await popup.getByRole("button", { name: "Authorize" }).click();
    await admin.see(`Your browser does not reach ${addressOf(stage.plain)}`, "The instance is down");
    await admin.view.look("sign-in-unreachable");
    stage.plain.instead = null;
    await admin.finishSignIn(await admin.openSignIn());
  });

  scene("an OAuth application with another redirect URI: GitLab says so in the window", async (stage) => {
    const admin = await atSignIn(stage);
    stage.plain.callbackOrigin = "http://127.0.0.9";
    const popup = await admin.openSignIn();
    await popup.getByText("The redirect URI included is not valid.").waitFor();
    await popup.close();
    await admin.see("The sign-in window was closed");
    stage.plain.callbackOrigin = stage.relay.url;
    await admin.finishSignIn(await admin.openSignIn());
  });

  // The page hears no more of a window that the instance cut off, and can't tell it from a closed one.
  async function cutOff(stage) {
    const admin = await atSignIn(stage);
    stage.plain.isolatesPopups = true;
    const popup = await admin.openSignIn();
    await admin.see("or the instance cut it off from this page", "If it is still there");
    assert.ok(!popup.isClosed());
    return { admin, popup };
  }

  async function inTwo(admin) {
    const first = await admin.view.popup(() => admin.button("Sign in with two windows").click());
    await first.getByRole("heading", { name: "Keep this window open" }).waitFor();
    const link = first.getByRole("link", { name: "Continue to GitLab" });
    const [second] = await Promise.all([first.context().waitForEvent("page"), link.click()]);
    return { first, second };
  }

  scene("an instance that isolates its windows: the window says what to do", async (stage) => {
    const { admin, popup } = await cutOff(stage);
    await admin.view.look("cut-off");
    await popup.getByRole("button", { name: "Authorize" }).click();
    await popup.getByRole("heading", { name: "This window lost its connection to the page" }).waitFor();
    await popup.getByText("Cross-Origin-Opener-Policy").waitFor();
    await admin.view.lookAtPopup("window-lost", popup);
    assert.equal(exchanges(stage), 0);
  });

  scene("an instance that isolates its windows: two of them will do", async (stage) => {
    const { admin, popup } = await cutOff(stage);
    await popup.close();
    const { first, second } = await inTwo(admin);
    await admin.view.lookAtPopup("two-windows", first);
    await second.getByRole("button", { name: "Authorize" }).click();
    await admin.see("Signed in as");
    await admin.closed(first);
    if (!second.isClosed()) await second.getByRole("heading", { name: "You are signed in" }).waitFor();
  });

  scene("two windows: a person who denies access there is told, and who closes the first can try again", async (stage) => {
    const { admin } = await cutOff(stage);
    const denied = await inTwo(admin);
    await denied.second.getByRole("button", { name: "Deny" }).click();
    await admin.see("Access was denied in GitLab");
    await admin.closed(denied.first);
    const left = await inTwo(admin);
    await left.first.close();
    await admin.see("The sign-in window was closed");
    const { second } = await inTwo(admin);
    // What comes back to a window that is gone belongs to nobody.
    await left.second.getByRole("button", { name: "Authorize" }).click();
    await left.second.getByRole("heading", { name: "This window lost its connection to the page" }).waitFor();
    assert.equal(exchanges(stage), 0);
    await second.getByRole("button", { name: "Authorize" }).click();
    await admin.see("Signed in as");
  });

  scene("an access token that is over is not tried again: the page asks to sign in", async (stage) => {
    const admin = await atSignIn(stage, { ownClock: true });
    await admin.finishSignIn(await admin.openSignIn());
    await admin.frame.getByText("Page 1 of 3").filter({ visible: true }).first().waitFor();
    await admin.view.passTime(stage.plain.tokenLifetimeSecs * 1000);
    const before = stage.plain.calls.length;
    await admin.button("Next").click();
    await admin.see(SIGN_IN_AGAIN);
    assert.ok(!stage.plain.calls.slice(before).some(({ target }) => target.startsWith("/api/")));
    await admin.view.look("signed-out");
    await admin.finishSignIn(await admin.openSignIn());
    await counted(admin.frame.getByText(SIGN_IN_AGAIN), 0);
  });

  scene("an access token that is revoked while groups are sought: the page asks to sign in again", async (stage) => {
    const admin = await atSignIn(stage);
    await admin.finishSignIn(await admin.openSignIn());
    await admin.group("Accounting").waitFor();
    stage.plain.oauth.revokeAll();
    await admin.search("fleet");
    await admin.see(SIGN_IN_AGAIN);
    await admin.finishSignIn(await admin.openSignIn());
  });

  scene("an access token that is revoked before groups are linked: the page asks to sign in again", async (stage) => {
    const admin = await atSignIn(stage);
    await admin.finishSignIn(await admin.openSignIn());
    await admin.choose("Fleet");
    stage.plain.oauth.revokeAll();
    await admin.button("Link 1 group").click();
    await admin.see(SIGN_IN_AGAIN);
    await admin.see("1 group is still selected");
    assert.deepEqual(stage.plain.linkedGroups, []);
    await admin.finishSignIn(await admin.openSignIn());
    await admin.button("Link 1 group").click();
    await admin.see("1 group linked.");
  });
});

describe("groups", () => {
  const scene = scenes();

  async function signedIn(stage, { gitlab = stage.plain, ...window } = {}) {
    await stage.link(gitlab);
    const admin = await Admin.open(stage, window);
    await admin.signIn(gitlab);
    return admin;
  }

  scene("an instance below a path: sign in, link, unlink", async (stage) => {
    const admin = await signedIn(stage, { gitlab: stage.below });
    await admin.choose("Fleet", "Games");
    await admin.button("Link 2 groups").click();
    await admin.see("2 groups linked.");
    assert.deepEqual([...stage.below.linkedGroups].sort(), ["fleet", "games"]);
    await admin.button("Back to linked groups").click();
    await admin.select("Games");
    await admin.button("Unlink 1 group").click();
    await admin.confirm("Unlink 1 group");
    await admin.see("1 group unlinked.");
    assert.deepEqual(stage.below.linkedGroups, ["fleet"]);
  });

  scene("groups that GitLab refuses are named with its reason and stay selected for another try", async (stage) => {
    const admin = await signedIn(stage);
    stage.plain.refusedGroups = {
      fleet: [403, "Could not fetch user information from Jira."],
      games: [422, "Group can not be linked at the moment."],
    };
    await admin.choose("Kitchen", "Fleet", "Games");
    await admin.button("Link 3 groups").click();
    await admin.see("Some groups could not be linked", "1 group linked, 2 could not be linked.");
    await admin.see("They are still selected, so that you can try again.");
    const failed = (name) => admin.alert.getByRole("listitem").filter({ hasText: name });
    await admin.seeIn(failed("Fleet"), "Could not fetch user information from Jira.");
    await admin.seeIn(failed("Games"), "Group can not be linked at the moment.");
    await admin.view.look("link-refused");
    assert.deepEqual(stage.plain.linkedGroups, ["kitchen"]);

    stage.plain.refusedGroups = {};
    await admin.button("Link 2 groups").click();
    await admin.see("2 groups linked.");
    assert.deepEqual([...stage.plain.linkedGroups].sort(), ["fleet", "games", "kitchen"]);
  });

  scene("a relay that is gone when groups are linked: each says so, and links when asked again", async (stage) => {
    const admin = await signedIn(stage);
    await admin.choose("Fleet", "Games");
    await stage.relay.down();
    await admin.button("Link 2 groups").click();
    await admin.see("The groups could not be linked");
    for (const name of ["Fleet", "Games"]) {
      await admin.seeIn(admin.alert.getByRole("listitem").filter({ hasText: name }), "The relay cannot be reached");
    }
    assert.deepEqual(stage.plain.linkedGroups, []);
    await stage.relay.up();
    await admin.button("Link 2 groups").click();
    await admin.see("2 groups linked.");
  });

  scene("groups that GitLab does not list: the page says how it answered, and lists them when asked again", async (stage) => {
    await stage.link(stage.plain);
    const admin = await Admin.open(stage);
    await admin.goToSignIn(stage.plain);
    stage.plain.instead = { path: /^\/api\/v4\/groups$/, answer: { status: 500, html: "<h1>Whoops</h1>" } };
    await admin.finishSignIn(await admin.openSignIn());
    await admin.see("GitLab answered with HTTP 500.");
    await admin.view.look("picker-failed");
    stage.plain.instead = null;
    await admin.button("Try again").click();
    await admin.group("Accounting").waitFor();
    await counted(admin.alert, 0);
  });

  scene("which groups are linked already is not known: the page says why, and the others can be linked", async (stage) => {
    await stage.link(stage.plain);
    const admin = await Admin.open(stage);
    await admin.goToSignIn(stage.plain);
    stage.plain.instead = { path: /\/subscriptions\.json$/, answer: { status: 500 } };
    await admin.finishSignIn(await admin.openSignIn());
    await admin.see("Which groups are linked already is not known", "Request ID");
    await admin.view.look("picker-linked-unknown");
    await admin.choose("Fleet");
    await admin.button("Link 1 group").click();
    await admin.see("1 group linked.");
  });

  scene("several are unlinked, and the page shows how far it is", async (stage) => {
    await stage.link(stage.plain);
    stage.plain.subscriptions = manyLinked(stage, stage.plain, 6);
    const admin = await Admin.open(stage);
    await admin.button(`Manage groups of ${addressOf(stage.plain)}`).click();
    await admin.frame.getByRole("checkbox", { name: "Select all" }).check();
    await admin.select("Many 6");
    await admin.button("Unlink 5 groups").click();
    await admin.seeIn(admin.dialog, "Unlink 5 groups?", "Many 1");
    await admin.view.look("unlink");
    const rest = stage.plain.hold(/^\/-\/jira_connect\/subscriptions\/\d+$/, { after: 3 });
    await admin.confirm("Unlink 5 groups");
    await admin.see("Unlinking 3 of 5…");
    assert.equal(await admin.frame.getByRole("progressbar").getAttribute("max"), "5");
    rest.release();
    await admin.see("5 groups unlinked.");
    assert.deepEqual(stage.plain.linkedGroups, ["many-6"]);
  });

  scene("one that can't be unlinked is named with the reason, and the others are", async (stage) => {
    await stage.link(stage.plain);
    stage.plain.subscriptions = manyLinked(stage, stage.plain, 3);
    const admin = await Admin.open(stage);
    await admin.button(`Manage groups of ${addressOf(stage.plain)}`).click();
    await admin.frame.getByRole("checkbox", { name: "Select all" }).check();
    // One that somebody else has unlinked meanwhile is as one wants it.
    stage.plain.subscriptions = stage.plain.subscriptions.filter(({ group }) => group.full_path !== "many-3");
    stage.plain.instead = { path: /\/subscriptions\/1001$/, answer: { status: 403, json: { message: "Forbidden" } } };
    await admin.button("Unlink 3 groups").click();
    await admin.confirm("Unlink 3 groups");
    await admin.see("Some groups could not be unlinked", "2 groups unlinked, 1 could not be unlinked.");
    const failed = admin.alert.getByRole("listitem");
    await admin.seeIn(failed, "Many 2", "GitLab wants a member of", "Request ID");
    await admin.view.look("unlink-refused");
  });

  scene("linked groups that can't be read: the page says why, and reads them when asked again", async (stage) => {
    await stage.link(stage.plain);
    stage.plain.subscriptions = manyLinked(stage, stage.plain, 1);
    const admin = await Admin.open(stage);
    await admin.seeIn(admin.card(stage.plain), "1 group linked");
    await stage.plain.down();
    await admin.button(`Manage groups of ${addressOf(stage.plain)}`).click();
    await admin.see("can't be reached", "check that the instance runs", "Request ID");
    await admin.view.look("groups-unreachable");
    await stage.plain.up();
    await admin.button("Try again").click();
    await admin.see("1 group linked", "Many 1");
  });

  scene("a search finds, and asks nothing before the third character", async (stage) => {
    const admin = await signedIn(stage, { ownClock: true });
    await admin.group("Accounting").waitFor();
    const searches = () => {
      const asked = ({ method, target }) => method === "GET" && target.startsWith("/api/v4/groups?");
      return stage.plain.calls.filter(asked).length;
    };
    const before = searches();
    await admin.search("ki");
    await admin.see("Until then the list stays as it was.");
    await admin.view.look("picker-too-short");
    await admin.view.passTime(A_MOMENT_MS);
    await admin.view.passTime(A_MOMENT_MS);
    assert.equal(searches(), before);
    await admin.search("kitchen");
    await admin.group("Kitchen").waitFor();
    await counted(admin.group("Accounting"), 0);
    assert.equal(searches(), before + 1);
    await admin.search("nothing of the kind");
    await admin.see("No group matches the search.");
    await admin.view.look("search-none");
  });

  for (const withoutTotals of [false, true]) {
    scene(`paging goes to the last group and back, ${withoutTotals ? "without" : "with"} totals`, async (stage) => {
      stage.plain.withoutTotals = withoutTotals;
      const admin = await signedIn(stage);
      const pages = admin.frame.getByRole("navigation", { name: "Pages" });
      const at = (page) => pages.getByText(withoutTotals ? `Page ${page}` : `Page ${page} of 3`, { exact: true });
      const seen = new Set();
      for (const page of [1, 2, 3]) {
        await at(page).waitFor();
        for (const name of await admin.frame.locator(".rows label").allInnerTexts()) seen.add(name);
        if (page < 3) await admin.button("Next").click();
      }
      assert.equal(seen.size, 47);
      await admin.button("Next").and(admin.frame.locator("[aria-disabled=true]")).waitFor();
      await admin.button("Previous").click();
      await at(2).waitFor();
    });
  }

  scene("three hundred linked groups are listed, marked, and in no address", async (stage) => {
    await stage.link(stage.plain);
    stage.plain.subscriptions = manyLinked(stage, stage.plain, 300);
    const admin = await Admin.open(stage);
    await admin.seeIn(admin.card(stage.plain), "300 groups linked");
    await admin.button(`Manage groups of ${addressOf(stage.plain)}`).click();
    await admin.group("Many 300").waitFor();
    await counted(admin.frame.getByRole("checkbox", { name: /^Many / }), 300);
    await admin.frame.getByLabel("Filter linked groups").fill("many 30");
    await counted(admin.frame.getByRole("checkbox", { name: /^Many / }), 2);
    await admin.view.look("groups-many");
    await admin.button("Link groups").click();
    await admin.finishSignIn(await admin.openSignIn());
    await admin.search("many 29");
    await admin.group("Many 299").waitFor();
    await until("it to be marked", () => admin.group("Many 299").isChecked());
    assert.ok(await admin.group("Many 299").isDisabled());
    await admin.choose("Fleet");
    await admin.button("Link 1 group").click();
    await admin.see("1 group linked.");
    assert.equal(stage.plain.linkedGroups.length, 301);

    // The longest that is left is the one where OAuth has its challenge.
    const ofPage = admin.view.requests.filter(({ url }) => !url.includes("/subscriptions?xdm_e="));
    const addresses = [...ofPage.map(({ url }) => url), ...stage.plain.calls.map(({ target }) => target)];
    const longest = Math.max(...addresses.map(({ length }) => length));
    assert.ok(longest < 500, `the longest address has ${longest} characters`);
  });
});

describe("the session in Jira", () => {
  const scene = scenes();

  scene("a token that has expired is replaced once, and nobody notices", async (stage) => {
    await stage.link(stage.plain);
    stage.jira.contextTokens = "expired_once";
    const admin = await Admin.open(stage);
    await admin.seeIn(admin.card(stage.plain), "Connected");
    const refused = admin.view.failures.filter(({ status }) => status === 401);
    assert.equal(refused.length, 1);
    await counted(admin.alert, 0);
  });

  scene("tokens that stay expired: the page says that the session is over, and a reload helps", async (stage) => {
    await stage.link(stage.plain);
    stage.jira.contextTokens = "expired";
    const admin = await Admin.open(stage);
    await admin.see("Your session has expired", "Nothing that was already saved is lost.");
    await admin.view.look("session-expired");
    stage.jira.contextTokens = "ok";
    await admin.button("Reload page").click();
    await admin.seeIn(admin.card(stage.plain), "Connected");
  });

  scene("a session that ends while somebody works: the same, and nothing was changed", async (stage) => {
    await stage.link(stage.plain);
    const admin = await Admin.open(stage);
    await admin.seeIn(admin.card(stage.plain), "Connected", "No groups linked");
    stage.jira.contextTokens = "expired";
    await remove(admin, stage.plain, { purge: false, then: "Your session has expired" });
    stage.jira.contextTokens = "ok";
    await admin.button("Reload page").click();
    await admin.seeIn(admin.card(stage.plain), "Connected");
  });

  for (const how of ["expired", "failing", "silent"]) {
    scene(`tokens that fail for a while, ${how}: a banner says so, and nothing that somebody did is lost`, async (stage) => {
      const gitlab = stage.plain;
      await stage.link(gitlab);
      const admin = await Admin.open(stage, { ownClock: true });
      await admin.signIn(gitlab);
      await admin.choose("Fleet");
      stage.jira.contextTokens = how;
      const banner = admin.frame.getByText("The list could not be updated");
      // The page asks for a token twice.
      await until("the page to notice", async () => {
        await admin.view.passTime(A_WHILE_MS);
        return (await banner.count()) > 0;
      });
      await admin.see(how === "expired" ? "Your session has expired" : "Jira did not confirm who you are");
      await admin.button("Reload page").waitFor();
      assert.ok(await admin.group("Fleet").isChecked());
      await admin.view.look(`session-banner-${how}`);
      stage.jira.contextTokens = "ok";
      await admin.button("Try again").click();
      await banner.waitFor({ state: "detached" });
      await admin.button("Link 1 group").click();
      await admin.see("1 group linked.");
    });
  }

  for (const how of ["failing", "silent"]) {
    scene(`a Jira that gives no tokens, ${how}: the page says so, and a reload helps`, async (stage) => {
      stage.jira.contextTokens = how;
      const admin = await Admin.open(stage, { ownClock: true });
      const title = admin.frame.getByText(/Your session has expired|Jira did not confirm who you are/);
      // The page tries twice.
      await until("the page to give up", async () => {
        await admin.view.passTime(A_WHILE_MS);
        return (await title.count()) > 0;
      });
      await admin.view.look(`token-${how}`);
      stage.jira.contextTokens = "ok";
      await admin.button("Reload page").click();
      await admin.heading("Connect your first GitLab instance").waitFor();
    });
  }

  scene("a frame whose address has expired: the relay says so, with an id for its operator", async (stage) => {
    stage.jira.frameTokens = "expired";
    const admin = await Admin.open(stage);
    await admin.heading("This page can't be shown").waitFor();
    await admin.see("Reload Jira's page to get a new one.");
    await admin.view.look("frame-expired");
    const id = await admin.frame.locator("code").innerText();
    assert.ok(stage.relay.log.includes(id));
    stage.jira.frameTokens = "ok";
    await admin.view.page.reload();
    await admin.heading("Connect your first GitLab instance").waitFor();
  });

  for (const how of ["missing", "silent"]) {
    scene(`all.js ${how}: the page says what may block it, and tries again when asked`, async (stage) => {
      stage.jira.allJs = how;
      const admin = await Admin.open(stage, { ownClock: true, waitUntil: "commit" });
      await admin.see("Connecting to Jira…");
      await admin.view.passTime(A_WHILE_MS);
      await admin.see("Jira did not answer", `from ${new URL(stage.jira.origin).host}, did not load`, "an ad blocker");
      // What still loads can't be painted.
      if (how === "missing") await admin.view.look("all-js-missing");
      stage.jira.allJs = "ok";
      await admin.button("Try again").click();
      await admin.heading("Connect your first GitLab instance").waitFor();
    });
  }

  scene("offline: a banner says so, what is known stays, and the page recovers by itself", async (stage) => {
    await stage.link(stage.plain);
    const admin = await Admin.open(stage);
    await admin.seeIn(admin.card(stage.plain), "Connected");
    await admin.view.setOffline(true);
    await admin.see("You are offline", "The page tries again by itself when you are online.");
    await admin.seeIn(admin.card(stage.plain), "Connected");
    await admin.view.look("offline");
    await admin.view.setOffline(false);
    await counted(admin.frame.getByText("You are offline"), 0);
  });

  scene("the same failure at each poll is said once", async (stage) => {
    await stage.link(stage.plain);
    const admin = await Admin.open(stage, { ownClock: true });
    await admin.seeIn(admin.card(stage.plain), "Connected");
    let polls = 0;
    await admin.view.page.route(/\/links$/, (route) => {
      polls += 1;
      const error = { code: "store_failed", message: "the store can't be read", hint: null, id: `req-${polls}` };
      route.fulfill({ status: 503, json: { error } });
    });
    for (const wanted of [1, 2, 3]) {
      await admin.view.passTime(A_WHILE_MS);
      await until("a poll", () => polls >= wanted);
      await admin.see("The list could not be updated", "req-1");
    }
  });

  scene("what an act met is forgotten when the instance has become another", async (stage) => {
    stage.plain.proxyUrl = "http://127.0.0.9:9";
    const { body } = await stage.api("POST", "links", { body: { instance_url: stage.plain.url } });
    const admin = await Admin.open(stage, { ownClock: true });
    const card = admin.card(stage.plain);
    await admin.view.page.route(/\/resend$/, (route) => route.abort());
    await admin.button(`Try again to connect ${addressOf(stage.plain)}`).click();
    await admin.seeIn(card, "The relay cannot be reached");
    stage.plain.proxyUrl = stage.relay.url;
    await stage.relay.admin("POST", `links/${body.id}/resend`);
    await admin.view.passTime(A_WHILE_MS);
    await admin.seeIn(card, "Connected");
    await counted(card.getByText("The relay cannot be reached"), 0);
  });

  scene("a relay that is gone: the page says so and keeps trying until it is back", async (stage) => {
    const links = await stage.link(stage.plain, stage.below);
    await stage.below.down();
    const admin = await Admin.open(stage, { ownClock: true });
    await admin.seeIn(admin.card(stage.plain), "Connected", "No groups linked");
    await admin.seeIn(admin.card(stage.below), "Needs attention", "can't be reached");
    await stage.relay.down();
    // The groups of one that answered are asked for once a minute, all else more often.
    const [ofPlain, ofBelow] = links.map(({ id }) => `/links/${id}/groups`);
    const inVain = (path) => admin.view.failures.filter(({ url }) => url.endsWith(path)).length;
    while (inVain(ofPlain) === 0) {
      const before = [inVain("/links"), inVain(ofBelow)];
      await admin.view.passTime(A_WHILE_MS);
      await until("the next look", () => inVain("/links") > before[0] && inVain(ofBelow) > before[1]);
    }
    await admin.see("The list could not be updated", "The relay cannot be reached", "The page keeps trying.");
    // What is known stays.
    await admin.seeIn(admin.card(stage.plain), "Connected", "No groups linked");
    await admin.seeIn(admin.card(stage.below), "Needs attention", "can't be reached", "Groups unknown");
    await admin.view.look("relay-gone");
    await stage.relay.up();
    await admin.view.passTime(A_WHILE_MS);
    await counted(admin.alert, 0);
    await admin.seeIn(admin.card(stage.plain), "Connected");
  });
});

describe("what stands between the browser and the relay", () => {
  const scene = scenes();

  const LINKS = /\/-\/jira_connect\/links(\/[^/]+)?$/;

  scene("a load balancer that answers in its place: the page says so until the relay answers again", async (stage) => {
    await stage.link(stage.plain);
    const admin = await Admin.open(stage, { ownClock: true });
    await admin.seeIn(admin.card(stage.plain), "Connected", "No groups linked");
    const { page } = admin.view;
    await page.route(LINKS, (route) => route.fulfill({ status: 502, contentType: "text/html", body: "<h1>Bad gateway</h1>" }));
    await admin.view.passTime(A_WHILE_MS);
    await admin.see("The relay's answer was not understood (HTTP 502)", "for example a load balancer");
    await admin.view.look("relay-not-understood");
    await page.unroute(LINKS);
    await admin.button("Try again").click();
    await counted(admin.alert, 0);
  });

  scene("an old list that comes late changes nothing, and none is asked for while one is on its way", async (stage) => {
    await stage.link(stage.plain);
    await stage.jira.fault({ mode: "status", status: 503, match: { path_prefix: "/rest/api/3/permissions/check" } });
    const admin = await Admin.open(stage, { account: "somebody late", ownClock: true });
    await admin.see("You can look, but not change anything");
    const { page } = admin.view;
    const held = [];
    let holds = true;
    await page.route(/\/links$/, async (route) => {
      if (holds) held.push({ route, answer: await route.fetch() });
      else await route.fallback();
    });
    await admin.view.passTime(A_WHILE_MS);
    await until("a poll", () => held.length === 1);
    const content = await admin.view.content();
    await content.evaluate(() => {
      for (const type of ["online", "online"]) window.dispatchEvent(new Event(type));
      document.dispatchEvent(new Event("visibilitychange"));
    });
    holds = false;
    await stage.jira.heal();
    await admin.button("Try again").click();
    await admin.button("Add GitLab instance").waitFor();
    const [{ route, answer }] = held;
    await Promise.all([page.waitForResponse(/\/links$/), route.fulfill({ response: answer })]);
    await admin.seeIn(admin.card(stage.plain), "No groups linked");
    await counted(admin.frame.getByText("You can look, but not change anything"), 0);
    assert.equal(held.length, 1);
  });

  scene("what is under way in a dialog can't be cancelled or changed, and its answer closes no other", async (stage) => {
    await stage.link(stage.below);
    const admin = await Admin.open(stage);
    const { page } = admin.view;
    let go;
    const held = new Promise((resolve) => (go = resolve));
    await page.route(LINKS, async (route) => {
      if (/POST .*links$/.test(`${route.request().method()} ${route.request().url()}`)) await held;
      await route.fallback();
    });
    const isStuck = async () => {
      await admin.dialog.locator("[aria-busy=true]").waitFor();
      assert.equal(await admin.dialog.getByRole("button", { name: "Cancel" }).getAttribute("aria-disabled"), "true");
      await admin.dialog.getByRole("button", { name: "Cancel" }).click({ force: true });
      for (let presses = 0; presses < 3; presses += 1) await page.keyboard.press("Escape");
      await admin.dialog.evaluate((dialog) => dialog.close());
      await admin.dialog.locator("[aria-busy=true]").waitFor();
    };
    await admin.check(stage.plain.url);
    await admin.dialog.getByText("All checks are done.", { exact: true }).waitFor();
    await admin.confirm("Add instance");
    await isStuck();
    const field = admin.dialog.getByLabel("Address of the GitLab instance");
    assert.ok(!(await field.isEditable()));
    await field.click();
    await page.keyboard.type("/elsewhere");
    assert.equal(await field.inputValue(), stage.plain.url);
    await admin.view.look("adding");
    go();
    await admin.dialog.waitFor({ state: "detached" });
    await admin.seeIn(admin.card(stage.plain), "Connected");

    const second = new Promise((resolve) => (go = resolve));
    await page.route(LINKS, async (route) => {
      if (route.request().method() === "DELETE") await second;
      await route.fallback();
    });
    await admin.button(`Remove ${addressOf(stage.plain)}`).click();
    await admin.confirm("Remove instance");
    await isStuck();
    const purge = admin.dialog.getByLabel("Also delete its development information from Jira");
    await purge.click({ force: true });
    assert.ok(!(await purge.isChecked()));
    await stage.relay.down();
    go();
    await admin.seeIn(admin.dialog, "The relay cannot be reached");
    await stage.relay.up();
    await page.keyboard.press("Escape");
    await admin.dialog.waitFor({ state: "detached" });
    await admin.seeIn(admin.card(stage.plain), "Connected");
  });

  scene("answers of another shape are not believed, and what is known stays", async (stage) => {
    await stage.link(stage.plain);
    const admin = await Admin.open(stage, { ownClock: true });
    await admin.seeIn(admin.card(stage.plain), "Connected", "No groups linked");
    const { page } = admin.view;
    const [known] = (await stage.api("GET", "links")).body.links;
    const list = { site: "https://example.atlassian.net", may_change: true, reason: null };
    const shapes = [[], "ok", null, { ...list, links: {} }, { ...list, links: [{ ...known, state: "on fire" }] }];
    for (const shape of shapes) {
      let asked = 0;
      await page.route(/\/links$/, (route) => {
        asked += 1;
        route.fulfill({ json: shape });
      });
      await admin.view.passTime(A_WHILE_MS);
      await until("a poll", () => asked > 0);
      await admin.see("The relay's answer was not understood (HTTP 200)");
      await admin.seeIn(admin.card(stage.plain), "Connected");
      await page.unroute(/\/links$/);
      await admin.button("Try again").click();
      await counted(admin.alert, 0);
    }
    await page.route(/\/links\/[^/]+\/sign_in$/, (route) => route.fulfill({ json: { application_id: 7 } }));
    await admin.button(`Link groups of ${addressOf(stage.plain)}`).click();
    await admin.see("The relay's answer was not understood (HTTP 200)");
  });

  scene("a mistake of the page's own ends in words, and a reload helps", async (stage) => {
    await stage.link(stage.plain);
    const admin = await Admin.open(stage);
    await admin.seeIn(admin.card(stage.plain), "No groups linked");
    await stage.plain.push();
    const content = await admin.view.content();
    // Whatever draws a time fails from now on.
    await content.evaluate(() => {
      Intl.RelativeTimeFormat = function broken() {
        throw new Error("out of order");
      };
      window.dispatchEvent(new Event("online"));
    });
    await admin.see("Something on this page went wrong", "out of order");
    await admin.view.look("page-failed");
    await admin.button("Reload page").click();
    await admin.seeIn(admin.card(stage.plain), "Connected", "Last activity");
  });

  scene("clocks that differ make neither a past that is to come nor a future that is over", async (stage) => {
    await stage.link(stage.plain, stage.below);
    const { body } = await stage.api("GET", "links");
    const [seen, failing] = body.links;
    const now = Date.now();
    const inTwoMinutes = new Date(now + 120_000).toISOString();
    const cause = { code: "dns_failed", message: "no such name", hint: null, id: "req-1", at: inTwoMinutes };
    Object.assign(seen, { last_seen_at: inTwoMinutes });
    Object.assign(failing, { state: "failing", attempts: 2, last_error: cause });
    failing.next_attempt_at = new Date(now + 300).toISOString();
    const admin = new Admin(await stage.visit("about:blank"));
    await admin.view.page.route(/\/links$/, (route) => route.fulfill({ json: body }));
    await admin.view.page.clock.setFixedTime(now);
    await admin.view.page.goto(stage.jira.adminUrl());
    await admin.see("Last activity just now", "Last failure just now.", "Next attempt in less than a minute.");
  });

  scene("no answer to a removal, or none in time: the dialog says so and can be confirmed again", async (stage) => {
    await stage.link(stage.plain);
    const admin = await Admin.open(stage, { ownClock: true });
    await admin.button(`Remove ${addressOf(stage.plain)}`).click();
    const { page } = admin.view;
    let waiting = 0;
    await page.route(LINKS, (route) => {
      if (route.request().method() === "DELETE") waiting += 1;
      else route.fallback();
    });
    await admin.confirm("Remove instance");
    await until("the removal to be under way", () => waiting === 1);
    await admin.view.passTime(ANSWER_MAX_MS);
    await admin.seeIn(admin.dialog, "The relay did not answer in time", "Try again.");
    await admin.view.look("remove-timed-out");
    await page.unroute(LINKS);

    await stage.relay.down();
    await admin.confirm("Remove instance");
    await admin.seeIn(admin.dialog, "The relay cannot be reached");
    await stage.relay.up();
    await admin.confirm("Remove instance");
    await admin.seeIn(admin.card(stage.plain), "Removing");
  });
});

describe("a browser that guards the local network", () => {
  const DENIED_BY_BROWSER = /Permission was denied for this request to access the `local` address space/;
  const addressSpaces = ({ jira, relay, plain }) => ({
    [jira.origin]: "public",
    [relay.url]: "public",
    [plain.origin]: "local",
  });
  const scene = scenes({ addressSpaces });

  scene(
    "the page says before that the instance is in a private network, and after why it was not reached",
    async (stage) => {
      await stage.link(stage.plain);
      const admin = await Admin.open(stage);
      await admin.goToSignIn(stage.plain);
      await admin.see("This instance is in a private network", "Jira does not pass the permission");
      await admin.view.look("local-network");
      const popup = await admin.openSignIn();
      await popup.getByRole("button", { name: "Authorize" }).click();
      const allowed = `your Jira site and ${stage.relay.url} to LocalNetworkAccessAllowedForUrls`;
      await admin.see(`Your browser does not reach ${addressOf(stage.plain)}`, allowed);
      await admin.view.look("local-network-refused");
    },
    { except: [DENIED_BY_BROWSER] },
  );

  // As if Jira passed the permission on.
  const DELEGATED = { allow: "local-network-access; local-network" };

  scene(
    "where Jira passes the permission on, the page says what to answer, and how to allow it later",
    async (stage) => {
      await stage.link(stage.plain);
      const admin = await Admin.open(stage, DELEGATED);
      await admin.goToSignIn(stage.plain);
      await admin.see("Your browser will ask whether this page may access your local network. Choose Allow.");
      await admin.view.look("local-network-asks");
      const popup = await admin.openSignIn();
      // Without a person, Chromium takes its question for denied.
      await popup.getByRole("button", { name: "Authorize" }).click();
      await admin.see(`Your browser does not reach ${addressOf(stage.plain)}`);
      await admin.see("Your browser denies this page access to your local network", "allow “Local network access”");
      await admin.view.look("local-network-denied");
    },
    { except: [DENIED_BY_BROWSER] },
  );

  scene("where it is allowed, the page says so, and groups are linked", async (stage) => {
    await stage.link(stage.plain);
    const admin = await Admin.open(stage, DELEGATED);
    await admin.view.page.context().grantPermissions(["local-network-access"]);
    await admin.goToSignIn(stage.plain);
    await admin.see("Your browser allows this page to reach your local network.");
    await admin.finishSignIn(await admin.openSignIn());
    await admin.choose("Fleet");
    await admin.button("Link 1 group").click();
    await admin.see("1 group linked.");
  });

  scene(
    "where it is taken back before groups are linked, the page says so once, and what to do",
    async (stage) => {
      await stage.link(stage.plain);
      const admin = await Admin.open(stage, DELEGATED);
      const context = admin.view.page.context();
      await context.grantPermissions(["local-network-access"]);
      await admin.signIn(stage.plain);
      await admin.choose("Fleet", "Games");
      await admin.group("Games").waitFor();
      await context.clearPermissions();
      await admin.button("Link 2 groups").click();
      await admin.see("The groups could not be linked", `Your browser does not reach ${addressOf(stage.plain)}`);
      await admin.see("Your browser denies this page access to your local network");
      assert.deepEqual(stage.plain.linkedGroups, []);
    },
    { except: [DENIED_BY_BROWSER] },
  );
});

describe("outside of Jira", () => {
  const scene = scenes();

  scene("the address alone leads to a page that says where to look", async (stage) => {
    const { page } = await stage.visit(`${stage.relay.baseUrl}/subscriptions`);
    await page.getByRole("heading", { name: "This page lives inside Jira" }).waitFor();
    await page.getByText("Manage your apps").waitFor();
  });

  scene("Jira's address in a window of its own: the page says that it works only inside Jira", async (stage) => {
    const view = await stage.visit(await stage.jira.frameUrl(), { ownClock: true });
    await view.page.getByText("Connecting to Jira…").waitFor();
    await view.passTime(A_WHILE_MS);
    await view.page.getByText("This page works only inside Jira").waitFor();
    await view.look("not-framed", view.page.mainFrame());
  });

  scene("a way back from GitLab that nobody waits for says so, and forgets the code", async (stage) => {
    const { page } = await stage.visit(`${stage.relay.baseUrl}/oauth_callbacks?code=stray&state=none`);
    await page.getByRole("heading", { name: "This window lost its connection to the page" }).waitFor();
    assert.equal(page.url(), `${stage.relay.baseUrl}/oauth_callbacks`);
  });
});

const CONFIDENTIAL = { error: "invalid_client", error_description: "Client authentication failed." };

async function remove(admin, gitlab, { purge, then }) {
  await admin.button(`Remove ${addressOf(gitlab)}`).click();
  if (purge) await admin.dialog.getByLabel("Also delete its development information from Jira").check();
  await admin.confirm("Remove instance");
  if (then) await admin.see(then);
  else await admin.seeIn(admin.card(gitlab), "Removing");
}

// So many groups "Many N" on top of those that it has, as subscriptions of the site.
function manyLinked({ jira }, gitlab, count) {
  const [first] = gitlab.groups;
  return Array.from({ length: count }, (_, index) => {
    const name = `Many ${index + 1}`;
    const path = `many-${index + 1}`;
    const group = { ...first, id: 1000 + index, name, full_name: name, path, full_path: path };
    gitlab.groups.push(group);
    return { id: 1000 + index, clientKey: jira.clientKey, group, created_at: new Date().toISOString() };
  });
}
