// Tests that share a stage and leave nothing behind on it.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { Stage } from "./index.mjs";

const SCENE_MAX_MS = 120_000;

// Makes tests on one stage, started with these options: (name, act, {except}), where act gets the stage. Each ends
// without problems; `except` as View.problems has it.
export function scenes(options) {
  let stage;
  before(async () => {
    stage = await Stage.start(options);
  });
  after(async () => {
    await stage?.stop();
  });
  return (name, act, { except = [] } = {}) =>
    test(name, { timeout: SCENE_MAX_MS }, async () => {
      let failure;
      try {
        await act(stage);
        assert.deepEqual(stage.problems({ except }), []);
      } catch (error) {
        failure = error;
        // A page that still loads can't be painted.
        await stage.screenshots(`failed-${name.replaceAll(/\W+/g, "-")}`).catch(() => {});
      }
      // What came first is the cause, should this fail as well.
      await stage.reset().catch((error) => {
        failure ??= error;
      });
      if (failure) throw failure;
    });
}
