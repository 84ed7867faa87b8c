// Every wait of the stage ends: with what it waits for, or by saying what did not come.

import { setTimeout as sleep } from "node:timers/promises";

export async function within(ms, what, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: nothing within ${ms} ms`)), ms);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

// The first answer of the probe that is not false, null or undefined.
export async function until(what, probe, { ms = 20_000, every = 50 } = {}) {
  const end = Date.now() + ms;
  for (;;) {
    const found = await probe();
    if (found !== false && found !== null && found !== undefined) return found;
    if (Date.now() > end) throw new Error(`${what}: not so within ${ms} ms`);
    await sleep(every);
  }
}
