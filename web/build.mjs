// Builds the page into dist/ and dist-forge/, which the relay embeds: `node build.mjs`.
// `node build.mjs --check` builds in memory and fails when dist/ is stale or the first load is too
// heavy. The same source gives the same bytes: no paths, no times, hashes of the content as names.
//
// Both hold our own code and the packages of BUNDLED, nothing else. npm @forge/bridge is under the
// Atlassian Developer Terms, which let nobody pass it on: the page for Forge names it, and whoever
// deploys the app bundles it from their own registry (forge-app/package.json, `npm run build`).

import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { gzipSync } from "node:zlib";
import { build, transform } from "esbuild";

const FOLDERS = ["dist", "dist-forge"];
const FIRST_LOAD_MAX_BYTES = 60 * 1024;
const TARGET = ["chrome111", "edge111", "firefox115", "safari16.4"];
// Packages that may be passed on, with their licences. What is in the output is compared with it.
const BUNDLED = {
  preact: "MIT",
  "@atlaskit/css-reset": "Apache-2.0",
  "@atlaskit/tokens": "Apache-2.0",
};
// Left to be bundled by whoever deploys the app.
const FORGE_BRIDGE = "@forge/bridge";
const SCRIPT_NOTICE = "/*! Includes Preact, (c) 2015-present Jason Miller, MIT licence */";
const STYLE_NOTICE =
  "/*! Includes @atlaskit/tokens and @atlaskit/css-reset, (c) Atlassian Pty Ltd, Apache-2.0 */";

const here = (path) => new URL(path, import.meta.url);
const require = createRequire(import.meta.url);

// Of the packages that came into an output.
const bundled = new Set();
const assets = {
  "page.js": await script("src/main.tsx", SCRIPT_NOTICE),
  "page.css": await style("src/style/page.css"),
  "callback.js": await script("src/callback.ts", ""),
  "shell.css": await style("src/style/shell.css"),
};
// The page in Forge lives in a folder of its own on Atlassian's CDN, so its names need no hash.
const forge = {
  "index.html": readFileSync(here("src/forge.html"), "utf8"),
  "page.js": await script("src/forge.tsx", SCRIPT_NOTICE, [FORGE_BRIDGE]),
  "page.css": assets["page.css"],
  "licenses.txt": licenses(),
};
const files = { ...inFolder("dist", hashed(assets)), ...inFolder("dist-forge", forge) };

if (process.argv.includes("--check")) {
  check();
} else {
  write();
}

function check() {
  const bytes = sizes(assets);
  const firstLoad = bytes["page.js"] + bytes["page.css"];
  for (const [name, size] of Object.entries(bytes)) {
    console.log(`${name.padEnd(12)} ${kib(size)} gzipped`);
  }
  console.log(`first load   ${kib(firstLoad)} of ${kib(FIRST_LOAD_MAX_BYTES)}`);
  const inForge = sizes(forge);
  console.log(`in Forge     ${kib(inForge["page.js"] + inForge["page.css"])}`);
  if (firstLoad > FIRST_LOAD_MAX_BYTES) {
    fail("The first load (page.js and page.css) is too heavy.");
  }
  const stale = differences();
  if (stale.length > 0) {
    fail(
      `What web/ builds is stale (${stale.join(", ")}). Run "npm run build" in web/ and commit it.`,
    );
  }
}

function write() {
  for (const folder of FOLDERS) {
    rmSync(here(folder), { recursive: true, force: true });
    mkdirSync(here(folder));
  }
  for (const [path, content] of Object.entries(files)) {
    writeFileSync(here(path), content);
  }
}

function differences() {
  const built = FOLDERS.flatMap((folder) =>
    existsSync(here(folder)) ? readdirSync(here(folder)).map((name) => `${folder}/${name}`) : [],
  );
  const missing = Object.keys(files).filter((path) => !built.includes(path));
  const extra = built.filter((path) => !(path in files));
  const changed = built.filter(
    (path) => path in files && readFileSync(here(path), "utf8") !== files[path],
  );
  return [...missing, ...extra, ...changed];
}

function inFolder(folder, contents) {
  return Object.fromEntries(
    Object.entries(contents).map(([name, content]) => [`${folder}/${name}`, content]),
  );
}

function sizes(contents) {
  return Object.fromEntries(
    Object.entries(contents).map(([name, content]) => [
      name,
      gzipSync(content, { level: 9 }).length,
    ]),
  );
}

function hashed(contents) {
  const manifest = {};
  const named = {};
  for (const [name, content] of Object.entries(contents)) {
    const hash = createHash("sha256").update(content).digest("hex").slice(0, 12);
    manifest[name] = name.replace(".", `-${hash}.`);
    named[manifest[name]] = content;
  }
  named["manifest.json"] = `${JSON.stringify(manifest, null, 2)}\n`;
  return named;
}

function script(entry, notice, external = []) {
  return bundle(entry, { format: "esm", banner: notice ? { js: notice } : {}, external });
}

async function style(entry) {
  const own = await bundle(entry, {});
  const { code } = await transform(tokens(own) + own, {
    loader: "css",
    minify: true,
    target: TARGET,
    legalComments: "none",
  });
  return `${STYLE_NOTICE}\n${code}`;
}

async function bundle(entry, options) {
  const result = await build({
    absWorkingDir: new URL(".", import.meta.url).pathname,
    entryPoints: [entry],
    bundle: true,
    write: false,
    metafile: true,
    minify: true,
    charset: "utf8",
    target: TARGET,
    legalComments: "none",
    jsx: "automatic",
    jsxImportSource: "preact",
    logLevel: "warning",
    ...options,
  });
  for (const path of Object.keys(result.metafile.inputs)) {
    const name = path.match(/.*node_modules\/((?:@[^/]+\/)?[^/]+)/)?.[1];
    if (name !== undefined) {
      mayBePassedOn(name);
    }
  }
  return result.outputFiles[0].text;
}

function mayBePassedOn(name) {
  const { license } = JSON.parse(readFileSync(here(`node_modules/${name}/package.json`), "utf8"));
  if (BUNDLED[name] !== license) {
    fail(`${name} (${license}) would be in the bundle, and is not on the list of what may be.`);
  }
  bundled.add(name);
}

// For people who get the bundle.
function licenses() {
  const named = Object.keys(BUNDLED);
  const unused = named.filter((name) => !bundled.has(name));
  if (unused.length > 0) {
    fail(`Not in the bundle, so not to be named there: ${unused.join(", ")}`);
  }
  const parts = named.map((name) => {
    const text = readFileSync(here(`node_modules/${name}/LICENSE`), "utf8");
    return `${name}: ${BUNDLED[name]}\n\n${text}`;
  });
  // TypeScript is under the same licence and has the whole text of it, which the packages only name.
  parts.push(readFileSync(here("node_modules/typescript/LICENSE.txt"), "utf8"));
  const rule = `\n${"-".repeat(80)}\n\n`;
  return `The page includes parts of the following packages.\n${rule}${parts
    .map((part) => `${part.replaceAll("\r\n", "\n").trim()}\n`)
    .join(rule)}`;
}

// Jira's theme arrives as attributes on <html>, set by AP.js, which then asks Atlassian's CDN for the
// values. The page looks like Jira before they come, and where they don't, so they are bundled: the few of
// @atlaskit/tokens that `css` uses, dark ones where Jira says dark, or where Jira says nothing and the
// system is dark.
function tokens(css) {
  const shared = { ...theme("spacing"), ...theme("shape"), ...theme("typography") };
  const light = theme("light");
  const dark = theme("dark");
  const used = new Set();
  const visit = (text) => {
    for (const [, name] of text.matchAll(/var\(\s*(--ds-[\w-]+)/g)) {
      if (!used.has(name)) {
        used.add(name);
        visit(`${shared[name] ?? ""} ${light[name] ?? ""} ${dark[name] ?? ""}`);
      }
    }
  };
  visit(css);
  const unknown = [...used].filter((name) => !(name in shared) && !(name in light));
  const missing = unknown.filter((name) => new RegExp(`var\\(\\s*${name}\\s*\\)`).test(css));
  if (missing.length > 0) {
    fail(`No such design token: ${missing.join(", ")}`);
  }
  const rules = (values) =>
    Object.keys(values)
      .filter((name) => used.has(name))
      .map((name) => `${name}:${values[name]};`)
      .join("");
  return `:root{color-scheme:light;${rules(shared)}${rules(light)}}
:root[data-color-mode="dark"]{color-scheme:dark;${rules(dark)}}
@media (prefers-color-scheme:dark){:root:not([data-color-mode]){color-scheme:dark;${rules(dark)}}}`;
}

function theme(name) {
  mayBePassedOn("@atlaskit/tokens");
  const css = require(`@atlaskit/tokens/dist/cjs/artifacts/themes/atlassian-${name}`).default;
  return Object.fromEntries(
    [...css.matchAll(/(--ds-[\w-]+):\s*([^;]+);/g)].map(([, token, value]) => [token, value]),
  );
}

function kib(bytes) {
  return `${(bytes / 1024).toFixed(1)} KiB`;
}

function fail(message) {
  console.error(message);
  process.exit(1);
}
