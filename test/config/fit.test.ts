/** What the supervised trainers' configurations share. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { changesThatMatter, diffConfigs, plainConfig } from "../../src/config/explain.js";
import { type FitConfig, updatesOf } from "../../src/config/fit.js";
import { ConfigError, resolveConfig } from "../../src/config/resolve.js";
import { toyKind } from "../support/fit_run.js";

const set = (...overrides: string[]): FitConfig =>
  resolveConfig({ overrides: ["data.source=images", ...overrides] }, toyKind).config;

test("the trainer's own defaults stand in the shared sections", () => {
  const { optimizer, ema, train, eval: evaluation } = set();
  assert.deepEqual(
    [optimizer.lr, optimizer.betas, optimizer.weightDecay, ema.decay, train.epochs, train.batch],
    [0.05, [0.9, 0.99], 0.01, 0.5, 1, 8],
  );
  assert.deepEqual([evaluation.best, evaluation.mode], ["eval/loss", "min"]);
});

test("updates are counted from epochs, unless they are given", () => {
  assert.equal(updatesOf(set("train.epochs=3", "train.batch=4"), 10), 8); // 30 images are 7.5 batches
  assert.equal(updatesOf(set("train.epochs=0.5", "train.batch=4"), 100), 13);
  assert.equal(updatesOf(set("train.epochs=0.1", "train.batch=64"), 10), 1);
  assert.equal(updatesOf(set("train.epochs=3", "train.iters=5"), 10), 5);
});

test("what is missing or does not fit is said", () => {
  const problemsOf = (...overrides: string[]): readonly string[] => {
    try {
      resolveConfig({ overrides }, toyKind);
    } catch (error) {
      assert.ok(error instanceof ConfigError);
      return error.problems;
    }
    return [];
  };
  assert.match(problemsOf().join("\n"), /^data\.source: expected .*, got nothing\.$/);
  assert.match(problemsOf("data.source=x", "data.evalPart=0").join("\n"), /^data\.evalSource: .*eval\.every/);
  assert.deepEqual(problemsOf("data.source=x", "data.evalPart=0", "eval.every=0"), []);
  assert.match(
    problemsOf("data.source=x", "data.group='('").join("\n"),
    /data\.group: expected a regular expression, got \(/,
  );
  assert.match(
    problemsOf("data.source=x", "eval.best=loss").join("\n"),
    /eval\.best: .*got loss\. .*"eval\/loss"/,
  );
  assert.match(
    problemsOf("data.source=x", "eval.mode=max").join("\n"),
    /eval\.mode: expected min .*eval\.mode=min/,
  );
});

test("a resumed run may change what computes nothing", () => {
  const matter = (before: FitConfig, after: FitConfig): string[] => {
    const changes = diffConfigs(plainConfig(before, toyKind), plainConfig(after, toyKind));
    return changesThatMatter(changes, after, toyKind).map(({ path }) => path);
  };
  const free = [
    "run.dir=x",
    "log.every=1",
    "save.keep=9",
    "eval.every=9",
    "limits.nonFinite=1",
    "data.workers=3",
  ];
  assert.deepEqual(matter(set(), set(...free)), []);
  assert.deepEqual(
    matter(set(), set("seed=1", "train.batch=4", "eval.best=eval/score", "eval.mode=max", "train.epochs=9")),
    ["seed", "eval.best", "eval.mode", "train.epochs", "train.batch"],
  );
  const constant = ["optimizer.schedule=constant", "optimizer.warmup=0"];
  assert.deepEqual(matter(set(...constant), set(...constant, "train.epochs=9", "train.iters=3")), []);
});

test("a run without a name is called by its command and preset", () => {
  assert.equal(toyKind.nameOf(set()), "toy");
  assert.equal(toyKind.nameOf({ ...set(), preset: "small" }), "toy_small");
});
