// Runs a program that would outlive its test: when stdin ends, because the test asks for it or is gone, the program
// gets SIGTERM, and SIGKILL when it does not listen.

import { spawn } from "node:child_process";

const PATIENCE_MS = 8000;

const [program, ...programArguments] = process.argv.slice(2);
const child = spawn(program, programArguments, { stdio: ["ignore", "inherit", "inherit"] });
child.on("error", (error) => {
  console.error(`${program}: ${error.message}`);
  process.exit(127);
});
child.on("exit", (code, signal) => process.exit(signal ? 128 : code));
process.stdin.on("end", () => {
  child.kill("SIGTERM");
  setTimeout(() => child.kill("SIGKILL"), PATIENCE_MS);
});
process.stdin.resume();
