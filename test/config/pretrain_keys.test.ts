/** What `rlar pretrain` is configured by. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { explainConfig } from "../../src/config/explain.js";
import { type PretrainConfig, pretrainKind } from "../../src/config/pretrain_keys.js";
import { ConfigError, type ResolvedConfig, resolveConfig } from "../../src/config/resolve.js";
import { fitLoop } from "../../src/trainers/loop.js";
import { openPretrainTask } from "../../src/trainers/policy.js";
import { watchReads } from "../support/config_reads.js";
import { tinyPretraining } from "../support/fit_run.js";
import { Shown, tinyFolder } from "../support/train_run.js";

const set = (...overrides: string[]): ResolvedConfig<PretrainConfig> =>
  resolveConfig(
    { overrides: ["data.source=x", "tokenizer.path=t", "ar.type=gpt", ...overrides] },
    pretrainKind,
  );

function problemsOf(...overrides: string[]): readonly string[] {
  try {
    resolveConfig({ overrides }, pretrainKind);
  } catch (error) {
    assert.ok(error instanceof ConfigError);
    return error.problems;
  }
  return [];
}

test("every key has a default, a range, what it is and when to change it", () => {
  for (const { path, help, when, expects } of explainConfig("", pretrainKind)) {
    assert.match(help, /^[^A-Z].*[^.]$/, `${path}: ${help}`);
    assert.match(when, /^[A-Za-z0-9].*\.$/, `${path}: ${when}`);
    assert.ok(expects.length > 0, path);
  }
});

test("what is missing, what does not fit, and what is worth knowing", () => {
  assert.deepEqual(problemsOf(), [
    "data.source: expected images to train on, got nothing.",
    "tokenizer.path: expected a file with a tokenizer, got nothing.",
    "ar.type: expected gpt or llamagen, or ar.path for a policy to go on with, got nothing.",
  ]);
  const complete = ["data.source=x", "tokenizer.path=t", "ar.path=p"];
  assert.deepEqual(
    problemsOf(
      ...complete,
      "pretrain.cornerScale=1.1",
      "pretrain.cache=false",
      "train.batch=6",
      "pretrain.microBatch=4",
    ),
    [
      "command line: pretrain.cornerScale: expected null without pretrain.cache, got 1.1. Switch the cache on.",
      "command line: pretrain.microBatch: expected a divisor of train.batch 6, got 4. Set one of 1, 2, 3, 6.",
    ],
  );
  assert.deepEqual(set().notes, []);
  assert.deepEqual(set("pretrain.classDropout=0").notes, [
    "pretrain.classDropout is 0: the null class is never seen, so samples of this policy cannot be guided. Set 0.1 for that.",
  ]);
});

test("the policy's other names work here too", () => {
  const { config } = resolveConfig(
    {
      values: { ar: { type: "llammagen", lr: 1e-4, num_classes: 7 }, precision: { model: "bf16" } },
      isComplete: false,
    },
    pretrainKind,
  );
  assert.deepEqual(
    [config.ar.type, config.optimizer.lr, config.ar.extra],
    ["llamagen", 1e-4, { numClasses: 7 }],
  );
  assert.equal(config.precision.model, "bfloat16");
});

test("presets", () => {
  const { ar, data } = set("preset=small", "ar.type=gpt").config;
  assert.deepEqual([ar.nLayer, ar.nHead, ar.nEmbd, data.size], [6, 6, 192, 32]);
  const { optimizer, ema, train, pretrain } = resolveConfig(
    { preset: "llamagen", isComplete: false },
    pretrainKind,
  ).config;
  assert.deepEqual(
    [optimizer.lr, optimizer.betas, optimizer.weightDecay, optimizer.maxGradNorm],
    [1e-4, [0.9, 0.95], 0.05, 1],
  );
  assert.deepEqual([ema.decay, train.epochs, train.batch, pretrain.classDropout], [0.9999, 300, 256, 0.1]);
});

test("a run reads every key", async (t) => {
  const folder = await tinyFolder(t, 16);
  const read = new Set<string>();
  const all = explainConfig("", pretrainKind).map(({ path }) => path);
  for (const changes of [
    { eval: { every: 2, images: 3 }, log: { imagesEvery: 2 } },
    { pretrain: { cache: false } },
  ]) {
    const resolved = tinyPretraining(folder, { ...changes, run: { ifExists: "overwrite" } });
    const watched = watchReads(resolved.config, pretrainKind);
    await fitLoop({ ...resolved, config: watched.config }, () => openPretrainTask(watched.config), {
      screen: new Shown(),
    });
    const unread = new Set(watched.unread());
    for (const path of all) if (!unread.has(path)) read.add(path);
  }
  assert.deepEqual(
    all.filter((path) => !read.has(path)),
    [],
  );
});
