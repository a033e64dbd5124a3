/** `steer.yaml`: what may change while a run goes on, what is refused, and that a resumed run goes on with it. */
import assert from "node:assert/strict";
import { existsSync, mkdirSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { resolveConfig } from "../../src/config/resolve.js";
import { readSteered, steeredConfig } from "../../src/config/steer.js";
import {
  checkpointsOf,
  metricsOf,
  quietRun,
  Shown,
  tinyFolder,
  tinyRun,
  writeSettled,
} from "../support/train_run.js";

test("values are checked by the ranges and rules of the configuration, with their lines", async (t) => {
  const folder = await tinyFolder(t);
  const file = join(folder, "steer.yaml");
  const begin = (changes: object = {}) => resolveConfig({ values: tinyRun(folder, changes) }).config;
  const read = (text: string, changes: object = {}, before = {}) => {
    writeSettled(file, text);
    return readSteered(begin(changes), before, file);
  };
  const fn = (): never => {
    throw new Error("never called");
  };
  const custom = { reward: { custom: { mine: { fn } } } };
  assert.deepEqual(read("optimizer: {lr: 2e-5}\nupdate: {aux_ce: 0}\n"), {
    "optimizer.lr": 2e-5,
    "update.auxCe": 0,
  });
  assert.deepEqual(read('{"reward": {"custom": {"mine": {"weight": 3}}}}', custom, { "kl.coef": 1 }), {
    "kl.coef": 1,
    "reward.custom.mine.weight": 3,
  });
  assert.deepEqual(read(""), {});
  const config = steeredConfig(begin(custom), { "reward.custom.mine.weight": 0.1, "optimizer.lr": 1e-7 });
  assert.deepEqual([config.reward.custom.mine?.weight, config.optimizer.lr], [0.1, 1e-7]);
  assert.equal(config.reward.custom.mine?.fn, fn);
  for (const [text, pattern, changes] of [
    [
      "rollout:\n  temperature: 0.9",
      /steer\.yaml:2:3: rollout\.temperature: expected a key that may change.*optimizer\.lr.*--force/,
    ],
    ["optimizer: {lr: -1}", /steer\.yaml:1:13: optimizer\.lr: expected a number above 0, got -1/],
    ["optimizer: {lr: null}", /optimizer\.lr: expected a number, got null/],
    ["optimiser: {lr: 1}", /steer\.yaml:1:13: optimiser\.lr: unknown key.*"optimizer\.lr"/],
    ["optimizer: {lr: 1e-5", /steer\.yaml:1.*expected YAML/],
    ["kl: {coef: 0.1}", /kl\.coef: expected 0, as the run was begun without a reference policy, got 0\.1/],
    ["kl: {coef: 0.1}", /kl\.coef: expected no value with kl\.target/, { kl: { coef: 0.1, target: 0.1 } }],
    [
      "update: {entropyCoef: 1}",
      /expected no value with update\.entropyTarget/,
      { update: { entropyTarget: 1 } },
    ],
    [
      "reward: {ssim: {weight: 1}}",
      /reward\.ssim\.weight: expected 0, as the run was begun without this term, got 1/,
    ],
    ["reward: {custom: {other: {weight: 1}}}", /reward\.custom\.other/],
    ["reward: {l2: {weight: 0}}", /expected at least one term with a weight, got none/],
  ] as [string, RegExp, object?][]) {
    assert.throws(() => read(text, changes), pattern, text);
  }
});

interface Change {
  readonly step: number;
  readonly key?: string;
  readonly from?: number;
  readonly to?: number;
  readonly refused?: string;
}

const recordOf = (dir: string): Change[] =>
  readFileSync(join(dir, "steer.jsonl"), "utf8")
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as Change);

test("a run takes the file's values from the next step on, records them, and goes on with them after a resume", async (t) => {
  const folder = await tinyFolder(t);
  const dark = (_: unknown, samples: { mean(dims: number[]): unknown }): unknown => samples.mean([1, 2, 3]);
  const changes = {
    reward: { custom: { dark: { fn: dark, weight: 1 } } },
    kl: { coef: 0.1 },
    optimizer: { schedule: "constant", warmup: 0, lr: 1e-3 },
    eval: { every: 1, images: 4, numGenerations: 1 },
    save: { every: 100 },
    log: { every: 1 },
  };
  /** Make a run; after some steps, write these texts. */
  const run = async (name: string, iters: number, texts: Record<number, string> = {}, stopAt = -1) => {
    const dir = join(folder, name);
    const stop = new AbortController();
    const screen = {
      write: (text: string): boolean => {
        for (const line of text.split("\n").filter((one) => one.startsWith("{"))) {
          const { step } = JSON.parse(line) as { step?: number };
          if (step === undefined) continue;
          if (texts[step] !== undefined) writeSettled(join(dir, "steer.yaml"), texts[step]);
          if (step === stopAt) stop.abort();
        }
        return true;
      },
    };
    const where = { run: { dir, ifExists: "resume" }, train: { iters } };
    await quietRun(tinyRun(folder, { ...changes, ...where }), { screen, json: true, signal: stop.signal });
    return { dir };
  };
  const first =
    "optimizer: {lr: 0.002}\nkl: {coef: 0.5}\nreward: {custom: {dark: {weight: 3}}, l2: {weight: 0.5}}\n";
  const texts = { 2: first, 3: `${first}rollout: {topK: 3}\n`, 4: `${first}update: {auxCe: 0.2}\n` };
  const whole = await run("whole", 6, texts);
  const lines = metricsOf(whole.dir).filter(({ step }) => (step as number) > 0) as Record<string, number>[];
  const column = (name: string): number[] => lines.map((line) => line[name] as number);
  assert.deepEqual(column("optim/lr"), [0.001, 0.001, 0.002, 0.002, 0.002, 0.002]);
  assert.deepEqual(column("kl/coef"), [0.1, 0.1, 0.5, 0.5, 0.5, 0.5]);
  for (const [i, line] of lines.entries()) {
    const [l2, custom] = i < 2 ? [1, 1] : [0.5, 3];
    const wanted = custom * (line["reward/dark/mean"] as number) - l2 * (line["reward/l2/mean"] as number);
    assert.ok(Math.abs((line["reward/mean"] as number) - wanted) < 1e-6, `reward of step ${i + 1}`);
  }
  const record = recordOf(whole.dir);
  assert.deepEqual(record.slice(0, 4), [
    { step: 2, key: "reward.l2.weight", from: 1, to: 0.5 },
    { step: 2, key: "reward.custom.dark.weight", from: 1, to: 3 },
    { step: 2, key: "kl.coef", from: 0.1, to: 0.5 },
    { step: 2, key: "optimizer.lr", from: 0.001, to: 0.002 },
  ]);
  assert.match(record[4]?.refused ?? "", /rollout\.topK: expected a key that may change/);
  assert.deepEqual(record.slice(5), [{ step: 4, key: "update.auxCe", from: 0.1, to: 0.2 }]);
  // A change is saved at once, although nothing else was due.
  assert.ok(existsSync(join(whole.dir, "checkpoints", "step_000004")));

  // Interrupted after the changes, and gone on without the file: the same run, bit for bit.
  const { dir } = await run("parts", 6, texts, 5);
  writeSettled(join(dir, "steer.yaml"), "");
  await run("parts", 6);
  assert.deepEqual(metricsOf(dir), metricsOf(whole.dir));
  assert.deepEqual(recordOf(dir), record);
  const last = (of: string): string => join(of, "checkpoints", checkpointsOf(of).at(-1) as string);
  for (const file of readdirSync(last(dir)).filter((name) => name.endsWith(".safetensors")))
    assert.ok(readFileSync(join(last(dir), file)).equals(readFileSync(join(last(whole.dir), file))), file);

  // A file that lies there at the start counts from the first step; the user is told, also of a refusal.
  const told = async (name: string, text: string): Promise<string> => {
    mkdirSync(join(folder, name));
    writeSettled(join(folder, name, "steer.yaml"), text);
    const screen = new Shown();
    const where = { run: { dir: join(folder, name) }, train: { iters: 1 }, eval: { every: 0 } };
    await quietRun(tinyRun(folder, { ...changes, ...where }), { screen });
    return screen.text;
  };
  assert.match(
    await told("early", "optimizer: {lr: 5e-3}"),
    /steer\.yaml: optimizer\.lr: 0\.001 -> 0\.005, from step 1 on/,
  );
  assert.equal(metricsOf(join(folder, "early"))[0]?.["optim/lr"], 0.005);
  assert.match(
    await told("wrong", "optimizer: {lr: 0}"),
    /steer\.yaml.*optimizer\.lr: expected a number above 0, got 0/,
  );
  assert.equal(metricsOf(join(folder, "wrong"))[0]?.["optim/lr"], 0.001);
});
