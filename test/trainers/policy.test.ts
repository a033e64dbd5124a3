/** Pre-training of a policy on codes. */
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { onePass, openSource, splitSource } from "../../src/data/index.js";
import type { Condition, GPT } from "../../src/policies/index.js";
import { openPolicy, openTokenizer } from "../../src/rl_ar_finetune/builder.js";
import { someOf } from "../../src/run/images.js";
import { Clock } from "../../src/run/metrics.js";
import { decodeData, encodeData } from "../../src/run/plain_data.js";
import {
  cat,
  Generator,
  loadSafetensors,
  manualSeed,
  noGrad,
  randint,
  randn,
  saveSafetensors,
  type Tensor,
  tensor,
  tidy,
} from "../../src/torch/index.js";
import type { FitTask } from "../../src/trainers/loop.js";
import { type FitResult, fitLoop } from "../../src/trainers/loop.js";
import {
  crossEntropySum,
  mixedNoise,
  openPretrainTask,
  type PretrainTask,
  pretrainPolicy,
  withDropped,
} from "../../src/trainers/policy.js";
import { expectClose } from "../support/close.js";
import { tinyPretraining } from "../support/fit_run.js";
import { TinyPolicy } from "../support/tiny_policy.js";
import { metricsOf, Shown, tinyFolder } from "../support/train_run.js";
import "../support/settle.js";

type Values = Record<string, unknown>;

const openTask = (folder: string, changes: Values = {}): Promise<PretrainTask> =>
  openPretrainTask(tinyPretraining(folder, changes).config);

const run = (folder: string, changes: Values = {}): Promise<FitResult> =>
  pretrainPolicy(tinyPretraining(folder, changes), { screen: new Shown() });

/** Codes and classes of the images that are not set apart (`data.evalPart: 0`: all of them). */
async function codesOf(folder: string): Promise<{ codes: Tensor; classes: Tensor }> {
  const { tokenizer } = openTokenizer(join(folder, "tokenizer.safetensors"));
  const codes: Tensor[] = [];
  const classes: Tensor[] = [];
  const source = await openSource(join(folder, "images"));
  for await (const batch of onePass(source, { batchSize: 4, size: 16, workers: 1 })) {
    codes.push(tokenizer.encode(batch.images as Tensor));
    classes.push(batch.classes);
  }
  return { codes: cat(codes), classes: cat(classes) };
}

/** Mean negative log-probability of codes, from the policy's logits and the definition, in float64. */
function natsByHand(policy: TinyPolicy, codes: Tensor, condition: object): number {
  const logits = noGrad(() => policy.forward(codes.narrow(1, 0, codes.size(1) - 1), condition));
  const all = logits.toList() as number[][][];
  let sum = 0;
  for (const [i, row] of (codes.toList() as number[][]).entries()) {
    for (const [t, code] of row.entries()) {
      const at = all[i]?.[t] as number[];
      const largest = Math.max(...at);
      const total = at.reduce((a, x) => a + Math.exp(x - largest), 0);
      sum -= (at[code] as number) - largest - Math.log(total);
    }
  }
  return sum / codes.numel;
}

function tinyPolicy(): TinyPolicy {
  manualSeed(5);
  return new TinyPolicy({ vocabSize: 32, blockSize: 16, classes: 3 });
}

const ALL = { data: { evalPart: 0 }, train: { batch: 12 } };

test("the loss is the mean negative log-probability of the images' codes", async (t) => {
  const folder = await tinyFolder(t, 12);
  const { codes, classes } = await codesOf(folder);
  const policy = tinyPolicy();
  const wanted = natsByHand(policy, codes, { classes });
  using task = await openTask(folder, { ...ALL, ar: { policy }, pretrain: { classDropout: 0 } });
  const { metrics, images, tokens, skipped, cursor } = await task.step(0, new Clock());
  expectClose(metrics["train/loss"] as number, wanted, { rtol: 1e-6 });
  assert.deepEqual([images, tokens, skipped, cursor], [12, 192, false, { epoch: 1, position: 0 }]);
  assert.deepEqual(Object.keys(metrics), ["train/loss", "optim/lr", "optim/grad_norm"]);

  // All classes dropped: the loss of the null class.
  const other = tinyPolicy();
  const none = natsByHand(other, codes, { classes: codes.select(1, 0).mul(0).add(3) });
  assert.ok(Math.abs(none - wanted) > 1e-4, `${none - wanted}`);
  // TinyPolicy takes the null class where there is none; `isDropped` is what the policies of the house read.
  using empty = await openTask(folder, { ...ALL, ar: { policy: other }, pretrain: { start: "empty" } });
  expectClose((await empty.step(0, new Clock())).metrics["train/loss"] as number, none, { rtol: 1e-6 });
});

test("images a forward pass change nothing but memory", async (t) => {
  const folder = await tinyFolder(t, 12);
  const results = [];
  for (const microBatch of [null, 5, 4, 1]) {
    using task = await openTask(folder, { ...ALL, pretrain: { microBatch } });
    const { metrics } = await task.step(0, new Clock());
    results.push({ metrics, weights: (task.network.module as GPT).blocks[0]?.attn.key.weight.toList() });
  }
  const [whole, ...parts] = results;
  for (const part of parts) {
    expectClose(part.metrics["train/loss"] as number, whole?.metrics["train/loss"] as number, { rtol: 1e-6 });
    expectClose(part.metrics["optim/grad_norm"] as number, whole?.metrics["optim/grad_norm"] as number, {
      rtol: 1e-5,
    });
    expectClose(tensor(part.weights as number[][]), tensor(whole?.weights as number[][]), { atol: 1e-5 });
  }
});

test("logits in chunks give the same loss and gradient", () => {
  const policy = tinyPolicy();
  manualSeed(1);
  const [targets, states] = [randint(0, 32, [3, 7]), randn([3, 7, 8])];
  const gradients = [undefined, 5, 20].map((chunk) => {
    const hidden = states.clone().requiresGrad_();
    policy.zeroGrad();
    const loss = crossEntropySum(policy, hidden, targets, chunk);
    loss.backward();
    return [loss, hidden.grad, policy.out.weight.grad?.clone()] as Tensor[];
  });
  const [whole = [], ...others] = gradients;
  for (const other of others)
    for (const [i, found] of other.entries())
      expectClose(found, whole[i] as Tensor, { rtol: 1e-5, atol: 1e-6 });
});

test("classes are dropped with the probability that is asked for, and the null class is what is seen", async (t) => {
  using generator = new Generator(3);
  const codes = tensor(
    Array.from({ length: 4000 }, () => [0, 0]),
    { dtype: "int64" },
  );
  const classes = codes.select(1, 0);
  const { isDropped, ...rest } = withDropped({ classes }, codes, 0.1, generator);
  assert.deepEqual(Object.keys(rest), ["classes"]);
  const share = (isDropped as Tensor).float().mean().item();
  assert.ok(Math.abs(share - 0.1) < 0.02, `${share}`);
  assert.deepEqual(withDropped({ classes }, codes, 0, generator), { classes });
  assert.deepEqual(withDropped({}, codes, 0.5, generator), {});

  // In training: with all dropped, the classes' own rows get no gradient.
  const folder = await tinyFolder(t, 12);
  using all = await openTask(folder, {
    ...ALL,
    pretrain: { classDropout: 1 },
    optimizer: { weightDecay: 0 },
  });
  const table = (all.network.module as GPT).class_emb.embedding_table.weight;
  const before = table.clone();
  await all.step(0, new Clock());
  const moved = table.ne(before).any(1).toList();
  assert.deepEqual(moved, [false, false, false, true].map(Number));
});

/** Remembers what it was shown. */
class Watching extends TinyPolicy {
  readonly #seen: { tokens: unknown; isDropped: unknown }[] = [];

  get seen(): readonly { tokens: unknown; isDropped: unknown }[] {
    return this.#seen;
  }

  override hidden(tokens: Tensor, condition: Condition): Tensor {
    this.#seen.push({ tokens: tokens.toList(), isDropped: condition.isDropped?.toList() });
    return super.hidden(tokens, condition);
  }
}

test("what is dropped and what is noise follows from the seed and the update", async (t) => {
  const folder = await tinyFolder(t, 12);
  const pretrain = { classDropout: 0.5, noise: 0.5 };
  const shown = async (seed: number): Promise<Watching["seen"]> => {
    const policy = new Watching({ vocabSize: 32, blockSize: 16 });
    using task = await openTask(folder, { ...ALL, seed, ar: { policy }, pretrain });
    for (const step of [0, 1]) await task.step(step, new Clock());
    return policy.seen;
  };
  const [first, second] = await shown(0);
  assert.notDeepEqual(first?.isDropped, second?.isDropped);
  assert.deepEqual(await shown(0), [first, second]);
  assert.notDeepEqual((await shown(1))[0], first);
});

test("noise replaces a share of the context that differs from sequence to sequence", () => {
  using generator = new Generator(3);
  manualSeed(2);
  const codes = randint(0, 50, [2000, 41]);
  assert.deepEqual(mixedNoise(codes, 0, 50, generator).toList(), codes.narrow(1, 0, 40).toList());
  const noisy = mixedNoise(codes, 0.6, 50, generator);
  assert.deepEqual([noisy.shape, noisy.dtype], [[2000, 40], "int64"]);
  assert.ok(noisy.amin().item() >= 0 && noisy.amax().item() < 50);
  const changed = noisy
    .ne(codes.narrow(1, 0, 40))
    .float()
    .mean(1); // [2000]
  // A replaced code is the same one once in 50 times. Shares are uniform in [0, 0.6].
  const mean = (0.3 * 49) / 50;
  assert.ok(Math.abs(changed.mean().item() - mean) < 0.01, `${changed.mean().item()}`);
  const spread = Math.sqrt(0.6 ** 2 / 12 + (0.3 - 0.6 ** 2 / 3) / 40);
  assert.ok(Math.abs(changed.std().item() - spread) < 0.015, `${changed.std().item()} against ${spread}`);
  const uniform = noisy.maskedSelect(noisy.ne(codes.narrow(1, 0, 40))).bincount();
  assert.ok(uniform.amin().item() > 0.7 * uniform.float().mean().item());
  using again = new Generator(9);
  using same = new Generator(9);
  assert.deepEqual(mixedNoise(codes, 0.6, 50, again).toList(), mixedNoise(codes, 0.6, 50, same).toList());
});

test("a policy learns a sequence a class from a file of codes to almost 0 nats", async (t) => {
  const folder = await tinyFolder(t, 3);
  const path = join(folder, "codes.safetensors");
  const codes = tensor(
    [
      [1, 2, 3, 4, 5, 6, 7, 8, 9],
      [9, 8, 7, 6, 5, 4, 3, 2, 1],
      [31, 0, 31, 0, 31, 0, 31, 0, 31],
    ],
    { dtype: "int16" },
  );
  saveSafetensors(path, { codes, classes: tensor([0, 1, 2], { dtype: "int64" }) });
  const result = await run(folder, {
    data: { source: path, evalSource: path },
    pretrain: { classDropout: 0.2 },
    optimizer: { lr: 0.02, schedule: "constant" },
    eval: { every: 60 },
    train: { iters: 120, batch: 12 },
  });
  const { best } = result;
  const of = (name: string): number => best?.[name] as number;
  assert.ok(of("eval/nats_per_token") < 0.05, JSON.stringify(best));
  assert.equal(of("eval/accuracy"), 1);
  expectClose(of("eval/perplexity"), Math.exp(of("eval/nats_per_token")), { rtol: 1e-12 });
  const halves = (4 * of("eval/nats_first_half") + 5 * of("eval/nats_second_half")) / 9;
  expectClose(of("eval/nats_per_token"), halves, { rtol: 1e-12 });
  // Without the class the first code is one of three: log 3 of 9 codes, and the rest follows.
  assert.ok(Math.abs(of("eval/nats_null") - Math.log(3) / 9) < 0.05, JSON.stringify(best));
  const { training = "" } = loadSafetensors(result.model).metadata;
  assert.deepEqual(JSON.parse(training).classes, ["0", "1", "2"]);
});

test("the model opens as a policy, and is what was evaluated", async (t) => {
  const folder = await tinyFolder(t, 20);
  const { model, best, dir } = await run(folder, {
    eval: { every: 2, images: 3 },
    log: { imagesEvery: 2 },
    ar: { nHead: 4 },
  });
  const { policy, description } = openPolicy(model, { codebookSize: 32 });
  assert.deepEqual([description.family, description.weights], ["gpt", "ema"]);
  const { metadata } = loadSafetensors(model);
  assert.deepEqual(JSON.parse(metadata.config ?? ""), {
    classNum: 3,
    nLayer: 1,
    nHead: 4,
    nEmbd: 16,
    vocabSize: 32,
    blockSize: 16,
    embdPdrop: 0,
    residPdrop: 0,
    attnPdrop: 0,
    tokenDrop: 0.1,
  });
  const { steps, seconds: _, commit: __, ...about } = JSON.parse(metadata.training ?? "");
  const { heldOut, train } = splitSource(await openSource(join(folder, "images")), { heldOut: 0.2 });
  assert.deepEqual(about, {
    command: "pretrain",
    seed: 0,
    data: { source: join(folder, "images"), fingerprint: train.fingerprint, size: 16 },
    images: train.length,
    classes: ["a", "b", "c"],
    tokenizer: { path: join(folder, "tokenizer.safetensors"), codebookSize: 32 },
    codes: 16,
    metrics: best,
  });
  assert.ok(steps > 0);
  const { tokenizer } = openTokenizer(join(folder, "tokenizer.safetensors"));
  const nats: number[] = [];
  policy.eval();
  for await (const batch of onePass(someOf(heldOut, 3), { batchSize: 1, size: 16, workers: 1 })) {
    const codes = tokenizer.encode(batch.images as Tensor);
    nats.push(natsByHand(policy as unknown as TinyPolicy, codes, { classes: batch.classes }));
  }
  const mean = nats.reduce((a, b) => a + b) / nats.length;
  expectClose(best?.["eval/nats_per_token"] as number, mean, { rtol: 1e-5 });
  const pages = readFileSync(join(dir, "samples.jsonl"), "utf8").trim().split("\n");
  assert.deepEqual(
    pages.map((line) => JSON.parse(line)),
    [2, 4].map((step) => ({
      step,
      name: "eval",
      file: `samples/step_00000${step}_eval.png`,
      classes: ["a", "b", "c"],
      seed: 0,
    })),
  );

  // Training goes on from the file: its first evaluation is the last one's best.
  const more = await run(folder, {
    run: { dir: join(folder, "more") },
    eval: { every: 4, images: 3 },
    ar: { type: null, path: model, nLayer: null, nHead: null, nEmbd: null },
  });
  assert.deepEqual(more.first, best);
});

test("encoding each batch anew gives the run that the cache gives", async (t) => {
  const folder = await tinyFolder(t, 20);
  await run(folder, { tokenizer: { decodeBatch: 1 } });
  const dir = join(folder, "anew");
  await run(folder, { run: { dir }, tokenizer: { decodeBatch: 1 }, pretrain: { cache: false } });
  assert.deepEqual(metricsOf(dir), metricsOf(join(folder, "run")));
});

test("bfloat16 is close to float32, and LlamaGen is trained alike", async (t) => {
  const folder = await tinyFolder(t, 12);
  const ar = { type: "llamagen", nLayer: 1, nHead: 2, nEmbd: 16 };
  const losses = [];
  for (const model of ["float32", "bfloat16"]) {
    using task = await openTask(folder, { ...ALL, ar, precision: { model }, eval: { every: 0 } });
    for (let step = 0; step < 3; step++)
      losses.push((await task.step(step, new Clock())).metrics["train/loss"]);
  }
  // The head of a new LlamaGen is 0, and so are its first logits in any type.
  for (let i = 1; i < 3; i++) {
    assert.notEqual(losses[i], losses[i + 3]);
    expectClose(losses[i + 3] as number, losses[i] as number, { rtol: 1e-2 });
  }
});

test("a new policy can start from the tokenizer's codebook", async (t) => {
  const folder = await tinyFolder(t, 12);
  using task = await openTask(folder, { ar: { extra: { usePretrainedCodebook: true } } });
  const { tensors } = loadSafetensors(join(folder, "tokenizer.safetensors"));
  const codebook = tensors["quantize.embedding.weight"] as Tensor;
  const { tok_emb } = task.network.module as GPT;
  // The decoder reads rows of length 1.
  const rows = tidy(() => codebook.div(codebook.pow(2).sum(1, { keepdim: true }).sqrt()));
  expectClose(tok_emb.weight, rows, { rtol: 1e-5, atol: 1e-6 });
  assert.equal((task.model().config as { nCodebookEmbd: number }).nCodebookEmbd, 4);
});

test("what does not fit together is refused before training", async (t) => {
  const folder = await tinyFolder(t, 12);
  await assert.rejects(
    openTask(folder, { data: { size: 18 } }),
    /^RangeError: data\.size: expected a multiple of 4, the pixels of a code, got 18\.$/,
  );
  const small = new TinyPolicy({ vocabSize: 32, blockSize: 4 });
  await assert.rejects(
    openTask(folder, { ar: { policy: small } }),
    /^RangeError: data\.size: expected images of at most 4 codes, the policy's, got 16\. Use images of 8 px, or another policy\.$/,
  );
  await assert.rejects(
    openTask(folder, { ar: { policy: new TinyPolicy({ vocabSize: 31, blockSize: 16 }) } }),
    /^RangeError: ar\.policy: expected a vocabulary of 32, the tokenizer's codebook, got 31\.$/,
  );
  await assert.rejects(
    openTask(folder, { ar: { extra: { classNum: 2 } } }),
    /^RangeError: data\.source: expected at most 2 classes, the policy's, got 3\. Name them in data\.classNames, or set pretrain\.start: empty for a policy without classes\.$/,
  );
});

const PROGRAM = fileURLToPath(new URL("../support/fit_run.js", import.meta.url));

interface Ended {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly errors: string;
}

function start(folder: string, changes: Values): { child: ChildProcess; ended: Promise<Ended> } {
  const child = spawn(process.execPath, [PROGRAM, folder, JSON.stringify(changes)], {
    stdio: ["ignore", "ignore", "pipe"],
  });
  let errors = "";
  child.stderr.on("data", (text) => {
    errors += text;
  });
  const ended = new Promise<Ended>((resolve) => {
    child.on("close", (code, signal) => resolve({ code, signal, errors }));
  });
  return { child, ended };
}

/** What must be the same: the model, the last checkpoint's tensors, pages, metrics without times. */
function outcome(dir: string, iters: number): Record<string, unknown> {
  const last = join(dir, "checkpoints", `step_${String(iters).padStart(6, "0")}`);
  const files = readdirSync(last).filter((name) => name.endsWith(".safetensors"));
  const pages = readdirSync(join(dir, "samples"));
  const { tensors } = loadSafetensors(join(dir, "model.safetensors"));
  return {
    ...Object.fromEntries(files.map((name) => [name, readFileSync(join(last, name))])),
    ...Object.fromEntries(pages.map((name) => [name, readFileSync(join(dir, "samples", name))])),
    model: Object.entries(tensors).map(([name, value]) => [name, value.toList()]),
    metrics: metricsOf(dir),
  };
}

test("a pre-training that is killed and resumed ends as the one left alone, bit for bit", async (t) => {
  const folder = await tinyFolder(t as TestContext, 20);
  const iters = 30;
  const changes = {
    run: { ifExists: "resume" },
    data: { flip: true },
    ar: { extra: { residPdrop: 0.1, tokenDrop: 0.1 } },
    pretrain: { noise: 0.5, classDropout: 0.2 },
    eval: { every: 4, images: 3 },
    save: { every: 3 },
    log: { every: 5, imagesEvery: 7 },
    train: { iters },
  };
  const whole = join(folder, "whole");
  const alone = await start(folder, { ...changes, run: { ...changes.run, dir: whole } }).ended;
  assert.equal(alone.code, 0, alone.errors);

  const dir = join(folder, "killed");
  const again = { ...changes, run: { ...changes.run, dir } };
  const stepsOf = (): number => {
    const file = join(dir, "metrics.jsonl");
    return existsSync(file) ? readFileSync(file, "utf8").split("\n").length - 2 : -1;
  };
  for (const until of [3, 11, 17]) {
    const { child, ended } = start(folder, again);
    let isAlive = true;
    void ended.then(() => {
      isAlive = false;
    });
    while (isAlive && stepsOf() < until) await sleep(1);
    child.kill("SIGKILL");
    const { signal, errors } = await ended;
    assert.equal(signal, "SIGKILL", errors);
  }
  const last = await start(folder, again).ended;
  assert.equal(last.code, 0, last.errors);
  const [wanted, got] = [outcome(whole, iters), outcome(dir, iters)];
  assert.deepEqual(Object.keys(got), Object.keys(wanted));
  for (const [name, value] of Object.entries(wanted)) assert.deepEqual(got[name], value, name);
});

test("a task that goes on from a state is the one that never stopped, images included", async (t) => {
  const folder = await tinyFolder(t as TestContext, 20);
  for (const cache of [true, false]) {
    const changes = { pretrain: { cache, noise: 0.3, classDropout: 0.2 }, train: { batch: 4, iters: 9 } };
    const lossesOf = async (task: FitTask, from: number, to: number): Promise<unknown[]> => {
      const found: unknown[] = [];
      for (let step = from; step < to; step++) {
        const { metrics, cursor } = await task.step(step, new Clock());
        found.push([metrics["train/loss"], cursor]);
      }
      return found;
    };
    using whole = await openTask(folder, changes);
    await lossesOf(whole, 0, 3);
    const { tensors, values } = whole.state();
    const copy = Object.fromEntries(
      Object.entries(tensors).map(([part, state]) => [
        part,
        Object.fromEntries(Object.entries(state).map(([name, value]) => [name, value.clone()])),
      ]),
    );
    const wanted = await lossesOf(whole, 3, 9);
    using resumed = await openTask(folder, changes);
    resumed.load({ tensors: copy, values: decodeData(encodeData(values)) as typeof values });
    assert.deepEqual(await lossesOf(resumed, 3, 9), wanted);
    for (const state of Object.values(copy)) for (const value of Object.values(state)) value.dispose();
  }
});

test("a run frees what it takes", async (t) => {
  const folder = await tinyFolder(t, 12);
  const resolved = tinyPretraining(folder, { eval: { every: 2 }, log: { imagesEvery: 2 } });
  const task = await openPretrainTask(resolved.config);
  await fitLoop(resolved, async () => task, { screen: new Shown() });
  assert.equal((task.network.module as GPT).head.weight.isDisposed, true);
  const counts = metricsOf(join(folder, "run"), { isPlain: false }).map(
    (line) => line["perf/native_tensors"],
  );
  assert.equal(counts[4], counts[3], "an update leaves no tensor behind");
});
