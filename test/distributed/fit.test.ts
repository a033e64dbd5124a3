/** Supervised trainings by 1, 2 and 4 processes: the same run up to the rounding of sums. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";

import { start } from "../support/processes.js";
import { assertSameMetrics, difference } from "../support/same_run.js";
import { tinyFolder } from "../support/train_run.js";

/** Dropout is drawn by each process for itself. */
const ar = { extra: { embdPdrop: 0, residPdrop: 0, attnPdrop: 0, tokenDrop: 0 } };

const CASES: readonly (readonly [name: string, command: string, changes: object])[] = [
  ["pretrain", "pretrain", { ar, pretrain: { classDropout: 0.2, noise: 0.2, microBatch: 2, cache: false } }],
  ["cached", "pretrain", { ar, pretrain: { cache: true }, train: { shardOptimizer: true } }],
  [
    "classifier",
    "classifier",
    { classifier: { shift: 1, jitter: 0.2, erase: 0.3 }, train: { shardOptimizer: true } },
  ],
  ["tokenizer", "tokenizer", { loss: { restartAfter: 2, gan: { weight: 0 } } }],
];

for (const [name, command, changes] of CASES) {
  test(`${name} by 1, 2 and 4 processes`, async (t) => {
    const folder = await tinyFolder(t, 30);
    const dirs: string[] = [];
    for (const size of [1, 2, 4]) {
      const dir = join(folder, `run-${size}`);
      dirs.push(dir);
      const config = {
        run: { dir, ifExists: "fail" },
        ema: { decay: 0.9 },
        eval: { every: 2, images: 5 },
        save: { every: 2 },
        ...changes,
        train: { iters: 4, ...("train" in changes ? (changes.train as object) : {}) },
      };
      const ended = await (await start("support/fit_run.js", size, [folder, JSON.stringify(config), command]))
        .ended;
      const errors = ended.map(({ err }) => err).join("\n");
      for (const { code } of ended) assert.equal(code, 0, errors);
    }
    const [one, ...others] = dirs as [string, ...string[]];
    for (const other of others) {
      assertSameMetrics(one, other, 5e-3);
      for (const file of ["model.safetensors", "model_ema.safetensors", "model_optimizer.safetensors"])
        assert.ok(
          difference(one, other, file) < 1e-4,
          `${other}: ${file} differs by ${difference(one, other, file)}`,
        );
    }
  });
}
