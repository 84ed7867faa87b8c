// The same act on several things, a few at a time.

const AT_ONCE = 3;

/** Runs `act` for each item; stops starting new ones once it says "stop". */
export async function forSeveral<T>(items: T[], act: (item: T) => Promise<"go_on" | "stop">) {
  const waiting = [...items];
  const worker = async () => {
    for (let item = waiting.shift(); item !== undefined; item = waiting.shift()) {
      if ((await act(item)) === "stop") {
        waiting.length = 0;
      }
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
}
