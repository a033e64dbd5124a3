/** From the configuration to options of the parts. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { resolveConfig, type TrainConfig } from "../../src/config/resolve.js";
import type { ArPolicy } from "../../src/policies/index.js";
import type { UpdateOptions } from "../../src/rl_ar_finetune/optimize.js";
import {
  algorithmOptions,
  contextAt,
  evalSamplingOf,
  keepsGraph,
  lrScheduleOf,
  needsCeiling,
  rolloutSamplingOf,
} from "../../src/rl_ar_finetune/settings.js";
import { groupOf, readOptionsOf, sourceOptionsOf } from "../../src/run/images.js";

const set = (...overrides: string[]): TrainConfig => resolveConfig({ overrides, isComplete: false }).config;

test("sampling: no guidance at scale 1, which would cost a second pass", () => {
  assert.deepEqual(rolloutSamplingOf(set("rollout.topK=5")), { temperature: 1, topK: 5, topP: 1 });
  assert.deepEqual(
    rolloutSamplingOf(set("rollout.guidance={scale: 2, schedule: power_cosine, power: 3}")).guidance,
    {
      scale: 2,
      schedule: "power_cosine",
      power: 3,
    },
  );
  assert.deepEqual(
    rolloutSamplingOf(set("rollout.guidance={scale: 2, interval: [1, 4]}")).guidance?.interval,
    [1, 4],
  );
  const config = set("rollout.temperature=0.9", "rollout.topK=7", "eval.temperature=0.5", "eval.topP=0.8");
  assert.deepEqual(evalSamplingOf(config), { temperature: 0.5, topK: 7, topP: 0.8 });
});

test("contexts and their ramps", () => {
  assert.deepEqual(contextAt(set(), 3, 64), { type: "free" });
  assert.deepEqual(contextAt(set("rollout.context=teacher_forced"), 3, 64), { type: "teacher_forced" });
  assert.deepEqual(contextAt(set("rollout.context=prefix"), 0, 65), { type: "prefix", length: 32 });
  const prefix = set("rollout.context={type: prefix, length: 3, ramp: 10}");
  assert.deepEqual(
    [0, 5, 10, 99].map((step) => contextAt(prefix, step, 64)),
    [63, 33, 3, 3].map((length) => ({ type: "prefix", length })),
  );
  const noisy = set("rollout.context={type: noisy_teacher_forced, noise: 0.5, ramp: 4}");
  assert.deepEqual(
    [0, 1, 4, 5].map((step) => contextAt(noisy, step, 64)),
    [0, 0.125, 0.5, 0.5].map((noise) => ({ type: "noisy_teacher_forced", noise })),
  );
});

test("the learning rate's schedule", () => {
  const cosine = lrScheduleOf(set("train.iters=100", "optimizer.warmup=0.03", "optimizer.finalLr=0.1"));
  assert.deepEqual([0, 1, 2, 3].map(cosine), [0.25, 0.5, 0.75, 1]);
  assert.equal(cosine(100), 0.1);
  const line = lrScheduleOf(set("train.iters=10", "optimizer={warmup: 0, schedule: linear, finalLr: 0}"));
  assert.deepEqual([0, 5, 10].map(line), [1, 0.5, 0]);
  const constant = lrScheduleOf(set("train.iters=10", "optimizer={warmup: 0, schedule: constant}"));
  assert.deepEqual([0, 5, 10].map(constant), [1, 1, 1]);
  assert.equal(lrScheduleOf(set("train.iters=1", "optimizer.warmup=0.9"))(0), 1);
});

test("each algorithm gets its own options, and null is no limit", () => {
  const tokens = { topEntropy: 1, constantGroups: "keep", tokenDropout: 0 };
  const common = { auxCe: 0.1, entropyCoef: 0, ...tokens, maxGradNorm: 1, maxRatioGap: 0.1 };
  assert.deepEqual(algorithmOptions(set()), {
    algorithm: "grpo",
    options: {
      ...common,
      epochs: 1,
      aggregation: "mean",
      advantageClip: 5,
      targetKl: Infinity,
      clipLow: 0.2,
      clipHigh: 0.28,
      level: "token",
      scale: "group",
      objective: "clip",
      ratioCap: 5,
      minStd: 1e-6,
    },
  });
  assert.deepEqual(algorithmOptions(set("algorithm=rloo", "update.miniBatch=4", "update.microBatch=2")), {
    algorithm: "rloo",
    options: {
      ...common,
      miniBatch: 4,
      microBatch: 2,
      epochs: 1,
      aggregation: "sum",
      advantageClip: Infinity,
      targetKl: Infinity,
      minStd: 1e-6,
    },
  });
  const ppo = algorithmOptions(
    set(
      "algorithm=ppo",
      "ppo.targetKl=null",
      "ppo.valueClip=null",
      "ppo.dualClip=3",
      "optimizer.maxGradNorm=null",
    ),
  );
  const { maxGradNorm: _, ...ungated } = common;
  assert.deepEqual(ppo, {
    algorithm: "ppo",
    options: {
      ...ungated,
      epochs: 4,
      aggregation: "mean",
      advantageClip: Infinity,
      targetKl: Infinity,
      clipLow: 0.2,
      clipHigh: 0.2,
      dualClip: 3,
      gamma: 1,
      lambda: 0.95,
      valueCoef: 0.1,
      valueClip: null,
      detachTrunk: true,
      whiten: true,
    },
  });
  const byPlace = algorithmOptions(set("reward={credit: place, creditDecay: 0.5}")).options;
  assert.equal((byPlace as UpdateOptions).creditDecay, 0.5);
  const { algorithm, options } = algorithmOptions(set("algorithm=reinforce"));
  const { aggregation, epochs } = options as UpdateOptions;
  assert.deepEqual([algorithm, aggregation, epochs], ["reinforce", "sum", 1]);
  const chosen = ["update={auxCe: 0.2, entropyCoef: 0.01, miniBatch: 4, microBatch: 2}", "ste.tau=0.5"];
  const given = ["rollout.context.type=teacher_forced", "rollout.numGenerations=2"];
  assert.deepEqual(algorithmOptions(set("algorithm=ste", ...chosen, ...given)), {
    algorithm: "ste",
    options: {
      tau: 0.5,
      numGenerations: 2,
      auxCe: 0.2,
      entropyCoef: 0.01,
      maxGradNorm: 1,
      miniBatch: 4,
      microBatch: 2,
    },
  });
});

test("the pull towards a reference", () => {
  const reference = { name: "reference" } as unknown as ArPolicy;
  const pull = (...args: Parameters<typeof algorithmOptions>) =>
    (algorithmOptions(...args).options as UpdateOptions).kl;
  assert.equal(pull(set("kl.coef=0.1")), undefined);
  assert.deepEqual(pull(set("kl.coef=0.1"), reference), { coef: 0.1, reference });
  const all = set("kl={coef: 0.1, estimator: exact, placement: reward}");
  assert.deepEqual(pull(all, reference), { coef: 0.1, reference, estimator: "exact", placement: "reward" });
  assert.deepEqual(pull(set("kl.stop=1"), reference), { coef: 0, reference });
  assert.deepEqual(pull(set("kl={coef: 0.1, target: 0.02}"), reference, 0.3), { coef: 0.3, reference });
});

test("data", () => {
  assert.deepEqual(sourceOptionsOf(set()), {});
  assert.deepEqual(sourceOptionsOf(set("data={label: none, image: png, classNames: [a]}")), {
    label: null,
    image: "png",
    classNames: ["a"],
  });
  assert.deepEqual(readOptionsOf(set("data={size: 64, flip: true, workers: 2}", "seed=3")), {
    batchSize: 16,
    size: 64,
    crop: "center",
    flip: true,
    balance: 0,
    seed: 3,
    workers: 2,
  });
  assert.equal(groupOf(set()), undefined);
  const groups = groupOf(set("data.group='^[^/]+/(.*)'"));
  assert.deepEqual(
    ["noto/1f600.png", "fluent/1f600.png", "alone.png"].map((id) => groups?.(id)),
    ["1f600.png", "1f600.png", "alone.png"],
  );
  assert.equal(groupOf(set("data.group='^[0-9a-f]+'"))?.("1f600-dark.png"), "1f600");
});

test("a rollout's graph is kept only where it is asked for and can be", () => {
  assert.equal(keepsGraph(set()), false);
  assert.equal(keepsGraph(set("rollout.keepGraph=true", "rollout.context=teacher_forced")), true);
});

test("the ceiling is measured at the first step, and at those that are shown", () => {
  const config = set("log.every=4", "log.imagesEvery=6", "train.iters=14");
  const measured = Array.from({ length: 14 }, (_, i) => i + 1).filter((step) =>
    needsCeiling(config, step - 1),
  );
  assert.deepEqual(measured, [1, 4, 6, 8, 12, 14]);
  const bare = set("log.every=100", "log.imagesEvery=0", "train.iters=5");
  assert.deepEqual(
    [0, 1, 2, 3, 4].filter((step) => needsCeiling(bare, step)),
    [0, 4],
  );
});
