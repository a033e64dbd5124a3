/** The watch over reads of a configuration. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { plainConfig } from "../../src/config/explain.js";
import { resolveConfig } from "../../src/config/resolve.js";
import { watchReads } from "./config_reads.js";

test("keys that were read are known, sections alone are not", () => {
  const { config } = resolveConfig({ isComplete: false });
  const watched = watchReads(config);
  const all = watched.unread();
  assert.deepEqual(watched.config.rollout.context.type, "free");
  plainConfig(watched.config);
  const { lr } = { ...watched.config.optimizer };
  assert.equal(lr, config.optimizer.lr);
  const read = all.filter((path) => !watched.unread().includes(path));
  assert.deepEqual(read, ["rollout.context.type", ...all.filter((path) => path.startsWith("optimizer."))]);
  assert.deepEqual({ ...watched.config.grpo }, { ...config.grpo });
});
