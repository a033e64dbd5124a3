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

const LLAMA = { type: "llamagen", nLayer: 3, nHead: 4, nEmbd: 192, extra: { numClasses: 3 } };
const TEACHER = { rollout: { context: { type: "teacher_forced" } } };

const RUNS: Readonly<Record<string, Record<string, unknown>>> = {
  "a single pass": {},
  "gradients that are there in later passes": {
    ar: { nLayer: 3, nEmbd: 192 },
    update: { microBatch: 4 },
    kl: { coef: 0.1 },
    ema: { decay: 0.9 },
  },
  "gated blocks": { ar: LLAMA },
  "gradient checkpointing": { ar: { nLayer: 6, gradientCheckpointing: true } },
  bfloat16: { ar: { nLayer: 3, nEmbd: 192 }, precision: { policy: "bfloat16" } },
  guidance: { rollout: { guidance: { scale: 2 } } },
  "keys and values": {
    ar: { nLayer: 4, nEmbd: 192 },
    rollout: { context: { type: "free" }, numGenerations: 16 },
    update: { microBatch: 2 },
  },
  "a comparison's maps": {
    update: { microBatch: 4 },
    reward: { ssim: { weight: 1 } },
    rollout: { numGenerations: 8 },
  },
  "an evaluation of fewer images than a step's": {
    eval: { every: 1, images: 4, numGenerations: 16 },
    update: { microBatch: 2 },
  },
  adapters: { ar: { ...LLAMA, lora: { rank: 4 } } },
  "adapters and an exact divergence": {
    ar: { lora: { rank: 2 } },
    kl: { coef: 0.1, estimator: "exact" },
  },
  "an exact divergence in the reward": { kl: { coef: 0.1, estimator: "exact", placement: "reward" } },
  "noisy contexts": {
    rollout: { context: { type: "noisy_teacher_forced", noise: 0.5 } },
    update: { auxCe: 0.1 },
  },
  "the straight-through baseline": { algorithm: "ste", ...TEACHER },
};

test("the peak of a run is told within an eighth", async (t) => {
  const folder = await tinyFolder(t);
  const base = {
    run: { ifExists: "overwrite" },
    ar: { nLayer: 2, nHead: 4, nEmbd: 96 },
    rollout: { images: 8, numGenerations: 4 },
  };
  for (const [name, changes] of Object.entries(RUNS)) {
    const config = tinyRun(folder, merged(base, changes) as TrainConfigInput) as {
      ar: { type: string; extra: object };
    } & TrainConfigInput;
    if (config.ar.type === "llamagen") config.ar.extra = LLAMA.extra;
    const plan = await planTrain(resolveConfig({ values: config }).config, { measure: false });
    const ratio = plan.memory.peakBytes / (await peakOf(config));
    assert.ok(ratio > 7 / 8 && ratio < 9 / 8, `${name}: ${ratio} at ${plan.memory.largestPhase}`);
  }
});

function merged(base: object, changes: object): Record<string, unknown> {
  const result = { ...base } as Record<string, unknown>;
  for (const [key, value] of Object.entries(changes)) {
    const before = result[key];
    const isSection =
      typeof value === "object" && value !== null && typeof before === "object" && before !== null;
    result[key] = isSection ? merged(before, value) : value;
  }
  return result;
}
