// Groups of an instance, several at once: what was done and what was not is told whole, whatever happens meanwhile.

import assert from "node:assert/strict";
import { describe } from "node:test";
import { Admin, addressOf, counted } from "./stage/admin.mjs";
import { until } from "./stage/deadline.mjs";
import { scenes } from "./stage/scene.mjs";

const LINKING = /^\/api\/v4\/integrations\//;
const UNLINKING = /^\/-\/jira_connect\/subscriptions\/\d+$/;

// On the first page.
const FIVE = ["Accounting", "Backoffice", "Catalogue", "Data Warehouse", "Fleet / Android"];

// How long the page waits for GitLab.
const ANSWER_MAX_MS = 30_000;

// So many groups are linked or unlinked at the same time.
const AT_ONCE = 3;

async function signedIn(stage, window) {
  await stage.link(stage.plain);
  const admin = await Admin.open(stage, window);
  await admin.signIn(stage.plain);
  await admin.group("Accounting").waitFor();
  return admin;
}

async function manage(admin, gitlab) {
  await admin.button(`Manage groups of ${addressOf(gitlab)}`).click();
  await admin.heading(`Groups of ${addressOf(gitlab)}`).waitFor();
}

const focused = async (admin) => (await admin.view.content()).evaluate(() => document.activeElement.tagName);

const asked = (stage, by, what) =>
  stage.plain.calls.filter(({ method, target }) => method === by && target.includes(what));
const linkings = (stage) => asked(stage, "POST", "/integrations/");

const failed = (admin, name) => admin.alert.getByRole("listitem").filter({ hasText: name });

describe("groups of the same name", () => {
  const scene = scenes();

  // GitLab keeps names apart only within a parent.
  function twins({ plain }) {
    const fleet = plain.groups.find(({ full_path }) => full_path === "fleet");
    plain.groups.push({ ...fleet, id: 900, path: "fleet2", full_path: "fleet2" });
  }
  const twin = (admin, path) => admin.group(`Fleet (${path})`);

  scene("both are told apart by their paths, and one can be linked after the other", async (stage) => {
    twins(stage);
    const admin = await signedIn(stage);
    await admin.search("fleet");
    await twin(admin, "fleet2").check();
    await admin.button("Link 1 group").click();
    await admin.see("1 group linked.");
    assert.deepEqual(stage.plain.linkedGroups, ["fleet2"]);
    await until("the one to be marked", () => twin(admin, "fleet2").isDisabled());
    assert.ok(await twin(admin, "fleet").isEnabled());
    await twin(admin, "fleet").check();
    await admin.view.look("picker-same-names");
    await admin.button("Link 1 group").click();
    await until("both to be linked", () => stage.plain.linkedGroups.length === 2);
    await counted(admin.frame.getByText("Linked", { exact: true }), 2);
  });

  scene("where GitLab tells only that one of them is linked, both can be chosen, and what was linked is no failure", async (stage) => {
    twins(stage);
    stage.plain.subscriptions = [subscription(stage, "fleet2", 1)];
    await stage.link(stage.plain);
    const admin = await Admin.open(stage);
    await manage(admin, stage.plain);
    await admin.button("Link groups").click();
    await admin.finishSignIn(await admin.openSignIn());
    await admin.search("fleet");
    await admin.frame.getByText("Maybe linked").nth(1).waitFor();
    await twin(admin, "fleet").check();
    await twin(admin, "fleet2").check();
    await admin.button("Link 2 groups").click();
    await admin.see("2 groups linked.");
    assert.deepEqual([...stage.plain.linkedGroups].sort(), ["fleet", "fleet2"]);
    await counted(admin.frame.getByText("Linked", { exact: true }), 2);
  });

  scene("one that somebody links who does not see the other is not taken for it", async (stage) => {
    twins(stage);
    stage.plain.subscriptions = [subscription(stage, "fleet2", 1)];
    const other = stage.plain.groups.find(({ full_path }) => full_path === "fleet2");
    Object.assign(other, { access_level: 20, description: "Another one." });
    await stage.link(stage.plain);
    const admin = await Admin.open(stage);
    await manage(admin, stage.plain);
    await admin.button("Link groups").click();
    await admin.finishSignIn(await admin.openSignIn());
    await admin.choose("Fleet");
    await admin.button("Link 1 group").click();
    await admin.see("1 group linked.");
    assert.deepEqual(stage.plain.linkedGroups, ["fleet2", "fleet"]);
  });

  scene("each has its own reason when both are refused, and its own line when both are unlinked", async (stage) => {
    twins(stage);
    const admin = await signedIn(stage);
    stage.plain.refusedGroups = { fleet: [422, "First reason."], fleet2: [422, "Second reason."] };
    await admin.search("fleet");
    await twin(admin, "fleet").check();
    await twin(admin, "fleet2").check();
    await admin.button("Link 2 groups").click();
    await admin.seeIn(failed(admin, "Fleet (fleet)"), "First reason.");
    await admin.seeIn(failed(admin, "Fleet (fleet2)"), "Second reason.");
    stage.plain.subscriptions = [subscription(stage, "fleet", 1), subscription(stage, "fleet2", 2)];
    await admin.button("Back to linked groups").click();
    await admin.frame.getByRole("checkbox", { name: "Select all" }).check();
    await admin.button("Unlink 2 groups").click();
    await counted(admin.dialog.getByRole("listitem").filter({ hasText: "Fleet" }), 2);
    await admin.confirm("Unlink 2 groups");
    await admin.see("2 groups unlinked.");
  });
});

describe("several groups at once", () => {
  const scene = scenes();

  scene("who pages meanwhile is told of all that was done and was not", async (stage) => {
    const admin = await signedIn(stage);
    stage.plain.refusedGroups = { accounting: [422, "Not today."] };
    for (const name of ["Accounting", "Backoffice", "Catalogue", "Data Warehouse"]) await admin.select(name);
    const rest = stage.plain.hold(LINKING, { after: 3 });
    await admin.button("Link 4 groups").click();
    await admin.see("Linking 3 of 4…");
    await admin.button("Next").click();
    rest.release();
    await admin.see("Some groups could not be linked", "3 groups linked, 1 could not be linked.");
    await admin.seeIn(failed(admin, "Accounting"), "Not today.");
    await admin.button("Previous").click();
    await admin.group("Accounting").waitFor();
    await admin.seeIn(failed(admin, "Accounting"), "Not today.");
    // A search is for something else.
    await admin.search("games");
    await admin.group("Games").waitFor();
    await counted(admin.alert, 0);
  });

  scene("a sign-in that ends meanwhile: what was done is told, and the next one goes on with the rest", async (stage) => {
    const admin = await signedIn(stage);
    for (const name of FIVE) await admin.group(name).check();
    const rest = stage.plain.hold(LINKING, { after: 3 });
    stage.plain.refusedGroups = { accounting: [422, "Not today."] };
    await admin.button("Link 5 groups").click();
    await admin.see("Linking 3 of 5…");
    stage.plain.oauth.revokeAll();
    rest.release();
    await admin.see("Your sign-in to GitLab has ended. Sign in again.", "3 groups are still selected");
    await admin.see("Some groups could not be linked", "2 groups linked, 1 could not be linked.");
    await admin.seeIn(failed(admin, "Accounting"), "Not today.");
    await admin.view.look("signed-out-while-linking");
    stage.plain.refusedGroups = {};
    await admin.finishSignIn(await admin.openSignIn());
    await admin.button("Link 3 groups").click();
    await admin.see("3 groups linked.");
    assert.equal(stage.plain.linkedGroups.length, 5);
  });

  scene("who stops has what was begun done, is told of it, and keeps the rest selected", async (stage) => {
    const admin = await signedIn(stage);
    for (const name of FIVE) await admin.group(name).check();
    const all = stage.plain.hold(LINKING);
    await admin.button("Link 5 groups").click();
    await until("the first to be under way", () => linkings(stage).length === AT_ONCE);
    await admin.button("Stop").click();
    all.release();
    await admin.see("3 groups linked.", "2 groups selected");
    assert.equal(stage.plain.linkedGroups.length, AT_ONCE);
  });

  scene("causes are in sight in a narrow window, and one that many share is said once", async (stage) => {
    const admin = await signedIn(stage, { size: { width: 320, height: 640 } });
    for (const name of FIVE) await admin.group(name).check();
    const paths = ["accounting", "backoffice", "catalogue", "data-warehouse"];
    stage.plain.refusedGroups = Object.fromEntries(paths.map((path) => [path, [422, "Not today."]]));
    await admin.button("Link 5 groups").click();
    await admin.see("1 group linked, 4 could not be linked.");
    const cause = admin.frame.getByText("Not today.");
    assert.equal(await cause.count(), 1);
    for (const name of FIVE.slice(0, 4)) await admin.seeIn(admin.alert.getByRole("listitem"), name);
    await admin.view.screenshot("link-refused-narrow");
    await until("the cause to be in sight", () =>
      cause.evaluate((element) => {
        const { x, y, width, height } = element.getBoundingClientRect();
        return document.elementFromPoint(x + width / 2, y + height / 2) === element;
      }),
    );
  });

  scene("those selected on other pages are listed, and each can be dropped", async (stage) => {
    const admin = await signedIn(stage);
    for (const name of FIVE) await admin.group(name).check();
    await admin.button("Next").click();
    await admin.frame.getByText(/^Also selected: .*Accounting/).click();
    await admin.view.look("picker-elsewhere");
    await admin.button("Unselect Catalogue").click();
    await admin.see("4 groups selected");
    await until("the list to have the focus", async () => (await focused(admin)) === "SUMMARY");
    await admin.button("Link 4 groups").click();
    await admin.see("4 groups linked.");
    assert.ok(!stage.plain.linkedGroups.includes("catalogue"));
  });

  scene("who goes back while groups are linked stops that, and sees which are", async (stage) => {
    const admin = await signedIn(stage);
    for (const name of FIVE) await admin.group(name).check();
    const all = stage.plain.hold(LINKING);
    await admin.button("Link 5 groups").click();
    await until("the first to be under way", () => linkings(stage).length === AT_ONCE);
    await admin.button("Back to linked groups").click();
    await admin.button("Stop").and(admin.frame.locator("[aria-busy]")).waitFor();
    all.release();
    await admin.see("3 groups linked");
    assert.equal(stage.plain.linkedGroups.length, AT_ONCE);
    for (const name of FIVE.slice(0, AT_ONCE)) await admin.group(name).waitFor();
    assert.equal(linkings(stage).length, AT_ONCE);
  });

  scene("who signs out while groups are linked stops that, and is told which are", async (stage) => {
    const admin = await signedIn(stage);
    for (const name of FIVE) await admin.group(name).check();
    const all = stage.plain.hold(LINKING);
    await admin.button("Link 5 groups").click();
    await until("the first to be under way", () => linkings(stage).length === AT_ONCE);
    await admin.button("Sign out").click();
    await admin.button("Stop").and(admin.frame.locator("[aria-busy]")).waitFor();
    all.release();
    await admin.heading("Sign in to GitLab").waitFor();
    await admin.see("3 groups linked.");
    assert.equal(linkings(stage).length, AT_ONCE);
    await admin.finishSignIn(await admin.openSignIn());
    await admin.group("Accounting").waitFor();
    await counted(admin.button("Link 2 groups"), 0);
    await counted(admin.frame.getByText("3 groups linked."), 0);
  });

  // Five, of which none is answered before `all` is released.
  async function unlinking(stage) {
    await stage.link(stage.plain);
    const paths = ["accounting", "backoffice", "catalogue", "data-warehouse", "e-commerce"];
    stage.plain.subscriptions = paths.map((path, index) => subscription(stage, path, index + 1));
    const admin = await Admin.open(stage);
    await manage(admin, stage.plain);
    await admin.frame.getByRole("checkbox", { name: "Select all" }).check();
    const all = stage.plain.hold(UNLINKING);
    await admin.button("Unlink 5 groups").click();
    await admin.confirm("Unlink 5 groups");
    await until("the first to be under way", () => asked(stage, "DELETE", "/subscriptions/").length === AT_ONCE);
    await admin.see("Unlinking 0 of 5…");
    return { admin, all };
  }

  scene("who goes on to link groups while some are unlinked stops that first", async (stage) => {
    const { admin, all } = await unlinking(stage);
    await admin.button("Link groups").click();
    await admin.button("Stop").and(admin.frame.locator("[aria-busy]")).waitFor();
    all.release();
    await admin.heading("Sign in to GitLab").waitFor();
    assert.equal(stage.plain.linkedGroups.length, 2);
  });

  scene("who goes back while groups are unlinked stops that, and sees how many are left", async (stage) => {
    const { admin, all } = await unlinking(stage);
    await admin.button("Back to instances").click();
    await admin.button("Stop").and(admin.frame.locator("[aria-busy]")).waitFor();
    all.release();
    await admin.seeIn(admin.card(stage.plain), "2 groups linked");
    assert.equal(stage.plain.linkedGroups.length, 2);
  });
});

describe("who signs in as a GitLab administrator", () => {
  const scene = scenes();

  scene("finds every group, and links one without being its member", async (stage) => {
    stage.plain.user = { ...stage.plain.user, is_admin: true };
    const admin = await signedIn(stage);
    await admin.see("As a GitLab administrator you see all groups.");
    await admin.view.look("picker-admin");
    await admin.choose("Only Read");
    await admin.button("Link 1 group").click();
    await admin.see("1 group linked.");
    assert.deepEqual(stage.plain.linkedGroups, ["only-read"]);
  });
});

describe("an answer that is not GitLab's", () => {
  const scene = scenes();
  const PORTAL = { status: 200, html: "<!DOCTYPE html><title>Hotel</title><h1>Welcome! Please log in.</h1>" };
  const OTHER = { status: 200, json: { hello: "world" } };
  const NOT_GITLAB = ["What answered is not GitLab's API", "a log-in portal or a proxy"];

  for (const [what, path] of [
    ["the token", /^\/oauth\/token$/],
    ["the user", /^\/api\/v4\/user$/],
    ["groups", /^\/api\/v4\/groups$/],
  ]) {
    scene(`in place of ${what}: the page says what it may be, and the next try will do`, async (stage) => {
      await stage.link(stage.plain);
      const admin = await Admin.open(stage);
      await admin.goToSignIn(stage.plain);
      const tried = async () => {
        if ((await admin.frame.getByText("Signed in as").count()) > 0) return admin.button("Try again").click();
        const popup = await admin.openSignIn();
        return popup.getByRole("button", { name: "Authorize" }).click();
      };
      for (const answer of [PORTAL, OTHER, { status: 200, json: [{ id: 1 }] }]) {
        stage.plain.instead = { path, answer };
        await tried();
        await admin.see(...NOT_GITLAB);
      }
      await admin.view.look(`not-gitlab-${path.source.split("/").at(-1).replace("$", "")}`);
      stage.plain.instead = null;
      await tried();
      await admin.group("Accounting").waitFor();
      await counted(admin.alert, 0);
    });
  }

  scene("in place of a link is none", async (stage) => {
    const admin = await signedIn(stage);
    await admin.select("Accounting");
    stage.plain.instead = { path: LINKING, answer: PORTAL };
    await admin.button("Link 1 group").click();
    await admin.seeIn(failed(admin, "Accounting"), ...NOT_GITLAB);
    stage.plain.instead = null;
    await admin.button("Link 1 group").click();
    await admin.see("1 group linked.");
  });

  scene("that never ends is none either", async (stage) => {
    const admin = await signedIn(stage, { ownClock: true });
    const answer = { headers: { "Content-Length": "100000" }, html: "[" };
    stage.plain.instead = { path: /^\/api\/v4\/groups$/, answer };
    const asked = admin.view.page.waitForResponse(/\/api\/v4\/groups\?/);
    await admin.button("Next").click();
    await asked;
    await admin.view.passTime(ANSWER_MAX_MS);
    await admin.see(`Your browser does not reach ${addressOf(stage.plain)}`);
  });
});

describe("what is tried again", () => {
  const scene = scenes();

  scene("which groups are linked: the focus stays in the page when the failure is gone", async (stage) => {
    await stage.link(stage.plain);
    const admin = await Admin.open(stage);
    await admin.goToSignIn(stage.plain);
    stage.plain.subscriptions = [subscription(stage, "accounting", 1)];
    stage.plain.instead = { path: /\/subscriptions\.json$/, answer: { status: 500 } };
    await admin.finishSignIn(await admin.openSignIn());
    await admin.see("Which groups are linked already is not known");
    stage.plain.instead = null;
    await admin.button("Try again").click();
    await admin.frame.getByText("Linked", { exact: true }).waitFor();
    await until("the heading to have the focus", async () => (await focused(admin)) === "H1");
    stage.plain.instead = { path: /\/subscriptions\.json$/, answer: { status: 500 } };
    await admin.button("Back to linked groups").click();
    await admin.alert.waitFor();
    stage.plain.instead = null;
    await admin.button("Try again").click();
    await admin.group("Accounting").waitFor();
    await until("the heading to have the focus", async () => (await focused(admin)) === "H1");
  });

  scene("nothing is, when somebody leaves while a window waits", async (stage) => {
    await stage.link(stage.plain);
    const admin = await Admin.open(stage);
    await admin.goToSignIn(stage.plain);
    const popup = await admin.openSignIn();
    const asked = () => admin.view.requests.filter(({ url }) => url.endsWith("/sign_in")).length;
    const before = asked();
    await admin.button("Back to linked groups").click();
    await admin.closed(popup);
    await admin.see("No groups are linked yet");
    assert.equal(asked(), before);
  });
});

describe("groups that can't be linked", () => {
  const scene = scenes();

  for (const [status, message, hint] of [
    [401, "401 Unauthorized - JWT authentication failed", "The instance does not believe the relay."],
    [401, "Cannot find namespace. Make sure you have sufficient permissions.", "at least the Maintainer role"],
    [403, "Could not fetch user information from Jira.", "GitLab asks Jira, through the relay"],
    [422, "Group can not be linked at the moment.", "tell a GitLab administrator"],
    [429, "Too many requests", "Wait a minute, then try again."],
    [500, "500 Internal Server Error", "has trouble"],
  ]) {
    scene(`${message}: the page says what to do`, async (stage) => {
      const admin = await signedIn(stage);
      stage.plain.refusedGroups = { accounting: [status, message] };
      await admin.select("Accounting");
      await admin.button("Link 1 group").click();
      await admin.seeIn(failed(admin, "Accounting"), message, hint);
    });
  }

  scene("because the browser does not reach the instance: the page explains that once, for all of them", async (stage) => {
    const admin = await signedIn(stage);
    for (const name of FIVE) await admin.group(name).check();
    stage.plain.instead = { path: LINKING, answer: null };
    await admin.button("Link 5 groups").click();
    await admin.see("The groups could not be linked");
    await admin.see(`Your browser does not reach ${addressOf(stage.plain)}`, "Local Network Access", "The instance is down");
    await counted(admin.frame.getByText("Your browser does not reach"), 1);
    await admin.view.look("link-unreachable");
    stage.plain.instead = null;
    await admin.button("Link 5 groups").click();
    await admin.see("5 groups linked.");
    await counted(admin.frame.getByText("Your browser does not reach"), 0);
  });
});

describe("a token of the site's that can't be renewed", () => {
  const scene = scenes();

  scene("is asked for again by the next try", async (stage) => {
    const admin = await signedIn(stage, { ownClock: true });
    await admin.select("Accounting");
    await admin.button("Link 1 group").click();
    await admin.see("1 group linked.");
    // Nearly over.
    await admin.view.passTime(150_000);
    for (const name of ["Backoffice", "Catalogue", "Data Warehouse"]) await admin.select(name);
    await stage.relay.down();
    await admin.button("Link 3 groups").click();
    await admin.seeIn(failed(admin, "Backoffice"), "The relay cannot be reached");
    await stage.relay.up();
    await admin.button("Link 3 groups").click();
    await admin.see("3 groups linked.");
    assert.equal(stage.plain.linkedGroups.length, 4);
  });
});

describe("an answer that comes late", () => {
  const scene = scenes();
  const A_WHILE_MS = 16_000;
  const GROUPS = /\/links\/[^/]+\/groups$/;

  scene("is not believed when one that was asked for later has come, and nobody polls meanwhile", async (stage) => {
    await stage.link(stage.plain);
    await stage.plain.down();
    const admin = await Admin.open(stage, { ownClock: true });
    const card = admin.card(stage.plain);
    await admin.seeIn(card, "Needs attention", "can't be reached");
    await stage.plain.up();
    const held = [];
    let holding = true;
    await admin.view.page.route(GROUPS, (route) => (holding ? held.push(route) : route.continue()));
    await admin.view.passTime(A_WHILE_MS);
    await until("a poll", () => held.length === 1);
    await admin.view.passTime(A_WHILE_MS);
    await admin.view.passTime(A_WHILE_MS);
    assert.equal(held.length, 1, "polls are not piled up");
    holding = false;
    await admin.button(`Check again: ${addressOf(stage.plain)}`).click();
    await admin.seeIn(card, "Connected", "No groups linked");
    const error = { code: "instance_unreachable", message: "the instance can't be reached", hint: null, id: "late" };
    await held[0].fulfill({ status: 502, json: { error } });
    await until("the late answer to arrive", () => admin.view.failures.some(({ status }) => status === 502));
    await admin.view.passTime(1_000);
    await admin.seeIn(card, "Connected");
    await counted(admin.frame.getByText("Needs attention"), 0);
  });
});

function subscription({ jira, plain }, path, id) {
  const group = plain.groups.find(({ full_path }) => full_path === path);
  return { id, clientKey: jira.clientKey, group, created_at: new Date().toISOString() };
}
