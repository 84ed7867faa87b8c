// The page in Forge: what `forge init` writes, with Atlassian's own @forge/bridge in it, in a frame with the policy that
// Atlassian's own @forge/csp makes. What it shows is the page inside Jira, so this tells what differs: the way to the
// relay, signing in across origins, and what Forge lacks.

import assert from "node:assert/strict";
import { describe } from "node:test";
import { Admin, counted } from "./stage/admin.mjs";
import { send, Server } from "./stage/http.mjs";
import { scenes } from "./stage/scene.mjs";

const HELLO = "jiraConnectOauthCallbackHello";
const WAITING = "jiraConnectOauthCallbackWaiting";
// Chromium says it of a popup that a sandbox forbids; then the page takes another way.
const POPUP_BLOCKED = /allow-popups/;

async function open(stage, window) {
  return new Admin(await stage.openInForge(window));
}

async function look(admin, state) {
  await admin.view.look(`forge-${state}`);
}

describe("the page in Forge", () => {
  const scene = scenes({ forge: true });

  scene("an admin adds an instance, signs in, links a group, and removes it all", async (stage) => {
    const admin = await open(stage);
    await admin.heading("Connect your first GitLab instance").waitFor();
    await look(admin, "first-use");

    await admin.check(stage.below.url);
    await admin.seeIn(admin.dialog, "All checks are done.");
    await look(admin, "add");
    await admin.confirm("Add instance");
    await admin.seeIn(admin.card(stage.below), "Connected");
    await look(admin, "instances");

    // No reload: the manifest decides whom the page may call.
    await admin.goToSignIn(stage.below);
    const popup = await admin.openSignIn();
    // A code can be pasted meanwhile.
    await admin.frame.getByLabel("Code").waitFor();
    await look(admin, "sign-in");
    await admin.finishSignIn(popup);
    await admin.choose("Fleet");
    await admin.button("Link 1 group").click();
    await admin.see("1 group linked.");
    await look(admin, "linked");
    await admin.button("Back to linked groups").click();
    await admin.see("Fleet");
    await admin.select("Fleet");
    await admin.button("Unlink 1 group").click();
    await admin.dialog.getByRole("button", { name: "Unlink", exact: false }).click();
    await admin.button("Back to instances").click();

    await admin.frame.getByRole("button", { name: /^Remove / }).click();
    await admin.confirm("Remove instance");
    await admin.seeIn(admin.card(stage.below), "Removing");

    // All of it went by Forge, as paths from the remote's baseUrl on; nothing went to the relay by itself.
    assert.ok(stage.forge.calls.length > 8);
    for (const { path } of stage.forge.calls) assert.match(path, /^\/-\/jira_connect\/(page\/boot$|links(\/|\?|$))/);
    const direct = admin.view.requests.filter(({ url }) => url.startsWith(stage.relay.url));
    for (const { url } of direct) assert.match(new URL(url).pathname, /\/(oauth_callbacks|assets\/)/);
    assert.deepEqual(await admin.view.stored(), []);
  });

  scene("what Jira can't do with it is said, and nothing where nothing is lacking", async (stage) => {
    await stage.link(stage.plain);
    const admin = await open(stage);
    await admin.see("Some things do not work with this app", "Projects cannot be searched for", "“Create branch”");
    await look(admin, "lacks");
    // As long as the site is reached as a Connect app, nothing is lacking, wherever the page is.
    await stage.reach("connect");
    for (const other of [await open(stage), await Admin.open(stage)]) {
      await other.heading("GitLab for Jira").waitFor();
      await counted(other.frame.getByText("Some things do not work with this app"), 0);
    }
  });

  scene("who is no admin sees all and changes nothing", async (stage) => {
    await stage.link(stage.plain);
    const admin = await open(stage, { account: "member" });
    await admin.see("Only Jira administrators can change this");
    await counted(admin.button("Add GitLab instance"), 0);
  });

  scene(
    "where the frame may open no window, Jira opens it, and the code is carried by hand",
    async (stage) => {
      await stage.link(stage.plain);
      const admin = await open(stage, { sandbox: "popupless" });
      await admin.goToSignIn(stage.plain);
      const [tab] = await Promise.all([
        admin.view.page.context().waitForEvent("page"),
        admin.button("Sign in to GitLab").click(),
      ]);
      await tab.getByRole("button", { name: "Authorize" }).click();
      await tab.getByRole("heading", { name: "You are almost signed in" }).waitFor();
      const code = await tab.locator("#code").textContent();
      assert.ok(!tab.url().includes("?"), "the code has no place in the address");
      await admin.view.lookAtPopup("forge-paste", tab);

      // A code of somebody else's attempt is refused, and there is a new attempt.
      const somebodys = `${code.slice(0, code.lastIndexOf("."))}.${"A".repeat(43)}`;
      await admin.frame.getByLabel("Code").fill(somebodys);
      await admin.button("Use code").click();
      await admin.see("The answer did not belong to this sign-in");
      const isExchange = ({ method, target }) => method === "POST" && target === "/oauth/token";
      const exchanged = () => stage.plain.calls.filter(isExchange).length;
      assert.equal(exchanged(), 0);

      const [second] = await Promise.all([
        admin.view.page.context().waitForEvent("page"),
        admin.button("Sign in to GitLab").click(),
      ]);
      await second.getByRole("button", { name: "Authorize" }).click();
      const pasted = await second.locator("#code").textContent();
      await admin.frame.getByLabel("Code").fill(` ${pasted}\n`);
      await admin.button("Use code").click();
      await admin.see("Signed in as");
      assert.equal(exchanged(), 1);
    },
    { except: [POPUP_BLOCKED] },
  );

  scene(
    "who does not let Jira open the window is told, and can try again",
    async (stage) => {
      await stage.link(stage.plain);
      const admin = await open(stage, { sandbox: "popupless", navigation: "declined" });
      await admin.goToSignIn(stage.plain);
      await admin.button("Sign in to GitLab").click();
      await admin.see("Your browser blocked the sign-in window");
      await admin.button("Sign in to GitLab").waitFor();
    },
    { except: [POPUP_BLOCKED] },
  );

  scene("the code goes to no other origin, though it asks in the right way", async (stage) => {
    // Anybody can have a page on Atlassian's CDN, with an attempt of their own.
    const stranger = new Server(async (_request, response) => send(response, { html: "<!DOCTYPE html><title>x</title>" }));
    const origin = await stranger.listen("127.0.0.7");
    try {
      const view = await stage.visit(origin);
      await view.page.evaluate(
        ([hello, waiting]) => {
          window.heard = [];
          window.addEventListener("message", ({ data, source }) => {
            window.heard.push(data);
            if (data.type === hello) source.postMessage({ type: waiting }, "*");
          });
        },
        [HELLO, WAITING],
      );
      const callback = `${stage.relay.baseUrl}/oauth_callbacks?code=secret&state=theirs`;
      const popup = await view.popup(() => view.page.evaluate((url) => void window.open(url), callback));
      await popup.getByRole("heading", { name: "You are almost signed in" }).waitFor();
      assert.deepEqual(await view.page.evaluate(() => window.heard), [{ type: HELLO }]);
    } finally {
      await stranger.down();
    }
  });

  scene("a call that fails is told in the page's words", async (stage) => {
    await stage.link(stage.plain);
    const admin = await open(stage);
    await admin.seeIn(admin.card(stage.plain), "Connected");
    stage.forge.invocations = "broken";
    await admin.button("Add GitLab instance").click();
    await admin.dialog.getByLabel("Address of the GitLab instance").fill(stage.below.url);
    await admin.dialog.getByRole("button", { name: "Check", exact: true }).click();
    await admin.seeIn(admin.dialog, "The relay cannot be reached");
    stage.forge.invocations = "ok";
    await admin.dialog.getByRole("button", { name: "Check", exact: false }).first().click();
    await admin.seeIn(admin.dialog, "All checks are done.");
    await admin.confirm("Cancel");

    // The relay's own words come through as well: nobody may link what is linked.
    await admin.check(stage.plain.url);
    await admin.seeIn(admin.dialog, "This instance is connected to this Jira site already");
    await admin.confirm("Cancel");
  });

  scene("a session that is over is told, and a reload begins anew", async (stage) => {
    await stage.link(stage.plain);
    const admin = await open(stage);
    await admin.seeIn(admin.card(stage.plain), "Connected");
    stage.forge.invocations = "refused";
    await admin.frame.getByRole("button", { name: /^Link groups of / }).click();
    await admin.see("Your session has expired");
    await look(admin, "expired");
    stage.forge.invocations = "ok";
    await admin.button("Reload page").click();
    await admin.seeIn(admin.card(stage.plain), "Connected");
  });

  for (const [how, said] of [
    ["refused", "Jira did not confirm who you are"],
    ["broken", "The relay cannot be reached"],
  ]) {
    scene(`a page whose first call is ${how} says so, and can try again`, async (stage) => {
      stage.forge.invocations = how;
      const admin = await open(stage);
      await admin.see(said);
      stage.forge.invocations = "ok";
      await admin.button("Try again").click();
      await admin.heading("Connect your first GitLab instance").waitFor();
    });
  }

  scene("outside of Forge it says where it belongs", async (stage) => {
    const view = await stage.visit(`${stage.forge.origin}/page/index.html?bare`);
    await view.page.getByText("This page works only inside Jira").waitFor();
  });
});

describe("a browser that guards the local network, in Forge", () => {
  const addressSpaces = ({ forge, relay, plain }) => ({
    [forge.jiraOrigin]: "public",
    [forge.origin]: "public",
    [relay.url]: "public",
    [plain.origin]: "local",
  });
  const scene = scenes({ forge: true, addressSpaces });

  // The browser's policy goes by the page's origin, and that is Atlassian's CDN.
  scene("whom the browser's administrator must allow is the page, not the relay", async (stage) => {
    await stage.link(stage.plain);
    const admin = await open(stage);
    await admin.goToSignIn(stage.plain);
    const allowed = `your Jira site and ${stage.forge.origin} to LocalNetworkAccessAllowedForUrls`;
    await admin.see("This instance is in a private network", "Jira does not pass the permission", allowed);
  });
});
