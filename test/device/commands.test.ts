/**
 * Every command that computes, whole, with `device: "cuda"`: from files to results. Where there is no GPU, it is one that is
 * not there (`test/support/fake_gpu.ts`): what only a GPU would refuse throws here.
 */
import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";

import { embed } from "../../src/cli/embed.js";
import { reconstruct } from "../../src/cli/reconstruct.js";
import { sample } from "../../src/cli/sample.js";
import { classifierKind } from "../../src/config/classifier.js";
import { pretrainKind } from "../../src/config/pretrain.js";
import { resolveConfig } from "../../src/config/resolve.js";
import { tokenizerKind } from "../../src/config/tokenizer.js";
import { evaluateModels } from "../../src/evaluation/judge_models.js";
import { GPT } from "../../src/policies/index.js";
import { buildClassifier, buildDiscriminator } from "../../src/rl_ar_finetune/builder.js";
import { openRunParts } from "../../src/rl_ar_finetune/parts.js";
import {
  type Device,
  hasCudaStatistics,
  isCudaAvailable,
  saveSafetensors,
  type Tensor,
  tidy,
} from "../../src/torch/index.js";
import { openClassifierTask } from "../../src/trainers/classifier.js";
import { fitLoop } from "../../src/trainers/loop.js";
import { openPretrainTask } from "../../src/trainers/policy.js";
import { openTokenizerTask } from "../../src/trainers/tokenizer.js";
import { writeEncoders } from "../support/encoders.js";
import { fakeGpu } from "../support/fake_gpu.js";
import { metricsOf, quietRun, Shown, tinyFolder, tinyRun, tinyTokenizer } from "../support/train_run.js";

/** Defaults of `rlar sample`. */
const SAMPLING = {
  checkpoint: "last",
  cfg: 1,
  cfgSchedule: "constant",
  temperature: 1,
  topK: 0,
  topP: 1,
  seed: 0,
  dtype: "float32",
} as const;

/** The machine's GPU, or the one that is not there. */
const openGpu = (): Disposable | null => (isCudaAvailable() ? null : fakeGpu());

type Values = Readonly<Record<string, unknown>>;

/** Run without the program's own output. */
async function silently(fn: () => Promise<void>): Promise<void> {
  const before = [process.stdout.write, process.stderr.write] as const;
  process.stdout.write = () => true;
  process.stderr.write = () => true;
  try {
    await fn();
  } finally {
    [process.stdout.write, process.stderr.write] = before;
  }
}

/** A short run of reinforcement learning with changes. */
async function train(
  folder: string,
  dir: string,
  device: Device,
  iters: number,
  changes: Values,
): Promise<void> {
  const run = { dir: join(folder, dir), ifExists: "resume" };
  const optimizer = { lr: 1e-3, schedule: "constant", warmup: 0 };
  await quietRun(tinyRun(folder, { run, optimizer, ...changes, train: { iters, device } }));
}

test("the GPU that is not there refuses what a GPU does", async () => {
  const {
    functional: F,
    Generator,
    noGrad,
    ones,
    randn,
    tensor,
    zeros,
  } = await import("../../src/torch/index.js");
  using gpu = fakeGpu();
  tidy(() => {
    const x = ones([2, 3], { device: "cuda" });
    using generator = new Generator(1);
    const cpu = ones([2, 3]);
    assert.equal(x.device, "cuda:0");
    assert.equal(cpu.device, "cpu");
    for (const refused of [
      () => x.add(cpu),
      () => x.matmul(ones([3, 2])),
      () => x.indexSelect(0, zeros([2], { dtype: "int64" })),
      () => cpu.index(zeros([2], { dtype: "int64", device: "cuda" })),
      () => randn([2], { device: "cuda", generator }),
      () => ones([]).add_(x),
      () => x.long().matmul(x.long().transpose(0, 1)),
    ])
      assert.throws(refused, /as a GPU would say/);
    const copy = cpu.to({ device: "cuda" });
    copy.add_(1);
    assert.equal(cpu.sum().item(), 6, "a copy");
    assert.equal(x.mul(tensor(2)).sum().item(), 12, "a number may lie on the CPU");
    assert.deepEqual([copy.device, copy.cpu().device, copy.grad], ["cuda:0", "cpu", null]);
    const weight = ones([3], { device: "cuda", requiresGrad: true });
    F.mseLoss(x.mul(weight), copy).backward();
    assert.equal(weight.grad?.device, "cuda:0");
    noGrad(() => weight.sub_(weight.grad as Tensor));
    assert.ok(gpu.reads.length >= 2 && gpu.blockingCopies.length >= 1, "what crossed is counted");
  });
});

test("train: a run that is resumed has the metrics of the CPU", async (t) => {
  const folder = await tinyFolder(t);
  const changes = {
    precision: { policy: "float32" },
    kl: { coef: 0.1 },
    ar: { lora: { rank: 2 } },
    data: { flip: true },
    eval: { every: 1, images: 4 },
    log: { imagesEvery: 1 },
  };
  await train(folder, "cpu", "cpu", 2, changes);
  using _ = openGpu();
  for (const iters of [1, 2]) await train(folder, "cuda", "cuda", iters, changes);
  const [cpu, cuda] = ["cpu", "cuda"].map((dir) => metricsOf(join(folder, dir)));
  assert.equal(cuda?.length, cpu?.length);
  const all = metricsOf(join(folder, "cuda"), { isPlain: false });
  const isMeasured = all.some((line) => "perf/gpu_mem_peak_gb" in line);
  assert.equal(isMeasured, hasCudaStatistics(), "the GPU's memory is logged where it can be measured");
  for (const [i, line] of (cpu ?? []).entries()) {
    for (const [name, value] of Object.entries(line)) {
      const got = cuda?.[i]?.[name];
      // The ceiling is measured in the first and the last step of a run.
      if (value === null || got === null || got === undefined || isCudaAvailable()) continue;
      const bound = 1e-4 * Math.max(1, Math.abs(value));
      assert.ok(Math.abs(got - value) < bound, `${name} of step ${line.step}: ${got}, on the CPU ${value}`);
    }
  }
});

test("train: every algorithm and context, with EMA, a refreshed reference and gradient checkpointing", async (t) => {
  const folder = await tinyFolder(t);
  using _ = openGpu();
  for (const [algorithm, changes] of Object.entries({
    ppo: {
      ema: { decay: 0.9 },
      update: { tokenDropout: 0.1 },
      rollout: { context: { type: "free" }, topK: 5 },
    },
    ste: { rollout: { context: { type: "noisy_teacher_forced" } } },
    reinforce: { reward: { credit: "place", ssim: { weight: 1 } }, ar: { gradientCheckpointing: true } },
    rloo: {
      rollout: { context: { type: "teacher_forced" }, keepGraph: true },
      kl: { coef: 0.1, refreshEvery: 1 },
    },
  } as Record<string, Values>))
    await train(folder, algorithm, "cuda", 1, { algorithm, save: { every: 0 }, ...changes });
});

/** Waits for the GPU, and copies to it, in a step of a run with changes. */
async function crossingsOf(folder: string, dir: string, changes: Values): Promise<Record<string, number>> {
  using gpu = fakeGpu();
  const counts = (): [string, number][] => Object.entries(gpu).map(([name, list]) => [name, list.length]);
  const seen: [string, number][][] = [];
  const fn = (_: Tensor, samples: Tensor): Tensor => {
    seen.push(counts());
    return samples.mean([1, 2, 3]);
  };
  await train(folder, dir, "cuda", 4, {
    reward: { custom: { counted: { fn } } },
    save: { every: 0 },
    ...changes,
  });
  // From the reward of step 2 to that of step 3, past the ceiling of step 1.
  const [before, after] = [seen[2], seen[3]];
  return Object.fromEntries(after?.map(([name, count], i) => [name, count - (before?.[i]?.[1] ?? 0)]) ?? []);
}

test("a step of a run waits for the GPU as often whatever its size, and never to copy something there", async (t) => {
  const folder = await tinyFolder(t);
  const small = await crossingsOf(folder, "small", {});
  // Codes of the prefix and range of the codes and images, metrics, the norm, the reward of the program and its context.
  assert.deepEqual(small, { reads: 15, blockingCopies: 0, asyncCopies: 4 });
  const large = { ar: { nLayer: 2 }, rollout: { numGenerations: 4 }, tokenizer: { decodeBatch: 2 } };
  assert.deepEqual(await crossingsOf(folder, "large", large), small);
});

test("train: every term of the reward, with networks in bfloat16", async (t) => {
  const folder = await tinyFolder(t);
  const { model, reward } = writeEncoders(folder);
  model.dispose();
  using classifier = buildClassifier({ numClasses: 2, widths: [8, 8] });
  using discriminator = buildDiscriminator({ ndf: 8, nLayers: 1 });
  const [network, judge, gan] = ["a", "b", "gan"].map((name) => join(folder, `${name}.safetensors`)) as [
    string,
    string,
    string,
  ];
  saveSafetensors(network, classifier.stateDict(), { config: JSON.stringify(classifier.config) });
  using other = buildClassifier({ numClasses: 2, widths: [8, 8] });
  saveSafetensors(judge, other.stateDict(), { config: JSON.stringify(other.config) });
  saveSafetensors(gan, discriminator.stateDict());
  const terms = {
    ...reward,
    l1: { weight: 1 },
    psnr: { weight: 1 },
    ssim: { weight: 1 },
    lpips: { weight: 1, path: join(folder, "vgg.safetensors") },
    perceptual: { weight: 1, path: network },
    kernel: { weight: 1, path: network, images: 8 },
    patchGan: { weight: 1, path: gan },
    latentCosine: { weight: 1 },
    custom: { mine: { fn: (_: Tensor, samples: Tensor) => samples.mean([1, 2, 3]).toList() as number[] } },
  };
  using _ = openGpu();
  await train(folder, "run", "cuda", 1, {
    tokenizer: { path: join(folder, "toklip_vq.safetensors") },
    rollout: { images: 2, numGenerations: 2, context: { type: "prefix" } },
    reward: terms,
    precision: { rewards: "bfloat16" },
    eval: { every: 2, images: 2, numGenerations: 1, perceptual: judge },
  });
});

test("pretrain, tokenizer, classifier; then sample, reconstruct, eval and embed from their files", async (t) => {
  const folder = await tinyFolder(t);
  const at = (name: string): string => join(folder, name);
  const device: Device = "cuda";
  using _ = openGpu();
  const shared = (name: string) => ({
    run: { dir: at(name), ifExists: "resume" },
    data: { source: at("images"), size: 16, evalPart: 0.2, workers: 1, flip: true },
    log: { every: 1, imagesEvery: 2 },
    train: { batch: 4, threads: 1, iters: 2, device },
    eval: { every: 2 },
    save: { every: 2 },
  });
  const options = { screen: new Shown() };
  const classifier = resolveConfig(
    { values: { ...shared("classifier"), classifier: { widths: [8, 8], shift: 1 } } },
    classifierKind,
  );
  await fitLoop(classifier, () => openClassifierTask(classifier.config), options);
  const tokenizer = resolveConfig(
    {
      values: {
        ...shared("tokenizer"),
        model: { ch: 8, chMult: [1, 2], numResBlocks: 1, zChannels: 8, normGroups: 4, codebookSize: 32 },
        loss: {
          gan: { weight: 0.1, start: 0, lecam: 0.01, ndf: 8, nLayers: 1 },
          restartAfter: 1,
          perceptual: { weight: 1, path: at("classifier/model.safetensors") },
        },
      },
    },
    tokenizerKind,
  );
  await fitLoop(tokenizer, () => openTokenizerTask(tokenizer.config), options);
  const pretrain = resolveConfig(
    {
      values: {
        ...shared("pretrain"),
        tokenizer: { path: at("tokenizer/model.safetensors") },
        ar: { type: "llamagen", nLayer: 1, nHead: 2, nEmbd: 16 },
      },
    },
    pretrainKind,
  );
  await fitLoop(pretrain, () => openPretrainTask(pretrain.config), options);
  const files = {
    classifier: at("classifier/model.safetensors"),
    tokenizer: at("tokenizer/model.safetensors"),
    policy: at("pretrain/model.safetensors"),
  };
  await silently(async () => {
    const drawn = { ...SAMPLING, policy: files.policy, tokenizer: files.tokenizer, device };
    await sample({ ...drawn, out: at("classes.png"), class: ["0", "1"], cfg: 2, topK: 5 });
    await sample({ ...drawn, out: at("greedy.png"), class: ["0"], temperature: 0, dtype: "bfloat16" });
    await reconstruct(at("images"), {
      ...{ tokenizer: files.tokenizer, out: at("pairs.png"), size: 16, crop: "center", limit: 9, columns: 4 },
      device,
    });
    await embed(files.classifier, {
      data: at("images"),
      out: at("vectors.safetensors"),
      zeroShot: [],
      crop: "center",
      size: 16,
      device,
    });
    const model = "test/golden/encoders/zero_shot/model";
    await embed(model, { data: at("images"), zeroShot: ["a {}"], crop: "center", device });
  });
  const { rows } = await evaluateModels({
    policy: files.policy,
    tokenizer: files.tokenizer,
    features: [files.classifier],
    data: { source: at("images"), size: 16, evalPart: 0.3 },
    samples: 4,
    prefixes: [4],
    draws: 1,
    temperatures: [1],
    cfg: [2],
    resamples: 2,
    device,
    out: at("pages"),
    npz: at("samples.npz"),
  });
  assert.ok(Number.isFinite(rows[0]?.free?.networks && rows[0].completions[0]?.measures.plain.l2?.value));
});

test("a program's own models are moved to the device of a run, and an evaluation refuses those of another", async (t) => {
  const folder = await tinyFolder(t);
  using policy = new GPT({ vocabSize: 32, blockSize: 16, nLayer: 1, nHead: 2, nEmbd: 16, classNum: 3 });
  using model = tinyTokenizer();
  using _ = openGpu();
  const given = { tokenizer: { path: null, model }, ar: { type: null, policy }, train: { device: "cuda" } };
  using parts = await openRunParts(resolveConfig({ values: tinyRun(folder, given) }).config);
  assert.deepEqual(
    [policy, model].map((each) => each.parameters()[0]?.device),
    ["cuda:0", "cuda:0"],
  );
  for (const key of ["ar.policy", "tokenizer.model"])
    assert.match(parts.notes.join("\n"), new RegExp(`${key} was on cpu.*cuda:0`));
  const data = { source: join(folder, "images"), size: 16, evalPart: 0.3 };
  const options = {
    data,
    samples: 0,
    prefixes: [4],
    resamples: 0,
    tokenizer: join(folder, "tokenizer.safetensors"),
  };
  await assert.rejects(evaluateModels({ ...options, policy }), /policy: .*on cpu.*cuda:0.*to\(/s);
});
