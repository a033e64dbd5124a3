/** Evaluation: the same images and draws every time, worked by hand where a tokenizer's images are known. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { resolveConfig } from "../../src/config/resolve.js";
import { Batch } from "../../src/data/batch.js";
import { buildClassifier } from "../../src/rl_ar_finetune/builder.js";
import { decodeFor } from "../../src/rl_ar_finetune/decode.js";
import { type Evaluation, evaluate, isHacked } from "../../src/rl_ar_finetune/evaluate.js";
import { openRunParts } from "../../src/rl_ar_finetune/parts.js";
import { creditFor, rolloutFor } from "../../src/rl_ar_finetune/step.js";
import {
  Generator,
  manualSeed,
  noGrad,
  randint,
  saveSafetensors,
  tensor,
  tidy,
  zeros,
} from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { tinyFolder, tinyRun } from "../support/train_run.js";

const spread = (mean: number) => ({ count: 2, mean, std: 0, min: mean, max: mean });

const evaluation = (means: Record<string, number>): Evaluation => ({
  spreads: Object.fromEntries(Object.entries(means).map(([name, mean]) => [`eval/${name}`, spread(mean)])),
  metrics: {},
});

test("the reward is gamed when it rises and every metric outside it gets worse", () => {
  const first = evaluation({ reward: -1, l1: 0.5, l2: 0.25, psnr: 12, ssim: 0.5 });
  const of = (means: Record<string, number>, ...rewarded: string[]): boolean =>
    isHacked(first, evaluation(means), new Set(rewarded));
  assert.equal(of({ reward: -0.5, l1: 0.6, l2: 0.3, psnr: 11, ssim: 0.4 }), true);
  assert.equal(of({ reward: -0.5, l1: 0.6, l2: 0.3, psnr: 11, ssim: 0.51 }), false);
  assert.equal(of({ reward: -0.5, l1: 0.6, l2: 0.3, psnr: 11, ssim: 0.51 }, "ssim"), true);
  assert.equal(of({ reward: -1, l1: 0.6, l2: 0.3, psnr: 11, ssim: 0.4 }), false);
  assert.equal(of({ reward: -0.5 }, "l1", "l2", "psnr", "ssim"), false);
});

test("the distance that no reward uses is watched where it is measured", () => {
  const first = evaluation({ reward: -1, l1: 0.5, l2: 0.25, psnr: 12, ssim: 0.5, perceptual_held_out: 1 });
  const worse = { reward: -0.5, l1: 0.6, l2: 0.3, psnr: 11, ssim: 0.4 };
  const of = (distance: number, ...rewarded: string[]): boolean =>
    isHacked(first, evaluation({ ...worse, perceptual_held_out: distance }), new Set(rewarded));
  assert.equal(of(1.1), true);
  assert.equal(of(0.9), false);
  assert.equal(of(0.9, "l1", "l2", "psnr", "ssim"), false);
  assert.equal(of(1.1, "l1", "l2", "psnr", "ssim", "perceptual"), true);
});

test("a classifier's distance is rewarded and another's is watched, each by its own name", async (t) => {
  const folder = await tinyFolder(t);
  const [one, other] = ["one", "other"].map((name, seed) => {
    manualSeed(seed);
    const network = buildClassifier({ numClasses: 2, widths: [8, 16] });
    const path = join(folder, `${name}.safetensors`);
    saveSafetensors(path, network.stateDict(), { config: JSON.stringify(network.config) });
    network.dispose();
    return path;
  });
  const values = {
    reward: { l2: { weight: 0 }, perceptual: { weight: 3, path: one } },
    eval: { every: 1, images: 2, numGenerations: 2, perceptual: other },
    data: { evalPart: 0.3 },
  };
  const { config } = resolveConfig({ values: tinyRun(folder, values) });
  const parts = await openRunParts(config);
  assert.deepEqual(
    parts.terms.map(({ name, weight, sign }) => [name, weight, sign]),
    [["perceptual", 3, -1]],
  );
  const { spreads } = await evaluate(config, parts);
  const mean = (name: string): number => spreads[`eval/${name}`]?.mean as number;
  assert.ok(mean("perceptual") > 0 && mean("perceptual_held_out") > 0);
  assert.ok(Math.abs(mean("reward") + 3 * mean("perceptual")) < 1e-12);
  assert.notEqual(mean("perceptual"), mean("perceptual_held_out"));
  assert.throws(
    () => resolveConfig({ values: tinyRun(folder, { ...values, eval: { perceptual: one } }) }),
    ({ message }: Error) =>
      message.startsWith("config.eval.perceptual: expected another file than reward.perceptual.path") &&
      message.includes(`got ${one}.`),
  );
});

test("two evaluations of a policy are the same, and its numbers are those of the images", async (t) => {
  const folder = await tinyFolder(t);
  const values = {
    reward: { l2: { weight: 2 } },
    rollout: { images: 3 },
    eval: { every: 1, images: 4, numGenerations: 3 },
    data: { evalPart: 0.3 },
  };
  const { config } = resolveConfig({ values: tinyRun(folder, values) });
  const parts = await openRunParts(config);
  assert.equal(parts.evalImages, 4);
  const first = await evaluate(config, parts);
  const again = await evaluate(config, parts);
  assert.deepEqual(again, first);

  const { spreads } = first;
  // 4 images in batches of 3 and 1, with 3 samples each.
  assert.equal(spreads["eval/l2"]?.count, 12);
  const l2 = spreads["eval/l2"]?.mean as number;
  assert.ok(Math.abs((spreads["eval/reward"]?.mean as number) + 2 * l2) < 1e-12);
  // Random weights are about uniform over 32 codes.
  assert.ok(Math.abs((spreads["eval/nats_per_token"]?.mean as number) - Math.log(32)) < 0.1);
  for (const name of ["l1", "psnr", "ssim", "diversity"])
    assert.ok(Number.isFinite(spreads[`eval/${name}`]?.mean), name);
  const usage = first.metrics["eval/codebook_usage"] as number;
  assert.ok(usage > 0 && usage <= 1 && Number.isInteger(usage * 32));

  // Another policy is judged otherwise.
  noGrad(() => {
    for (const parameter of parts.policy.parameters()) parameter.mul_(-3);
  });
  assert.notDeepEqual(await evaluate(config, parts), first);
});

test("adapters are in the weights while codes are drawn one by one, and apart otherwise", async (t) => {
  const folder = await tinyFolder(t);
  const { config } = resolveConfig({ values: tinyRun(folder, { ar: { lora: { rank: 2 } } }) });
  using parts = await openRunParts(config);
  const { lora, policy } = parts;
  assert.ok(lora !== null);
  noGrad(() => {
    for (const parameter of lora.parameters()) parameter.fill_(0.05);
  });
  const seen: boolean[] = [];
  const hidden = policy.logits.bind(policy);
  policy.logits = (x) => {
    seen.push(lora.isMerged);
    return hidden(x);
  };
  const trueCodes = randint(0, 32, [2, 16]);
  const draw = (type: "prefix" | "free" | "teacher_forced"): readonly boolean[] => {
    seen.length = 0;
    tidy(() =>
      rolloutFor(
        config,
        parts,
        { classes: tensor([0, 1], { dtype: "int64" }) },
        {
          context: type === "prefix" ? { type, length: 4 } : { type },
          numGenerations: 2,
          trueCodes,
          generator: new Generator(1),
        },
      ),
    );
    assert.equal(lora.isMerged, false);
    return [...new Set(seen)];
  };
  assert.deepEqual(draw("teacher_forced"), [false]);
  assert.deepEqual(draw("prefix"), [true]);
  assert.deepEqual(draw("free"), [true]);
  policy.to({ dtype: "bfloat16" }); // too narrow to add to
  assert.deepEqual(draw("free"), [false]);
});

test("by place, the shares of an image sum to its reward, and given codes keep theirs", async (t) => {
  const folder = await tinyFolder(t);
  const of = (reward: object) => resolveConfig({ values: tinyRun(folder, { reward }) }).config;
  const config = of({ credit: "place" });
  using parts = await openRunParts(config);
  manualSeed(2);
  const codes = randint(0, 32, [2, 3, 16]);
  const images = parts.tokenizer.decodeCode(randint(0, 32, [2, 16])).clamp(-1, 1);
  const cursor = { epoch: 0, position: 0 };
  const batch = new Batch({ images, classes: zeros([2], { dtype: "int64" }), ids: ["a", "b"], cursor });
  using judged = await decodeFor(config, parts, { batch, codes, trueCodes: null, step: 1 });
  const sequence = creditFor(of({}), parts, judged, 16);
  assert.deepEqual(sequence.rewards.shape, [2, 3]);
  const all = creditFor(config, parts, judged, 16);
  expectClose(all.rewards.sum(2), sequence.rewards, { rtol: 1e-6 });
  expectClose(all.plain.total, sequence.plain.total, { rtol: 1e-6 });
  const some = creditFor(config, parts, judged, 5);
  expectClose(some.rewards, all.rewards.narrow(2, 11, 5), { rtol: 1e-12 });
  expectClose(some.plain.total, all.plain.total, { rtol: 1e-12 });
});
