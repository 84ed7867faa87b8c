// How a test drives a judge: one JSON command per line on stdin, one JSON
// answer per line on stdout, in the same order.

export function say(value) {
  process.stdout.write(`${JSON.stringify(value)}\n`);
}

async function answer(context, commands, line) {
  let id = null;
  try {
    const command = JSON.parse(line);
    id = command.id ?? null;
    if (!Object.hasOwn(commands, command.cmd)) {
      throw new Error(`unknown cmd: ${JSON.stringify(command.cmd)}`);
    }
    return { id, ok: true, ...(await commands[command.cmd](context, command)) };
  } catch (error) {
    // Refused connections to a name with several addresses have no message.
    return { id, ok: false, error: error.message || error.code || String(error) };
  }
}

// Serves until stdin ends. Each command is called with the context and what was
// sent. lastWordsMs is how long commands that were read may still take then.
export function serveCommands(context, commands, lastWordsMs) {
  // Nobody reads any more: the test is gone.
  process.stdout.on("error", () => process.exit(0));

  let turn = Promise.resolve();
  const take = (line) => {
    turn = turn.then(async () => say(await answer(context, commands, line)));
  };

  // Not node:readline, which also breaks lines at U+2028 and U+2029: both are
  // legal unescaped inside a JSON string.
  let rest = "";
  process.stdin.setEncoding("utf8");
  process.stdin.on("data", (chunk) => {
    const lines = (rest + chunk).split("\n");
    rest = lines.pop();
    lines.forEach(take);
  });
  process.stdin.on("end", () => {
    if (rest) take(rest);
    // Commands that were read still get their answers, but a queue of slow calls
    // must not keep the process alive after its test.
    turn.then(() => process.exit(0));
    setTimeout(() => process.exit(0), lastWordsMs);
  });
  process.stdin.on("error", () => process.exit(0));
}
