/** What a plan says a run takes, against what small real runs took, phase by phase. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { resolveConfig, type TrainConfigInput } from "../../src/config/resolve.js";
import { planTrain } from "../../src/plan/plan.js";
import { Clock } from "../../src/run/metrics.js";
import { emptyCache, memory } from "../../src/torch/index.js";
import { quietRun, tinyFolder, tinyRun } from "../support/train_run.js";

/** The most memory up to each mark of the loop's clock, over what there was before the run. */
async function peakOf(config: TrainConfigInput): Promise<number> {
  emptyCache();
  const before = memory({ resetPeak: true }).bytes;
  const { mark } = Clock.prototype;
  let peak = 0;
  Clock.prototype.mark = function (name) {
    mark.call(this, name);
    peak = Math.max(peak, memory().peakBytes);
  };
  try {
    await quietRun(config);
  } finally {
    Clock.prototype.mark = mark;
  }
  return peak - before;
}

const RUNS: Readonly<Record<string, Record<string, unknown>>> = {
  "an update's activations": {},
  "small passes": {
    update: { microBatch: 4 },
    reward: { ssim: { weight: 1 } },
    rollout: { numGenerations: 8 },
  },
  "adapters and a divergence": { ar: { lora: { rank: 2 } }, kl: { coef: 0.1, estimator: "exact" } },
  "the straight-through baseline": { algorithm: "ste", rollout: { context: { type: "teacher_forced" } } },
};

test("the peak of a run is told within a quarter", async (t) => {
  const folder = await tinyFolder(t);
  const base = {
    run: { ifExists: "overwrite" },
    ar: { nLayer: 2, nHead: 4, nEmbd: 96 },
    rollout: { images: 8, numGenerations: 4 },
  };
  for (const [name, changes] of Object.entries(RUNS)) {
    const both = tinyRun(folder, base as TrainConfigInput) as Record<string, unknown>;
    const config = mergedOf(both, changes);
    const plan = await planTrain(resolveConfig({ values: config as TrainConfigInput }).config, {
      measure: false,
    });
    const ratio = plan.memory.peakBytes / (await peakOf(config as TrainConfigInput));
    assert.ok(ratio > 0.75 && ratio < 1.25, `${name}: ${ratio} at ${plan.memory.largestPhase}`);
  }
});

function mergedOf(base: Record<string, unknown>, changes: Record<string, unknown>): Record<string, unknown> {
  const result = { ...base };
  for (const [key, value] of Object.entries(changes)) {
    const before = result[key];
    const isSection =
      typeof value === "object" && value !== null && typeof before === "object" && before !== null;
    result[key] = isSection
      ? mergedOf(before as Record<string, unknown>, value as Record<string, unknown>)
      : value;
  }
  return result;
}
