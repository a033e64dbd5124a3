/** The parts of a run: which images are trained and evaluated on, and what is refused. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";

import { resolveConfig } from "../../src/rl_ar_finetune/config.js";
import { openRunParts } from "../../src/rl_ar_finetune/run_parts.js";
import { tinyFolder, tinyRun } from "../support/train_run.js";

test("the held-out images are no training images, and the training images are all others", async (t) => {
  const folder = await tinyFolder(t, 20);
  const values = { eval: { every: 1, images: 100 }, data: { evalPart: 0.2 }, rollout: { images: 4 } };
  const { config } = resolveConfig({ values: tinyRun(folder, values) });
  const parts = await openRunParts(config);
  const idsOf = async (): Promise<string[]> => {
    const ids: string[] = [];
    for await (const batch of parts.evalBatches()) {
      ids.push(...batch.ids);
      batch.dispose();
    }
    return ids;
  };
  const held = await idsOf();
  assert.deepEqual(await idsOf(), held);
  assert.equal(held.length, parts.evalImages);
  assert.ok(held.length >= 2 && held.length <= 6, `${held.length}`);
  const batches = parts.batchesFrom(undefined);
  const seen = new Set<string>();
  for (let i = 0; i < 10; i++) {
    using batch = await batches.next();
    for (const id of batch.ids) seen.add(id);
  }
  batches.close();
  assert.equal(seen.size, 20 - held.length);
  for (const id of held) assert.ok(!seen.has(id), id);
});

test("what a run cannot be made of", async (t) => {
  const folder = await tinyFolder(t);
  const refused = async (changes: object): Promise<string> => {
    const { config } = resolveConfig({ values: tinyRun(folder, changes) });
    return openRunParts(config).then(
      () => "nothing",
      (error: Error) => error.message,
    );
  };
  assert.equal(
    await refused({ data: { size: 18 } }),
    "data.size: expected a multiple of 4, the pixels of a code, got 18.",
  );
  assert.equal(
    await refused({ blockSize: 9 }),
    "data.size: expected images of at most 9 codes, the policy's, got 16. Use images of 12 px, or another policy.",
  );
  assert.equal(
    await refused({ rollout: { maxLen: 9 } }),
    "rollout.maxLen: expected 16, the codes of an image of 16 px, got 9. " +
      "The decoder wants all codes of an image: change data.size, or leave maxLen out.",
  );
  assert.match(await refused({ tokenizer: { path: join(folder, "none.safetensors") } }), /none\.safetensors/);
  assert.match(await refused({ data: { source: join(folder, "nothing") } }), /nothing/);
});
