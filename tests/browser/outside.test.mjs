// The page outside Jira: an operator's way from the command to the end of the session, and who does not get in.

import assert from "node:assert/strict";
import { describe } from "node:test";
import { Admin, addressOf } from "./stage/admin.mjs";
import { until } from "./stage/deadline.mjs";
import { call, escapeHtml, send, Server } from "./stage/http.mjs";
import { scenes } from "./stage/scene.mjs";

const STRANGER_HOST = "127.0.0.5";

describe("an operator outside Jira", () => {
  const scene = scenes();

  scene("runs the command, opens the page, adds an instance, signs in, links a group, logs out", async (stage) => {
    const { admin, address } = await enter(stage);
    const { page } = admin.view;
    assert.equal(page.url(), `${stage.relay.baseUrl}/page`);
    assert.equal(await page.title(), `GitLab for Jira: ${new URL(stage.jira.origin).host}`);
    await admin.heading("Connect your first GitLab instance").waitFor();
    await admin.see("Outside Jira: you act as an operator of the relay.");
    await admin.see(`Jira site ${new URL(stage.jira.origin).host}`);
    await look(admin.view, "outside-first-use");

    await admin.check(stage.below.url);
    await admin.dialog.getByText("All checks are done.").waitFor();
    await admin.confirm("Add instance");
    await admin.seeIn(admin.card(stage.below), "Connected");
    // The policy of this document is older than the link.
    await admin.button(`Link groups of ${addressOf(stage.below)}`).click();
    await admin.button("Reload page").click();
    await admin.signIn(stage.below);
    await admin.choose("Fleet");
    await admin.button("Link 1 group").click();
    await admin.see("1 group linked.");
    await look(admin.view, "outside-linked");
    assert.deepEqual(stage.below.linkedGroups, ["fleet"]);
    // Jira was not asked: neither whether the operator is an admin, nor by the instance about the user.
    const asked = (await stage.jira.requests()).map(({ path, url }) => path ?? url);
    assert.ok(!asked.some((path) => /user|permissions/.test(path)), asked.join());

    await admin.button("Back to linked groups").click();
    await admin.select("Fleet");
    await admin.button("Unlink 1 group").click();
    await admin.dialog.getByRole("button", { name: /Unlink/ }).click();
    await until("the group to be unlinked", () => stage.below.linkedGroups.length === 0);

    const cookies = await page.context().cookies();
    assert.deepEqual(cookies.map(({ httpOnly, sameSite, path }) => [httpOnly, sameSite, path]), [[true, "Strict", "/"]]);
    assert.equal(await page.evaluate(() => document.cookie), "");
    const token = await page.evaluate(() => JSON.parse(document.getElementById("app").dataset.boot).pageToken);

    await admin.button("Log out").click();
    await admin.see("You are logged out");
    await look(admin.view, "outside-logged-out");
    assert.deepEqual(await page.context().cookies(), []);
    await page.reload();
    await page.getByRole("heading", { name: "You are not logged in here (any more)" }).waitFor();
    await page.goto(address);
    await page.getByText("This address was opened already").waitFor();

    const ticket = new URL(address).searchParams.get("ticket");
    for (const secret of [ticket, token, cookies[0].value]) {
      assert.ok(secret.length > 20 && !stage.relay.log.includes(secret), "a secret is in the log");
      for (const gitlab of stage.gitlabs) {
        assert.ok(!gitlab.calls.some((one) => JSON.stringify(one).includes(secret)), "an instance saw it");
      }
    }
    // It is in the address that was opened, and nowhere else.
    const addresses = admin.view.requests.map(({ url }) => url).filter((url) => !url.startsWith(address));
    for (const secret of [ticket, token, cookies[0].value]) {
      assert.ok(!addresses.some((url) => url.includes(secret)));
    }
    const { body: trail } = await stage.relay.admin("GET", "audit");
    const actions = trail.filter(({ actor }) => actor === "operator").map(({ action }) => action);
    assert.deepEqual(actions.reverse(), ["page_opened", "link_created", "group_unlinked", "page_closed"]);
  });

  scene("whose session ends meanwhile is told so, and what to do", async (stage) => {
    const { admin } = await enter(stage, { ownClock: true });
    await admin.heading("Connect your first GitLab instance").waitFor();
    await stage.relay.down();
    await stage.relay.up();
    await until("the page to notice", async () => {
      await admin.view.passTime(10 * 60_000);
      return (await admin.frame.getByText("Your session has expired").count()) > 0;
    });
    await admin.see("run jira-connect-proxy page for this Jira site again");
    await look(admin.view, "outside-expired");
  });

  scene("meets no page that another site frames or reads, nor one that opens by itself", async (stage) => {
    const address = await invite(stage);
    const open = new URL(address);
    const ticket = open.searchParams.get("ticket");
    const form = `<form method="post" action="${stage.relay.baseUrl}/page/open">
<input type="hidden" name="ticket" value="${escapeHtml(ticket)}"><button>win a prize</button></form>`;
    const frame = `<iframe src="${escapeHtml(address)}"></iframe>`;
    const stranger = new Server(async (request, response) =>
      send(response, { html: `<!DOCTYPE html><title>stranger</title>${request.url === "/frame" ? frame : form}` }),
    );
    await stranger.listen(STRANGER_HOST);
    try {
      const view = await stage.visit(stranger.origin);
      await view.page.getByRole("button", { name: "win a prize" }).click();
      await view.page.getByText("This does not come from a page of this relay.").waitFor();
      assert.deepEqual(await view.page.context().cookies(), []);
      await view.page.goto(`${stranger.origin}/frame`);
      await until("the frame to be refused", () => view.problems().some((text) => /frame-ancestors/.test(text)));

      // Whoever has a session takes nothing of it along to another site's page.
      const { admin } = await enter(stage, {}, address);
      await admin.heading("Connect your first GitLab instance").waitFor();
      const { page } = admin.view;
      await page.goto(stranger.origin);
      const read = await page.evaluate(
        (url) => fetch(url, { credentials: "include" }).then(({ status }) => status, ({ name }) => name),
        `${stage.relay.baseUrl}/links`,
      );
      assert.equal(read, "TypeError");
      await page.evaluate((url) => void (location.href = url), `${stage.relay.baseUrl}/page`);
      await page.getByRole("heading", { name: "You are not logged in here (any more)" }).waitFor();
      await page.goto(`${stage.relay.baseUrl}/page`);
      await admin.heading("Connect your first GitLab instance").waitFor();
    } finally {
      await stranger.down();
    }
  }, { except: [/frame-ancestors/, /blocked by CORS policy/] });
});

describe("an invitation", () => {
  const scene = scenes({ settings: { PAGE__INVITATION_SECS: "1" } });

  scene("that is over says so, and how to get another", async (stage) => {
    const address = await invite(stage);
    await until("the invitation to be over", async () => (await call(address)).status === 401);
    const { page } = await stage.visit(address);
    await page.getByRole("heading", { name: "This page can't be shown" }).waitFor();
    await page.getByText("The time in which this address could be opened is over.").waitFor();
    await page.getByText("jira-connect-proxy page").waitFor();
    assert.equal(await page.getByRole("button").count(), 0);
  });
});

async function look(view, state) {
  await view.look(state, view.page.mainFrame());
}

// What the command prints first.
async function invite(stage) {
  const [address] = (await stage.relay.command("page", stage.jira.clientKey)).split("\n");
  return address;
}

// An operator at the page, by the address of an invitation.
async function enter(stage, window = {}, address = undefined) {
  address ??= await invite(stage);
  // What looks at addresses before people do.
  for (const method of ["HEAD", "GET"]) assert.equal((await call(address, { method })).status, 200);
  const view = await stage.visit(address, window);
  await view.page.getByRole("button", { name: "Open the page" }).waitFor();
  await look(view, "outside-invitation");
  await view.page.getByRole("button", { name: "Open the page" }).click();
  await view.page.waitForURL(`${stage.relay.baseUrl}/page`);
  return { admin: new Admin(view, view.page), address };
}
