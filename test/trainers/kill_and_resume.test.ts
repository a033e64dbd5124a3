/**
 * Trainings that are killed and resumed again and again: they must end as the one that was left alone, bit for bit.
 * `RLAR_TEST_KILLS=20` kills each more often, `RLAR_TEST_SEED` draws other moments.
 */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, type TestContext, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";

import { Generator, loadSafetensors, rand } from "../../src/torch/index.js";
import { metricsOf, tinyFolder } from "../support/train_run.js";

const PROGRAM = fileURLToPath(new URL("../support/fit_run.js", import.meta.url));
const KILLS = Number(process.env.RLAR_TEST_KILLS ?? 4);
const SEED = Number(process.env.RLAR_TEST_SEED ?? Date.now() % 1_000_000);
const ITERS = 2 * KILLS + 4;

/** Run a command, and kill it a while after some steps are written. */
async function life(
  command: string,
  folder: string,
  dir: string,
  kill?: { until: number; more: number },
): Promise<{ isKilled: boolean; code: number | null; errors: string }> {
  const config = {
    run: { dir, ifExists: "resume" },
    ema: { decay: 0.9 },
    eval: { every: 3, images: 4 },
    save: { every: 2 },
    train: { iters: ITERS },
    ...(command === "pretrain" && {
      pretrain: { classDropout: 0.2, noise: 0.2, cache: false },
      data: { flip: true },
    }),
  };
  const child = spawn(process.execPath, [PROGRAM, folder, JSON.stringify(config), command], {
    stdio: ["ignore", "ignore", "pipe"],
  });
  let errors = "";
  child.stderr.on("data", (text) => {
    errors += text;
  });
  let isAlive = true;
  const ended = new Promise<{ code: number | null; signal: string | null }>((resolve) => {
    child.on("close", (code, signal) => {
      isAlive = false;
      resolve({ code, signal });
    });
  });
  const file = join(dir, "metrics.jsonl");
  const steps = (): number => (existsSync(file) ? readFileSync(file, "utf8").split("\n").length - 2 : -1);
  if (kill !== undefined) {
    while (isAlive && steps() < kill.until) await sleep(3);
    await sleep(kill.more);
    child.kill("SIGKILL");
  }
  const { code, signal } = await ended;
  return { isKilled: signal === "SIGKILL", code, errors };
}

/** What must be the same: tensors of the last checkpoint and the best, the result, pages, and metrics without times. */
function outcome(dir: string): Record<string, unknown> {
  const checkpoints = join(dir, "checkpoints");
  // Where the evaluation before the first update is the best, no checkpoint is.
  const file = join(checkpoints, "best.json");
  const best = existsSync(file) ? JSON.parse(readFileSync(file, "utf8")) : null;
  const found: Record<string, unknown> = { best, metrics: metricsOf(dir) };
  const last = `step_${String(ITERS).padStart(6, "0")}`;
  for (const name of [last, ...(best === null ? [] : [best.name as string])]) {
    for (const file of readdirSync(join(checkpoints, name)).filter((file) => file.endsWith(".safetensors")))
      found[`${name}/${file}`] = readFileSync(join(checkpoints, name, file)).toString("base64");
  }
  for (const page of readdirSync(join(dir, "samples")))
    found[page] = readFileSync(join(dir, "samples", page));
  // Its header holds the seconds that the training took.
  const { tensors } = loadSafetensors(join(dir, "model.safetensors"));
  for (const [name, tensor] of Object.entries(tensors)) {
    found[`model/${name}`] = tensor.toList();
    tensor.dispose();
  }
  return found;
}

async function killAndResume(t: TestContext, command: string): Promise<void> {
  const folder = await tinyFolder(t, 30);
  const whole = join(folder, "whole");
  const { code, errors } = await life(command, folder, whole);
  assert.equal(code, 0, errors);
  const dir = join(folder, "killed");
  using generator = new Generator(SEED);
  using draws = rand([KILLS], { generator });
  let kills = 0;
  for (const [i, draw] of (draws.toList() as number[]).entries()) {
    const { isKilled, ...end } = await life(command, folder, dir, {
      until: i === 0 ? -1 : 2 * i,
      more: draw * 300,
    });
    if (isKilled) kills++;
    else assert.equal(end.code, 0, end.errors);
  }
  const last = await life(command, folder, dir);
  assert.equal(last.code, 0, last.errors);
  t.diagnostic(`seed ${SEED}: ${kills} kills of ${KILLS}, ${ITERS} updates`);
  assert.ok(kills >= Math.ceil(KILLS / 2), `${kills} of ${KILLS} kills came before the end`);
  const [wanted, got] = [outcome(whole), outcome(dir)];
  assert.deepEqual(Object.keys(got).sort(), Object.keys(wanted).sort());
  for (const [name, value] of Object.entries(wanted))
    assert.deepEqual(got[name], value, `seed ${SEED}: ${name}`);
}

describe("a training that is killed and resumed ends as the one left alone", () => {
  for (const command of ["pretrain", "tokenizer", "classifier"])
    test(command, (t) => killAndResume(t as TestContext, command));
});
