/** The loop as a whole, on runs of seconds: what it computes, records and leaves, and what it does when things go wrong. */
import assert from "node:assert/strict";
import { readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { resolveConfig } from "../../src/config/resolve.js";
import { GPT } from "../../src/policies/index.js";
import { openPolicy } from "../../src/rl_ar_finetune/builder.js";
import { openRunParts } from "../../src/rl_ar_finetune/parts.js";
import { DivergedError, type TrainOptions } from "../../src/rl_ar_finetune/train_loop.js";
import {
  full,
  keep,
  loadSafetensors,
  manualSeed,
  memory,
  noGrad,
  type Tensor,
  tensor,
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
  writeEmoji,
} from "../support/train_run.js";
import "../support/settle.js";

const last = <T>(items: readonly T[]): T => items.at(-1) as T;

/** Bytes of the parts of a run's last checkpoint. */
function weightsOf(dir: string): Record<string, Buffer> {
  const folder = join(dir, "checkpoints", last(checkpointsOf(dir)));
  const names = readdirSync(folder).filter((name) => name.endsWith(".safetensors"));
  return Object.fromEntries(names.map((name) => [name, readFileSync(join(folder, name))]));
}

test("every algorithm in every context", async (t) => {
  const folder = await tinyFolder(t);
  const contexts = [
    { type: "free" },
    { type: "prefix", length: 5 },
    { type: "teacher_forced" },
    { type: "noisy_teacher_forced", noise: 0.5 },
  ];
  for (const algorithm of ["reinforce", "rloo", "grpo", "ppo", "ste"]) {
    for (const context of contexts) {
      const isOwn = context.type === "free" || context.type === "prefix";
      if (algorithm === "ste" && isOwn) continue; // refused with the configuration
      const where = `${algorithm} ${context.type}`;
      const dir = join(folder, where.replace(" ", "_"));
      const { step, end } = await quietRun(
        tinyRun(folder, { algorithm, run: { dir }, rollout: { context } }),
      );
      assert.deepEqual([step, end], [2, "done"], where);
      const lines = metricsOf(dir);
      assert.equal(lines.length, 2, where);
      for (const line of lines) {
        assert.ok(Number.isFinite(line["reward/mean"]), where);
        assert.ok((line["optim/grad_norm"] as number) > 0, where);
        if (algorithm === "ste") continue; // nothing is scored again
        assert.ok(
          (line["sampling/logp_diff_max"] as number) < 1e-4,
          `${where}: ${line["sampling/logp_diff_max"]}`,
        );
      }
    }
  }
});

test("the reward rises where there is something to learn", async (t) => {
  const folder = await tinyFolder(t);
  const dark = (_: Tensor, samples: Tensor): Tensor => tidy(() => samples.mean([1, 2, 3]).neg());
  for (const type of ["prefix", "teacher_forced"]) {
    const dir = join(folder, type);
    const changes = {
      run: { dir },
      rollout: { context: { type }, numGenerations: 8 },
      reward: { l2: { weight: 0 }, custom: { weight: 1, fn: dark } },
      update: { auxCe: 0 },
      optimizer: { lr: 2e-2 },
      train: { iters: 40 },
      save: { every: 40 },
    };
    await quietRun(tinyRun(folder, changes));
    const rewards = metricsOf(dir).map((line) => line["reward/mean"] as number);
    const mean = (part: number[]): number => part.reduce((a, b) => a + b, 0) / part.length;
    const spread = mean(metricsOf(dir).map((line) => line["reward/std"] as number));
    const [before, after] = [mean(rewards.slice(0, 5)), mean(rewards.slice(-5))];
    assert.ok(after - before > spread, `${type}: ${before} -> ${after}, spread ${spread}`);
  }
});

test("a run is the same for any micro-batch and for a kept graph", async (t) => {
  const folder = await tinyFolder(t);
  const run = async (name: string, changes: object): Promise<Record<string, number | null>[]> => {
    const dir = join(folder, name);
    // AdamW's first steps have the size of the rate however small a gradient is, and so enlarge the rounding of the processor.
    const optimizer = { lr: 1e-4 };
    await quietRun(tinyRun(folder, { run: { dir }, train: { iters: 3 }, optimizer, ...changes }));
    return metricsOf(dir);
  };
  const same = (
    got: Record<string, number | null>[],
    wanted: Record<string, number | null>[],
    where: string,
  ): void => {
    assert.equal(got.length, wanted.length);
    for (const [i, line] of wanted.entries()) {
      for (const [name, value] of Object.entries(line)) {
        const other = got[i]?.[name] as number;
        const tolerance = 1e-6 * Math.max(1, Math.abs(value as number));
        assert.ok(
          Math.abs(other - (value as number)) <= tolerance,
          `${where} ${i} ${name}: ${other}, not ${value}`,
        );
      }
    }
  };
  for (const algorithm of ["reinforce", "rloo", "grpo", "ppo"]) {
    const whole = await run(`${algorithm}_whole`, { algorithm });
    same(await run(`${algorithm}_parts`, { algorithm, update: { microBatch: 2 } }), whole, algorithm);
  }
  const rollout = { images: 4, numGenerations: 4, context: { type: "teacher_forced" } };
  const plain = await run("plain", { rollout });
  same(await run("kept", { rollout: { ...rollout, keepGraph: true } }), plain, "keepGraph");
});

test("the record: names, times, memory", async (t) => {
  const folder = await tinyFolder(t);
  const changes = {
    ema: { decay: 0.9 },
    reward: { ssim: { weight: 0.1 } },
    kl: { coef: 0.01 },
    grpo: { epochs: 2 },
    eval: { every: 10, images: 4, numGenerations: 2 },
    log: { imagesEvery: 10, every: 1 },
    save: { every: 10 },
    train: { iters: 21 },
  };
  const { dir, first, last: final } = await quietRun(tinyRun(folder, changes));
  const all = metricsOf(dir, { isPlain: false });
  const [start, ...lines] = all;
  assert.deepEqual(
    all.map(({ step }) => step),
    Array.from({ length: 22 }, (_, i) => i),
  );
  const names =
    "reward/mean reward/std reward/min reward/max reward/l2/mean reward/l2/std reward/ssim/mean reward/group_std " +
    "reward/l2/weighted reward/ssim/weighted kl/ref kl/ref_running kl/coef policy/entropy_frac tokens/token_perplexity " +
    "tokens/unique_frac progress/tokens_seen progress/unreadable perf/images_per_s time/save " +
    "reward/vq_ceiling reward/gap advantage/mean advantage/std advantage/min advantage/max advantage/abs_max " +
    "advantage/frac_zero_std loss/total loss/policy loss/kl kl/ref_k3 kl/approx kl/approx_k1 policy/entropy policy/ratio_mean " +
    "policy/ratio_max clip_ratio/low_mean clip_ratio/high_mean clip_ratio/region_mean sampling/logp_diff_mean " +
    "sampling/logp_diff_max optim/lr optim/grad_norm optim/grad_norm_clipped_frac optim/skipped_steps tokens/codebook_usage " +
    "progress/epoch progress/images_seen perf/tokens_per_s perf/step_s perf/rss_gb perf/native_tensors time/data " +
    "time/rollout time/decode time/reward time/update time/other";
  for (const [i, line] of lines.entries()) {
    for (const name of names.split(" ")) {
      if (name === "time/save" && i === 0) continue; // what came before the record of this step
      assert.ok(Number.isFinite(line[name]), `step ${line.step}: ${name} ${line[name]}`);
    }
    const sumOf = (line["reward/l2/weighted"] as number) + (line["reward/ssim/weighted"] as number);
    assert.ok(Math.abs(sumOf - (line["reward/mean"] as number)) < 1e-9, `step ${line.step}: ${sumOf}`);
    assert.equal(line["progress/tokens_seen"], (i + 1) * 4 * 2 * 8);
    const times = Object.entries(line).filter(([name]) => name.startsWith("time/"));
    const sum = times.reduce((total, [, seconds]) => total + (seconds as number), 0);
    const seconds = line["perf/step_s"] as number;
    assert.ok(Math.abs(sum - seconds) <= 0.05 * seconds, `step ${line.step}: ${sum} of ${seconds} s`);
  }
  for (const line of [start, lines[9], lines[19], lines[20]]) {
    for (const name of ["eval/reward/mean", "eval/psnr/mean", "eval/l2/mean", "eval/nats_per_token/mean"]) {
      assert.ok(Number.isFinite(line?.[name]), `step ${line?.step}: ${name}`);
    }
  }
  assert.equal(start?.["eval/reward/mean"], first?.spreads["eval/reward"]?.mean);
  assert.equal(lines[20]?.["eval/reward/mean"], final?.spreads["eval/reward"]?.mean);
  const pages = (name: string, steps: readonly string[]) => steps.map((n) => `step_0000${n}_${name}.png`);
  assert.deepEqual(
    readdirSync(join(dir, "samples")).sort(),
    [...pages("train", ["10", "20", "21"]), ...pages("eval", ["00", "10", "20", "21"])].sort(),
  );
  // Each evaluation shows the same images.
  const shown = readFileSync(join(dir, "samples.jsonl"), "utf8").trim().split("\n");
  const evaluated = shown.map((line) => JSON.parse(line)).filter(({ name }) => name === "eval");
  assert.deepEqual(new Set(evaluated.map(({ ids }) => JSON.stringify(ids))).size, 1);
  assert.deepEqual(
    evaluated.map(({ step, rewards }) => [step, rewards.length]),
    [0, 10, 20, 21].map((step) => [step, evaluated[0].ids.length]),
  );

  // AdamW's and the average's tensors are made by the first step; from then on nothing is added.
  const tensors = lines.map((line) => line["perf/native_tensors"]);
  assert.deepEqual(new Set(tensors.slice(1)).size, 1, `native tensors: ${tensors.join(" ")}`);
});

test("an abort ends the run after its step, and it can go on from there", async (t) => {
  const folder = await tinyFolder(t);
  const changes = { train: { iters: 6 }, save: { every: 4 }, ema: { decay: 0.9 } };
  const whole = await quietRun(tinyRun(folder, { ...changes, run: { dir: join(folder, "whole") } }));
  const abort = new AbortController();
  abort.abort();
  const dir = join(folder, "stopped");
  for (const step of [1, 2]) {
    const stopped = await quietRun(tinyRun(folder, { ...changes, run: { dir, ifExists: "resume" } }), {
      signal: abort.signal,
    });
    assert.deepEqual([stopped.end, stopped.step], ["interrupted", step]);
    assert.equal(last(checkpointsOf(dir)), `step_00000${step}`);
  }
  const { end, step } = await quietRun(tinyRun(folder, { ...changes, run: { dir, ifExists: "resume" } }));
  assert.deepEqual([end, step], ["done", 6]);
  assert.deepEqual(weightsOf(dir), weightsOf(whole.dir));
  assert.deepEqual(metricsOf(dir), metricsOf(whole.dir));
});

test("a damaged newest checkpoint is passed over, and the user told", async (t) => {
  const folder = await tinyFolder(t);
  const changes = { train: { iters: 5 }, save: { every: 2, keep: 3 } };
  const { dir } = await quietRun(tinyRun(folder, changes));
  const [weights, metrics] = [weightsOf(dir), metricsOf(dir)];
  assert.deepEqual(checkpointsOf(dir), ["step_000002", "step_000004", "step_000005"]);
  for (const name of ["step_000005", "step_000004"])
    truncateSync(join(dir, "checkpoints", name, "policy.safetensors"), 100);
  const screen = new Shown();
  const resumed = await quietRun(tinyRun(folder, { ...changes, run: { ifExists: "resume" } }), { screen });
  assert.equal(resumed.step, 5);
  for (const name of ["step_000005", "step_000004"]) {
    const path = join(dir, "checkpoints", name);
    assert.match(screen.text, new RegExp(`passed over ${path}: policy.safetensors has 100 bytes, not \\d+`));
  }
  assert.deepEqual(weightsOf(dir), weights);
  assert.deepEqual(metricsOf(dir), metrics);
});

test("another configuration or other images are refused, unless forced", async (t) => {
  const folder = await tinyFolder(t);
  await quietRun(tinyRun(folder));
  const again = (changes: object, force = false) =>
    quietRun(tinyRun(folder, { run: { ifExists: "resume" }, ...changes }), { force });
  await assert.rejects(again({ optimizer: { lr: 0.5 }, rollout: { temperature: 0.9 } }), (error: Error) => {
    assert.equal(error.name, "ConfigError");
    assert.match(error.message, /optimizer\.lr/);
    assert.match(error.message, /0\.001/);
    assert.match(error.message, /0\.5/);
    assert.match(error.message, /rollout\.temperature/);
    return true;
  });
  await writeEmoji(join(folder, "images"), 2, 100);
  await assert.rejects(again({}), (error: Error) => {
    assert.equal(error.name, "ConfigError");
    assert.match(
      error.message,
      /^resume: expected the images that the run was begun with \(fingerprint [0-9a-f]{12}\), got others \([0-9a-f]{12}\)\. /,
    );
    return true;
  });
  const forced = await again({ optimizer: { lr: 0.5 }, train: { iters: 4 } }, true);
  assert.equal(forced.step, 4);
  assert.ok((last(metricsOf(forced.dir))["optim/lr"] as number) > 0.001);
});

test("a step with a reward that is no number is left out, counted and kept for inspection; too many end the run", async (t) => {
  const folder = await tinyFolder(t);
  let calls = 0;
  const bad = new Set([2, 5, 6, 7]);
  using vq = tinyTokenizer();
  // Sequences are decoded, then the reconstructions that are the ceiling: two calls an iteration.
  const model = {
    codebookSize: 32,
    downsample: 4,
    encode: (images: Tensor) => vq.encode(images),
    decodeCode: (codes: Tensor, grid: readonly [number, number]) => {
      const isBad = calls % 2 === 0 && bad.has(calls / 2 + 1);
      calls++;
      return tidy(() => vq.decodeCode(codes, grid).mul(isBad ? Number.NaN : 1));
    },
  };
  const config = tinyRun(folder, {
    tokenizer: { path: null, model },
    reward: { l2: { weight: 1 } },
    limits: { nonFiniteInARow: 2, nonFinite: 100 },
    save: { every: 1, keep: 20 },
    log: { every: 1 },
    train: { iters: 9 },
  });
  const dir = join(folder, "run");
  await assert.rejects(quietRun(config), (error: Error) => {
    assert.ok(error instanceof DivergedError, String(error));
    assert.match(error.message, /^step 7: .*3 steps in a row \(4 in all\)/);
    assert.match(error.message, /reward\.l2 gave NaN/);
    assert.ok(error.message.includes(`${dir}/dumps`));
    assert.doesNotMatch(error.message, /optimizer\.lr/);
    return true;
  });
  const lines = metricsOf(dir);
  assert.deepEqual(
    lines.map((line) => line["optim/skipped_total"]),
    [0, 1, 1, 1, 2, 3, 4],
  );
  assert.deepEqual(
    lines.map((line) => line["reward/mean"] === null),
    [false, true, false, false, true, true, true],
  );
  const dumps = readdirSync(join(dir, "dumps")).sort();
  assert.deepEqual(
    dumps,
    [2, 5, 6, 7].map((n) => `step_00000${n}.safetensors`),
  );
  const { tensors } = loadSafetensors(join(dir, "dumps", "step_000002.safetensors"));
  assert.deepEqual(Object.keys(tensors).sort(), ["images", "logprobs", "rewards", "tokens", "trueCodes"]);
  assert.ok((tensors.rewards as Tensor).isnan().all().item());
  for (const tensor of Object.values(tensors)) tensor.dispose();
  const policyAt = (step: number): Buffer =>
    readFileSync(join(dir, "checkpoints", `step_00000${step}`, "policy.safetensors"));
  assert.ok(policyAt(1).equals(policyAt(2)));
  assert.ok(!policyAt(2).equals(policyAt(3)));
  assert.ok(policyAt(4).equals(policyAt(6)));
});

test("a folder that holds a run: refused, another name, overwritten, begun again where nothing was saved", async (t) => {
  const folder = await tinyFolder(t);
  const dir = join(folder, "run");
  const run = (ifExists: string) => quietRun(tinyRun(folder, { run: { ifExists } }));
  await run("fail");
  await assert.rejects(run("fail"), {
    name: "ConfigError",
    message:
      `run.dir: expected a folder without a run, got ${dir}, which holds one (step_000002). ` +
      "Set run.ifExists to resume, new or overwrite, or name another folder.",
  });
  const other = await run("new");
  assert.equal(other.dir, `${dir}-2`);
  assert.deepEqual(weightsOf(other.dir), weightsOf(dir));
  writeFileSync(join(dir, "notes.txt"), "mine");
  await run("overwrite");
  assert.equal(metricsOf(dir).length, 2);
  assert.equal(readFileSync(join(dir, "notes.txt"), "utf8"), "mine");
  rmSync(join(dir, "checkpoints"), { recursive: true });
  await run("resume");
  assert.equal(metricsOf(dir).length, 2);
  assert.deepEqual(weightsOf(other.dir), weightsOf(dir));
});

test("an abort gets through although the images never make the loop wait", async (t) => {
  const folder = await tinyFolder(t);
  const model = tinyTokenizer();
  t.after(() => model.dispose());
  async function* loader(): AsyncGenerator<Tensor> {
    for (;;) {
      using images = full([2, 3, 16, 8], 0.5);
      yield images;
    }
  }
  const config = {
    run: { dir: join(folder, "run") },
    tokenizer: model,
    dataloader: loader,
    block_size: 8,
    ar: { type: "gpt", n_layer: 1, n_head: 2, n_embd: 16 },
    rollout: { num_generations: 2, context: "prefix" },
    log: { images_every: 0 },
    save: { every: 1000 },
    train: { iters: 40, threads: 1 },
  };
  const abort = new AbortController();
  setTimeout(() => abort.abort(), 1);
  const { end, step } = await quietRun(config, { signal: abort.signal });
  assert.equal(end, "interrupted");
  assert.ok(step < 40, `${step}`);
});

test("a signal that comes while a step computes ends the run after that step", async (t) => {
  const folder = await tinyFolder(t);
  const abort = new AbortController();
  let judged = 0;
  const fn = (_: Tensor, samples: Tensor): Tensor => {
    // Samples and the tokenizer's own images are judged in each step: this is in the third.
    judged++;
    if (judged === 5) setImmediate(() => abort.abort());
    return samples.mean([1, 2, 3]);
  };
  const changes = {
    reward: { custom: { fn } },
    log: { every: 1, imagesEvery: 0 },
    save: { every: 0 },
    train: { iters: 8 },
  };
  const { end, step } = await quietRun(tinyRun(folder, changes), { signal: abort.signal });
  assert.deepEqual([end, step, judged], ["interrupted", 3, 6]);
});

test("a tokenizer and a loader of a program's own; a loader is resumed where it was", async (t) => {
  const folder = await tinyFolder(t);
  const model = tinyTokenizer();
  t.after(() => model.dispose());
  const begun: number[] = [];
  async function* loader(from: { position: number }): AsyncGenerator<Tensor> {
    begun.push(from.position);
    for (let i = from.position; i < 3; i++) {
      using images = full([2, 3, 16, 8], i / 4);
      yield images;
    }
  }
  // Images of 4 x 2 codes; their size is the loader's, not data.size.
  const config = (iters: number, name: string) => ({
    run: { dir: join(folder, name), ifExists: "resume" },
    tokenizer: model,
    dataloader: loader,
    block_size: 8,
    ar: { type: "gpt", n_layer: 1, n_head: 2, n_embd: 16 },
    rollout: { num_generations: 2, context: "prefix" },
    train: { iters, threads: 1 },
  });
  const signal = AbortSignal.abort();
  await quietRun(config(4, "parts"), { signal });
  await quietRun(config(4, "parts"), { signal });
  await quietRun(config(4, "parts"));
  assert.deepEqual(begun, [0, 1, 2, 0]);
  await quietRun(config(4, "whole"));
  assert.deepEqual(weightsOf(join(folder, "parts")), weightsOf(join(folder, "whole")));
  assert.deepEqual(metricsOf(join(folder, "parts")), metricsOf(join(folder, "whole")));
});

test("a loader whose images have another number of codes than rollout.maxLen is refused", async (t) => {
  const folder = await tinyFolder(t);
  using model = tinyTokenizer();
  async function* loader(): AsyncGenerator<Tensor> {
    using images = full([2, 3, 16, 8], 0.5);
    yield images;
  }
  const run = (maxLen: number): Promise<unknown> =>
    quietRun({
      run: { dir: join(folder, `of ${maxLen}`) },
      tokenizer: model,
      dataloader: loader,
      blockSize: 16,
      ar: { type: "gpt", nLayer: 1, nHead: 2, nEmbd: 16 },
      rollout: { numGenerations: 2, context: "prefix", maxLen },
      train: { iters: 1, threads: 1 },
    });
  await assert.rejects(run(9), {
    name: "RangeError",
    message: /^rollout\.maxLen: .*8.*loader's images.*got 9.*omit maxLen/,
  });
  await run(8);
});

test("the weight of the divergence is steered towards its target, the same after a resume; past kl.stop the run ends", async (t) => {
  const folder = await tinyFolder(t);
  const changes = {
    kl: { coef: 0.5, target: 1e-4, horizon: 20 },
    optimizer: { lr: 1e-2 },
    train: { iters: 8 },
    save: { every: 100 },
  };
  const run = (name: string, more: object, options: TrainOptions = {}) =>
    quietRun(
      tinyRun(folder, { ...changes, run: { dir: join(folder, name), ifExists: "resume" }, ...more }),
      options,
    );
  const { dir } = await run("whole", {});
  const lines = metricsOf(dir);
  // 8 sequences of a horizon of 20: a divergence of 0, as at first, lowers the weight by 0.2 * 8 / 20.
  assert.ok(Math.abs((lines[1]?.["kl/coef"] as number) - 0.5 * 0.92) < 1e-12);
  for (const [i, line] of lines.slice(1).entries()) {
    const { "kl/coef": before, "kl/ref": kl } = lines[i] as { "kl/coef": number; "kl/ref": number };
    const error = Math.min(Math.max(kl / 1e-4 - 1, -0.2), 0.2);
    assert.ok(
      Math.abs((line["kl/coef"] as number) - before * (1 + (error * 8) / 20)) < 1e-9,
      `step ${line.step}`,
    );
  }
  assert.ok(lines.some((line) => (line["kl/ref"] as number) > 2e-4));
  const abort = AbortSignal.abort();
  for (let i = 0; i < 3; i++) await run("parts", {}, { signal: abort });
  await run("parts", {});
  assert.deepEqual(metricsOf(join(folder, "parts")), lines);
  assert.deepEqual(weightsOf(join(folder, "parts")), weightsOf(dir));

  const watched = { kl: { coef: 0, stop: 1e-3 }, train: { iters: 200 } };
  const { end, step, dir: stopped } = await run("stopped", watched);
  const seen = metricsOf(stopped);
  assert.equal(end, "kl");
  assert.ok(step > 2 && step < 200, `${step}`);
  assert.equal(last(checkpointsOf(stopped)), `step_${String(step).padStart(6, "0")}`);
  let mean = seen[0]?.["kl/ref"] as number;
  for (const line of seen.slice(1)) mean = 0.9 * mean + 0.1 * (line["kl/ref"] as number);
  assert.ok(Math.abs(mean - (last(seen)["kl/ref_running"] as number)) < 1e-9);
  assert.ok(mean > 1e-3 && (seen.at(-2)?.["kl/ref_running"] as number) <= 1e-3);
  assert.equal(last(seen)["loss/kl"], undefined, "at coefficient 0 it is only watched");
});

test("train.iters may be raised where no iteration's learning rate changes with it", async (t) => {
  const folder = await tinyFolder(t);
  const run = (name: string, iters: number, optimizer: object, force = false) =>
    quietRun(
      tinyRun(folder, { run: { dir: join(folder, name), ifExists: "resume" }, train: { iters }, optimizer }),
      { force },
    );
  const constant = { schedule: "constant", warmup: 0.3 };
  await run("constant", 4, constant);
  const raised = await run("constant", 6, constant);
  assert.equal(raised.step, 6);
  assert.deepEqual(
    metricsOf(raised.dir).map(({ step }) => step),
    [1, 2, 3, 4, 5, 6],
  );
  await assert.rejects(run("constant", 40, constant), {
    name: "ConfigError",
    message:
      "train.iters: expected 6, as the run was begun with, got 40. The learning rate warms up over 0.3 of it, so that " +
      "iteration 7 would have 0.000538 after 0.00100. Keep it, begin a new run with optimizer.schedule=constant and " +
      "optimizer.warmup=0, or resume with --force.",
  });
  const cosine = { schedule: "cosine", warmup: 0, finalLr: 0.1 };
  await run("cosine", 4, cosine);
  await assert.rejects(run("cosine", 8, cosine), {
    name: "ConfigError",
    message:
      /^train\.iters: expected 4, .* got 8\. The learning rate follows a cosine over it, so that iteration 5 would have /,
  });
  assert.equal((await run("cosine", 8, cosine, true)).step, 8);
});

test("a run with adapters: they alone are trained and saved, beside a merged policy; it resumes bit for bit", async (t) => {
  const folder = await tinyFolder(t);
  const lora = { rank: 2, alpha: 6, targets: ["query", "mlp.0"] };
  const changes = {
    ar: { lora },
    kl: { coef: 0.1 },
    ema: { decay: 0.5 },
    optimizer: { lr: 1e-2 },
    eval: { every: 2, images: 4, numGenerations: 2 },
    train: { iters: 4 },
    save: { every: 100, ckptPath: join(folder, "weights.safetensors") },
  };
  for (const context of ["prefix", "teacher_forced"]) {
    const run = (name: string, options: TrainOptions = {}) =>
      quietRun(
        tinyRun(folder, {
          ...changes,
          rollout: { context: { type: context } },
          run: { dir: join(folder, context, name), ifExists: "resume" },
        }),
        options,
      );
    const { dir } = await run("whole");
    const lines = metricsOf(dir).slice(1);
    for (const line of lines) assert.ok((line["sampling/logp_diff_max"] as number) < 1e-4);
    assert.equal(lines[0]?.["kl/ref"], 0);
    assert.ok((last(lines)["kl/ref"] as number) > 0, "the reference is the policy without its adapters");

    const at = join(dir, "checkpoints", "step_000004");
    const read = (part: string) => loadSafetensors(join(at, `${part}.safetensors`)).tensors;
    const names = [0].flatMap((i) =>
      ["attn.query", "mlp.0"].flatMap((layer) =>
        ["lora_A", "lora_B"].map((m) => `blocks.${i}.${layer}.${m}.weight`),
      ),
    );
    assert.deepEqual(Object.keys(read("lora")).sort(), [...names].sort());
    assert.deepEqual(Object.keys(read("lora_ema")).sort(), [...names].sort());
    const moments = Object.keys(read("optimizer")).filter((name) => name.endsWith(".exp_avg"));
    assert.deepEqual(moments.sort(), names.map((name) => `${name}.exp_avg`).sort());

    // The merged policy gives the logits of policy and adapters.
    const { config } = resolveConfig({ values: tinyRun(folder, changes) });
    using parts = await openRunParts(config);
    parts.lora?.loadStateDict(read("lora"));
    const classes = tensor([1], { dtype: "int64" });
    const codes = tensor([[1, 2, 3]], { dtype: "int64" });
    const wanted = noGrad(() => parts.policy.eval().forward(codes, { classes }));
    for (const path of [join(at, "policy.safetensors"), join(folder, "weights.safetensors")]) {
      using merged = openPolicy(path).policy.eval();
      expectClose(
        noGrad(() => merged.forward(codes, { classes })),
        wanted,
        { atol: 1e-5 },
      );
    }
    using average = openPolicy(join(at, "ema.safetensors")).policy.eval();
    parts.lora?.loadStateDict(read("lora_ema"));
    const averaged = noGrad(() => parts.policy.forward(codes, { classes }));
    expectClose(
      noGrad(() => average.forward(codes, { classes })),
      averaged,
      { atol: 1e-5 },
    );
    assert.throws(() => expectClose(averaged, wanted, { atol: 1e-4 }));

    const signal = AbortSignal.abort();
    for (let i = 0; i < 3; i++) await run("parts", { signal });
    await run("parts");
    assert.deepEqual(weightsOf(join(folder, context, "parts")), weightsOf(dir));
    assert.deepEqual(metricsOf(join(folder, context, "parts")), metricsOf(dir));
  }
});

test("adapters of another policy are refused on a resume; a program's policy keeps what they learnt", async (t) => {
  const folder = await tinyFolder(t);
  manualSeed(1);
  const build = (): GPT =>
    new GPT({ vocabSize: 32, blockSize: 16, nLayer: 1, nHead: 2, nEmbd: 16, classNum: 3 });
  using policy = build();
  const before = tidy(() => keep(policy.blocks[0]?.attn.query.weight.clone() as Tensor));
  const changes = { ar: { type: null, policy, lora: { rank: 2 } }, optimizer: { lr: 1e-2 } };
  const { dir } = await quietRun(tinyRun(folder, changes));
  const { tensors } = loadSafetensors(join(dir, "checkpoints", "step_000002", "policy.safetensors"));
  const weight = policy.blocks[0]?.attn.query.weight as Tensor;
  expectClose(weight, tensors["blocks.0.attn.query.weight"] as Tensor, { rtol: 0, atol: 0 });
  assert.ok(tidy(() => weight.sub(before).abs().amax().item()) > 1e-4);
  assert.ok(policy.parameters().every((parameter) => parameter.requiresGrad));
  using other = build();
  const again = tinyRun(folder, {
    ...changes,
    ar: { ...changes.ar, policy: other },
    run: { ifExists: "resume" },
  });
  await assert.rejects(quietRun(again), {
    name: "ConfigError",
    message:
      /^resume: expected the policy under the adapters that the run was begun with \(weights [0-9a-f]{12}\), got another \([0-9a-f]{12}\)\. Give the same one /,
  });
});

test("credit by place: codes of a prefix run are paid for their own places", async (t) => {
  const folder = await tinyFolder(t);
  for (const context of ["prefix", "teacher_forced"]) {
    for (const algorithm of ["reinforce", "rloo", "grpo", "ppo"]) {
      const run = async (name: string, reward: object): Promise<Record<string, number | null>> => {
        const dir = join(folder, `${context} ${algorithm} ${name}`);
        const shape = { rollout: { context: { type: context } }, train: { iters: 1 } };
        await quietRun(tinyRun(folder, { algorithm, reward, run: { dir }, ...shape }));
        return metricsOf(dir)[0] as Record<string, number | null>;
      };
      const whole = await run("sequence", {});
      const place = await run("place", { credit: "place", creditDecay: 0.5 });
      // The same draws, judged alike, and paid otherwise.
      const close = (a?: number | null, b?: number | null): boolean =>
        Math.abs((a as number) - (b as number)) < 1e-6;
      for (const name of ["reward/mean", "reward/std", "reward/l2/mean", "reward/vq_ceiling"])
        assert.ok(close(place[name], whole[name]), `${algorithm} ${context} ${name}`);
      assert.ok(!close(place["advantage/abs_max"], whole["advantage/abs_max"]), `${algorithm} ${context}`);
      assert.ok((place["optim/grad_norm"] as number) > 0);
    }
  }
});

test("runs in one process leave nothing behind, also one that fails", async (t) => {
  const folder = await tinyFolder(t);
  const all = {
    ema: { decay: 0.9 },
    kl: { coef: 0.1 },
    eval: { every: 1, images: 4, numGenerations: 2 },
    log: { imagesEvery: 1 },
    algorithm: "ppo",
  };
  const run = async (name: string, changes: object): Promise<void> => {
    await quietRun(tinyRun(folder, { ...all, run: { dir: join(folder, name) }, ...changes }));
  };
  await run("warm", {});
  const before = memory();
  const failing = { reward: { custom: { fn: () => assert.fail("no reward") } } };
  for (const [i, changes] of [{}, { ar: { lora: { rank: 2 } }, algorithm: "grpo" }].entries()) {
    await run(`again ${i}`, changes);
    await assert.rejects(run(`failing ${i}`, { ...changes, ...failing }), /no reward/);
    await assert.rejects(run(`without ${i}`, { ...changes, data: { source: join(folder, "none") } }));
    assert.equal(memory().tensors, before.tensors, JSON.stringify(changes));
    assert.equal(memory().generators, before.generators);
  }
});

test("a run in the way is asked about where somebody can answer", async (t) => {
  const folder = await tinyFolder(t);
  const dir = join(folder, "run");
  await quietRun(tinyRun(folder));
  const asked: string[] = [];
  const answer = (ifExists: "resume" | "new" | "fail") => async (at: string) => {
    asked.push(at);
    return ifExists;
  };
  const config = tinyRun(folder, { run: { ifExists: "ask" } });
  await assert.rejects(quietRun(config), /expected a folder without a run/);
  await assert.rejects(quietRun(config, { ask: answer("fail") }), /expected a folder without a run/);
  assert.equal((await quietRun(config, { ask: answer("resume") })).dir, dir);
  assert.equal((await quietRun(config, { ask: answer("new") })).dir, `${dir}-2`);
  assert.deepEqual(asked, [dir, dir, dir]);
});

test("images that could not be read still count after a resume", async (t) => {
  const folder = await tinyFolder(t, 20);
  for (const name of ["a", "b"]) writeFileSync(join(folder, "images", name, "bad.png"), "no image");
  const changes = {
    seed: 3,
    data: { maxUnreadable: 2, evalPart: 0 },
    eval: { every: 0 },
    train: { iters: 8 },
    run: { ifExists: "resume" },
  };
  const signal = AbortSignal.abort();
  const counts: (number | null | undefined)[] = [];
  for (let i = 0; i < 8; i++) {
    const { dir } = await quietRun(tinyRun(folder, changes), { signal });
    counts.push(last(metricsOf(dir))["progress/unreadable"]);
  }
  const whole = tinyRun(folder, { ...changes, run: { dir: join(folder, "whole") } });
  const { dir } = await quietRun(whole);
  assert.deepEqual(
    counts,
    metricsOf(dir).map((line) => line["progress/unreadable"]),
  );
  assert.equal(counts.at(-1), 2);
  assert.ok((counts[0] as number) < 2, `${counts}`);
});

test("rollouts on packed weights: the ratio before a step stays near 1, and a resume changes nothing", async (t) => {
  const folder = await tinyFolder(t);
  for (const [policy, most] of [
    ["float32", 1e-4],
    ["bfloat16", 0.1],
  ] as const) {
    const changes = {
      data: { size: 32 }, // 64 codes, of which 33 are drawn: enough to be worth the packing
      ar: { nEmbd: 192, nHead: 3 },
      rollout: { context: { type: "prefix", length: 31 } },
      precision: { policy },
      train: { iters: 2 },
    };
    const run = (name: string, options: TrainOptions = {}) =>
      quietRun(
        tinyRun(folder, { ...changes, run: { dir: join(folder, policy, name), ifExists: "resume" } }),
        options,
      );
    const { dir } = await run("whole");
    for (const line of metricsOf(dir)) {
      const gap = line["sampling/logp_diff_max"] as number;
      assert.ok(gap > 0 && gap < most, `${policy}: ${gap}`);
    }
    await run("parts", { signal: AbortSignal.abort() });
    await run("parts");
    assert.deepEqual(weightsOf(join(folder, policy, "parts")), weightsOf(dir));
    assert.deepEqual(metricsOf(join(folder, policy, "parts")), metricsOf(dir));
  }
});
