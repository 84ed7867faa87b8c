// What `forge init` writes, judged by Atlassian's own validator, and what `forge register` makes of it.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import forge from "@forge/manifest";
import { parseDocument } from "yaml";

const { ProcessorBuilder, ValidationTypes } = forge;
const run = promisify(execFile);
const root = fileURLToPath(new URL("../../", import.meta.url));
const binary = resolve(root, process.env.JIRA_CONNECT_PROXY_BIN ?? "target/debug/jira-connect-proxy");

const APP_ID = "ari:cloud:ecosystem::app/8db33809-1f32-48bb-8c52-5877dab48107";
const EVERYBODY = /permission.*\*|global/i;

// Settings of the relay, and what the validator may warn of.
const SHAPES = {
  "for everybody": { settings: {}, warnings: 2 },
  "for instances with names": {
    settings: { INSTANCES__ALLOW: '["gitlab.example.com", "*.example.org", "https://example.net:8443/gitlab"]' },
  },
  "below a relative URL": {
    settings: {
      PUBLIC__BASE_PATH: "/gitlab/-/jira_connect",
      INSTANCES__ALLOW: "https://example.com/gitlab",
      INSTANCES__AUTO_LINK: "https://example.com/gitlab",
    },
  },
  "for a registered app with odd names": {
    settings: {
      FORGE__APP_ID: APP_ID,
      INSTANCES__ALLOW: "gitlab.example.com",
      APP__NAME: 'GitLab: "ours" # & theirs',
      APP__DISPLAY_NAME: "yes",
    },
  },
  "for an old Connect app": {
    settings: { APP__KEY: "gitlab-jira-connect-old.example.com", INSTANCES__ALLOW: "gitlab.example.com" },
    more: ["--connect-key", "gitlab-jira-connect-old.example.com"],
  },
  "for an old Connect app below a relative URL": {
    settings: { PUBLIC__BASE_PATH: "/gitlab/-/jira_connect", INSTANCES__ALLOW: "gitlab.example.com" },
    more: ["--connect-key", "gitlab-jira-connect-relay.example.org"],
  },
};

for (const [name, { settings, more = [], warnings = 0 }] of Object.entries(SHAPES)) {
  test(`an app ${name} is a good one`, async (t) => {
    const folder = await made(t, settings, more);
    const { errors, warnings: warned } = await judged(folder);
    assert.deepEqual(errors, []);
    assert.equal(warned.length, warnings, JSON.stringify(warned, null, 2));
    for (const { message } of warned) assert.match(message, EVERYBODY);
  });
}

test("the validator would tell", async (t) => {
  const folder = await made(t, {});
  const path = join(folder, "manifest.yml");
  const manifest = await readFile(path, "utf8");
  for (const [good, bad] of [
    ["endpoint: page", "endpoint: nowhere"],
    ["read:jira-user", "read:jira-users"],
    ["interval: hour", "interval: minute"],
    ["path: static/page", "path: static/nothing"],
  ]) {
    assert.ok(manifest.includes(good), good);
    await writeFile(path, manifest.replace(good, bad));
    const { errors } = await judged(folder);
    assert.notDeepEqual(errors, [], bad);
  }
});

// @forge/cli-shared 9.8, config/config-file.js: it sets the section `app` in the parsed document and writes all anew.
test("what `forge register` writes keeps its comments, and an upgrade its id", async (t) => {
  const settings = { INSTANCES__ALLOW: "gitlab.example.com" };
  const folder = await made(t, settings);
  const path = join(folder, "manifest.yml");
  const before = await readFile(path, "utf8");
  const document = parseDocument(before);
  document.set("app", { ...document.toJS().app, id: APP_ID });
  const registered = document.toString();
  await writeFile(path, registered);
  assert.equal(registered.match(/#/g).length, before.match(/#/g).length, "comments");

  const upgraded = await relay(["forge", "upgrade", folder, "--json"], {
    ...settings,
    INSTANCES__ALLOW: "gitlab.example.com,other.example.com",
    APP__VENDOR_URL: "https://vendor.example.com",
    FORGE__APP_ID: APP_ID,
  });
  const { files } = JSON.parse(upgraded.stdout);
  assert.deepEqual(
    files.filter(({ done }) => done !== "unchanged"),
    [{ path: "manifest.yml", done: "merged" }],
  );
  const after = await readFile(path, "utf8");
  assert.ok(after.includes(`  id: ${APP_ID}\n`));
  assert.ok(after.includes("- address: https://other.example.com\n"));
  assert.deepEqual((await judged(folder)).errors, []);
});

test("where edits and news meet, the command says so and fails", async (t) => {
  const folder = await made(t, {});
  const path = join(folder, "manifest.yml");
  const edited = (await readFile(path, "utf8")).replace(/^(\s+title:).*$/m, "$1 Mine");
  await writeFile(path, edited);
  const failure = await relay(["forge", "upgrade", folder], { APP__NAME: "Theirs" }).catch((error) => error);
  assert.equal(failure.code, 1, failure.stdout);
  assert.match(failure.stdout, /manifest\.yml +LEFT ALONE.*manifest\.yml\.new/);
  assert.equal(await readFile(path, "utf8"), edited);
});

test("the page's files are those that web/ builds, by relative addresses", async (t) => {
  const folder = await made(t, {});
  const page = join(folder, "static/page");
  const html = await readFile(join(page, "index.html"), "utf8");
  assert.doesNotMatch(html, /(src|href)="(?!\.\/)/);
  assert.doesNotMatch(html, /<script>|<style|style=|%[A-Z_]+%/);
  for (const name of ["page.js", "page.css"]) {
    assert.ok(html.includes(`"./${name}"`));
    const [written, built] = await Promise.all([join(page, name), join(root, "web/dist-forge", name)].map((path) => readFile(path)));
    assert.ok(written.equals(built), `${name} in the program is not the one in web/dist-forge`);
  }
  // web/dist itself is what the sources give today.
  await run(process.execPath, ["build.mjs", "--check"], { cwd: join(root, "web") });
});

async function made(t, settings, more = []) {
  const folder = await mkdtemp(join(tmpdir(), "jira-connect-proxy-forge-"));
  t.after(() => rm(folder, { recursive: true, force: true }));
  await relay(["forge", "init", folder, ...more], settings);
  return folder;
}

async function relay(words, settings) {
  const all = { PUBLIC__URL: "https://relay.example.org", ...settings };
  const env = Object.entries(all).map(([key, value]) => [`JIRA_CONNECT_PROXY__${key}`, value]);
  return run(binary, words, { cwd: tmpdir(), env: Object.fromEntries(env) });
}

// As `forge lint` does; it looks for the manifest in the folder where it runs.
async function judged(folder) {
  const before = process.cwd();
  process.chdir(folder);
  try {
    const { errors = [] } = await ProcessorBuilder.instance().withValidation(ValidationTypes.FULL).build().process();
    return {
      errors: errors.filter(({ level }) => level === "error").map(({ message }) => message),
      warnings: errors.filter(({ level }) => level === "warning"),
    };
  } finally {
    process.chdir(before);
  }
}
