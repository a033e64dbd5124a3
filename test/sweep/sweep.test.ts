/** Sweeps: what trials draw, how they are scored, and that a sweep that was stopped goes on to the same end. */
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { type ConfigError, resolveConfig } from "../../src/config/resolve.js";
import { type SweepConfig, sweepKind } from "../../src/config/sweep.js";
import { writeSweep } from "../../src/dashboard/sweep.js";
import type { EvalRow } from "../../src/evaluation/options.js";
import { FeatureClassifier } from "../../src/metrics/index.js";
import { averageWeights } from "../../src/nn/index.js";
import { buildArPolicy, policyMetadata } from "../../src/rl_ar_finetune/builder.js";
import { meanInterval, studentQuantile } from "../../src/sweep/interval.js";
import {
  checkMeasures,
  compareScores,
  FAILED,
  type Score,
  scoresOf,
  worstOf,
} from "../../src/sweep/score.js";
import { runSweep, type SweepResult } from "../../src/sweep/sweep.js";
import { trialsOf } from "../../src/sweep/trials.js";
import {
  isCudaAvailable,
  loadSafetensors,
  manualSeed,
  saveSafetensors,
  type Tensor,
} from "../../src/torch/index.js";
import { fakeGpu } from "../support/fake_gpu.js";
import { checkpointsOf, tinyFolder, writeEmoji } from "../support/train_run.js";

const drawn = (keys: SweepConfig["keys"], trials = 40, seed = 0) =>
  trialsOf({ keys, trials, seed, compare: {}, set: {} });
const named = (compare: SweepConfig["compare"], set = {}) =>
  trialsOf({ keys: {}, trials: 16, seed: 0, compare, set });

test("trials are the base and different draws within the ranges, the same every time", () => {
  const keys = {
    "optimizer.lr": { log: [1e-4, 1e-2] },
    "update.auxCe": { range: [0, 1] },
    "rollout.context.length": { range: [1, 3], integer: true },
    algorithm: ["grpo", "rloo"],
  };
  const trials = drawn(keys);
  assert.deepEqual(trials, drawn(keys));
  assert.notDeepEqual(trials, drawn(keys, 40, 1));
  assert.deepEqual(trials[0], { name: "trial_000", folder: "trial_000", values: {} });
  assert.equal(new Set(trials.map(({ values }) => JSON.stringify(values))).size, 40);
  const of = (key: string): number[] => trials.slice(1).map(({ values }) => values[key] as number);
  assert.ok(of("optimizer.lr").every((lr) => lr >= 1e-4 && lr <= 1e-2));
  const low = of("optimizer.lr").filter((lr) => lr < 1e-3).length;
  assert.ok(low > 10 && low < 30, `half below the geometric mean, ${low} of 39`);
  assert.deepEqual([...new Set(of("rollout.context.length"))].sort(), [1, 2, 3]);
  assert.deepEqual([...new Set(of("algorithm"))].sort(), ["grpo", "rloo"]);
});

test("lists with fewer values than trials are all tried, once", () => {
  const values = drawn({ seedless: [1, 2, 3] }).map((trial) => trial.values.seedless);
  assert.deepEqual(values.slice(1).sort(), [1, 2, 3]);
});

test("what is no range is refused, with what one looks like", () => {
  const given = [3, [], {}, { log: [0, 1] }, { range: [2, 1] }, { range: [1] }, { range: [0, 1], step: 1 }];
  for (const range of [...given, { log: [1, 2], range: [1, 2] }, { range: [1, 2], integer: 1 }])
    assert.throws(
      () => drawn({ "optimizer.lr": range }),
      /^ConfigError: keys\.optimizer\.lr: expected .*log/,
    );
});

test("named trials are those and no other, each in a folder of its own", () => {
  assert.deepEqual(named({ GRPO: {}, "Dr. GRPO": { "grpo.scale": "none" } }), [
    { name: "GRPO", folder: "grpo", values: {} },
    { name: "Dr. GRPO", folder: "dr_grpo", values: { "grpo.scale": "none" } },
  ]);
  assert.throws(() => named({ "a b": {}, "A-B": {} }), /a b and A-B.*a_b/);
  assert.throws(() => named({ "../..": {} }), /a letter or a digit/);
  for (const values of [null, "rloo", ["rloo"]])
    assert.throws(() => named({ RLOO: values }), /compare\.RLOO: expected keys.*RLOO: \{\}/);
  assert.throws(() => named({ ["x".repeat(256)]: {} }), /compare: .*255 bytes/);
  assert.throws(() => named({ "\u00e9": {}, "e\u0301": {} }), /share the folder \u00e9/);
  for (const long of [{ "train.iters": 99 }, { train: { iters: 99 } }])
    assert.throws(() => named({ long }), /compare: .*train\.iters.*rungs/);
  assert.throws(() => named({ a: {} }, { seed: 4 }), /set: .*seed.*seeds/);
  assert.throws(() => drawn({ seed: [1, 2] }), /keys: .*seed.*seeds/);
});

test("compare takes the place of keys, trials and keep, which are refused together", () => {
  const read = (values: object) => resolveConfig({ values, isComplete: false }, sweepKind);
  const compare = { RLOO: { algorithm: "rloo" } };
  read({ compare });
  assert.throws(
    () => read({ compare, trials: 4, keep: 0.5, keys: { "optimizer.lr": [1] } }),
    ({ problems }: ConfigError) =>
      problems.length === 3 && problems.every((text) => /beside compare/.test(text)),
  );
});

test("what an evaluation would refuse is refused before trials train; equal seeds are one run", () => {
  const read = (values: object) => resolveConfig({ values, isComplete: false }, sweepKind);
  assert.deepEqual(read({ seeds: [3, 4] }).config.seeds, [3, 4]);
  assert.throws(() => read({ seeds: [3, 4, 3] }), /seeds: expected .*, got 3 twice\. /);
  assert.throws(() => read({ eval: { temperatures: [1, 1] } }), /eval\.temperatures: .*got 1 twice\. /);
  assert.throws(() => read({ eval: { cfg: [2, 2] } }), /eval\.cfg: .*got 2 twice\. /);
  assert.throws(() => read({ eval: { samples: 1 } }), /eval\.samples: .*at least 2, got 1\. /);
});

test("paths in a sweep's file are relative to it, in every spelling, those of a command line are not", (t) => {
  const folder = mkdtempSync(join(tmpdir(), "sweep-"));
  t.after(() => rmSync(folder, { recursive: true }));
  const file = join(folder, "sweep.yaml");
  writeFileSync(
    file,
    `base: base.yaml
set: { reward.kernel.path: a, tokenizer: { path: /b }, kl.coef: 0 }
compare: { "Dr. X": { ar.path: c, data: { source: ~/d } } }
eval: { features: [e, ../f] }
`,
  );
  const { config } = resolveConfig({ file }, sweepKind);
  assert.equal(config.base, join(folder, "base.yaml"));
  assert.deepEqual(config.set, {
    "reward.kernel.path": join(folder, "a"),
    tokenizer: { path: "/b" },
    "kl.coef": 0,
  });
  assert.deepEqual(config.compare, {
    "Dr. X": { "ar.path": join(folder, "c"), data: { source: join(homedir(), "d") } },
  });
  assert.deepEqual(config.eval.features, [join(folder, "e"), join(folder, "..", "f")]);
  const drawn = join(folder, "drawn.yaml");
  writeFileSync(drawn, "keys: { ar.path: [c, /d], optimizer.lr: { log: [0.001, 0.1] } }");
  const { keys } = resolveConfig({ file: drawn, isComplete: false }, sweepKind).config;
  assert.deepEqual(keys, { "ar.path": [join(folder, "c"), "/d"], "optimizer.lr": { log: [0.001, 0.1] } });
  const overrides = ["eval.features=[~/e, f]", "set={reward.kernel.path: a}"];
  const typed = resolveConfig({ file, overrides }, sweepKind).config;
  assert.deepEqual(
    [typed.eval.features, typed.set],
    [[join(homedir(), "e"), "f"], { "reward.kernel.path": "a" }],
  );
});

test("the interval of a mean over seeds is Student's t", () => {
  // 1, 2, 3, 4, 5: mean 3, s = sqrt(10 / 4), t of 4 degrees 2.776445: 2.776445 * sqrt(2.5 / 5) = 1.963243.
  const { value, low, high } = meanInterval([1, 2, 3, 4, 5]);
  assert.equal(value, 3);
  assert.ok(Math.abs((low as number) - 1.036757) < 1e-6 && Math.abs((high as number) - 4.963243) < 1e-6);
  assert.deepEqual(meanInterval([7]), { value: 7, low: null, high: null });
  assert.deepEqual(meanInterval([7, Infinity]), { value: Infinity, low: null, high: null });
  // Published tables.
  for (const [degrees, t] of [
    [11, 2.200985],
    [30, 2.042272],
    [120, 1.97993],
  ] as const)
    assert.ok(Math.abs(studentQuantile(degrees) - t) < 1e-5, `${degrees}`);
});

/** An evaluation of one policy: of each temperature L2, and FD by two judges. */
const rows = (...all: [temperature: number, l2: number, inside: number, outside: number][]) => ({
  rows: all.map(([temperature, l2, inside, outside]): EvalRow => {
    const near = (value: number) => ({ value, low: null, high: null });
    const networks = { inside: { fd_train: near(inside) }, outside: { fd_train: near(outside) } };
    const measures = { images: 9, plain: { l2: near(l2) }, networks };
    return { policy: "A", temperature, cfg: 1, free: null, completions: [{ prefix: 4, measures }] };
  }),
});

const BASE = rows([1, 0.2, 1, 10], [0.5, 0.16, 2, 20]);
const scoreOf = (...of: Parameters<typeof scoresOf>) => scoresOf(...of)[0] as Score;
const ASKED = { objective: ["completion.l2"], constraints: { "completion.fd_train": 0 } };

test("closeness is compared with the base's best setting, sets with the same setting, in the worst judge", () => {
  // T 1: 0.152 is 5 % under 0.16; FD +10 % in one judge. T 0.5: 0.168 is 5 % above; FD below in both.
  const trial = rows([1, 0.152, 1.1, 9], [0.5, 0.168, 1.9, 19]);
  const score = scoreOf(BASE, [trial], ASKED);
  assert.deepEqual(score.point, { temperature: 0.5, cfg: 1 }, "the constraint comes first");
  assert.ok(Math.abs(score.objective - 5) < 1e-9);
  assert.equal(score.excess, 0);
  assert.ok(Math.abs(worstOf(score.changes, "completion.fd_train") + 5) < 1e-9);
  const loose = scoreOf(BASE, [trial], { ...ASKED, constraints: { "completion.fd_train": 10.5 } });
  assert.ok(Math.abs(loose.objective + 5) < 1e-9);
  // Two seeds: the mean.
  const two = scoreOf(BASE, [trial, rows([1, 0.152, 0.9, 9], [0.5, 0.2, 3, 30])], ASKED);
  assert.ok(Math.abs(two.objective + 5) < 1e-9 && two.excess < 1e-9);
  // Each judge has its own mean and interval: FD of T 1 is 10 % above and 10 % below by the one, 10 % below twice by the other.
  assert.deepEqual(
    two.changes.map(({ judge, seeds }) => [judge, ...seeds.map(Math.round)]),
    [
      ["", -5, -5],
      ["inside", 10, -10],
      ["outside", -10, -10],
    ],
  );
  const [, inside] = two.changes;
  assert.ok(Math.abs((inside?.high as number) - 12.706205 * 10) < 1e-6);
});

test("a measure that stays at 0 has not changed", () => {
  const none = rows([1, 0, 1, 10]);
  const some = rows([1, 0.1, 1, 10]);
  const changesOf = (...seeds: (typeof none)[]) => scoreOf(none, seeds, ASKED).changes[0];
  assert.deepEqual(changesOf(none, none)?.seeds, [0, 0]);
  assert.deepEqual([changesOf(none, some)?.seeds, changesOf(none, some)?.value], [[0, Infinity], Infinity]);
  assert.equal(changesOf(none, none)?.value, 0);
});

test("trials that keep the constraints come first, failed ones last", () => {
  const score = (objective: number, excess: number) => ({ ...FAILED, objective, excess });
  const sorted = [FAILED, score(-9, 2), score(-1, 0), score(-9, 1), score(-3, 0)].sort(compareScores);
  assert.deepEqual(
    sorted.map(({ objective }) => objective),
    [-3, -1, -9, -9, Infinity],
  );
  assert.equal(sorted[2]?.excess, 1);
});

test("measures that no evaluation has are refused before anything trains", () => {
  const check = (values: object) =>
    checkMeasures(resolveConfig({ values, isComplete: false }, sweepKind).config);
  check({});
  for (const objective of [
    "l2",
    "completion.nothing",
    "completion.codes_used",
    "other.l2",
    "completion.l2.x",
  ])
    assert.throws(() => check({ objective: [objective] }), /objective: expected .*completion\.l2/);
  assert.throws(() => check({ constraints: { "free.fd_train": 0 } }), /eval\.samples/);
  check({ constraints: { "free.fd_train": 0 }, eval: { samples: 16 } });
  assert.throws(() => check({ constraints: { "completion.l2": "low" } }), /a number of percent/);
});

/** A folder with images, models and a sweep of two trials. */
async function sweepFolder(t: { after(fn: () => void): void }) {
  const folder = await tinyFolder(t, 0);
  await writeEmoji(join(folder, "images"), 40);
  const at = (name: string): string => join(folder, name);
  manualSeed(5);
  const { policy, optimizer } = buildArPolicy(32, 16, {
    ...{ type: "gpt", nLayer: 1, nHead: 2, nEmbd: 16, extra: { classNum: 3 } },
  });
  saveSafetensors(at("policy.safetensors"), policy.stateDict(), policyMetadata(policy));
  optimizer.dispose();
  policy.dispose();
  using classifier = new FeatureClassifier({ numClasses: 3, widths: [8, 8] });
  const metadata = { config: JSON.stringify(classifier.config) };
  saveSafetensors(at("judge.safetensors"), classifier.stateDict(), metadata);
  writeFileSync(
    at("base.yaml"),
    `data: { source: images, size: 16, evalPart: 0.3 }
tokenizer: { path: tokenizer.safetensors }
ar: { path: policy.safetensors }
rollout: { images: 2, numGenerations: 2, context: { type: prefix, length: 8 } }
optimizer: { lr: 0.001 }
eval: { every: 0 }
log: { imagesEvery: 0, tensorboard: false }
train: { threads: 1, device: cpu }
`,
  );
  const values = (dir: string) => ({
    ...{ base: at("base.yaml"), dir: at(dir), trials: 2, rungs: [1, 2], keep: 0.5 },
    keys: { "optimizer.lr": { log: [0.001, 0.1] } },
    eval: { features: [at("judge.safetensors")], temperatures: [1], images: 8, trainImages: 16 },
  });
  const run = (dir: string, options: Parameters<typeof runSweep>[2] = {}, more: object = {}) =>
    runSweep(resolveConfig({ values: { ...values(dir), ...more } }, sweepKind), at("sweep.yaml"), options);
  return { at, run };
}

/** Runs that are judged as they are. */
const ALONE = { runs: 1, scale: 1 };

/** What must not depend on where a sweep was stopped. */
const plain = ({ standings }: SweepResult) =>
  standings.map(({ trial, steps, score }) => ({ trial, steps, score }));

test("a sweep that is stopped goes on to the same end, and repeats no trial that is done", async (t) => {
  const { at, run } = await sweepFolder(t);
  const whole = await run("whole");
  assert.equal(whole.isInterrupted, false);
  assert.deepEqual(
    whole.standings.map(({ steps }) => steps),
    [2, 1],
    "half of two goes on",
  );
  const page = await writeSweep(whole, { rungs: [1, 2], seeds: [0], average: ALONE }, "rlar eval");
  const html = readFileSync(page, "utf8");
  for (const { trial } of whole.standings) assert.ok(html.includes(trial.name));
  assert.match(html, /optimizer\.lr/);

  const stop = new AbortController();
  const stopped = await run("parts", {
    signal: stop.signal,
    say: (line) => {
      if (line.startsWith("trial_001")) stop.abort();
    },
  });
  assert.equal(stopped.isInterrupted, true);
  const first = at("parts/trial_000/eval_000001.json");
  const made = statSync(first).mtimeMs;
  // Killed between training and evaluation.
  rmSync(at("parts/trial_001/eval_000001.json"));
  const resumed = await run("parts");
  assert.deepEqual(plain(resumed), plain(whole));
  assert.equal(statSync(first).mtimeMs, made, "not evaluated again");
  assert.deepEqual(checkpointsOf(at("parts/trial_000")).length > 0, true);
  await assert.rejects(run("parts", {}, { seed: 1 }), (error: ConfigError) =>
    /sweep\.json/.test(error.message),
  );
});

test("named trials run with each seed on the device of base.yaml, and the page and the table have their intervals", async (t) => {
  const { at, run } = await sweepFolder(t);
  using _ = isCudaAvailable() ? null : fakeGpu();
  const set = { "train.device": "cuda" };
  const given = { rungs: [1], seeds: [3, 4], trials: undefined, keep: undefined, keys: undefined, set };
  const compare = { GRPO: {}, "R & LOO": { algorithm: "rloo", "rloo.aggregation": "mean" } };
  const result = await run("named", {}, { ...given, compare });
  assert.deepEqual(
    result.standings.map(({ steps }) => steps),
    [1, 1],
  );
  for (const name of ["base.json", "grpo/seed_3/eval_000001.json"])
    assert.equal(JSON.parse(readFileSync(at(`named/${name}`), "utf8")).settings.device, "cuda", name);
  const page = await writeSweep(result, { ...given, average: ALONE }, "rlar eval");
  const html = readFileSync(page, "utf8");
  assert.match(html, /R &amp; LOO/);
  assert.match(html, /class="range"/);
  const [head, ...lines] = readFileSync(at("named/sweep.csv"), "utf8").trim().split("\n");
  assert.match(head as string, /^trial,.*measure,judge,change_percent,low,high,seed_3,seed_4/);
  // completion.l2 without a network, completion.fd_train by one.
  assert.equal(lines.length, 4);
  assert.ok(checkpointsOf(at("named/r_loo/seed_4")).length > 0);
  // The same command has nothing left to do, also where the plan is older than a key.
  const plan = at("named/sweep.json");
  const { seed: __, ...older } = JSON.parse(readFileSync(plan, "utf8"));
  for (const text of [readFileSync(plan, "utf8"), JSON.stringify(older)]) {
    writeFileSync(plan, text);
    assert.deepEqual(plain(await run("named", {}, { ...given, compare })), plain(result));
  }
  const wrong = { ...given, compare: { Typo: { algorithm: "rlo" } } };
  await assert.rejects(run("wrong", {}, wrong), /Typo: algorithm: expected/);
});

test("several runs of a seed are judged as one policy, also where the sweep was stopped between them", async (t) => {
  const { at, run } = await sweepFolder(t);
  const average = { runs: 2, scale: 1.5 };
  const given = {
    ...{ rungs: [1], seeds: [3], trials: undefined, keep: undefined, keys: undefined },
    average,
  };
  const compare = { GRPO: {} };
  const result = await run("whole", {}, { ...given, compare });
  const parts = ["whole/grpo/run_0", "whole/grpo/run_1"].map(at);
  assert.deepEqual(result.standings[0]?.runs, parts);
  assert.deepEqual(result.standings[0]?.averages, [at("whole/grpo/average_000001.safetensors")]);
  for (const [k, part] of parts.entries())
    assert.match(readFileSync(join(part, "config.yaml"), "utf8"), new RegExp(`^seed: ${6 + k}$`, "m"));
  const weights = (name: string) => loadSafetensors(name).tensors;
  const policies = parts.map((part) => weights(join(part, "checkpoints/step_000001/policy.safetensors")));
  const averaged = weights(at("whole/grpo/average_000001.safetensors"));
  const wanted = averageWeights(policies, { base: weights(at("policy.safetensors")), scale: 1.5 });
  for (const [name, tensor] of Object.entries(wanted.weights))
    assert.ok(tensor.equal(averaged[name] as Tensor), name);
  const { files } = JSON.parse(readFileSync(at("whole/grpo/eval_000001.json"), "utf8"));
  assert.ok(files.some(({ path }: { path: string }) => path.endsWith("average_000001.safetensors")));
  const html = readFileSync(await writeSweep(result, given, "rlar eval"), "utf8");
  assert.match(
    html,
    /2 runs of each seed are averaged; what is judged is 1\.5 times the change from the base/,
  );

  // Stopped after the first of the two.
  await run("parts", {}, { ...given, compare });
  for (const gone of ["run_1", "average_000001.safetensors", "eval_000001.json"])
    rmSync(at(`parts/grpo/${gone}`), { recursive: true });
  assert.deepEqual(plain(await run("parts", {}, { ...given, compare })), plain(result));
});
