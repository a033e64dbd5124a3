/** The tokenizer's trainer: it learns, minds its discriminator and its codes, goes on exactly, and leaves a file that opens. */
import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { before, test } from "node:test";

import sharp from "sharp";
import { rlarCommand } from "../../src/config/command.js";
import { ConfigError, resolveConfig } from "../../src/config/resolve.js";
import { tokenizerKind } from "../../src/config/tokenizer.js";
import {
  buildClassifier,
  buildDiscriminator,
  openDistance,
  openTokenizer,
} from "../../src/rl_ar_finetune/builder.js";
import { Clock } from "../../src/run/metrics.js";
import { memory, noGrad, saveSafetensors, type Tensor } from "../../src/torch/index.js";
import type { FitState, FitStep, FitTask } from "../../src/trainers/loop.js";
import { openTokenizerTask, trainTokenizer } from "../../src/trainers/tokenizer.js";
import { expectClose } from "../support/close.js";
import { scratch } from "../support/data_files.js";
import { Shown, writeEmoji } from "../support/train_run.js";
import "../support/settle.js";

const folder = scratch();
const SIZE = 16;
const LOOK = join(folder, "classifier.safetensors");

before(async () => {
  await writeEmoji(join(folder, "images"), 60);
  await writeEmoji(join(folder, "one"), 1);
  for (const name of ["flat", "grey"]) mkdirSync(join(folder, name, "all"), { recursive: true });
  for (let i = 0; i < 12; i++) {
    const background = { r: 20 * i, g: 20 * i, b: 20 * i };
    const image = sharp({ create: { width: SIZE, height: SIZE, channels: 3, background } });
    await image.png().toFile(join(folder, "flat", "all", `${i}.png`));
    await image
      .toColourspace("b-w")
      .png()
      .toFile(join(folder, "grey", "all", `${i}.png`));
  }
  using network = buildClassifier({ numClasses: 2, widths: [8, 8] });
  saveSafetensors(LOOK, network.stateDict(), { config: JSON.stringify(network.config) });
});

const VALUES = {
  run: { dir: join(folder, "run"), ifExists: "overwrite" },
  data: { source: join(folder, "images"), size: SIZE, evalPart: 0.25, workers: 1 },
  model: { ch: 8, chMult: [1, 2], numResBlocks: 1, zChannels: 8, normGroups: 4, codebookSize: 32 },
  optimizer: { lr: 3e-3 },
  ema: { decay: 0.9 },
  train: { batch: 8, iters: 8, threads: 1, device: "cpu" },
  eval: { every: 1000 },
  log: { imagesEvery: 0 },
} as const;

const configOf = (...overrides: string[]) =>
  resolveConfig({ values: VALUES, overrides: last(overrides) }, tokenizerKind);

/** Of assignments to one key the last. */
function last(overrides: readonly string[]): string[] {
  const byKey = new Map(overrides.map((text) => [text.slice(0, text.indexOf("=")), text]));
  return [...byKey.values()];
}
const open = (...overrides: string[]): Promise<FitTask> => openTokenizerTask(configOf(...overrides).config);

async function steps(task: FitTask, from: number, to: number): Promise<FitStep["metrics"][]> {
  const found: FitStep["metrics"][] = [];
  for (let step = from; step < to; step++) {
    const { metrics, skipped } = await task.step(step, new Clock());
    assert.equal(skipped, false);
    found.push(metrics);
  }
  return found;
}

/** A state with tensors of its own, as a checkpoint has them. */
const copied = ({ tensors, values }: FitState): FitState => ({
  tensors: Object.fromEntries(
    Object.entries(tensors).map(([part, state]) => [
      part,
      Object.fromEntries(Object.entries(state).map(([name, value]) => [name, noGrad(() => value.clone())])),
    ]),
  ),
  values: structuredClone(values),
});

function expectSame(got: FitState, wanted: FitState): void {
  assert.deepEqual(got.values, wanted.values);
  assert.deepEqual(Object.keys(got.tensors).sort(), Object.keys(wanted.tensors).sort());
  for (const [part, tensors] of Object.entries(wanted.tensors)) {
    for (const [name, value] of Object.entries(tensors)) {
      assert.ok(got.tensors[part]?.[name]?.equal(value), `${part}.${name}`);
    }
  }
}

const problemsOf = (...overrides: string[]): readonly string[] => {
  try {
    configOf(...overrides);
    return [];
  } catch (error) {
    assert.ok(error instanceof ConfigError);
    return error.problems;
  }
};

const ALL = [
  "loss.gan.weight=0.5",
  "loss.gan.start=2",
  "loss.gan.adaptive=true",
  "loss.gan.lecam=0.05",
  "loss.gan.nLayers=1",
  "loss.gan.ndf=4",
  "loss.perceptual.weight=0.1",
  `loss.perceptual.path=${LOOK}`,
  "loss.restartAfter=2",
  "loss.entropy.weight=0.05",
  "model.dropout=0.1",
  "data.flip=true",
];

test("nothing is left behind by updates, evaluations and pages", async () => {
  const start = memory().tensors;
  {
    using task = await open(...ALL);
    await steps(task, 0, 3);
    const count = memory().tensors;
    await steps(task, 3, 5);
    await task.evaluate();
    (await task.page())?.page.dispose();
    assert.equal(memory().tensors, count);
  }
  assert.equal(memory().tensors, start);
});

for (const [preset, bound] of [
  ["VQ-4-small", 14],
  ["IBQ-4-small", 13],
] as const) {
  test(`a small ${preset} learns to reconstruct, and its file opens as what it is`, async () => {
    const resolved = configOf(`model.preset=${preset}`, "train.iters=90", "eval.every=90");
    const { model, first, best, last: end } = await trainTokenizer(resolved, { screen: new Shown() });
    const [from, to] = [first?.["eval/psnr"], best?.["eval/psnr"]] as [number, number];
    assert.ok(from < 10 && to > bound, `${from} to ${to}`);
    assert.ok((end?.["eval/ssim"] as number) > 0.25);
    const used = end?.["eval/codebook_used"] as number;
    const perplexity = end?.["eval/codebook_perplexity"] as number;
    assert.ok(Number.isInteger(used * 32) && used > 0.1 && perplexity > 2 && perplexity <= used * 32);
    const { tokenizer, description } = openTokenizer(model);
    using _ = tokenizer;
    assert.equal(description.family, preset.startsWith("IBQ") ? "ibq" : "vq");
    assert.equal(description.config.normGroups, 4);
    assert.equal(description.config.beta, 0.25);
    assert.equal(tokenizer.codebookSize, 32);
    assert.equal(tokenizer.downsample, 2);
    // Going on from the file begins where the best evaluation was, and the file's sizes are the model's.
    using task = await openTokenizerTask(
      resolveConfig(
        { values: { ...VALUES, model: { path: model }, eval: { every: 60 } }, overrides: [] },
        tokenizerKind,
      ).config,
    );
    const again = await task.evaluate();
    for (const [name, value] of Object.entries(best ?? {})) {
      expectClose(again[name] as number, value, { rtol: 1e-5, where: name });
    }
    await steps(task, 0, 1);
  });
}

test("a task that goes on from a state is the one that never stopped, bit for bit", async () => {
  using whole = await open(...ALL);
  const metrics = await steps(whole, 0, 4);
  const state = copied(whole.state());
  metrics.push(...(await steps(whole, 4, 7)));
  using resumed = await open(...ALL);
  resumed.load(state);
  assert.deepEqual(await steps(resumed, 4, 7), metrics.slice(4));
  expectSame(resumed.state(), whole.state());
  assert.deepEqual(Object.keys(whole.state().tensors).sort(), [
    "discriminator",
    "discriminator_optimizer",
    "model",
    "model_ema",
    "model_optimizer",
    "restarts",
  ]);
  assert.deepEqual(await resumed.evaluate(), await whole.evaluate());
  assert.ok(metrics.some((step) => (step["train/codes_restarted"] as number) > 0));
  using other = await open(...ALL, "seed=1");
  assert.notDeepEqual(await steps(other, 0, 1), metrics.slice(0, 1));
});

test("the discriminator begins at its update, and neither moves nor is heard before", async () => {
  using task = await open(...ALL);
  using without = await open(...ALL, "loss.gan.weight=0");
  const before = copied(task.state()).tensors.discriminator as Record<string, Tensor>;
  const early = await steps(task, 0, 2);
  assert.deepEqual(early, await steps(without, 0, 2));
  const now = task.state().tensors.discriminator as Record<string, Tensor>;
  for (const [name, value] of Object.entries(before)) assert.ok(now[name]?.equal(value), name);
  const [metrics] = await steps(task, 2, 3);
  const names = Object.keys(metrics ?? {}).filter((name) => name.startsWith("gan/"));
  const wanted = ["discriminator", "fake", "generator", "grad_norm", "lecam", "real", "weight"];
  assert.deepEqual(
    names.sort(),
    wanted.map((name) => `gan/${name}`),
  );
  assert.ok((metrics?.["gan/weight"] as number) > 0 && metrics?.["gan/weight"] !== 0.5);
  assert.ok(!now["main.0.weight"]?.equal(before["main.0.weight"] as Tensor));
  assert.notDeepEqual(metrics, (await steps(without, 2, 3))[0]);
  const { real } = task.state().values.lecam as { real: number };
  expectClose(real, 0.001 * (metrics?.["gan/real"] as number), { rtol: 1e-6 });
});

test("a loss that is not finite changes nothing", async () => {
  using task = await open("loss.gan.weight=0.5", "loss.gan.start=0", "loss.gan.nLayers=1", "loss.gan.ndf=4");
  const weight = task.state().tensors.model?.["decoder.conv_out.bias"] as Tensor;
  const values = noGrad(() => weight.clone());
  noGrad(() => weight.fill_(Number.NaN));
  const before = copied(task.state());
  const { skipped } = await task.step(0, new Clock());
  assert.equal(skipped, true);
  noGrad(() => {
    weight.copy_(values);
    before.tensors.model?.["decoder.conv_out.bias"]?.copy_(values);
  });
  const after = task.state();
  for (const part of ["model", "discriminator"]) {
    for (const [name, value] of Object.entries(before.tensors[part] ?? {})) {
      if (/running|tracked|codebook_used/.test(name)) continue;
      assert.ok(after.tensors[part]?.[name]?.equal(value), `${part}.${name}`);
    }
  }
});

test("the weights that are kept are the averages, and evaluation is of them", async () => {
  using task = await open("ema.decay=0.5");
  await steps(task, 0, 2);
  const { model, model_ema } = task.state().tensors;
  const { tensors, config } = task.model();
  const name = "encoder.conv_in.weight";
  assert.ok(tensors[name]?.equal(model_ema?.[name] as Tensor));
  assert.ok(!tensors[name]?.equal(model?.[name] as Tensor));
  assert.equal((config as { codebookSize: number }).codebookSize, 32);
  const metrics = await task.evaluate();
  noGrad(() => model?.[name]?.zero_());
  assert.deepEqual(await task.evaluate(), metrics);
});

test("metrics are those of all held-out images, whatever the batch", async () => {
  const look = `loss.perceptual.path=${LOOK}`;
  using task = await open("train.batch=4", look);
  using other = await open("train.batch=13", look);
  const metrics = await task.evaluate();
  const same = await other.evaluate();
  assert.deepEqual(Object.keys(metrics), [
    "eval/loss",
    "eval/psnr",
    "eval/ssim",
    "eval/l1",
    "eval/l2",
    "eval/perceptual",
    "eval/codebook_used",
    "eval/codebook_perplexity",
  ]);
  for (const [name, value] of Object.entries(metrics)) {
    expectClose(same[name] as number, value, { rtol: 1e-4, where: name });
  }
  // The network only watches: its weight is 0.
  assert.equal(metrics["eval/loss"], metrics["eval/l2"]);
});

test("a page has images beside their reconstructions, with their classes", async () => {
  using task = await open();
  const shown = await task.page();
  assert.ok(shown !== null);
  using page = shown.page;
  const { ids, columns } = shown.about as { ids: string[]; columns: string[] };
  assert.deepEqual(columns, ["input", "reconstruction"]);
  assert.equal(ids.length, 20);
  // Six pairs side by side and four down, enlarged five times; a line of letters above, and one above each pair.
  const side = 5 * SIZE;
  assert.deepEqual(page.shape, [1, 3, 11 + 4 * (side + 2 + 11) + 2, 6 * (2 * (side + 2) + 8)]);
  const cell = (block: number, row: number, column: number): Tensor =>
    page
      .narrow(2, 11 + row * (side + 2 + 11) + 2 + 11, side)
      .narrow(3, block * (2 * (side + 2) + 8) + 2 + column * (side + 2), side);
  assert.ok(cell(4, 3, 1).amin().item() < 1 && cell(5, 0, 0).amin().item() === 1);
  assert.ok(!cell(0, 0, 0).equal(cell(0, 0, 1)));
});

test("one image, one class and grey images train as any", async () => {
  for (const [name, images] of [
    ["one", 1],
    ["flat", 12],
    ["grey", 12],
  ] as const) {
    using task = await open(
      `data.source=${join(folder, name)}`,
      "eval.every=0",
      "data.evalPart=0",
      "loss.restartAfter=1",
    );
    assert.equal(task.about.images, images);
    await steps(task, 0, 3);
    assert.deepEqual(await task.evaluate(), {});
    assert.equal(await task.page(), null);
  }
});

test("few images for a discriminator are pointed out, and a start after the end is refused", async () => {
  using task = await open("loss.gan.weight=0.5", "loss.gan.nLayers=1");
  assert.match(task.notes?.[0] ?? "", /^40 training images are few for a discriminator.*loss\.gan\.lecam/);
  assert.match((task.notes ?? []).join("\n"), /^3 classes: 0 a /m);
  const late = ["loss.gan.weight=0.5", "loss.gan.nLayers=1", "loss.gan.start=50", "train.iters=null"];
  await assert.rejects(open(...late, "train.epochs=2"), {
    name: "RangeError",
    message:
      "loss.gan.start: expected fewer than the 10 updates of the run, got 50. Lower it, or set loss.gan.weight=0.",
  });
});

test("a discriminator goes on from its file, and a network that measures nothing is refused", async () => {
  const path = join(folder, "discriminator.safetensors");
  using discriminator = buildDiscriminator({ ndf: 4, nLayers: 1 });
  saveSafetensors(path, discriminator.stateDict());
  using task = await open(
    "loss.gan.weight=0.5",
    "loss.gan.start=0",
    "loss.gan.nLayers=1",
    `loss.gan.path=${path}`,
  );
  const { "main.0.weight": own } = task.state().tensors.discriminator as Record<string, Tensor>;
  assert.ok(own?.equal(discriminator.stateDict()["main.0.weight"] as Tensor));
  await steps(task, 0, 1);
  assert.ok(!own?.equal(discriminator.stateDict()["main.0.weight"] as Tensor));
  assert.throws(() => openDistance(path), {
    message: `${path}: expected torchvision's VGG16, AlexNet or SqueezeNet 1.1, got PatchGAN discriminator. ${rlarCommand(["inspect", path])} shows what is in it.`,
  });
});

test("problems between keys name the key and what to do", () => {
  const refused = (overrides: string[], pattern: RegExp): void => {
    const [problem = "", ...others] = problemsOf(...overrides);
    assert.deepEqual(others, []);
    assert.match(problem, pattern);
  };
  refused(["data.size=17"], /data\.size: expected a multiple of 2.*got 17\. .*data\.size=18/);
  refused(["loss.perceptual.weight=1"], /^loss\.perceptual\.path: .*got null\. .*loss\.perceptual\.weight=0/);
  refused(["loss.pixel.weight=0"], /loss\.pixel\.weight: .*got 0\. .*loss\.pixel\.weight=1/);
  refused(
    ["loss.gan.weight=0.1", "loss.gan.nLayers=3"],
    /loss\.gan\.nLayers: .*got 3\. .*loss\.gan\.nLayers=2/,
  );
  refused(
    ["loss.gan.weight=0.1", "loss.gan.nLayers=1", "loss.gan.start=8"],
    /loss\.gan\.start: .*\b8 updates.*got 8/,
  );
  refused(["eval.best=eval/fid"], /eval\.best: .*got eval\/fid\. .*eval\/psnr/);
});

test("what a published recipe has gives way to what is set, with a note", () => {
  const of = (...overrides: string[]) =>
    configOf("preset=llamagen", "loss.perceptual.path=vgg16.pth", "train.batch=4", ...overrides);
  const small = of("data.size=16", "train.iters=1000");
  assert.deepEqual([small.config.loss.gan.nLayers, small.config.loss.gan.start], [2, null]);
  assert.match(small.notes.join("\n"), /loss\.gan\.nLayers is 2[\s\S]*loss\.gan\.start is null/);
});

test("what is allowed and likely not meant is said", () => {
  const notes = (...overrides: string[]): string => configOf(...overrides).notes.join("\n");
  assert.equal(notes(), "");
  assert.match(notes("data.size=128"), /^.*128 px.*4096 codes.*data\.size.*model\.preset.*$/);
  assert.match(
    notes("loss.gan.lecam=0.1", "loss.gan.ndf=8"),
    /^loss\.gan\.lecam, loss\.gan\.ndf: .*loss\.gan\.weight is 0\.$/,
  );
  assert.match(
    notes("loss.gan.weight=0.1", "loss.gan.nLayers=1", "eval.every=10"),
    /^eval\.best is eval\/loss.*eval\.best=eval\/perceptual.*$/,
  );
});

test("the published recipes are whole", () => {
  for (const preset of ["llamagen", "ibq"]) {
    const overrides = ["data.source=x", "loss.perceptual.path=vgg16.pth"];
    const { config } = resolveConfig({ preset, overrides }, tokenizerKind);
    assert.equal(config.loss.perceptual.weight, 1);
    assert.equal(config.data.size, 256);
  }
});
