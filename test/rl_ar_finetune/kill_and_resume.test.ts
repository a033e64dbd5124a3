/**
 * Runs that are killed at random moments, again and again, and resumed: they must end as the run that was left alone,
 * bit for bit. `RLAR_TEST_KILLS=20` kills each run more often, `RLAR_TEST_SEED` draws other moments.
 */
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, type TestContext, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";

import { Generator, rand } from "../../src/torch/index.js";
import { metricsOf, tinyFolder } from "../support/train_run.js";

const PROGRAM = fileURLToPath(new URL("../support/train_run.js", import.meta.url));
const KILLS = Number(process.env.RLAR_TEST_KILLS ?? 5);
const SEED = Number(process.env.RLAR_TEST_SEED ?? Date.now() % 1_000_000);

/** Two iterations a kill, so that every life has something to do, and some to end with. */
const ITERS = 2 * KILLS + 4;

const ALGORITHMS: Readonly<Record<string, object>> = {
  reinforce: { reinforce: { epochs: 1 } },
  rloo: {
    update: { miniBatch: 2 },
    ar: { lora: { rank: 2 } },
    kl: { coef: 0.01, target: 0.01, horizon: 50 },
  },
  grpo: { kl: { coef: 0.01 }, grpo: { epochs: 2 }, reward: { credit: "place" } },
  ppo: { ppo: { epochs: 2 } },
  ste: { rollout: { context: { type: "teacher_forced" } }, update: { miniBatch: 2 } },
};

interface Ended {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly errors: string;
}

function start(
  folder: string,
  dir: string,
  algorithm: string,
): { child: ChildProcess; ended: Promise<Ended> } {
  const config = {
    ...ALGORITHMS[algorithm],
    algorithm,
    run: { dir, ifExists: "resume" },
    ema: { decay: 0.9 },
    eval: { every: 5, images: 4, numGenerations: 1 },
    log: { every: 3, imagesEvery: 4 },
    train: { iters: ITERS },
  };
  const child = spawn(process.execPath, [PROGRAM, folder, JSON.stringify(config)], {
    stdio: ["ignore", "ignore", "pipe"],
  });
  let errors = "";
  child.stderr.on("data", (text) => {
    errors += text;
  });
  const ended = new Promise<Ended>((resolve) => {
    child.on("close", (code, signal) => resolve({ code, signal, errors }));
  });
  return { child, ended };
}

/** Steps whose metrics are written. */
function stepsOf(dir: string): number {
  const file = join(dir, "metrics.jsonl");
  return existsSync(file) ? readFileSync(file, "utf8").split("\n").length - 2 : -1;
}

/** Let a run live until a step is written and some more, then kill it. False when it had ended by itself. */
async function live(
  folder: string,
  dir: string,
  algorithm: string,
  until: number,
  more: number,
): Promise<boolean> {
  const { child, ended } = start(folder, dir, algorithm);
  let isAlive = true;
  void ended.then(() => {
    isAlive = false;
  });
  while (isAlive && stepsOf(dir) < until) await sleep(3);
  await sleep(more);
  child.kill("SIGKILL");
  const { code, signal, errors } = await ended;
  if (signal !== "SIGKILL") assert.equal(code, 0, errors);
  return signal === "SIGKILL";
}

/** What must be the same: every file of the last checkpoint but the manifest, the pages, and metrics without times. */
function outcome(dir: string): Record<string, Buffer | object> {
  const last = join(dir, "checkpoints", `step_${String(ITERS).padStart(6, "0")}`);
  const files = readdirSync(last).filter((name) => name.endsWith(".safetensors"));
  const pages = readdirSync(join(dir, "samples"));
  return {
    ...Object.fromEntries(files.map((name) => [name, readFileSync(join(last, name))])),
    ...Object.fromEntries(pages.map((name) => [name, readFileSync(join(dir, "samples", name))])),
    "samples.jsonl": readFileSync(join(dir, "samples.jsonl")),
    metrics: metricsOf(dir),
  };
}

async function killAndResume(t: TestContext, algorithm: string): Promise<void> {
  const folder = await tinyFolder(t);
  const wholeDir = join(folder, "whole");
  const { code, errors } = await start(folder, wholeDir, algorithm).ended;
  assert.equal(code, 0, errors);
  const whole = outcome(wholeDir);

  const dir = join(folder, "killed");
  using generator = new Generator(SEED);
  using draws = rand([KILLS], { generator });
  let kills = 0;
  for (const [i, draw] of (draws.toList() as number[]).entries()) {
    // The first dies while it starts, the others from the writing of a step's metrics on, for about two steps.
    const isKilled = await live(folder, dir, algorithm, i === 0 ? -1 : 2 * i, draw * (i === 0 ? 800 : 300));
    if (isKilled) kills++;
  }
  const last = await start(folder, dir, algorithm).ended;
  assert.equal(last.code, 0, last.errors);
  t.diagnostic(`seed ${SEED}: ${kills} kills of ${KILLS}, ${ITERS} iterations`);
  assert.ok(kills >= Math.ceil(KILLS / 2), `${kills} of ${KILLS} kills came before the end`);

  const resumed = outcome(dir);
  assert.deepEqual(Object.keys(resumed).sort(), Object.keys(whole).sort());
  for (const [name, wanted] of Object.entries(whole)) {
    const got = resumed[name];
    if (Buffer.isBuffer(wanted)) assert.ok(wanted.equals(got as Buffer), `seed ${SEED}: ${name} differs`);
    else assert.deepEqual(got, wanted, `seed ${SEED}: ${name}`);
  }
  const parts = ["ema.safetensors", "optimizer.safetensors", "policy.safetensors"];
  for (const name of algorithm === "ppo" ? [...parts, "value_head.safetensors"] : parts)
    assert.ok(name in whole, name);
}

describe("a run that is killed and resumed ends as the one left alone", { concurrency: 2 }, () => {
  for (const algorithm of Object.keys(ALGORITHMS))
    test(algorithm, (t) => killAndResume(t as TestContext, algorithm));
});
