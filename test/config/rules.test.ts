/** What keys of `rlar train` require of each other, and what a user is told before a run. */
import assert from "node:assert/strict";
import { test } from "node:test";
import {
  batchNumbers,
  ConfigError,
  type ConfigSources,
  resolveConfig,
  type TrainConfig,
} from "../../src/config/resolve.js";
import { evalMetrics } from "../../src/config/rules.js";
import { evaluate } from "../../src/rl_ar_finetune/evaluate.js";
import { openRunParts } from "../../src/rl_ar_finetune/parts.js";
import { tinyFolder, tinyRun } from "../support/train_run.js";

/** What a configuration needs to be complete. */
const PARTS = ["data.source=images", "tokenizer.path=vq.pt", "ar.path=ar.pt"];

const set = (...overrides: string[]): TrainConfig => resolveConfig({ overrides, isComplete: false }).config;

/** The only problem of a configuration that is refused, or all of them. */
function refused(...overrides: string[]): string {
  try {
    resolveConfig({ overrides, isComplete: false });
  } catch (error) {
    assert.ok(error instanceof ConfigError, String(error));
    return error.problems.join("\n");
  }
  assert.fail(`nothing of ${overrides.join(" ")} was refused`);
}

/** A refused key, the value that was given, and a part of the remedy. */
function assertRefused(overrides: string[], key: string, got: string, remedy: string | RegExp = ""): void {
  const problem = refused(...overrides);
  assert.doesNotMatch(problem, /\n/);
  assert.ok(problem.includes(`${key}: expected `) && problem.includes(`, got ${got}`), problem);
  assert.ok(typeof remedy === "string" ? problem.includes(remedy) : remedy.test(problem), problem);
}

test("a mini-batch divides the rollout; a micro-batch need not", () => {
  assertRefused(["rollout.images=16", "update.miniBatch=6"], "update.miniBatch", "6", "1, 2, 4, 8, 16");
  const sizes = ["rollout.images=4", "rollout.numGenerations=3", "update.miniBatch=2"];
  const free = set(...sizes, "update.microBatch=4", "ppo.epochs=5", "algorithm=ppo");
  assert.deepEqual(batchNumbers(free), {
    sequences: 12,
    rowsAnImage: 3,
    rows: 12,
    miniBatch: 2,
    miniBatches: 2,
    steps: 10,
    microBatch: 4,
    microBatchesAStep: 2,
  });
  const { microBatch, microBatchesAStep } = batchNumbers(set(...sizes, "update.microBatch=50"));
  assert.deepEqual([microBatch, microBatchesAStep], [6, 1]);
  const shared = batchNumbers(
    set("rollout.images=4", "rollout.context=noisy_teacher_forced", "update.microBatch=3"),
  );
  assert.deepEqual([shared.rows, shared.sequences, shared.steps, shared.microBatchesAStep], [4, 32, 1, 2]);
});

test("keys that do not go together", () => {
  const cases: [overrides: string[], key: string, got: string, remedy?: string][] = [
    [["rollout.numGenerations=1"], "rollout.numGenerations", "1", "ppo"],
    [["rollout.numGenerations=1", "rollout.images=1", "algorithm=reinforce"], "rollout.images", "1"],
    [["kl.estimator=k1"], "kl.estimator", "k1", "kl.placement=reward"],
    [["kl.estimator=k3_own", "kl.placement=reward"], "kl.estimator", "k3_own"],
    [["grpo.objective=cispo", "grpo.level=sequence"], "grpo.level", "sequence"],
    [["blockSize=64", "rollout.maxLen=65"], "rollout.maxLen", "65", "blockSize"],
    [["blockSize=64", "rollout.context={type: prefix, length: 64}"], "rollout.context.length", "64", "63"],
    [["rollout.guidance.interval=[5, 5]"], "rollout.guidance.interval", "[5,5]"],
    [["reward.l2.weight=0"], "reward.l2.weight", "none", "reward.l2.weight=1"],
    [["reward.lpips.weight=1"], "reward.lpips.path", "null", "reward.lpips.weight=0"],
    [["reward.patchGan.weight=0.1"], "reward.patchGan.path", "null", "reward.patchGan.weight=0"],
    [["reward.msSsim.weight=1", "data.size=128"], "data.size", "128", "reward.msSsim.weight=0"],
    [["data.group=("], "data.group", "("],
    [["data.classNames=[cat, dog, cat]"], "data.classNames", "cat twice"],
    [["reward={credit: place, l2: {weight: 0}, psnr: {weight: 1}}"], "reward.credit", "place", "l2"],
    [["reward.credit=place", "grpo.level=sequence"], "grpo.level", "sequence"],
    [["kl.target=0.1"], "kl.coef", "0", "kl.coef=0.01"],
    [
      ["ar.path=a.pt", "ar.use_pretrained_codebook=true"],
      "ar.use_pretrained_codebook",
      "it with ar.path",
      "new policy",
    ],
    [
      ["ar.type=llamagen", "ar.extra.usePretrainedCodebook=true"],
      "ar.extra.usePretrainedCodebook",
      "it with ar.type",
    ],
  ];
  for (const [overrides, key, got, remedy = ""] of cases) assertRefused(overrides, key, got, remedy);
  assert.match(
    refused("rollout.keepGraph=true", "update.miniBatch=8", "update.microBatch=8"),
    /got free\..*\n.*got 2\..*\n.*update\.microBatch.*got 8\./,
  );
  assert.equal(set("rollout.numGenerations=1", "algorithm=ppo").rollout.numGenerations, 1);
  assert.equal(set("kl.estimator=k1", "kl.placement=reward").kl.estimator, "k1");
  assert.equal(set("kl.estimator=k1", "algorithm=ppo").kl.estimator, "k1");
  assert.equal(set("reward={credit: place, ssim: {weight: 1}}", "data.size=64").reward.credit, "place");
  assert.equal(set("ar.type=gpt", "ar.usePretrainedCodebook=true").ar.extra.usePretrainedCodebook, true);
});

test("eval.best is a metric that the evaluation makes, and eval.mode its direction", () => {
  assertRefused(["eval.best=eval/reward/maen"], "eval.best", "eval/reward/maen", '"eval/reward/mean"');
  assertRefused(["eval.best=eval/reward"], "eval.best", "eval/reward", '"eval/reward/mean"');
  assertRefused(["eval.best=psnr/mean"], "eval.best", "psnr/mean", '"eval/psnr/mean"');
  assertRefused(
    ["eval.best=eval/lpips/mean", "eval.mode=min"],
    "eval.best",
    "eval/lpips/mean",
    "eval/psnr/mean",
  );
  assertRefused(["eval.best=eval/psnr/median"], "eval.best", "eval/psnr/median");
  assertRefused(["eval.best=toString"], "eval.best", "toString");
  assertRefused(
    ["eval.best=eval/diversity/mean", "eval.numGenerations=1"],
    "eval.best",
    "eval/diversity/mean",
  );
  assertRefused(["eval.best=eval/l2/mean"], "eval.mode", "max", "eval.mode=min");
  assertRefused(["eval.mode=min"], "eval.mode", "min", "eval.mode=max");
  const good: [string, string][] = [
    ["eval/psnr/mean", "max"],
    ["eval/l2/mean", "min"],
    ["eval/nats_per_token/mean", "min"],
    ["eval/codebook_usage", "max"],
    ["eval/reward/std", "min"],
    ["eval/reward/std", "max"],
  ];
  for (const [best, mode] of good)
    assert.equal(set(`eval.best=${best}`, `eval.mode=${mode}`).eval.best, best);
  const held = ["eval.perceptual=c.pt", "eval.best=eval/perceptual_held_out/mean", "eval.mode=min"];
  assert.equal(set(...held).eval.perceptual, "c.pt");
  assert.equal(set("eval.every=0", "eval.best=whatever").eval.best, "whatever");
});

test("the metrics that eval.best can name are those of an evaluation", async (t) => {
  const folder = await tinyFolder(t);
  for (const numGenerations of [1, 2]) {
    const reward = {
      latentCosine: { weight: 1 },
      custom: { fn: (_: never, x: { mean(of: number[]): unknown }) => x.mean([1, 2, 3]) },
    };
    const changes = { eval: { every: 1, images: 4, numGenerations }, reward };
    const { config } = resolveConfig({ values: tinyRun(folder, changes) });
    using parts = await openRunParts(config);
    const { spreads, metrics } = await evaluate(config, parts);
    const made = Object.entries(spreads).flatMap(([name, spread]) =>
      Object.keys(spread).map((of) => `${name}/${of}`),
    );
    assert.deepEqual([...evalMetrics(config).keys()].sort(), [...made, ...Object.keys(metrics)].sort());
    for (const { name, sign } of parts.terms)
      assert.equal(evalMetrics(config).get(`eval/${name}/mean`), sign > 0 ? "max" : "min", name);
  }
});

test("a value of a preset that does not fit what the user set is replaced, with a note", () => {
  const vapi = ["preset=vapi", "reward.lpips.path=vgg.pth"];
  const read = (...overrides: string[]) =>
    resolveConfig({ overrides, isComplete: false } satisfies ConfigSources);
  const small = read(...vapi, "rollout.images=2");
  assert.equal(batchNumbers(small.config).microBatch, 2);
  const cases: [overrides: string[], path: string, value: unknown][] = [
    [[...vapi, "rollout.context=teacher_forced", "rollout.keepGraph=true"], "update.microBatch", null],
    [["preset=completion", "reward={l2: {weight: 0}, psnr: {weight: 1}}"], "reward.credit", "sequence"],
    [["preset=completion", "grpo.level=sequence"], "reward.credit", "sequence"],
    [["preset=completion", "algorithm=ste"], "rollout.temperature", 1],
    [["preset=completion", "algorithm=ste"], "rollout.context.type", "teacher_forced"],
    [["preset=seed", "algorithm=ste"], "reward.normalize", "none"],
  ];
  for (const [overrides, path, value] of cases) {
    const { config, notes } = read(...overrides);
    assert.equal(
      path.split(".").reduce((at, name) => (at as Record<string, unknown>)[name], config as unknown),
      value,
      path,
    );
    assert.ok(
      notes.some((note) => note.includes(path) && note.includes("preset")),
      notes.join("\n"),
    );
  }
  // What the user set himself stays, and so do values without a preset.
  const whole = "reward={credit: place, l2: {weight: 0}, psnr: {weight: 1}}";
  assertRefused(["preset=completion", whole], "reward.credit", "place");
  assertRefused([whole], "reward.credit", "place");
  assert.equal(set("reward={credit: place, psnr: {weight: 1}}").reward.credit, "place", "beside l2");
});

test("the straight-through baseline samples from unfiltered distributions in given contexts", () => {
  const ste = ["algorithm=ste", "rollout.context.type=teacher_forced"];
  assert.equal(set(...ste).algorithm, "ste");
  assert.equal(set(...ste, "rollout.numGenerations=1").rollout.numGenerations, 1);
  assert.equal(batchNumbers(set(...ste, "rollout.images=4", "update.miniBatch=2", "ppo.epochs=9")).steps, 2);
  const wrong: [key: string, given: string, got: string][] = [
    ["rollout.temperature", "0.9", "0.9"],
    ["rollout.topK", "5", "5"],
    ["rollout.topP", "0.9", "0.9"],
    ["rollout.guidance", "2", "2"],
    ["reward.normalize", "batch", "batch"],
    ["reward.credit", "place", "place"],
    ["kl.coef", "0.1", "0.1"],
    ["kl.target", "0.02", "0.02"],
    ["kl.stop", "1", "1"],
    ["update.codeDistance", "0.8", "0.8"],
    ["update.codeFrequency", "0.3", "0.3"],
  ];
  for (const [key, given, got] of wrong) assertRefused([...ste, `${key}=${given}`], key, got, "for ste");
  assertRefused([...ste, "reward.latentCosine.weight=1"], "reward.latentCosine.weight", "1", "for ste");
  assertRefused(["algorithm=ste"], "rollout.context.type", "free", "teacher-forced");
  const server = ["reward.http.taste.url=http://127.0.0.1:9/score", "reward.http.taste.weight=2"];
  assertRefused([...ste, ...server], "reward.http.taste.weight", "2", "for ste");
  const own = [...ste, "reward.custom.taste.module=./taste.mjs", "reward.custom.taste.weight=1"];
  assertRefused(
    [...own, "reward.custom.taste.clamp=[0, 1]"],
    "reward.custom.taste.clamp",
    "[0,1]",
    "for ste",
  );
  assertRefused(
    [...own, "reward.custom.taste.normalize=group"],
    "reward.custom.taste.normalize",
    "group",
    "for ste",
  );
  assert.match(refused(...ste, "rollout.keepGraph=true"), /rollout\.keepGraph: expected false for ste/);
  assert.deepEqual(unread("update.tokenDropout=0.1", "grpo.epochs=2", ...ste), [
    "update.tokenDropout",
    "grpo.epochs",
  ]);
});

/** Notes that a configuration gets beside those of `PARTS` alone. */
function notes(...overrides: string[]): readonly string[] {
  const quiet = ["rollout.context=prefix", "update.miniBatch=8"];
  return resolveConfig({ overrides: [...PARTS, ...quiet, ...overrides] }).notes;
}

/** Keys that are given and that nothing reads, as the notes say. */
function unread(...overrides: string[]): string[] {
  return notes(...overrides).flatMap((note) => /^([\w., ]+): not used/.exec(note)?.[1]?.split(", ") ?? []);
}

test("keys that nothing reads are named", () => {
  assert.deepEqual(notes(), []);
  const cases: [overrides: string[], keys: string[]][] = [
    [["kl={stop: 1, path: base.pt, placement: loss}"], ["kl.placement"]],
    [
      ["kl.path=base.pt", "kl.estimator=exact"],
      ["kl.estimator", "kl.path"],
    ],
    [["kl={coef: 1, horizon: 5}"], ["kl.horizon"]],
    [["ar.lora.alpha=4"], ["ar.lora.alpha"]],
    [["ar.lora={alpha: 4, rank: 2}"], []],
    [
      ["ar.nLayer=4", "ar.extra.classNum=3", "ar.nHead=2"],
      ["ar.nLayer", "ar.extra.classNum"],
    ],
    [["reward.creditDecay=0.5"], ["reward.creditDecay"]],
    [["reward={credit: place, creditDecay: 0.5}", "algorithm=ppo"], ["reward.creditDecay"]],
    [
      ["ppo.epochs=2", "rloo.minStd=0"],
      ["rloo.minStd", "ppo.epochs"],
    ],
    [["rollout.context.noise=0.1"], ["rollout.context.noise"]],
    [
      ["eval.every=0", "eval.patience=3", "eval.images=8"],
      ["eval.images", "eval.patience"],
    ],
  ];
  for (const [overrides, keys] of cases) assert.deepEqual(unread(...overrides), keys, overrides.join(" "));
});

test("with a program's dataloader, the keys of data that it stands in for are named", () => {
  const given = [
    "data.flip=true",
    "data.balance=1",
    "data.group=x",
    "data.evalPart=0.2",
    "data.source=images",
  ];
  const reading = [
    "data.label=cls",
    "data.image=png",
    "data.classNames=[a]",
    "data.featureTokens=3",
    "data.maxUnreadable=1",
    "data.workers=2",
  ];
  const told = (...overrides: string[]): string[] =>
    resolveConfig({
      values: { dataloader: [] },
      overrides: [...PARTS, ...given, ...reading, ...overrides],
    }).notes.flatMap((note) => /^(data[\w., ]+): not used/.exec(note)?.[1]?.split(", ") ?? []);
  const keys = (of: string[]): string[] => of.map((text) => text.split("=")[0] as string).sort();
  assert.deepEqual(told().sort(), keys([...given, ...reading]));
  assert.deepEqual(told("data.evalSource=held_out").sort(), keys(given));
  const loader = { values: { dataloader: [] }, overrides: PARTS.slice(1) };
  assert.ok(resolveConfig(loader).notes.some((note) => note.includes("data.evalSource")));
});

test("combinations that are likely to disappoint are noted", () => {
  const only = (...overrides: string[]): string =>
    resolveConfig({ overrides: [...PARTS, "update.miniBatch=8", ...overrides] }).notes.join("\n");
  const shared = "rollout.context.type=teacher_forced";
  const lpips = ["reward.lpips.weight=1", "reward.lpips.path=vgg.pth"];
  assert.match(only(shared, "update.auxCe=0"), /^update\.auxCe is 0 .*l2.*update\.auxCe=0\.1\.$/);
  assert.match(only(shared, ...lpips, "update.auxCe=0"), /^update\.auxCe is 0 .*l2 and lpips/);
  assert.equal(only(shared, "update.auxCe=0.01"), "");
  assert.deepEqual(notes("update.auxCe=0"), []); // a prefix context says which image is meant
  assert.equal(only(shared, "update.auxCe=0", "reward.patchGan.weight=1", "reward.patchGan.path=d.pt"), "");
  assert.match(notes("rollout.topK=5").join(), /rollout\.topK/);
  assert.match(notes("algorithm=rloo").join(), /^2 .*rloo.*algorithm=grpo.*update\.miniBatch=null/);
  const noisy = "rollout.context=noisy_teacher_forced";
  assert.match(only(noisy), /rollout\.context\.noise 0\.5.*rollout\.context\.ramp/);
  assert.equal(only(noisy, "rollout.context.ramp=10"), "");
  assert.match(
    resolveConfig({ overrides: PARTS }).notes.join("\n"),
    /^rollout\.context is free.*prefix.*\nOne optimizer step.*ratio is 1/,
  );
});
