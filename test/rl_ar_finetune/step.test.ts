/** Metrics of an iteration, by hand. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { reconstructionTerm } from "../../src/rl_ar_finetune/rewards.js";
import type { Rollout } from "../../src/rl_ar_finetune/rollout.js";
import { machineMetrics, rewardSpreads, rolloutMetrics } from "../../src/rl_ar_finetune/step.js";
import { tensor } from "../../src/torch/index.js";
import { noLeak } from "../support/leak.js";

const LONG = { dtype: "int64" } as const;
const F64 = { dtype: "float64" } as const;

/** Two images, two sequences each: the first image's are alike. */
const tokens = tensor(
  [
    [
      [0, 0, 1],
      [0, 0, 1],
    ],
    [
      [0, 0, 3],
      [1, 0, 0],
    ],
  ],
  LONG,
);
const rollout = { tokens, entropy: tensor([[[0.5, 1, 1.5]]]) } as unknown as Rollout;
const plain = {
  total: tensor(
    [
      [-1, -3],
      [-2, -2],
    ],
    F64,
  ), // deviations sqrt(2) and 0
  terms: {
    l2: tensor(
      [
        [1, 2],
        [1, 2],
      ],
      F64,
    ),
    ssim: tensor(
      [
        [0.5, 0],
        [0.25, 0.25],
      ],
      F64,
    ),
  },
};
const terms = [reconstructionTerm("l2", { weight: 3 }), reconstructionTerm("ssim", { weight: 2 })];

test("a rollout's", () => {
  const ceiling = tensor([[-0.5], [-0.7]], F64);
  const metrics = noLeak(() => rolloutMetrics(rollout, plain, ceiling, terms, 8));
  // Codes 0, 1 and 3 came 8, 3 and 1 times of 12.
  const usage = [8, 3, 1].reduce((sum, n) => sum - (n / 12) * Math.log(n / 12), 0);
  const wanted = {
    "reward/vq_ceiling": -0.6,
    "reward/gap": 1.4,
    "reward/group_std": Math.SQRT2 / 2,
    "reward/l2/weighted": -4.5,
    "reward/ssim/weighted": 0.5,
    "policy/entropy": 1,
    "policy/entropy_frac": 1 / Math.log(8),
    "tokens/codebook_usage": 3 / 8,
    "tokens/token_perplexity": Math.exp(usage),
    "tokens/unique_frac": 3 / 4,
  };
  assert.deepEqual(Object.keys(metrics), Object.keys(wanted));
  for (const [name, value] of Object.entries(wanted))
    assert.ok(Math.abs((metrics[name] as number) - value) < 1e-9, `${name}: ${metrics[name]}, not ${value}`);
  const one = { total: tensor([[-1]], F64), terms: {} };
  assert.equal(rolloutMetrics(rollout, one, tensor([[0]], F64), [], 8)["reward/group_std"], 0);
});

test("the rewards' spread, and the machine's", () => {
  const spreads = rewardSpreads(plain);
  assert.deepEqual(Object.keys(spreads), ["reward", "reward/l2", "reward/ssim"]);
  assert.deepEqual([spreads.reward?.mean, spreads.reward?.min, spreads.reward?.count], [-2, -3, 4]);
  const machine = machineMetrics(2, { tokens: 100, images: 3 }, "cpu");
  assert.deepEqual(
    [machine["perf/step_s"], machine["perf/tokens_per_s"], machine["perf/images_per_s"]],
    [2, 50, 1.5],
  );
  assert.equal(machine["perf/gpu_mem_peak_gb"], undefined);
});
