// Builds the page of an app as its operator does: `npm ci`, of which tests/run has done the download, then `npm run build`.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readFile, symlink } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

const skeleton = fileURLToPath(new URL("../../web/forge-app", import.meta.url));

export async function build(folder) {
  for (const name of ["package.json", "package-lock.json"]) {
    const [written, installed] = await Promise.all([folder, skeleton].map((from) => readFile(join(from, name), "utf8")));
    assert.equal(written, installed, `${name} in the program is not the one in web/forge-app`);
  }
  await symlink(join(skeleton, "node_modules"), join(folder, "node_modules"), "dir");
  await promisify(execFile)("npm", ["run", "build"], { cwd: folder });
}
