/**
 * How often a rollout and an update wait for the values of a tensor. On a GPU each wait lets the queue of kernels run empty,
 * so the count must not grow with the number of codes, layers or micro-batches.
 */
import assert from "node:assert/strict";
import { test } from "node:test";

import { AdamW } from "../../src/nn/index.js";
import { LlamaGen } from "../../src/policies/index.js";
import { grpoUpdate } from "../../src/rl_ar_finetune/optimize.js";
import { type Rollout, type RolloutContext, sampleRollout } from "../../src/rl_ar_finetune/rollout.js";
import { manualSeed, rand, randint, Tensor, tidy } from "../../src/torch/index.js";

/** Calls that read values, while `fn` runs. */
function readsOf(fn: () => void): number {
  const readers = ["item", "toArray", "toList"] as const;
  const before = readers.map((name) => Tensor.prototype[name] as (...args: unknown[]) => unknown);
  let count = 0;
  let depth = 0; // toList may call toArray
  for (const [i, name] of readers.entries()) {
    (Tensor.prototype as unknown as Record<string, unknown>)[name] = function (...args: unknown[]) {
      if (depth === 0) count++;
      depth++;
      try {
        return before[i]?.apply(this, args);
      } finally {
        depth--;
      }
    };
  }
  try {
    fn();
  } finally {
    for (const [i, name] of readers.entries())
      (Tensor.prototype as unknown as Record<string, unknown>)[name] = before[i];
  }
  return count;
}

const CONTEXTS: readonly [RolloutContext, wanted: number][] = [
  // The check at the end that all log-probabilities are finite, and one of the codes that are given.
  [{ type: "free" }, 1],
  [{ type: "prefix", length: 2 }, 2],
  [{ type: "noisy_teacher_forced", noise: 0.5 }, 1],
];

for (const [context, wanted] of CONTEXTS) {
  test(`${context.type}: a rollout reads values ${wanted} times, and the update for each of its steps, whatever the lengths`, () => {
    for (const [blockSize, nLayer, microBatch] of [
      [4, 1, 4],
      [16, 2, 1],
    ] as const) {
      tidy(() => {
        manualSeed(1);
        const policy = new LlamaGen({ dim: 16, nLayer, nHead: 2, vocabSize: 11, blockSize, numClasses: 3 });
        using optimizer = new AdamW(policy.parameters(), { lr: 1e-3 });
        const trueCodes = randint(0, 11, [2, blockSize]);
        let rollout: Rollout | undefined;
        const drawing = readsOf(() => {
          // Classes are checked where they are on the CPU; without them nothing but the codes is.
          rollout = sampleRollout(policy, {}, { context, trueCodes, numGenerations: 3 });
        });
        assert.equal(drawing, wanted, `${blockSize} codes`);
        const batch = { ...(rollout as Rollout), rewards: rand([2, 3]), trueCodes };
        const updating = readsOf(() => grpoUpdate(policy, optimizer, batch, { auxCe: 0.1, microBatch }));
        // Advantages, the sums of the step, the gradient's norm.
        assert.ok(updating <= 4, `${updating} reads in the update of ${blockSize} codes`);
      });
    }
  });
}
