import assert from "node:assert/strict";
import { readdirSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { rlarCommand } from "../../src/config/command.js";
import { resolveConfig, type TrainConfigInput } from "../../src/config/resolve.js";
import { planTrain, type TrainPlan } from "../../src/plan/plan.js";
import { openRunParts } from "../../src/rl_ar_finetune/parts.js";
import { memory } from "../../src/torch/index.js";
import { quietRun, tinyFolder, tinyRun } from "../support/train_run.js";
import "../support/settle.js";

async function planOf(
  folder: string,
  changes: Record<string, unknown> = {},
  measure = false,
): Promise<TrainPlan> {
  const { config } = resolveConfig({ values: tinyRun(folder, changes as TrainConfigInput) });
  return await planTrain(config, { measure });
}

test("a plan counts images, batches, parameters, bytes and files without loading anything", async (t) => {
  const folder = await tinyFolder(t);
  const before = memory();
  const plan = await planOf(folder, {
    algorithm: "ppo",
    eval: { every: 2, images: 100 },
    ema: { decay: 0.9 },
    update: { miniBatch: 2, microBatch: 2 },
    train: { iters: 5 },
    save: { every: 1, keep: 2 },
    log: { every: 1, imagesEvery: 2 },
  });
  const now = memory();
  assert.deepEqual([now.tensors, now.bytes], [before.tensors, before.bytes]);

  // Blocks 12 D^2 + 13 D, tables of 32 codes twice, 16 places, 3 classes and the null class, the last norm.
  const d = 16;
  const policy = 12 * d * d + 13 * d + 2 * 32 * d + 16 * d + 4 * d + 2 * d;
  assert.deepEqual(plan.models.slice(0, 2), [
    { name: "policy", what: "GPT", parameters: policy, trained: policy },
    { name: "value head", what: "linear", parameters: d + 1, trained: d + 1 },
  ]);
  assert.equal(plan.models[2]?.name, "tokenizer");
  assert.equal((plan.images?.train ?? 0) + (plan.images?.heldOut ?? 0), 20);
  const train = plan.images?.train as number;
  assert.deepEqual(plan.batch, {
    images: 4,
    numGenerations: 2,
    codes: 16,
    // Half of the codes are given.
    tokens: 8 * 8,
    sequences: 8,
    rowsAnImage: 2,
    rows: 8,
    miniBatch: 2,
    miniBatches: 2,
    steps: 8,
    microBatch: 2,
    microBatchesAStep: 2,
    redraws: 0,
    iters: 5,
    stepsPerEpoch: train / 4,
    epochs: 20 / train,
  });
  const { memory: taken } = plan;
  const bytesOf = (name: string): number | undefined => taken.fixed.find((one) => one.name === name)?.bytes;
  const moved = policy + d + 1;
  assert.deepEqual(
    [bytesOf("policy"), bytesOf("optimizer"), bytesOf("EMA of the weights"), bytesOf("reference")],
    [4 * policy, 8 * moved, 4 * policy, undefined],
  );
  const largest = Math.max(...taken.phases.map(({ bytes }) => bytes));
  assert.equal(taken.peakBytes, largest + taken.fixed.reduce((sum, { bytes }) => sum + bytes, 0));
  for (const { bytes, parts } of taken.phases) {
    assert.equal(
      parts.reduce((sum, part) => sum + part.bytes, 0),
      bytes,
    );
  }
  const update = taken.phases.find(({ name }) => name === "update");
  // Beside the gradients, the largest weight's is there twice while it is added up.
  assert.equal(update?.parts.find(({ name }) => name === "gradients")?.bytes, 4 * (moved + 4 * d * d));
  assert.equal(taken.fits, "yes");
  // Weights, two moments, the average and the value head; two newest, the best and the one being written.
  assert.equal(plan.disk.checkpointBytes, 4 * (policy + 2 * moved + (d + 1) + policy));
  assert.equal(plan.disk.checkpointsBytes, 4 * plan.disk.checkpointBytes);
  // Three pages of 4 rows of an image, its reconstruction, what is given and 2 samples, four of 4 rows with 4 samples, all
  // enlarged: 4.2 bytes per pixel before that, twice for TensorBoard; and 6,000 bytes a step.
  const pages = (3 * 4 * (3 + 2) + 4 * 4 * (3 + 4)) * 16 ** 2 * 4.2;
  assert.equal(plan.disk.logBytes, 5 * 6000 + Math.ceil(2 * pages));
  assert.equal(plan.time, null);
  const step = Object.values(plan.flops.step).reduce((sum, flops) => sum + flops, 0);
  // Before the first step, after the second, fourth and last.
  assert.equal(plan.flops.total, 5 * step + 4 * plan.flops.evaluation);
});

test("what is measured adds up", async (t) => {
  const folder = await tinyFolder(t);
  const { time } = await planOf(folder, { eval: { every: 1, images: 2 }, train: { iters: 3 } }, true);
  assert.ok(time !== null);
  for (const rate of Object.values(time.rates)) assert.ok(rate > 0 && Number.isFinite(rate));
  const step = Object.values(time.step).reduce((sum, seconds) => sum + seconds, 0);
  assert.equal(time.stepSeconds, step);
  assert.ok(time.evaluationSeconds > 0);
  assert.equal(time.totalSeconds, 3 * step + 4 * time.evaluationSeconds);
});

test("of several processes each has its share of the images, and with a sharded optimizer of its state", async (t) => {
  const folder = await tinyFolder(t);
  const values = tinyRun(folder, { train: { iters: 3, shardOptimizer: true }, grpo: { epochs: 2 } });
  const { config } = resolveConfig({ values });
  const [one, two] = [
    await planTrain(config, { measure: false }),
    await planTrain(config, { measure: false, processes: 2 }),
  ];
  const bytesOf = ({ memory }: TrainPlan, name: string): number =>
    memory.fixed.find((part) => part.name === name)?.bytes ?? Number.NaN;
  assert.equal(bytesOf(two, "policy"), bytesOf(one, "policy"));
  assert.equal(bytesOf(two, "optimizer"), bytesOf(one, "optimizer") / 2);
  assert.equal(two.flops.total, one.flops.total / 2);
  assert.equal(one.processes, null);
  // Two optimizer steps: all-reduce by a ring of two sends as much as there is, and the weights stepped are sent once.
  const gradients = 4 * (one.models[0]?.trained ?? Number.NaN);
  const bytesAStep = gradients + gradients / 2;
  assert.deepEqual(two.processes, { count: 2, bytesAStep, bytesAnIteration: 2 * bytesAStep });
  await assert.rejects(
    planTrain(config, { processes: 5 }),
    /plan: processes: expected .* from 1 to 4.*, got 5/,
  );
});

test("the keys to lower follow from where memory is largest", async (t) => {
  const folder = await tinyFolder(t);
  const wide = await planOf(folder, { ar: { nEmbd: 96, nLayer: 3 }, kl: { coef: 0.1 }, ema: { decay: 0.9 } });
  assert.equal(wide.memory.largestPhase, "update");
  assert.deepEqual(wide.memory.lower, [
    "update.microBatch=4: activations of the update",
    "ar.gradientCheckpointing=true: activations, for a third more time",
    "rollout.images=2: everything of a rollout",
    "kl.coef=0: the reference",
    "ema.decay=null: no EMA of the weights",
    "ar.lora.rank=16: gradients, moments and averages of all but adapters",
  ]);
  assert.deepEqual(
    wide.models.map(({ name }) => name),
    ["policy", "reference", "tokenizer"],
  );
  const adapted = await planOf(folder, { ar: { lora: { rank: 2 } }, kl: { coef: 0.1 } });
  assert.deepEqual(
    adapted.models.map(({ name }) => name),
    ["policy", "tokenizer"],
  );
  assert.equal(adapted.models[0]?.trained, 2 * (4 * 32 + 2 * 80));
  for (const [kl, keys] of [
    [{ coef: 0.1, target: 0.02 }, "kl.coef=0 kl.target=null"],
    [{ coef: 0.1, stop: 1 }, "kl.coef=0 kl.stop=null"],
    [{ coef: 0, stop: 1 }, "kl.stop=null"],
  ] as const) {
    const { memory } = await planOf(folder, { kl });
    assert.ok(memory.lower.includes(`${keys}: the reference`), memory.lower.join("; "));
  }
});

test("checkpoints with adapters take the bytes that are planned", async (t) => {
  const folder = await tinyFolder(t);
  for (const ema of [{ decay: null }, { decay: 0.9 }]) {
    // Wide enough that headers count little.
    const changes = { ar: { nEmbd: 96, lora: { rank: 2 } }, ema, run: { dir: join(folder, `${ema.decay}`) } };
    const { disk } = await planOf(folder, changes);
    const { dir } = await quietRun(tinyRun(folder, changes));
    const at = join(dir, "checkpoints", "step_000002");
    const files = readdirSync(at).filter((name) => name.endsWith(".safetensors"));
    const bytes = files.reduce((sum, name) => sum + statSync(join(at, name)).size, 0);
    const ratio = bytes / disk.checkpointBytes;
    assert.ok(ratio > 0.98 && ratio < 1.05, `${bytes} of ${disk.checkpointBytes}`);
  }
});

test("files, sizes and data that do not go together are refused by name", async (t) => {
  const folder = await tinyFolder(t);
  const path = join(folder, "tokenizer.safetensors");
  await assert.rejects(planOf(folder, { data: { size: 18 } }), {
    message: "data.size: expected a multiple of 4, the pixels of a code, got 18.",
  });
  await assert.rejects(planOf(folder, { blockSize: 9 }), {
    message:
      "data.size: expected images of at most 9 codes, the policy's, got 16. Use images of 12 px, or another policy.",
  });
  await assert.rejects(planOf(folder, { ar: { path } }), {
    message: `${path}: expected a policy, got a tokenizer (VQ-4 (LlamaGen)). ${rlarCommand(["inspect", path])} shows what is in it.`,
  });
  await assert.rejects(planOf(folder, { reward: { lpips: { weight: 1, path } } }), {
    message: `${path}: expected LPIPS's backbone, a classifier or a PatchGAN discriminator, got a tokenizer (VQ-4 (LlamaGen)). ${rlarCommand(["inspect", path])} shows what is in it.`,
  });
  // By the plan and by the run, the same.
  const { config } = resolveConfig({
    values: tinyRun(folder, { ar: { lora: { rank: 2, targets: ["wq"] } } }),
  });
  for (const refused of [() => planTrain(config, { measure: false }), () => openRunParts(config)]) {
    await assert.rejects(refused, {
      message:
        "ar.lora.targets: expected ends of blocks.N.attn.key, blocks.N.attn.query, blocks.N.attn.value, " +
        "blocks.N.attn.proj, blocks.N.mlp.N, head, got [wq].",
    });
  }
  rmSync(path);
  await assert.rejects(
    planOf(folder),
    /tokenizer\.safetensors: expected a file that can be read, got ENOENT/,
  );
});
