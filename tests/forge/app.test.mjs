// What `forge init` writes, judged by Atlassian's own validator, and what `forge register` makes of it.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import forge from "@forge/manifest";
import { parseDocument } from "yaml";
import { build } from "./build.mjs";

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
    await build(folder);
    const { errors, warnings: warned } = await judged(folder);
    assert.deepEqual(errors, []);
    assert.equal(warned.length, warnings, JSON.stringify(warned, null, 2));
    for (const { message } of warned) assert.match(message, EVERYBODY);
  });
}

test("an app whose page was not built is refused", async (t) => {
  const folder = await made(t, {});
  const { errors } = await judged(folder);
  assert.equal(errors.length, 1, errors.join());
  assert.match(errors[0], /static\/page/);
  assert.match(await readFile(join(folder, "manifest.yml"), "utf8"), /npm run build.*\n.*\nresources:/);
});

test("the validator would tell", async (t) => {
  const folder = await made(t, {});
  await build(folder);
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
  await build(folder);
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
  const page = join(folder, "page");
  const html = await readFile(join(page, "index.html"), "utf8");
  assert.doesNotMatch(html, /(src|href)="(?!\.\/)/);
  assert.doesNotMatch(html, /<script>|<style|style=|%[A-Z_]+%/);
  for (const name of ["page.js", "page.css"]) assert.ok(html.includes(`"./${name}"`));
  for (const name of ["page.js", "page.css", "licenses.txt"]) {
    const [written, built] = await Promise.all([join(page, name), join(root, "web/dist-forge", name)].map((path) => readFile(path)));
    assert.ok(written.equals(built), `${name} in the program is not the one in web/dist-forge`);
  }
  // web/dist itself is what the sources give today.
  await run(process.execPath, ["build.mjs", "--check"], { cwd: join(root, "web") });

  // What the operator's build makes of it.
  await build(folder);
  const built = join(folder, "static/page");
  assert.deepEqual((await readdir(built)).sort(), ["index.html", "licenses.txt", "page.css", "page.js"]);
  assert.equal(await readFile(join(built, "index.html"), "utf8"), html);
  const script = await readFile(join(built, "page.js"), "utf8");
  assert.ok(!/\bimport\(|\bfrom"/.test(script), "what a browser can't find is still imported");
});

// npm @forge/* is under the Atlassian Developer Terms, which let nobody pass it on.
test("nothing that we pass on holds code of Forge's packages", async (t) => {
  const folder = await made(t, {});
  const own = async (name) => ({ name, text: await readFile(name, "utf8") });
  const shipped = [
    ...(await inside(join(folder, "page"))),
    ...(await inside(join(root, "web/dist"))),
    ...(await inside(join(root, "web/dist-forge"))),
  ];
  const texts = await Promise.all(shipped.map(own));
  for (const { name, text } of texts) {
    const named = text.match(/@forge\/[\w-]+/g) ?? [];
    assert.deepEqual(named, name.endsWith("page.js") && !name.includes("dist/") ? ["@forge/bridge"] : [], name);
    // How the bridge reaches its host; whoever bundles it has this.
    assert.ok(!/__bridge|callBridge|BridgeAPIError/.test(text), name);
  }
  const page = join(folder, "page/page.js");
  assert.ok((await readFile(page, "utf8")).includes('import("@forge/bridge")'));

  await build(folder);
  const built = await readFile(join(folder, "static/page/page.js"), "utf8");
  assert.ok(built.includes("__bridge") && built.includes("callBridge"), "the check above looks for the right words");
});

test("a package of the operator's own stays, with its lock, and news come to it", async (t) => {
  const settings = { INSTANCES__ALLOW: "gitlab.example.com" };
  const folder = await made(t, settings);
  const at = (name) => join(folder, name);
  const edit = async (name, from, to) => {
    const text = await readFile(at(name), "utf8");
    assert.ok(text.includes(from), from);
    await writeFile(at(name), text.replace(from, to));
  };
  const done = async () => {
    const { stdout } = await relay(["forge", "upgrade", folder, "--json"], settings).catch((failure) => failure);
    return Object.fromEntries(JSON.parse(stdout).files.map((file) => [file.path, file.done]));
  };
  await edit("package.json", '"private": true,', '"private": true,\n  "license": "UNLICENSED",');
  await edit("package-lock.json", '"requires": true,', '"requires":  true,');
  const kept = await done();
  assert.equal(kept["package.json"], "kept");
  assert.equal(kept["package-lock.json"], "kept");

  // As an older program had written them: another bundler, and its lock.
  const memory = JSON.parse(await readFile(at(".jira-connect-proxy.json"), "utf8"));
  const older = memory.files["package.json"].generated;
  const version = older.text.match(/"esbuild": "(.*)"/)[1];
  older.text = older.text.replace(`"esbuild": "${version}"`, '"esbuild": "0.1.0"');
  older.sha256 = createHash("sha256").update(older.text).digest("hex");
  memory.files["package-lock.json"].generated.sha256 = createHash("sha256").update("older").digest("hex");
  await writeFile(at(".jira-connect-proxy.json"), JSON.stringify(memory));
  await edit("package.json", `"esbuild": "${version}"`, '"esbuild": "0.1.0"');
  const changed = await done();
  assert.equal(changed["package.json"], "merged");
  assert.equal(changed["package-lock.json"], "conflict");
  const after = JSON.parse(await readFile(at("package.json"), "utf8"));
  assert.equal(after.license, "UNLICENSED");
  assert.equal(after.devDependencies.esbuild, version);
  // As the manual says: away with the one beside it; npm mends the operator's own.
  await rm(at("package-lock.json.new"));
  assert.equal((await done())["package-lock.json"], "kept");
});

async function inside(folder) {
  return (await readdir(folder)).map((name) => join(folder, name));
}

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
