/** What `rlar pretrain` is configured by. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { explainConfig } from "../../src/config/explain.js";
import { type PretrainConfig, pretrainKind } from "../../src/config/pretrain.js";
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

test("what is missing, what does not fit, and what is worth knowing", () => {
  const [source, tokenizer, policy, ...others] = problemsOf() as [string, string, string];
  assert.match(source, /^data\.source: expected .*got nothing/);
  assert.match(tokenizer, /^tokenizer\.path: expected .*got nothing/);
  assert.match(policy, /^ar\.type: expected .*ar\.path.*got nothing/);
  assert.deepEqual(others, []);
  const complete = ["data.source=x", "tokenizer.path=t", "ar.path=p"];
  const corner = problemsOf(...complete, "pretrain.cornerScale=1.1", "pretrain.cache=false").join("\n");
  assert.match(
    corner,
    /^command line: pretrain\.cornerScale: expected null.*got 1\.1\. .*pretrain\.cache=true/,
  );
  assert.match(
    problemsOf(...complete, "ar.usePretrainedCodebook=true").join("\n"),
    /ar\.usePretrainedCodebook: .*ar\.path/,
  );
  assert.deepEqual(problemsOf(...complete, "train.batch=6", "pretrain.microBatch=4"), []);
  assert.deepEqual(set().notes, []);
  assert.match(set("pretrain.classDropout=0").notes.join(), /^pretrain\.classDropout is 0.*0\.1/);
  const preset = set("preset=llamagen", "pretrain.cache=false");
  assert.equal(preset.config.pretrain.cornerScale, null);
  assert.match(preset.notes.join(), /pretrain\.cornerScale is null/);
});

test("the metrics that eval.best can name are those of an evaluation", async (t) => {
  const folder = await tinyFolder(t, 16);
  for (const classDropout of [0, 0.1]) {
    const { config } = tinyPretraining(folder, { eval: { every: 2, images: 3 }, pretrain: { classDropout } });
    using task = await openPretrainTask(config);
    for (const best of Object.keys(await task.evaluate())) {
      const mode = best === "eval/accuracy" ? "max" : "min";
      assert.equal(
        tinyPretraining(folder, { eval: { every: 2, best, mode }, pretrain: { classDropout } }).config.eval
          .best,
        best,
      );
    }
  }
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
