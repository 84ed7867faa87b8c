// One of the judges of tests/judges as a child: a command goes in as a line, its answer comes out as a line.

import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import { within } from "./deadline.mjs";

// The judges give a slow peer 15 s.
const ANSWER_TIMEOUT_MS = 20_000;

export class Judge {
  #name;
  #child;
  #gone;
  #lines;

  // It ends by itself when this process does: its stdin ends then.
  static async start(name) {
    const judge = new Judge();
    const path = fileURLToPath(new URL(`../../judges/${name}`, import.meta.url));
    judge.#name = name;
    judge.#child = spawn(process.execPath, [path], { stdio: ["pipe", "pipe", "inherit"] });
    judge.#gone = new Promise((resolve) => judge.#child.once("exit", resolve));
    // The line that does not come tells it.
    judge.#child.stdin.on("error", () => {});
    judge.#lines = lines(judge.#child.stdout);
    judge.ready = await judge.#line();
    return judge;
  }

  // Answers come in the order of the commands, and so do the lines that wait for them.
  async ask(command) {
    this.#child.stdin.write(`${JSON.stringify(command)}\n`);
    const { ok, error, ...answer } = await this.#line();
    if (!ok) throw new Error(`${this.#name} ${command.cmd}: ${error}`);
    return answer;
  }

  async stop() {
    this.#child.stdin.end();
    await within(ANSWER_TIMEOUT_MS, `end of ${this.#name}`, this.#gone);
  }

  async #line() {
    const { done, value } = await within(ANSWER_TIMEOUT_MS, this.#name, this.#lines.next());
    if (done) throw new Error(`${this.#name} ended`);
    return JSON.parse(value);
  }
}

// Not node:readline, for the reason that commands.mjs of the judges gives.
async function* lines(stream) {
  let rest = "";
  stream.setEncoding("utf8");
  for await (const chunk of stream) {
    const found = (rest + chunk).split("\n");
    rest = found.pop();
    yield* found;
  }
}
