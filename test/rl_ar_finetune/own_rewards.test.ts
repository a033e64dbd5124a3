/** Rewards of the user's own: what they are told, what they may return, what happens when they fail, kill and resume. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { resolveConfig } from "../../src/config/resolve.js";
import type { RewardContext, RewardFunction } from "../../src/config/train.js";
import { readImages } from "../../src/data/index.js";
import { customTerm, scoresOf } from "../../src/rl_ar_finetune/own_rewards.js";
import { judge } from "../../src/rl_ar_finetune/rewards.js";
import { memory, type Tensor, tensor, tidy, zeros } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { checkpointsOf, metricsOf, quietRun, tinyFolder, tinyRun } from "../support/train_run.js";
import "../support/settle.js";

const PROGRAM = fileURLToPath(new URL("../support/train_run.js", import.meta.url));

const brightness = (_: Tensor, samples: Tensor): Tensor => samples.mean([1, 2, 3]);

/** Answers that come after a limit of 0.2 s. Until then they hold the tensors that the reward was given. */
const late: Promise<unknown>[] = [];
const slow = (): Promise<number[]> => {
  const answer = sleep(500, []);
  late.push(answer);
  return answer;
};

/** A run of few steps whose reward is these functions alone. */
const withOwn = (custom: object, more: object = {}): object => ({
  reward: { l2: { weight: 0 }, custom },
  save: { every: 0 },
  train: { iters: 4 },
  ...more,
});

test("a term is clamped, then standardized as it says, then weighted; the log has its own values", () =>
  tidy(() => {
    const images = zeros([1, 3, 1, 1]);
    const samples = tensor([0, 1, 5]).view(3, 1, 1, 1).expand(3, 3, 1, 1);
    const judged = { images, samples };
    const fn = (_: Tensor, y: Tensor): Tensor => y.mean([1, 2, 3]);
    const { total, plain, terms } = judge([customTerm("own", fn, { weight: 3, clamp: [0.5, 2] })], judged);
    expectClose(total, tensor([[1.5, 3, 6]], { dtype: "float64" }));
    expectClose(plain, total, { rtol: 0 });
    expectClose(terms.own as Tensor, tensor([[0, 1, 5]], { dtype: "float64" }));
    // 0, 1, 5: mean 2, deviations -2, -1, 3, standard deviation sqrt(14 / 2)
    const own = customTerm("own", fn, { weight: 2, normalize: "group" });
    const other = customTerm("other", fn);
    const both = judge([own, other], judged);
    const std = Math.sqrt(7);
    const wanted = [-4 / std + 0, -2 / std + 1, 6 / std + 5];
    expectClose(both.total, tensor([wanted], { dtype: "float64" }), { rtol: 1e-12 });
    expectClose(both.plain, tensor([[0, 3, 15]], { dtype: "float64" }), { rtol: 1e-12 });
  }));

test("a function is told classes, names, codes, step and seed, of a step, its ceiling and an evaluation", async (t) => {
  const folder = await tinyFolder(t);
  const seen: RewardContext[] = [];
  const shapes: string[] = [];
  const fn: RewardFunction = (images, samples, context) => {
    const { codes, trueCodes, ...plain } = context;
    seen.push({ ...plain, codes, trueCodes });
    shapes.push([images.shape, samples.shape, codes.shape, trueCodes?.shape].join(" "));
    return brightness(images, samples);
  };
  const more = { seed: 5, train: { iters: 2 }, eval: { every: 2, images: 4, numGenerations: 3 } };
  await quietRun(tinyRun(folder, withOwn({ mine: { fn } }, more)));
  const train = "4,3,16,16 8,3,16,16 8,16 4,16";
  const ceiling = "4,3,16,16 4,3,16,16 4,16 4,16";
  const held = "4,3,16,16 12,3,16,16 12,16 4,16";
  assert.deepEqual(shapes, [held, train, ceiling, train, ceiling, held]);
  assert.deepEqual(
    seen.map(({ step, numGenerations }) => [step, numGenerations]),
    [
      [0, 3],
      [1, 2],
      [1, 1],
      [2, 2],
      [2, 1],
      [2, 3],
    ],
  );
  for (const { imageIds, classIds, classNames, captions, seed } of seen) {
    assert.equal(seed, 5);
    assert.equal(captions, null);
    assert.deepEqual(
      classNames,
      imageIds.map((id) => id.split("/")[0]),
    );
    assert.deepEqual(
      classIds,
      classNames?.map((name) => ["a", "b", "c"].indexOf(name)),
    );
  }
  const [line] = metricsOf(join(folder, "run")).slice(1);
  assert.equal(line?.["reward/mine/mean"], line?.["reward/mean"]);
});

test("the same scores give the same run: a tensor, a list, a promise, a module, one of several terms", async (t) => {
  const folder = await tinyFolder(t);
  const lines = async (name: string, reward: object): Promise<object[]> => {
    const dir = join(folder, name);
    await quietRun(
      tinyRun(folder, { reward: { l2: { weight: 1 }, ...reward }, train: { iters: 3 }, run: { dir } }),
    );
    return metricsOf(dir);
  };
  const list = (images: Tensor, samples: Tensor): number[] =>
    tidy(() => brightness(images, samples).double().toList() as number[]);
  const wanted = await lines("plain", { custom: { mine: { fn: brightness, weight: 0.5 } } });
  const same = {
    list: { fn: list, weight: 0.5 },
    typed: { fn: (x: Tensor, y: Tensor) => Float64Array.from(list(x, y)), weight: 0.5 },
    promise: { fn: async (x: Tensor, y: Tensor) => brightness(x, y), weight: 0.5 },
    later: {
      fn: async (x: Tensor, y: Tensor) => {
        await sleep(1);
        return list(x, y);
      },
      weight: 0.5,
    },
  };
  for (const [name, mine] of Object.entries(same))
    assert.deepEqual(await lines(name, { custom: { mine } }), wanted, name);
  writeFileSync(join(folder, "mine.mjs"), "export default (_, samples) => samples.mean([1, 2, 3]);\n");
  const module = join(folder, "mine.mjs");
  assert.deepEqual(await lines("module", { custom: { mine: { module, weight: 0.5 } } }), wanted);
  const halves = await lines("halves", {
    custom: { mine: { fn: brightness, weight: 0.25 }, again: { module, weight: 0.25 } },
  });
  assert.equal(halves[0]?.["reward/mean" as never], wanted[0]?.["reward/mean" as never]);
  // CommonJS, as it is written and as TypeScript compiles it; what it disposes of is its own.
  const dispose =
    "(images, samples) => { const bright = samples.mean([1, 2, 3]); samples.dispose(); return bright; }";
  for (const [i, text] of [`module.exports = ${dispose}`, `exports.default = ${dispose}`].entries()) {
    const common = join(folder, `mine_${i}.cjs`);
    writeFileSync(common, text);
    assert.deepEqual(
      await lines(`common ${i}`, { custom: { mine: { module: common, weight: 0.5 } } }),
      wanted,
    );
  }
  // Today's form: one term, named custom.
  const one = await lines("one", { custom: { fn: brightness, weight: 0.5 } });
  const renamed = wanted.map((line) =>
    Object.fromEntries(
      Object.entries(line).map(([key, value]) => [key.replace("/mine/", "/custom/"), value]),
    ),
  );
  assert.deepEqual(one, renamed);
});

test("what is no score is refused, and so is an answer that comes late", async () => {
  using images = zeros([4, 3, 2, 2]);
  using samples = zeros([8, 3, 2, 2]);
  using codes = zeros([8, 4], { dtype: "int64" });
  const context = { codes, trueCodes: null, numGenerations: 2, step: 3 } as unknown as RewardContext;
  const bad: Readonly<Record<string, [fn: (samples: Tensor) => unknown, what: RegExp]>> = {
    "throws text": [() => Promise.reject("no ink"), /no ink/],
    infinite: [() => [0, 0, 0, Infinity, 0, 0, 0, 0], /finite scores, got Infinity for sample 3/],
    scalar: [(samples) => samples.mean(), /\[8\].*\[\]/],
    "by channel": [(samples) => samples.mean([2, 3]), /\[8\].*\[8, 3\]/],
    complex: [
      (samples) => samples.mean([1, 2, 3]).to({ dtype: "complex64" }),
      /complex64\[8\].*Take abs\(\)/,
    ],
    short: [() => [1, 2, 3], /list of 8 numbers.*list of 3/],
    text: [() => Array(8).fill("good"), /list of 8 numbers.*good/],
    nothing: [() => undefined, /undefined/],
    slow: [slow, /within 0\.2 s/],
    "slow without a promise": [
      () => {
        const end = performance.now() + 300;
        while (performance.now() < end);
        return Array(8).fill(0);
      },
      /within 0\.2 s/,
    ],
  };
  for (const [name, [broken, what]] of Object.entries(bad)) {
    const fn: RewardFunction = (_, given) => broken(given) as Tensor;
    const term = customTerm("mine", fn, { timeout: name.startsWith("slow") ? 0.2 : 60 });
    const error = await scoresOf([term], { images, samples, context }, {}, {}).then(
      () => assert.fail(`${name}: it went on`),
      (reason: Error) => reason,
    );
    for (const part of [/^reward\.custom\.mine: /, what, /step 3/]) assert.match(error.message, part, name);
  }
  await Promise.all(late);
});

test("a reward that fails names itself, leaves its batch and a checkpoint, and the run goes on once it is mended", async (t) => {
  const folder = await tinyFolder(t);
  const run = async (name: string, custom: object) => {
    const dir = join(folder, name);
    return await quietRun(tinyRun(folder, withOwn(custom, { run: { dir, ifExists: "resume" } })));
  };
  const whole = await run("whole", { mine: { fn: brightness } });
  const bad: Readonly<Record<string, [fn: (samples: Tensor) => unknown, what: RegExp]>> = {
    throws: [() => assert.fail("out of ink"), /out of ink/],
    rejects: [() => Promise.reject(new Error("out of paper")), /out of paper/],
    NaN: [
      (samples) => tidy(() => samples.mean([1, 2, 3]).mul(Number.NaN)),
      /finite scores, got NaN for sample 0/,
    ],
    writes: [(samples) => samples.add_(1).mean([1, 2, 3]), /left as they are, got a change in place.*add_/],
    slow: [slow, /within 0\.2 s/],
  };
  for (const [name, [broken, what]] of Object.entries(bad)) {
    let isWhole = false;
    const fn: RewardFunction = (images, samples, { step }) => {
      if (isWhole || step !== 3) return brightness(images, samples);
      isWhole = true;
      return broken(samples) as Tensor;
    };
    const dir = join(folder, name);
    const timeout = name === "slow" ? 0.2 : 60;
    const error = await run(name, { mine: { fn, timeout } }).then(
      () => assert.fail(`${name}: it went on`),
      (reason: Error) => reason,
    );
    for (const part of [/^reward\.custom\.mine: /, what, /step 3/]) assert.match(error.message, part, name);
    const dump = join(dir, "dumps", "step_000003_mine");
    assert.ok(error.message.includes(dump), error.message);
    assert.deepEqual(checkpointsOf(dir), ["step_000002"], name);
    if (!["throws", "writes", "slow"].includes(name)) continue; // the others leave the same
    const batch = JSON.parse(readFileSync(join(dump, "batch.json"), "utf8"));
    assert.deepEqual([batch.term, batch.step, batch.images.length], ["mine", 3, 4]);
    const [image] = batch.images;
    assert.equal(image.samples[1].codes.length, 16);
    assert.equal(image.codes.length, 16);
    assert.match(image.className, /^[abc]$/);
    assert.equal(readdirSync(dump).filter((file) => file.endsWith(".png")).length, 4 + 8);
    using pixels = await readImages([join(dump, image.file), join(dump, image.samples[0].file)], 16);
    assert.deepEqual(pixels.shape, [2, 3, 16, 16]);
    const mended = await run(name, { mine: { fn: brightness, timeout: 60 } }).catch(
      (reason: Error) => reason,
    );
    // Another function is another reward, unless it has the same name.
    if (mended instanceof Error) assert.match(mended.message, /reward\.custom\.mine\.fn/);
    const { step } = await run(name, { mine: { fn, timeout: 60 } });
    assert.equal(step, 4);
    assert.deepEqual(metricsOf(dir), metricsOf(whole.dir), name);
  }
  await Promise.all(late);
});

test("an evaluation that a reward fails in leaves its batch too", async (t) => {
  const folder = await tinyFolder(t);
  const fn: RewardFunction = (images, samples, { step, numGenerations }) => {
    if (step === 2 && numGenerations === 1 && samples.size(0) === 3) throw new Error("out of ink");
    return brightness(images, samples);
  };
  const more = { eval: { every: 2, images: 3, numGenerations: 1 } };
  const dir = join(folder, "run");
  await assert.rejects(quietRun(tinyRun(folder, withOwn({ mine: { fn } }, more))), /evaluation after step 2/);
  assert.ok(existsSync(join(dir, "dumps", "eval_000002_mine", "batch.json")));
  assert.deepEqual(checkpointsOf(dir), ["step_000002"]);
});

test("modules: relative to the file that names them; another content is another run; what is no module is refused", async (t) => {
  const folder = await tinyFolder(t);
  mkdirSync(join(folder, "mods"));
  const file = join(folder, "mods", "mine.mjs");
  writeFileSync(file, "export default (_, samples) => samples.mean([1, 2, 3]);\n");
  writeFileSync(join(folder, "run.yaml"), "reward: {custom: {my_reward: {module: mods/mine.mjs}}}\n");
  const read = resolveConfig({ file: join(folder, "run.yaml"), isComplete: false }).config;
  assert.deepEqual(Object.keys(read.reward.custom), ["my_reward"]);
  assert.ok(read.reward.custom.my_reward?.module?.endsWith(join("mods", "mine.mjs")));
  const [line, same] = ["reward.custom.my_reward.module=./mine.mjs", "reward.custom.my_reward.clamp=[0, 1]"];
  const { my_reward: given } = resolveConfig({ overrides: [line, same], isComplete: false }).config.reward
    .custom;
  assert.deepEqual([given?.module, given?.clamp, given?.weight], ["./mine.mjs", [0, 1], 1]);

  const run = async (module: string, name: string, timeout = 60) => {
    const where = { dir: join(folder, name), ifExists: "resume" };
    return await quietRun(tinyRun(folder, withOwn({ mine: { module, timeout } }, { run: where })));
  };
  await run(file, "run");
  writeFileSync(file, "export default (_, samples) => samples.mean([1, 2, 3]).neg();\n");
  await assert.rejects(run(file, "run"), { name: "ConfigError", message: /module of reward\.custom\.mine/ });
  const bad: Readonly<Record<string, RegExp>> = {
    "export const a = 1;": /default export is undefined/,
    "export default 3;": /default export is 3/,
    "export default class Reward {}": /default export is a class/,
    "throw new Error('no ink');": /no ink/,
    "export const a = 1;\nthis is no JavaScript": /fails: Unexpected .*node FILE/,
    "await new Promise(() => {});": /does not end within 0\.2 s/,
  };
  for (const [text, got] of Object.entries(bad)) {
    writeFileSync(file, text);
    const timeout = text.startsWith("await") ? 0.2 : 60;
    await assert.rejects(run(file, "bad", timeout), { name: "RangeError", message: got }, text);
    await assert.rejects(run(file, "bad", timeout), { message: /^reward\.custom\.mine\.module: / });
  }
  await assert.rejects(run(join(folder, "absent.mjs"), "bad"), /module: .*cannot be read \(ENOENT\)/);
  const typed = join(folder, "mine.ts");
  writeFileSync(typed, "export default (_: any, samples: any): any => samples.mean([1, 2, 3]);\n");
  if ((process.features as { typescript?: unknown }).typescript) await run(typed, "typed");
  else await assert.rejects(run(typed, "bad"), /\.ts.*compile TypeScript first/s);
});

test("what names and terms do not fit is refused", () => {
  const refused: Readonly<Record<string, RegExp>> = {
    "reward.custom.l2.module=a.mjs": /reward\.custom\.l2\S* .*no other metric/,
    "reward.custom.reward.module=a.mjs": /reward\.custom\.reward\S* .*no other metric/,
    "reward.custom.a/b.module=a.mjs": /reward\.custom\.a\/b\S* .*letters/,
    "reward.custom.mine.modul=a.mjs": /Did you mean "reward\.custom\.mine\.module"/,
    "reward.custom.mine.timeout=0": /reward\.custom\.mine\.timeout: .*above 0/,
    "reward.custom.mine.clamp=[2, 1]": /reward\.custom\.mine\.clamp: .*lower/,
    "reward.custom.mine=3": /reward\.custom\.mine: expected keys with values, got 3/,
    "reward.custom.fn=3": /Only a program can pass/,
  };
  for (const [override, message] of Object.entries(refused))
    assert.throws(() => resolveConfig({ overrides: [override], isComplete: false }), { message }, override);
});

test("nothing is left behind by functions that wait, also by tensors that they made", async (t) => {
  const folder = await tinyFolder(t);
  const fn = async (_: Tensor, samples: Tensor): Promise<Tensor> => {
    const bright = samples.add(1).mul(2).mean([1, 2, 3]);
    await sleep(1);
    return bright;
  };
  const run = async (name: string) => {
    const more = { run: { dir: join(folder, name) }, train: { iters: 3 } };
    await quietRun(tinyRun(folder, withOwn({ mine: { fn } }, more)));
  };
  await run("warm");
  const before = memory().tensors;
  await run("again");
  assert.equal(memory().tensors, before);
});

test("a run with a module that is killed and resumed ends as the one left alone", async (t) => {
  const folder = await tinyFolder(t);
  const module = join(folder, "mine.mjs");
  const waits =
    "export default async (_, samples, { step, codes }) => { const bright = samples.mean([1, 2, 3]);\n";
  writeFileSync(
    module,
    `${waits}  await new Promise((go) => setTimeout(go, 20)); return bright.add(codes.double().mean(1), 0.01 * step); };\n`,
  );
  const start = (dir: string) => {
    const run = { dir, ifExists: "resume" };
    const config = withOwn({ mine: { module } }, { run, save: { every: 2 }, train: { iters: 10 } });
    const child = spawn(process.execPath, [PROGRAM, folder, JSON.stringify(config)], { stdio: "ignore" });
    return { child, ended: new Promise((done) => child.on("close", done)) };
  };
  const [whole, killed] = [join(folder, "whole"), join(folder, "killed")];
  assert.equal(await start(whole).ended, 0);
  for (const steps of [2, 5]) {
    const { child, ended } = start(killed);
    const file = join(killed, "metrics.jsonl");
    const linesOf = (): number => (existsSync(file) ? readFileSync(file, "utf8").split("\n").length - 1 : 0);
    while (linesOf() < steps && child.exitCode === null) await sleep(5);
    child.kill("SIGKILL");
    await ended;
  }
  assert.equal(await start(killed).ended, 0);
  assert.deepEqual(metricsOf(killed), metricsOf(whole));
  const weights = (dir: string): Buffer =>
    readFileSync(join(dir, "checkpoints", "step_000010", "policy.safetensors"));
  assert.ok(weights(killed).equals(weights(whole)));
});
