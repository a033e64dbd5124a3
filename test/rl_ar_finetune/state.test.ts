/** Resumes: what a run goes on with, what is refused, and what force can change. */
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { type TestContext, test } from "node:test";

import { resolveConfig } from "../../src/config/resolve.js";
import type { RewardFunction } from "../../src/config/train.js";
import { GPT } from "../../src/policies/index.js";
import { openPolicy } from "../../src/rl_ar_finetune/builder.js";
import type { Evaluation } from "../../src/rl_ar_finetune/evaluate.js";
import { noteEvaluation, type Progress } from "../../src/rl_ar_finetune/state.js";
import type { TrainOptions, TrainResult } from "../../src/rl_ar_finetune/train_loop.js";
import {
  loadSafetensors,
  manualSeed,
  ones,
  saveSafetensors,
  type Tensor,
  tidy,
} from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import {
  checkpointsOf,
  metricsOf,
  quietRun,
  Shown,
  tinyFolder,
  tinyRun,
  tinyTokenizer,
} from "../support/train_run.js";

type Run = (changes: object, options?: TrainOptions) => Promise<TrainResult>;

/** Runs in one folder, which go on with one another; four iterations at a constant rate, a checkpoint of each. */
async function runsIn(t: TestContext): Promise<Run> {
  const folder = await tinyFolder(t);
  return (changes, options = {}) =>
    quietRun(
      tinyRun(folder, {
        optimizer: { lr: 1e-2, schedule: "constant", warmup: 0 },
        train: { iters: 4 },
        save: { every: 1, keep: 9 },
        run: { ifExists: "resume" },
        ...changes,
      }),
      options,
    );
}

/** One iteration, and then an interruption. */
const once: TrainOptions = { signal: AbortSignal.abort() };
const forced: TrainOptions = { ...once, force: true };

/** The policy of the first checkpoint of a run. */
function loadSafetensorsIn(dir: string): { tensors: Record<string, Tensor> } & Disposable {
  const { tensors } = loadSafetensors(join(dir, "checkpoints", "step_000001", "policy.safetensors"));
  const dispose = (): void => {
    for (const tensor of Object.values(tensors)) tensor.dispose();
  };
  return { tensors, [Symbol.dispose]: dispose };
}

function newPolicy(): GPT {
  manualSeed(1);
  return new GPT({ vocabSize: 32, blockSize: 16, nLayer: 1, nHead: 2, nEmbd: 16, classNum: 3 });
}

const another = (what: string): { name: string; message: RegExp } => ({
  name: "ConfigError",
  message: new RegExp(
    `^resume: expected the ${what} that the run was begun with \\(weights [0-9a-f]{12}\\), got another \\([0-9a-f]{12}\\)\\. ` +
      "Give the same one \\(a program's own policy as it was before the run\\), start a new run, or resume with --force\\.$",
  ),
});

test("adapters never go twice on a program's policy, however little they learnt", async (t) => {
  const run = await runsIn(t);
  using policy = newPolicy();
  // So little that it cannot be told by the size of the weights.
  const optimizer = { lr: 1e-7, schedule: "constant", warmup: 0 };
  const changes = { ar: { type: null, policy, lora: { rank: 2 } }, optimizer };
  await run(changes, once);
  await assert.rejects(run(changes, once), another("policy under the adapters"));
  using same = newPolicy();
  assert.equal((await run({ ...changes, ar: { ...changes.ar, policy: same } }, once)).step, 2);
});

test("the reference is the one that the run was begun with, unless forced", async (t) => {
  const run = await runsIn(t);
  using policy = newPolicy();
  const changes = { ar: { type: null, policy }, kl: { coef: 0.1 } };
  await run(changes, once);
  await assert.rejects(run(changes, once), another("reference"));
  using same = newPolicy();
  const { step } = await run({ ...changes, ar: { ...changes.ar, policy: same } }, once);
  assert.equal(step, 2);
  assert.equal((await run(changes, forced)).step, 3);
  assert.equal((await run({ ...changes, kl: { coef: 0 } }, forced)).step, 4);
});

test("a coefficient that is forced takes the place of the saved one, and is steered from there", async (t) => {
  const run = await runsIn(t);
  const steered = { coef: 0.5, target: 1, horizon: 10 };
  for (const kl of [{ coef: 0 }, { coef: 0.5 }, steered]) await run({ kl }, forced);
  const { dir } = await run({ kl: steered });
  const coefs = metricsOf(dir).map((line) => line["kl/coef"]);
  assert.deepEqual(coefs.slice(0, 3), [undefined, 0.5, 0.5]);
  // 8 sequences of a horizon of 10, a fifth at most.
  assert.ok(Math.abs((coefs[3] as number) - 0.5 * (1 - 0.2 * 0.8)) < 1e-12, `${coefs}`);
});

test("what force changes is told, and counts: rate, betas, eps and decay of the optimizer", async (t) => {
  const run = await runsIn(t);
  await run({}, once);
  const screen = new Shown();
  const optimizer = {
    lr: 1e-4,
    schedule: "constant",
    warmup: 0,
    betas: [0.5, 0.6],
    eps: 1e-3,
    weightDecay: 0.3,
  };
  await assert.rejects(run({ optimizer }, once), /optimizer\.lr: 0\.01 -> 0\.0001; .*optimizer\.eps/);
  const { dir } = await run({ optimizer }, { ...forced, screen });
  for (const key of ["lr", "betas", "eps", "weightDecay"])
    assert.match(screen.text, new RegExp(`^--force: optimizer\\.${key}: .*from step 2 on$`, "m"));
  assert.equal(metricsOf(dir)[1]?.["optim/lr"], 1e-4);
  const [was, is] = checkpointsOf(dir).map((name) => join(dir, "checkpoints", name)) as [string, string];
  const { optimizer: groups } = JSON.parse(readFileSync(join(is, "values.json"), "utf8"));
  const [{ params: _, ...numbers }] = groups;
  assert.deepEqual(numbers, { lr: 1e-4, betas: [0.5, 0.6], eps: 1e-3, weightDecay: 0.3 });
  tidy(() => {
    const read = (path: string, part: string): Record<string, Tensor> =>
      loadSafetensors(join(path, `${part}.safetensors`)).tensors;
    const name = "head.weight";
    const [w, m, v] = [
      read(was, "policy")[name],
      read(is, "optimizer")[`${name}.exp_avg`],
      read(is, "optimizer")[`${name}.exp_avg_sq`],
    ] as [Tensor, Tensor, Tensor];
    // By hand: two steps in all, the second with the new numbers.
    const step = m.div(1 - 0.5 ** 2).div(
      v
        .div(1 - 0.6 ** 2)
        .sqrt()
        .add(1e-3),
    );
    const wanted = w.mul(1 - 1e-4 * 0.3).sub(step.mul(1e-4));
    expectClose(read(is, "policy")[name] as Tensor, wanted, { atol: 1e-7, where: name });
  });
});

test("the value head's own rate counts too when it is forced", async (t) => {
  const run = await runsIn(t);
  await run({ algorithm: "ppo", ppo: { valueLr: 1e-3 } }, once);
  const { dir } = await run({ algorithm: "ppo", ppo: { valueLr: 1e-5 } }, forced);
  const { optimizer: groups } = JSON.parse(
    readFileSync(join(dir, "checkpoints", "step_000002", "values.json"), "utf8"),
  );
  assert.deepEqual(
    groups.map(({ lr }: { lr: number }) => lr),
    [1e-2, 1e-5],
  );
});

test("another measure of the best, forced, is not compared with the best so far; a file of weights has no effect", async (t) => {
  const run = await runsIn(t);
  const evaluation = { every: 1, images: 4, numGenerations: 1 };
  const { dir } = await run({ eval: { ...evaluation, best: "eval/psnr/mean", mode: "max" } }, once);
  const read = (): { metric: string; step: number } =>
    JSON.parse(readFileSync(join(dir, "checkpoints", "best.json"), "utf8"));
  assert.deepEqual([read().metric, read().step], ["eval/psnr/mean", 1]);
  const screen = new Shown();
  await run({ eval: { ...evaluation, best: "eval/l2/mean", mode: "min" } }, { ...forced, screen });
  assert.match(screen.text, /^--force: eval\.mode: max -> min: .*best/m);
  assert.deepEqual([read().metric, read().step], ["eval/l2/mean", 2]);
  const path = join(dir, "checkpoints", "step_000001", "policy.safetensors");
  await run(
    { ar: { type: null, path }, eval: { ...evaluation, best: "eval/l2/mean", mode: "min" } },
    { ...forced, screen },
  );
  assert.match(screen.text, /^--force: ar\.path: .*has no effect/m);
});

test("a tokenizer or a reward's network that was replaced at its path is noticed", async (t) => {
  const run = await runsIn(t);
  const { dir } = await run({}, once);
  const file = join(dir, "..", "tokenizer.safetensors");
  manualSeed(99);
  const other = tinyTokenizer();
  saveSafetensors(file, other.stateDict(), { config: JSON.stringify({ normGroups: 4 }) });
  other.dispose();
  await assert.rejects(run({}, once), another("tokenizer"));
  const screen = new Shown();
  assert.equal((await run({}, { ...forced, screen })).step, 2);
  assert.match(screen.text, /^--force: other tokenizer: counts from step 2 on$/m);
});

test("a run that limits.nonFinite ended goes on once its cause is mended, and counts anew", async (t) => {
  const run = await runsIn(t);
  let isBad = true;
  const fn = (_: Tensor, samples: Tensor): Tensor =>
    tidy(() => samples.mean([1, 2, 3]).mul(isBad ? 1e38 : 1)); // 1e38 times 1e38 is no float32
  const changes = {
    reward: { l2: { weight: 0 }, custom: { weight: 1, fn } },
    grpo: { advantageClip: null, scale: "none" },
    limits: { nonFiniteInARow: 1, nonFinite: 1 },
    train: { iters: 6 },
  };
  await assert.rejects(run(changes), { name: "DivergedError" });
  await assert.rejects(run(changes), { name: "DivergedError" }); // not mended: once more
  isBad = false;
  const { end, step } = await run(changes);
  assert.deepEqual([end, step], ["done", 6]);
});

test("a run none of whose steps were finite is not done", async (t) => {
  const run = await runsIn(t);
  const fn = (_: Tensor, samples: Tensor): Tensor => tidy(() => samples.mean([1, 2, 3]).mul(1e38));
  const reward = { l2: { weight: 0 }, custom: { weight: 1, fn } };
  await assert.rejects(run({ reward, grpo: { advantageClip: null, scale: "none" } }), {
    name: "DivergedError",
    message: /^step 4: .*all 4 steps/,
  });
});

test("learning rates beyond all measure end a run, and its checkpoints hold finite weights", async (t) => {
  for (const lr of [1e10, 1e20, 1e30, 1e38]) {
    const run = await runsIn(t);
    await assert.rejects(
      run({ optimizer: { lr, schedule: "constant", warmup: 0 } }),
      { name: "DivergedError" },
      `${lr}`,
    );
  }
});

test("a skipped step moves neither the weights nor their average", async (t) => {
  const run = await runsIn(t);
  let calls = 0;
  const fn = (_: Tensor, samples: Tensor): Tensor =>
    tidy(() => samples.mean([1, 2, 3]).mul(calls++ === 4 ? 1e38 : 1)); // the samples of the third step
  const { dir } = await run({
    reward: { l2: { weight: 0 }, custom: { weight: 1, fn } },
    grpo: { advantageClip: null, scale: "none" },
    ema: { decay: 0.5, warmup: false },
    log: { every: 1 }, // the reconstructions are judged at every step too
  });
  const path = (step: number): string => join(dir, "checkpoints", `step_00000${step}`);
  const bytes = (step: number, part: string): Buffer => readFileSync(join(path(step), `${part}.safetensors`));
  const updates = (step: number): number =>
    JSON.parse(readFileSync(join(path(step), "values.json"), "utf8")).emaUpdates as number;
  for (const part of ["policy", "ema"]) {
    assert.ok(bytes(3, part).equals(bytes(2, part)), part);
    assert.ok(!bytes(4, part).equals(bytes(3, part)), part);
  }
  assert.deepEqual([1, 2, 3, 4].map(updates), [1, 2, 2, 3]);
  assert.ok(!bytes(2, "ema").equals(bytes(2, "policy")));
});

test("the best evaluation is the highest or the lowest, as eval.mode says, and patience counts the others", () => {
  const evaluationOf = (mean: number): Evaluation => ({
    spreads: { "eval/reward": { count: 1, mean, std: 0, min: mean, max: mean } },
    metrics: {},
  });
  for (const [mode, best, since] of [
    ["max", 2, 3],
    ["min", 4, 1],
  ] as const) {
    const config = resolveConfig({
      values: { eval: { best: "eval/reward/mean", mode: "max" } },
      isComplete: false,
    }).config;
    const progress = { step: 0, best: null, evaluationsSinceBest: 0 } as unknown as Progress;
    for (const value of [1, 5, 3, -2, Number.NaN]) {
      progress.step++;
      progress.last = evaluationOf(value);
      noteEvaluation({ ...config, eval: { ...config.eval, mode } }, progress);
    }
    assert.deepEqual([progress.best?.step, progress.evaluationsSinceBest], [best, since], mode);
  }
});

test("save.ckptPath: PyTorch's format or safetensors by its ending, tried before the first step", async (t) => {
  const run = await runsIn(t);
  const { dir } = await run({ train: { iters: 1 } });
  const folder = join(dir, "..");
  for (const name of ["w.pt", "w.pth", "w.ckpt", "w.bin", "w.safetensors", "W.PT"]) {
    const ckptPath = join(folder, name);
    await run({ save: { ckptPath }, train: { iters: 1 }, run: { ifExists: "overwrite" } });
    const isTorch = name !== "w.safetensors";
    assert.equal(readFileSync(ckptPath).subarray(0, 2).toString() === "PK", isTorch, name); // a zip
    // Nothing needs to be told about it: sizes, heads and codes are in the file.
    const { policy } = openPolicy(ckptPath, { codebookSize: 32 });
    using whole = loadSafetensorsIn(dir);
    for (const [key, value] of Object.entries(policy.stateDict()))
      expectClose(value, whole.tensors[key] as Tensor, { rtol: 0, atol: 0, where: `${name}: ${key}` });
    assert.equal((policy as GPT).options.nHead, 2);
    policy.dispose();
  }
  const refused: [string, RegExp][] = [
    [
      join(folder, "absent", "w.pt"),
      /^save\.ckptPath: expected a file that can be written, .*Make the folder/,
    ],
    [join(folder, "w.h5"), /^save\.ckptPath: expected a name that ends in /],
    [join(folder, "w"), /^save\.ckptPath: expected a name that ends in /],
    ["/dev/null.pt/x.pt", /^save\.ckptPath: /],
  ];
  for (const [ckptPath, message] of refused)
    await assert.rejects(run({ save: { ckptPath }, run: { ifExists: "new" } }), {
      name: "ConfigError",
      message,
    });
  assert.deepEqual(
    readdirSync(folder).filter((name) => name.endsWith(".tmp")),
    [],
  );
});

test("an error in mid-run leaves a checkpoint of the last whole step", async (t) => {
  const run = await runsIn(t);
  let isWhole = false;
  const fn: RewardFunction = (_, samples, { step }) => {
    if (!isWhole && step === 3) {
      isWhole = true;
      throw new Error("out of ink");
    }
    return tidy(() => samples.mean([1, 2, 3]));
  };
  const changes = { reward: { l2: { weight: 0 }, custom: { weight: 1, fn } }, save: { every: 0 } };
  await assert.rejects(run(changes), /^RangeError: reward\.custom: .*out of ink.*step 3/);
  const whole = await run({ ...changes, run: { ifExists: "new" } });
  const { dir, step } = await run(changes);
  assert.equal(step, 4);
  assert.deepEqual(metricsOf(dir), metricsOf(whole.dir));
});

test("an alarm warns, ends the run, or goes back to the best weights, also in a run that is resumed", async (t) => {
  // Code 0 is rewarded, and looks as unlike the images as can be; l2 alone is outside the reward.
  using images = loadSafetensors("test/fixtures/emoji_16px.safetensors").tensors.images as Tensor;
  const unlike = tidy(() => (Number(images.float().mean().item()) > 127.5 ? -1 : 1));
  const model = {
    codebookSize: 32,
    downsample: 4,
    encode: (pixels: Tensor) => ones([pixels.size(0), 16], { dtype: "int64" }),
    decodeCode: (codes: Tensor) =>
      tidy(() => {
        const places = codes.eq(0).float().mul(2).sub(1).mul(unlike).view(-1, 1, 4, 4);
        return places.repeatInterleave(4, 2).repeatInterleave(4, 3).expand(-1, 3, 16, 16).contiguous();
      }),
  };
  const zeroCodes: RewardFunction = (_, __, { codes }) => tidy(() => codes.eq(0).double().mean(1));
  const little = { weight: 1e-9 };
  const changes = {
    tokenizer: { path: null, model },
    reward: {
      l1: little,
      psnr: little,
      ssim: little,
      l2: { weight: 0 },
      custom: { zero: { fn: zeroCodes } },
    },
    update: { auxCe: 0 },
    rollout: { numGenerations: 8, context: { type: "free" } },
    optimizer: { lr: 3e-2, schedule: "constant", warmup: 0 },
    eval: { every: 3, images: 4, numGenerations: 8, best: "eval/l2/mean", mode: "min" },
    ema: { decay: 0.5, warmup: false },
    train: { iters: 12 },
    save: { every: 1, keep: 20 },
  };
  const steps = (dir: string, metric: string): [number, unknown][] =>
    metricsOf(dir).flatMap((line): [number, unknown][] =>
      line[metric] === undefined ? [] : [[line.step as number, line[metric]]],
    );
  const run = await runsIn(t);
  const screen = new Shown();
  const warned = await run({ ...changes, alarm: { action: "warn" } }, { screen });
  const alarms = steps(warned.dir, "eval/hacking_alarm").filter(([, value]) => value === 1);
  assert.equal(warned.end, "done");
  assert.match(screen.text, /the reward rose while every metric outside it fell/);
  const [first] = alarms;
  assert.ok(first !== undefined && first[0] < 12, JSON.stringify(alarms));

  const stopping = await runsIn(t);
  const stop = { ...changes, alarm: { action: "stop" } };
  const stopped = await stopping(stop);
  assert.deepEqual([stopped.end, stopped.step], ["alarm", first[0]]);
  assert.deepEqual(metricsOf(stopped.dir), metricsOf(warned.dir).slice(0, stopped.step + 1));
  assert.deepEqual([(await stopping(stop)).step, (await stopping(stop)).end], [stopped.step, "alarm"]);
  assert.equal((await stopping({ ...changes, alarm: { action: "warn" } })).step, 12);
  assert.deepEqual(metricsOf(stopped.dir), metricsOf(warned.dir));

  const going = await runsIn(t);
  const back = { ...changes, alarm: { action: "rollback" } };
  const whole = await going(back);
  assert.equal(whole.end, "done");
  const [[at, best]] = steps(whole.dir, "eval/rolled_back_to") as [[number, number]];
  assert.equal(at, first[0]);
  assert.ok(best < at);
  const bytes = (dir: string, step: number, part: string): Buffer =>
    readFileSync(join(dir, "checkpoints", `step_${String(step).padStart(6, "0")}`, `${part}.safetensors`));
  for (const part of ["policy", "optimizer", "ema"]) {
    assert.ok(bytes(whole.dir, at, part).equals(bytes(whole.dir, best, part)), part);
    assert.ok(!bytes(whole.dir, at - 1, part).equals(bytes(whole.dir, best, part)), part);
  }
  const resumed = await runsIn(t);
  for (let step = 1; step < 12; step++) await resumed(back, once);
  const { dir } = await resumed(back);
  assert.deepEqual(metricsOf(dir), metricsOf(whole.dir));
  for (const part of ["policy", "optimizer", "ema"])
    assert.ok(bytes(dir, 12, part).equals(bytes(whole.dir, 12, part)), part);
});

test("an alarm that goes back needs a best that the reward does not choose", () => {
  const read = (...overrides: string[]) =>
    resolveConfig({ overrides, isComplete: false }).config.alarm.action;
  const back = "alarm.action=rollback";
  for (const best of ["eval/reward/mean", "eval/l2/mean"]) {
    const mode = best === "eval/l2/mean" ? "min" : "max";
    assert.throws(
      () => read(back, `eval.best=${best}`, `eval.mode=${mode}`),
      /eval\.best: .*outside the reward/,
    );
  }
  assert.equal(read(back, "eval.best=eval/psnr/mean"), "rollback");
  assert.equal(read("alarm.action=stop"), "stop");
  assert.throws(() => read("alarm.action=stop", "eval.every=0"), /alarm\.action: expected warn/);
});

test("a run that kl.stop or eval.patience ended stays ended, unless told otherwise", async (t) => {
  for (const [end, changes, more] of [
    ["kl", { kl: { stop: 1e-12 } }, { kl: { stop: 9 } }],
    [
      "patience",
      { eval: { every: 1, images: 4, patience: 1, best: "eval/reward/count" } },
      { eval: { every: 1, images: 4, patience: 0, best: "eval/reward/count" } },
    ],
  ] as const) {
    const run = await runsIn(t);
    const first = await run(changes);
    assert.equal(first.end, end);
    assert.ok(first.step < 4, `${first.step}`);
    const lines = metricsOf(first.dir);
    assert.deepEqual(await run(changes), first);
    assert.deepEqual(metricsOf(first.dir), lines);
    assert.equal((await run(changes, { force: true })).step, first.step + 1);
    const after = await run(more, { force: end === "kl" });
    assert.deepEqual([after.end, after.step], ["done", 4]);
  }
});

test("an average that is forced on starts from the weights of then", async (t) => {
  const run = await runsIn(t);
  await run({}, once);
  const { dir } = await run({ ema: { decay: 0.75, warmup: false } }, forced);
  const [before, after] = checkpointsOf(dir).map((name) => join(dir, "checkpoints", name)) as [
    string,
    string,
  ];
  const read = (at: string, part: string): Record<string, Tensor> =>
    loadSafetensors(join(at, `${part}.safetensors`)).tensors;
  tidy(() => {
    const [was, is, average] = [read(before, "policy"), read(after, "policy"), read(after, "ema")];
    for (const [name, value] of Object.entries(average)) {
      const wanted = (was[name] as Tensor).mul(0.75).add((is[name] as Tensor).mul(0.25));
      expectClose(value, wanted, { atol: 1e-6, where: name });
    }
    assert.throws(() =>
      expectClose(is["head.weight"] as Tensor, was["head.weight"] as Tensor, { atol: 1e-4 }),
    );
  });
  assert.equal((await run({}, forced)).step, 3);
});

test("other trained parameters cannot be forced", async (t) => {
  const run = await runsIn(t);
  const { dir } = await run({}, once);
  const refused = {
    name: "ConfigError",
    message:
      "resume: expected the trained parameters that the run was begun with, got others (ar, ar.lora or algorithm changed). " +
      `Undo it, or start a new run with ar.path=${join(dir, "checkpoints", "step_000001", "policy.safetensors")}.`,
  };
  for (const changes of [{ ar: { lora: { rank: 2 } } }, { algorithm: "ppo" }, { ar: { nEmbd: 32 } }])
    await assert.rejects(run(changes, forced), refused);
  // Of the same shapes, and still another network.
  for (const ar of [{ nHead: 4 }, { extra: { classNum: 3, residPdrop: 0.5 } }])
    await assert.rejects(run({ ar }, forced), { name: "ConfigError", message: /with --force too, got ar\./ });
  assert.equal((await run({ algorithm: "rloo" }, forced)).step, 2);
});
