// The way of a Jira admin, from the first look at the page to the removal of an instance.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { until } from "./stage/deadline.mjs";
import { Stage } from "./stage/index.mjs";

let stage;
let view;

before(async () => {
  stage = await Stage.start();
  view = await stage.open();
});

after(async () => {
  await stage?.stop();
});

const address = (gitlab) => gitlab.url.replace("http://", "");
const heading = (name) => view.frame.getByRole("heading", { name, exact: true });
const button = (name) => view.frame.getByRole("button", { name, exact: true });
const dialog = () => view.frame.getByRole("dialog");
const card = (gitlab) =>
  view.frame.getByRole("listitem").filter({ has: view.frame.getByRole("heading", { name: address(gitlab), exact: true }) });

async function add(gitlab, state) {
  await button("Add GitLab instance").click();
  await dialog().getByLabel("Address of the GitLab instance").fill(gitlab.url);
  await dialog().getByRole("button", { name: "Check", exact: true }).click();
  await dialog().getByText("All checks are done.").waitFor();
  await view.look(`story-${state}`);
  await dialog().getByRole("button", { name: "Add instance", exact: true }).click();
  await card(gitlab).getByText("Connected").waitFor();
}

async function choose(group) {
  await view.frame.getByText(group, { exact: true }).click();
  await until(`${group} to be selected`, () => view.frame.getByRole("checkbox", { name: group, exact: true }).isChecked());
}

async function search(text) {
  await view.frame.getByLabel("Search groups").fill(text);
}

async function remove(gitlab, { purge }) {
  await button(`Remove ${address(gitlab)}`).click();
  if (purge) await dialog().getByLabel("Also delete its development information from Jira").check();
  await view.look("story-remove");
  await dialog().getByRole("button", { name: "Remove instance" }).click();
  await card(gitlab).getByText("Removing").waitFor();
}

test("the page opens for the first time", async () => {
  await heading("Connect your first GitLab instance").waitFor();
  await view.look("story-first-use");
});

test("both instances are added, and all checks pass", async () => {
  await add(stage.plain, "add-plain");
  await add(stage.below, "add-below");
  await view.look("story-instances");
  for (const gitlab of stage.gitlabs) {
    assert.equal(gitlab.installations.events.at(-1).status, 200);
    assert.equal(gitlab.installations.known[stage.jira.clientKey].baseUrl, stage.relay.url);
  }
});

test("the admin signs in to one of them", async () => {
  await button(`Link groups of ${address(stage.below)}`).click();
  // The page is older than the link, so its policy does not let it talk to the instance yet.
  await view.look("story-needs-reload");
  await button("Reload page").click();
  await button(`Link groups of ${address(stage.below)}`).click();
  await heading("Sign in to GitLab").waitFor();
  await view.look("story-sign-in");
  const popup = await view.popup(() => button("Sign in to GitLab").click());
  await Promise.all([popup.waitForEvent("close"), popup.getByRole("button", { name: "Authorize" }).click()]);
  await view.frame.getByText("Signed in as Mona Lisa Octocat (@mona)").waitFor();
});

test("three groups are linked, on two pages and by search", async () => {
  await choose("<img src=x onerror=alert(1)>");
  await button("Next").click();
  await choose("Fleet");
  await search("android");
  await choose("Maps / Android");
  await view.look("story-link-groups");
  await button("Link 3 groups").click();
  await view.frame.getByText("3 groups linked.").waitFor();
  await view.look("story-groups-linked");
  assert.deepEqual([...stage.below.linkedGroups].sort(), ["fleet", "maps/android", "markup"]);
  await button("Back to linked groups").click();
  await view.frame.getByText("3 groups linked").waitFor();
  await view.look("story-groups");
  await button("Back to instances").click();
  await card(stage.below).getByText("3 groups linked").waitFor();
});

test("what an instance sends shows its version and that it is alive", async () => {
  assert.deepEqual(await stage.plain.push(), [202]);
  assert.deepEqual(await stage.below.push(), [202]);
  await view.page.reload();
  await card(stage.plain).getByText("GitLab 17.8.1").waitFor();
  await card(stage.below).getByText("GitLab 16.11.3").waitFor();
  await card(stage.below).getByText("3 groups linked").waitFor();
  await view.look("story-instances-alive");
});

test("one goes down, and the page says why and what to do", async () => {
  await stage.plain.down();
  await stage.relay.admin("POST", `links/${await linkId(stage.plain)}/resend`);
  await view.page.reload();
  await card(stage.plain).getByText("Needs attention").waitFor();
  for (const text of ["can't be reached", "check that the instance runs", "Request ID"]) {
    await card(stage.plain).getByText(text).filter({ visible: true }).waitFor();
  }
  await view.look("story-needs-attention");
  await stage.plain.up();
  await card(stage.plain).getByText("Connected").waitFor({ timeout: 40_000 });
});

test("one is removed, with what it sent to Jira", async () => {
  await remove(stage.below, { purge: true });
  await view.look("story-removing");
  await card(stage.below).waitFor({ state: "detached", timeout: 40_000 });
  assert.equal(stage.below.installations.events.at(-1).event, "uninstalled");
  assert.deepEqual(stage.below.linkedGroups, []);
  const repositories = (await stage.jira.state()).entities.devinfo;
  const urls = Object.values(repositories).map(({ data }) => data.url);
  assert.ok(urls.some((url) => url.startsWith(stage.plain.url)), "the other's stays");
  assert.ok(!urls.some((url) => url.startsWith(stage.below.url)));
});

test("the removal of the other is taken back", async () => {
  await remove(stage.plain, { purge: false });
  await button(`Undo the removal of ${address(stage.plain)}`).click();
  await card(stage.plain).getByText("Connected").waitFor();
  await until("the undo", async () => (await stage.relay.admin("GET", "links")).body[0].desired === "installed");
  assert.notEqual(stage.plain.installations.events.at(-1).event, "uninstalled");
});

test("nothing went wrong, nothing was kept, and no token was in an address or a log", async () => {
  assert.deepEqual(view.problems(), []);
  assert.deepEqual(await view.stored(), []);
  assert.deepEqual((await stage.jira.state()).violations, []);
  // Jira's token of the frame is in the address that Jira makes, and only there.
  const addresses = view.requests.filter(({ url }) => !url.includes("/subscriptions?xdm_e=")).map(({ url }) => url);
  for (const secret of stage.secrets) {
    assert.ok(!addresses.some((url) => url.includes(secret)), secret);
    assert.ok(!stage.relay.log.includes(secret), secret);
    for (const gitlab of stage.gitlabs) assert.ok(!gitlab.calls.some(({ target }) => target.includes(secret)), secret);
  }
});

async function linkId(gitlab) {
  const { body } = await stage.relay.admin("GET", "links");
  return body.find(({ instance_url }) => instance_url === gitlab.url).id;
}
