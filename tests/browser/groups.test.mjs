// Groups of an instance, several at once: what was done and what was not is told whole, whatever happens meanwhile.

import assert from "node:assert/strict";
import { describe } from "node:test";
import { Admin, addressOf } from "./stage/admin.mjs";
import { until } from "./stage/deadline.mjs";
import { scenes } from "./stage/scene.mjs";

async function signedIn(stage, window) {
  await stage.link(stage.plain);
  const admin = await Admin.open(stage, window);
  await admin.signIn(stage.plain);
  await admin.group("Accounting").waitFor();
  return admin;
}

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
    assert.equal(await admin.frame.getByText("Needs attention").count(), 0);
  });
});
