/** The classifier's trainer: it learns what can be learnt, says how well, goes on exactly, and leaves a file that opens. */
import assert from "node:assert/strict";
import { cpSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { before, test } from "node:test";
import { classifierKind } from "../../src/config/classifier.js";
import { valueAt } from "../../src/config/key.js";
import { resolveConfig } from "../../src/config/resolve.js";
import { readRun } from "../../src/dashboard/run.js";
import { writePng } from "../../src/data/index.js";
import { openClassifier } from "../../src/rl_ar_finetune/builder.js";
import { Clock } from "../../src/run/metrics.js";
import {
  Generator,
  loadSafetensors,
  memory,
  noGrad,
  rand,
  saveSafetensors,
  type Tensor,
  tensor,
  tidy,
} from "../../src/torch/index.js";
import { openClassifierTask } from "../../src/trainers/classifier.js";
import { type FitState, type FitTask, fitLoop } from "../../src/trainers/loop.js";
import { expectClose } from "../support/close.js";
import { scratch } from "../support/data_files.js";
import { Shown } from "../support/train_run.js";
import "../support/settle.js";

const folder = scratch();
const SIZE = 16;
const NAMES = ["rows", "columns", "disc"];

/** Stripes across, stripes down, or a disc, in colours of their own on a ground of its own. `[1, 3, 16, 16]` */
function picture(kind: number, generator: Generator): Tensor {
  return tidy(() => {
    const draws = rand([8], { generator }).toList() as number[];
    const [a, b] = [0, 1].map((i) => draws.slice(3 * i, 3 * i + 3).map((v) => (i === 0 ? v - 1 : v)));
    const phase = Math.floor((draws[6] as number) * 4);
    const radius = 3 + 3 * (draws[7] as number);
    const flat = new Float32Array(3 * SIZE * SIZE);
    for (let y = 0; y < SIZE; y++) {
      for (let x = 0; x < SIZE; x++) {
        const stripe = ((kind === 0 ? y : x) + phase) % 4 < 2;
        const isInside = kind === 2 ? Math.hypot(x - 7.5, y - 7.5) < radius : stripe;
        for (let c = 0; c < 3; c++)
          flat[(c * SIZE + y) * SIZE + x] = ((isInside ? a : b) as number[])[c] as number;
      }
    }
    return tensor(flat).reshape(1, 3, SIZE, SIZE);
  });
}

before(async () => {
  using generator = new Generator(5);
  for (const [kind, name] of NAMES.entries()) {
    mkdirSync(join(folder, "images", name), { recursive: true });
    mkdirSync(join(folder, "one", "all"), { recursive: true });
    // Of the first class there are more than of the others.
    for (let i = 0; i < (kind === 0 ? 40 : 20); i++) {
      const image = picture(kind, generator);
      await writePng(join(folder, "images", name, `${name}_${i}.png`), image);
      if (kind === 0 && i < 20) await writePng(join(folder, "one", "all", `${i}.png`), image);
      image.dispose();
    }
  }
});

function configOf(...overrides: string[]) {
  return resolveConfig(
    {
      values: {
        run: { dir: join(folder, "run"), ifExists: "overwrite" },
        data: { source: join(folder, "images"), size: SIZE, evalPart: 0.25, workers: 1 },
        classifier: { widths: [8, 16, 16], shift: 1 },
        optimizer: { lr: 5e-3 },
        ema: { decay: 0.9 },
        train: { batch: 16, iters: 60, threads: 1, device: "cpu" },
        eval: { every: 30 },
        log: { imagesEvery: 0 },
      },
      overrides,
    },
    classifierKind,
  );
}

const open = (...overrides: string[]): Promise<FitTask> => openClassifierTask(configOf(...overrides).config);

async function steps(task: FitTask, from: number, to: number): Promise<number[]> {
  const losses: number[] = [];
  for (let step = from; step < to; step++) {
    const { metrics, images, skipped } = await task.step(step, new Clock());
    assert.deepEqual([images, skipped], [16, false]);
    losses.push(metrics["train/loss"] as number);
  }
  return losses;
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

test("a run ends with every held-out image told right, and its file opens as what it is", async () => {
  const resolved = configOf();
  const { model, best, first } = await fitLoop(resolved, () => openClassifierTask(resolved.config), {
    screen: new Shown(),
  });
  assert.equal(best?.["eval/accuracy"], 1);
  assert.equal(best?.["eval/balanced_accuracy"], 1);
  assert.ok((first?.["eval/accuracy"] as number) < 0.7);
  using network = openClassifier(model);
  assert.deepEqual(network.config, {
    numClasses: 3,
    classNames: ["columns", "disc", "rows"],
    widths: [8, 16, 16],
    depth: 1,
  });
  assert.equal(network.name, `classifier of 3 classes (${model})`);
  assert.equal(network.training, false);
  assert.ok(network.parameters().every((parameter) => !parameter.requiresGrad));
  using generator = new Generator(99);
  const guesses = NAMES.map((name, kind) => {
    const { probabilities } = network.describe(picture(kind, generator));
    return [name, network.config.classNames[probabilities.argmax(1).item()]];
  });
  assert.deepEqual(
    guesses,
    NAMES.map((name) => [name, name]),
  );
});

test("a task that goes on from a state is the one that never stopped, bit for bit", async () => {
  using whole = await open();
  const losses = await steps(whole, 0, 3);
  const state = copied(whole.state());
  losses.push(...(await steps(whole, 3, 6)));
  using resumed = await open("seed=0");
  resumed.load(state);
  assert.deepEqual(await steps(resumed, 3, 6), losses.slice(3));
  const [wanted, got] = [whole.state(), resumed.state()];
  assert.deepEqual(got.values, wanted.values);
  assert.deepEqual(Object.keys(got.tensors).sort(), ["model", "model_ema", "model_optimizer"]);
  for (const [part, tensors] of Object.entries(wanted.tensors)) {
    const theirs = got.tensors[part] ?? {};
    for (const [name, value] of Object.entries(tensors)) {
      assert.ok((theirs[name] as Tensor).equal(value), `${part}.${name}`);
    }
  }
  assert.deepEqual(await resumed.evaluate(), await whole.evaluate());
  // Back in the middle of its own run, it does the same once more.
  whole.load(state);
  assert.deepEqual(await steps(whole, 3, 6), losses.slice(3));
  whole.load(state);
  assert.notDeepEqual(await steps(whole, 4, 5), losses.slice(3, 4), "each update varies its images anew");
  using other = await open("seed=1");
  assert.notDeepEqual(await steps(other, 0, 3), losses.slice(0, 3));
});

test("accuracy counts images, balanced accuracy counts classes, and the loss is the plain cross-entropy", async () => {
  using task = await open("ema.decay=null", "eval.images=1000");
  const { model } = task.state().tensors;
  noGrad(() => {
    for (const [name, bias] of [
      ["head.weight", [0]],
      ["head.bias", [0, 0, 2]],
    ] as const) {
      const value = model?.[name] as Tensor;
      value.zero_();
      if (bias.length > 1) value.select(0, 2).fill_(2);
    }
  });
  // Every image is taken for one of rows, with probability e^2 / (e^2 + 2).
  const numbers = await task.evaluate();
  const rows = numbers["eval/accuracy"] as number;
  assert.ok(rows > 0.3 && rows < 0.7);
  assert.ok(Math.abs((numbers["eval/balanced_accuracy"] as number) - 1 / 3) < 1e-12);
  const logSum = Math.log(Math.exp(2) + 2);
  expectClose(numbers["eval/loss"] as number, logSum - 2 * rows, { rtol: 1e-5 });
  const shown = await task.page();
  const mistakes = shown?.about.mistakes as {
    id: string;
    is: string;
    takenFor: string;
    probability: number;
  }[];
  for (const { id, is, takenFor, probability } of mistakes) {
    assert.equal(takenFor, "rows");
    assert.ok(id.includes(is) && is !== "rows", id);
    assert.ok(Math.abs(probability - Math.exp(2 - logSum)) < 1e-6);
  }
  const count = mistakes.length;
  assert.ok(Math.abs(rows - (1 - count / Math.round(count / (1 - rows)))) < 1e-12);
  // Six side by side, enlarged nine times, a line of letters above each.
  assert.deepEqual(shown?.page.shape, [1, 3, Math.ceil(count / 6) * (11 + 146) + 2, 6 * (146 + 8)]);
  shown?.page.dispose();
});

test("nothing is left behind by updates, evaluations and pages", async () => {
  using task = await open();
  await steps(task, 0, 2);
  const count = memory().tensors;
  await steps(task, 2, 4);
  await task.evaluate();
  const shown = await task.page();
  shown?.page.dispose();
  assert.equal(memory().tensors, count);
});

test("a set of one class is refused before anything is built", async () => {
  const count = memory().tensors;
  await assert.rejects(open(`data.source=${join(folder, "one")}`), {
    name: "RangeError",
    message:
      "data.source: expected images of at least 2 classes, got 1. A classifier of one class tells nothing: put each class into a folder of its own, or name what holds the class in data.label.",
  });
  assert.equal(memory().tensors, count);
});

test("only a classifier's file opens as one, and only with finite weights", async () => {
  using task = await open();
  const { tensors, config } = task.model();
  const metadata = { config: JSON.stringify(config) };
  const path = join(folder, "model.safetensors");
  saveSafetensors(path, tensors, metadata);
  using network = openClassifier(path);
  expectClose(network.stem.weight, tensors["stem.weight"] as Tensor, { rtol: 0, atol: 0 });
  noGrad(() => (tensors["norm.bias"] as Tensor).fill_(Number.NaN));
  saveSafetensors(path, tensors, metadata);
  assert.throws(() => openClassifier(path), {
    message: new RegExp(`^${path}: norm\\.bias: expected finite weights, got NaN`),
  });
  const { "norm.bias": _, ...less } = tensors;
  saveSafetensors(path, less, metadata);
  assert.throws(() => openClassifier(path), {
    message: new RegExp(
      `^${path}: expected a classifier of rlar classifier, got 18 tensors of an unknown model`,
    ),
  });
  assert.equal(Object.keys(loadSafetensors(path).tensors).length, 18);
});

test("images that the network is slow on are pointed out", () => {
  const notes = (...overrides: string[]): readonly string[] => configOf(...overrides).notes;
  assert.deepEqual(notes(), []);
  assert.match(notes("data.size=256").join("\n"), /^data\.size is 256.*data\.size=64.*classifier\.widths\.$/);
});

test("images that cannot be read are named on the screen and in the report, those of a resumed run too", async () => {
  const source = join(folder, "damaged");
  cpSync(join(folder, "images"), source, { recursive: true });
  for (const name of ["rows/a.png", "disc/b.png"]) writeFileSync(join(source, name), "bad");
  const dir = join(folder, "damaged_run");
  const run = async (iters: number): Promise<string> => {
    const screen = new Shown();
    const changes = [
      `data.source=${source}`,
      `run.dir=${dir}`,
      "run.ifExists=resume",
      "eval.every=0",
      "data.evalPart=0",
    ];
    const resolved = configOf(
      ...changes,
      "optimizer.schedule=constant",
      "data.maxUnreadable=2",
      `train.iters=${iters}`,
    );
    await fitLoop(resolved, () => openClassifierTask(resolved.config), { screen, force: iters > 6 });
    return screen.text;
  };
  const shown = await run(6); // an epoch has 82 images, a batch 16
  for (const name of ["rows/a.png", "disc/b.png"]) {
    assert.equal(shown.split(`unreadable image: ${name}: expected an image`).length, 2, name);
  }
  await run(7);
  const { metrics, values } = readRun(dir);
  assert.equal(metrics.get("progress/unreadable")?.values.at(-1), 2);
  assert.deepEqual(Object.keys(valueAt(values, "progress.passedOver") as object).sort(), [
    "disc/b.png",
    "rows/a.png",
  ]);
});
