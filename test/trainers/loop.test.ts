/** The loop of the supervised trainers, on a regression that takes no time. */
import assert from "node:assert/strict";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { plainConfig } from "../../src/config/explain.js";
import { ConfigError, resolveConfig } from "../../src/config/resolve.js";
import { DivergedError } from "../../src/run/failure.js";
import type { TrainOptions } from "../../src/run/log.js";
import { loadSafetensors } from "../../src/torch/index.js";
import { type FitOpening, type FitResult, fitLoop } from "../../src/trainers/loop.js";
import { type ToyChanges, ToyTask, toyConfig, toyKind } from "../support/fit_run.js";
import { checkpointsOf, metricsOf, Shown } from "../support/train_run.js";

function newFolder(t: TestContext): string {
  const folder = mkdtempSync(join(tmpdir(), "fit-loop-"));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** A run; its task is remembered, to look at its weights. */
async function fit(
  dir: string,
  changes: Record<string, unknown> = {},
  toy: ToyChanges = {},
  options: TrainOptions = {},
): Promise<FitResult & { shown: string }> {
  const resolved = toyConfig(dir, changes);
  const screen = new Shown();
  const result = await fitLoop(resolved, async () => new ToyTask(resolved.config, toy), {
    screen,
    ...options,
  });
  return { ...result, shown: screen.text };
}

/** Weights of a file, as numbers. */
function weightsIn(path: string): Record<string, unknown> {
  const { tensors } = loadSafetensors(path);
  const values = Object.entries(tensors).map(([name, tensor]) => [name, tensor.toList()]);
  for (const tensor of Object.values(tensors)) tensor.dispose();
  return Object.fromEntries(values);
}

const partOf = (dir: string, step: number, part: string): string =>
  join(dir, "checkpoints", `step_${String(step).padStart(6, "0")}`, `${part}.safetensors`);

test("a run leaves its configuration, metrics, pages, checkpoints and a model", async (t) => {
  const dir = join(newFolder(t), "run");
  const { shown, ...result } = await fit(dir);
  assert.equal(result.step, 8);
  assert.equal(result.end, "done");
  assert.equal(result.model, join(dir, "model.safetensors"));
  const files = readdirSync(dir).sort();
  assert.deepEqual(files, [
    "checkpoints",
    "config.yaml",
    "env.json",
    "metrics.csv",
    "metrics.jsonl",
    "model.safetensors",
    "samples",
    "samples.jsonl",
    "tb",
  ]);
  const again = resolveConfig({ file: join(dir, "config.yaml") }, toyKind).config;
  assert.deepEqual(plainConfig(again, toyKind), plainConfig(toyConfig(dir).config, toyKind));
  const lines = metricsOf(dir);
  assert.deepEqual(
    lines.map((line) => line.step),
    [0, 1, 2, 3, 4, 5, 6, 7, 8],
  );
  assert.deepEqual(
    lines.filter((line) => line["eval/loss"] !== undefined).map((line) => line.step),
    [0, 2, 4, 6, 8],
  );
  assert.deepEqual(Object.keys(lines[3] ?? {}).sort(), [
    "optim/grad_norm",
    "optim/lr",
    "optim/skipped_total",
    "progress/epoch",
    "progress/images_seen",
    "step",
    "train/loss",
  ]);
  assert.equal(lines[8]?.["progress/images_seen"], 64);
  const whole = metricsOf(dir, { isPlain: false })[4] ?? {};
  for (const name of [
    "perf/step_s",
    "perf/images_per_s",
    "perf/rss_gb",
    "perf/peak_gb",
    "time/eval",
    "time/other",
  ])
    assert.equal(typeof whole[name], "number", name);
  assert.deepEqual(readdirSync(join(dir, "samples")), ["step_000004_eval.png", "step_000008_eval.png"]);
  assert.deepEqual(result.first, { "eval/loss": lines[0]?.["eval/loss"] });
  assert.deepEqual(result.last, { "eval/loss": lines[8]?.["eval/loss"] });
  // The loss falls at each evaluation, so that the last is the best.
  assert.deepEqual(result.best, result.last);
  assert.match(shown, /model: .*model\.safetensors \(update 8: eval\/loss [\d.e-]+\)\n$/);

  const { metadata } = loadSafetensors(result.model);
  assert.deepEqual(JSON.parse(metadata.config ?? ""), { inFeatures: 2 });
  assert.deepEqual([metadata.format, metadata.weights], ["pt", "ema"]);
  const { seconds, commit, ...training } = JSON.parse(metadata.training ?? "");
  assert.deepEqual(training, {
    command: "toy",
    seed: 0,
    data: { source: "toy images", fingerprint: "f1", size: 256 },
    classes: ["all"],
    steps: 8,
    metrics: result.last,
  });
  assert.ok(seconds >= 0);
  assert.ok(commit === null || /^[0-9a-f]{40}( with changes)?$/.test(commit));
});

test("without an average, model.safetensors does not say that its weights are one", async (t) => {
  const { model } = await fit(join(newFolder(t), "run"), { train: { iters: 1 }, ema: { decay: null } });
  assert.equal(loadSafetensors(model).metadata.weights, undefined);
});

test("model.safetensors holds the averaged weights of the best evaluation", async (t) => {
  const dir = join(newFolder(t), "run");
  const losses = [Number.NaN, 9, 7, 7, 3, 3, 5, 5, 4];
  const { best, last, model } = await fit(
    dir,
    { save: { every: 2, keep: 5 } },
    { evaluate: (step) => ({ "eval/loss": losses[step] as number, "eval/score": -step }) },
  );
  assert.deepEqual(best, { "eval/loss": 3, "eval/score": -4 });
  assert.deepEqual(last, { "eval/loss": 4, "eval/score": -8 });
  assert.deepEqual(weightsIn(model), weightsIn(partOf(dir, 4, "model_ema")));
  assert.notDeepEqual(weightsIn(model), weightsIn(partOf(dir, 4, "model")));
  assert.equal(JSON.parse(loadSafetensors(model).metadata.training ?? "").steps, 4);
  assert.equal(JSON.parse(readFileSync(join(dir, "checkpoints", "best.json"), "utf8")).step, 4);

  const most = await fit(
    join(dir, "most"),
    { eval: { best: "eval/score", mode: "max" } },
    { evaluate: (step) => ({ "eval/loss": step, "eval/score": -step }) },
  );
  assert.equal(JSON.parse(loadSafetensors(most.model).metadata.training ?? "").steps, 0);
});

test("without evaluations the model is that of the last update", async (t) => {
  const dir = join(newFolder(t), "run");
  const { model, first, last, best, shown } = await fit(dir, { eval: { every: 0 }, ema: { decay: null } });
  assert.deepEqual([first, last, best], [null, null, null]);
  assert.deepEqual(weightsIn(model), weightsIn(partOf(dir, 8, "model")));
  assert.match(shown, /\(update 8; nothing was evaluated\)\n$/);
  // The same where there is nothing to evaluate on.
  const none = await fit(join(dir, "none"), {}, { evaluate: () => ({}) });
  assert.equal(none.first, null);
  assert.deepEqual(weightsIn(none.model), weightsIn(partOf(none.dir, 8, "model_ema")));
});

/** What must be the same of two runs: everything but times. */
function outcome(dir: string): Record<string, unknown> {
  const parts = ["model", "model_ema", "model_optimizer"];
  return {
    metrics: metricsOf(dir),
    model: weightsIn(join(dir, "model.safetensors")),
    samples: readFileSync(join(dir, "samples.jsonl"), "utf8"),
    ...Object.fromEntries(parts.map((part) => [part, weightsIn(partOf(dir, 8, part))])),
  };
}

test("a run that is interrupted and resumed ends as the one left alone", async (t) => {
  const folder = newFolder(t);
  const whole = join(folder, "whole");
  const log = { every: 8 };
  // The mean of all eight losses stands on the screen.
  const lastLine = ({ shown }: { shown: string }): string | undefined =>
    /step=8\/8 train\/loss=\S+/.exec(shown)?.[0];
  const line = lastLine(await fit(whole, { log }));
  for (const at of [1, 3, 4, 7]) {
    const dir = join(folder, `at_${at}`);
    const controller = new AbortController();
    const before = (step: number): void => {
      if (step === at - 1) controller.abort();
    };
    const cut = await fit(dir, { log }, { before }, { signal: controller.signal });
    assert.deepEqual([cut.end, cut.step], ["interrupted", at]);
    assert.match(cut.shown, /^model: .* \(update \d+: /m); // the update of the best evaluation
    const rest = await fit(dir, { log, run: { ifExists: "resume" } });
    assert.deepEqual([rest.end, rest.step, lastLine(rest)], ["done", 8, line]);
    assert.deepEqual(outcome(dir), outcome(whole), `interrupted after ${at}`);
  }
});

test("a run that stops with an error goes on from its last checkpoint", async (t) => {
  const folder = newFolder(t);
  const whole = join(folder, "whole");
  await fit(whole);
  const dir = join(folder, "cut");
  const before = (step: number): void => {
    if (step === 5) throw new Error("the lights went out");
  };
  await assert.rejects(fit(dir, {}, { before }), /^Error: the lights went out$/);
  assert.ok(!existsSync(join(dir, ".lock")));
  assert.deepEqual(checkpointsOf(dir), ["step_000004", "step_000005"]); // of the last whole update
  await fit(dir, { run: { ifExists: "resume" } });
  assert.deepEqual(outcome(dir), outcome(whole));
});

test("a task that never waits lets an interruption through", async (t) => {
  const controller = new AbortController();
  setTimeout(() => controller.abort(), 20);
  const changes = {
    train: { iters: 1_000_000 },
    eval: { every: 0 },
    save: { every: 0 },
    log: { imagesEvery: 0 },
  };
  const { end, step } = await fit(join(newFolder(t), "run"), changes, {}, { signal: controller.signal });
  assert.equal(end, "interrupted");
  assert.ok(step < 1_000_000);
});

test("a signal that comes while an update computes ends the run after that update", async (t) => {
  const controller = new AbortController();
  const before = (step: number): void => {
    if (step === 2) setImmediate(() => controller.abort()); // heard when the update lets other things happen
  };
  const changes = { eval: { every: 0 }, log: { imagesEvery: 0 } };
  const { end, step } = await fit(
    join(newFolder(t), "run"),
    changes,
    { before },
    { signal: controller.signal },
  );
  assert.deepEqual([end, step], ["interrupted", 3]);
});

test("a run that is interrupted while its task is made leaves what was there", async (t) => {
  const dir = join(newFolder(t), "run");
  const interrupt = async (ifExists: string): Promise<FitResult> => {
    const controller = new AbortController();
    const open = async ({ signal }: FitOpening): Promise<ToyTask> => {
      controller.abort();
      signal?.throwIfAborted();
      throw new Error("the signal was not passed on");
    };
    const resolved = toyConfig(dir, { run: { ifExists } });
    return await fitLoop(resolved, open, { screen: new Shown(), signal: controller.signal });
  };
  const { end, step, first } = await interrupt("fail");
  assert.deepEqual([end, step, first], ["interrupted", 0, null]);
  assert.deepEqual(readdirSync(dir), ["config.yaml"]);
  const whole = await fit(dir, { run: { ifExists: "resume" } });
  const files = readdirSync(dir).sort();
  const again = await interrupt("resume");
  assert.deepEqual([again.end, again.step, again.best], ["interrupted", 8, whole.best]);
  assert.deepEqual(readdirSync(dir).sort(), files);
});

test("a damaged checkpoint is passed over, and told of", async (t) => {
  const folder = newFolder(t);
  const whole = join(folder, "whole");
  await fit(whole, { save: { every: 2, keep: 4 } });
  const dir = join(folder, "damaged");
  await fit(dir, { save: { every: 2, keep: 4 } });
  const file = partOf(dir, 8, "model");
  const bytes = readFileSync(file);
  bytes[bytes.length - 1] = (bytes[bytes.length - 1] as number) ^ 1;
  writeFileSync(file, bytes);
  const { shown, step } = await fit(dir, { save: { every: 2, keep: 4 }, run: { ifExists: "resume" } });
  assert.equal(step, 8);
  assert.match(
    shown,
    /^passed over .*step_000008: model\.safetensors is not what was written \(its SHA-256 differs\)$/m,
  );
  assert.deepEqual(metricsOf(dir), metricsOf(whole));
  assert.deepEqual(
    weightsIn(join(dir, "checkpoints", "step_000008.1", "model.safetensors")),
    weightsIn(partOf(whole, 8, "model")),
  );
});

test("a resumed run must be the same one, unless forced", async (t) => {
  const dir = join(newFolder(t), "run");
  await fit(dir);
  const resume = { run: { ifExists: "resume" } };
  await assert.rejects(fit(dir, { ...resume, optimizer: { lr: 0.1 } }, { fingerprint: "f2" }), (error) => {
    assert.ok(error instanceof ConfigError);
    assert.deepEqual(error.problems, [
      "resume: expected the configuration that the run was begun with, got optimizer.lr: 0.05 -> 0.1. " +
        "Undo it, start a new run, or resume with --force.",
      "resume: expected the images that the run was begun with (fingerprint f1), got others (f2). " +
        "Give the same data set, start a new run, or resume with --force.",
    ]);
    return true;
  });
  await fit(dir, { ...resume, log: { every: 3 }, save: { every: 1 }, eval: { every: 1 } });
  await fit(dir, { ...resume, optimizer: { lr: 0.1 } }, { fingerprint: "f2" }, { force: true });
  // How long a run is decides the learning rate, unless that is constant.
  await assert.rejects(fit(dir, { ...resume, train: { iters: 10 } }), /got train\.iters: 8 -> 10\./);
  const constant = { optimizer: { schedule: "constant", warmup: 0 } };
  const longer = join(dir, "longer");
  await fit(longer, { ...constant, eval: { every: 0 } });
  const { step } = await fit(longer, { ...resume, ...constant, train: { iters: 10 }, eval: { every: 0 } });
  assert.equal(step, 10);
});

test("an update without a finite loss is left out; too many end the run", async (t) => {
  const folder = newFolder(t);
  const dir = join(folder, "few");
  await fit(
    dir,
    { save: { every: 1, keep: 9 }, optimizer: { schedule: "constant" } },
    { loss: (step) => (step === 3 || step === 5 ? Number.NaN : undefined) },
  );
  const lines = metricsOf(dir);
  assert.deepEqual(
    lines.slice(1).map((line) => line["optim/skipped_total"]),
    [0, 0, 0, 1, 1, 2, 2, 2],
  );
  assert.equal(lines[4]?.["train/loss"], null);
  assert.deepEqual(weightsIn(partOf(dir, 4, "model")), weightsIn(partOf(dir, 3, "model")));
  assert.deepEqual(weightsIn(partOf(dir, 4, "model_ema")), weightsIn(partOf(dir, 3, "model_ema")));
  assert.notDeepEqual(weightsIn(partOf(dir, 5, "model")), weightsIn(partOf(dir, 4, "model")));

  const many = join(folder, "many");
  await assert.rejects(fit(many, {}, { loss: (step) => (step < 2 ? undefined : Infinity) }), (error) => {
    assert.ok(error instanceof DivergedError);
    assert.match(error.message, /^step 8: .* 6 updates in a row \(6 in all\).* optimizer\.lr/);
    return true;
  });
  // The state before the skipped updates is kept, and a resume counts anew.
  assert.equal(checkpointsOf(many).at(-1), "step_000008");
  const mended = await fit(many, { run: { ifExists: "resume" } });
  assert.deepEqual([mended.end, mended.step], ["done", 8]);
  const odd = { limits: { nonFinite: 2 } };
  const everyOther = (step: number): number | undefined => (step % 2 === 0 ? Number.NaN : undefined);
  await assert.rejects(
    fit(join(folder, "odd"), odd, { loss: everyOther }),
    /^DivergedError: step 5: .* got 1 updates in a row \(3 in all\)/,
  );
  const resumed = await fit(join(folder, "odd"), { ...odd, run: { ifExists: "resume" } });
  assert.deepEqual([resumed.end, resumed.step], ["done", 8]);
});

test("a run none of whose updates were finite is not done", async (t) => {
  const dir = join(newFolder(t), "run");
  const changes = { train: { iters: 3 } };
  await assert.rejects(
    fit(dir, changes, { loss: () => Number.NaN }),
    /^DivergedError: step 3: .* all updates/,
  );
});

test("a learning rate beyond all measure ends the run before the weights are saved", async (t) => {
  const dir = join(newFolder(t), "run");
  const changes = {
    optimizer: { lr: 1e38, schedule: "constant", warmup: 0 },
    save: { every: 1 },
    eval: { every: 0 },
  };
  await assert.rejects(fit(dir, changes), (error) => error instanceof DivergedError);
  for (const name of checkpointsOf(dir)) {
    const step = Number(name.slice(-6));
    for (const values of Object.values(weightsIn(partOf(dir, step, "model"))))
      assert.ok((values as number[]).flat(9).every(Number.isFinite), name);
  }
});

test("a forced optimizer, average and measure of the best count from then on", async (t) => {
  const dir = join(newFolder(t), "run");
  const base = { optimizer: { lr: 0.1, schedule: "constant", warmup: 0 }, save: { every: 1, keep: 20 } };
  const once = { signal: AbortSignal.abort() };
  await fit(dir, { ...base, ema: { decay: null } }, {}, once);
  const screen = new Shown();
  const other = {
    optimizer: { ...base.optimizer, lr: 0.003, betas: [0.5, 0.6], eps: 1e-3, weightDecay: 0.25 },
    ema: { decay: 0.5, warmup: false },
  };
  const forced = { ...base, ...other, run: { ifExists: "resume" } };
  await assert.rejects(fit(dir, forced), /optimizer\.lr: 0\.1 -> 0\.003/);
  await fit(dir, forced, {}, { ...once, force: true, screen });
  for (const key of ["lr", "betas", "eps", "weightDecay"])
    assert.match(screen.text, new RegExp(`--force: optimizer\\.${key}: `));
  const values = JSON.parse(readFileSync(join(dir, "checkpoints", "step_000002", "values.json"), "utf8"));
  const groups = values.task.model_optimizer as { lr: number; betas: number[]; eps: number }[];
  assert.deepEqual([groups[0]?.lr, groups[0]?.betas, groups[0]?.eps], [0.003, [0.5, 0.6], 1e-3]);
  const flat = (step: number, part: string): number[] =>
    (Object.values(weightsIn(partOf(dir, step, part))) as number[][]).flat(9);
  const [was, is] = [flat(1, "model"), flat(2, "model")];
  for (const [i, value] of flat(2, "model_ema").entries())
    assert.ok(Math.abs(value - ((was[i] as number) + (is[i] as number)) / 2) < 1e-6, `${i}`);
});

test("the result is that of the highest or the lowest evaluation, as eval.mode says", async (t) => {
  const folder = newFolder(t);
  const values = [4, 1, 5, 3, 2];
  const evaluate = (step: number): Record<string, number> => ({
    "eval/score": values[step / 2] as number,
    "eval/loss": values[step / 2] as number,
  });
  for (const [best, mode, step] of [
    ["eval/score", "max", 4],
    ["eval/loss", "min", 2],
  ] as const) {
    const dir = join(folder, mode);
    const result = await fit(dir, { eval: { every: 2, best, mode } }, { evaluate });
    assert.equal(result.best?.[best], values[step / 2]);
    assert.match(readFileSync(join(dir, "checkpoints", "best.json"), "utf8"), new RegExp(`"step": ${step},`));
  }
});

test("another measure of the best, forced, is not compared with the best so far", async (t) => {
  const dir = join(newFolder(t), "run");
  const once = { signal: AbortSignal.abort() };
  const evaluate = (step: number): Record<string, number> => ({
    "eval/loss": 10 - step,
    "eval/score": step / 100,
  });
  const base = { eval: { every: 1 }, save: { every: 1, keep: 20 } };
  await fit(dir, base, { evaluate }, once);
  const changed = {
    ...base,
    eval: { every: 1, best: "eval/score", mode: "max" },
    run: { ifExists: "resume" },
  };
  // 0.02 is below the 9 of the loss, and still the best accuracy that there is.
  const { best } = await fit(dir, changed, { evaluate }, { ...once, force: true });
  assert.equal(best?.["eval/score"], 0.02);
  assert.match(
    readFileSync(join(dir, "checkpoints", "best.json"), "utf8"),
    /"metric": "eval\/score",\s*"value": 0\.02/,
  );
});

test("what cannot be written ends the run and leaves nothing half-written", async (t) => {
  const folder = newFolder(t);
  const dir = join(folder, "model");
  const inTheWay = (step: number): void => {
    if (step === 1) {
      rmSync(join(dir, "model.safetensors"));
      mkdirSync(join(dir, "model.safetensors", "mine"), { recursive: true });
    }
  };
  await assert.rejects(fit(dir, {}, { before: inTheWay }), (error) => {
    assert.match(
      (error as Error).message,
      /model\.safetensors: expected a path that can be written, got .*(directory|EISDIR)/,
    );
    return true;
  });
  assert.deepEqual(
    readdirSync(dir).filter((name) => name.startsWith(".")),
    [],
  );
  assert.deepEqual(checkpointsOf(dir), []);

  const other = join(folder, "checkpoints");
  const before = (step: number): void => {
    if (step === 0) writeFileSync(join(other, "checkpoints"), "a file");
  };
  await assert.rejects(fit(other, {}, { before }), /checkpoints/);
  assert.equal(readFileSync(join(other, "checkpoints"), "utf8"), "a file");
  assert.deepEqual(
    readdirSync(other).filter((name) => name.startsWith(".")),
    [],
  );
  // The weights of the evaluation that there was are whole.
  assert.deepEqual(Object.keys(weightsIn(join(other, "model.safetensors"))).sort(), ["bias", "weight"]);
});

test("patience ends a run, and eval.best must be a metric that there is", async (t) => {
  const folder = newFolder(t);
  const worse = (step: number): Record<string, number> => ({ "eval/loss": step < 3 ? -step : step });
  const { end, step, shown } = await fit(
    join(folder, "patience"),
    { eval: { patience: 2, every: 1 } },
    { evaluate: worse },
  );
  assert.deepEqual([end, step], ["patience", 4]);
  assert.match(shown, /^model: .*\(update 2: eval\/loss -2\)$/m);
  // Over is over: a resume trains nothing, unless it is given more patience.
  const again = (patience: number): Promise<FitResult> =>
    fit(
      join(folder, "patience"),
      { run: { ifExists: "resume" }, eval: { patience, every: 1 } },
      { evaluate: worse },
    );
  const ended = await again(2);
  assert.deepEqual([ended.end, ended.step, ended.best], ["patience", 4, { "eval/loss": -2 }]);
  assert.deepEqual([(await again(3)).step, (await again(0)).end], [5, "done"]);
  await assert.rejects(
    fit(join(folder, "best"), { eval: { best: "eval/fid" } }, { evaluate: worse }),
    /^ConfigError: .*eval\.best: expected .*, got eval\/fid\. .*eval\/loss/,
  );
});

test("a folder that holds a run is refused; notes come before the first update", async (t) => {
  const dir = join(newFolder(t), "run");
  const resolved = toyConfig(dir);
  const screen = new Shown();
  const task = Object.assign(new ToyTask(resolved.config), { notes: ["what the task says"] });
  const open = async ({ say }: FitOpening): Promise<ToyTask> => {
    say("opening");
    return task;
  };
  await fitLoop({ ...resolved, notes: ["what the configuration says"] }, open, { screen });
  const lines = screen.text.split("\n");
  assert.deepEqual(lines.slice(0, 3), ["opening", "what the configuration says", "what the task says"]);
  let isOpened = false;
  const again = fitLoop(resolved, async () => {
    isOpened = true;
    return task;
  });
  await assert.rejects(again, /^ConfigError: run\.dir: expected a folder without a run, got .*step_000008/);
  assert.equal(isOpened, false);
});
