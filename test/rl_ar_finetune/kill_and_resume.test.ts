/**
 * Runs that are killed at random moments, again and again, and resumed: they must end as the run that was left alone,
 * bit for bit. `RLAR_TEST_KILLS=20` kills each run more often, `RLAR_TEST_SEED` draws other moments.
 */
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, type TestContext, test } from "node:test";
import { fileURLToPath } from "node:url";

import { bestCheckpoint } from "../../src/run/checkpoint.js";
import { checkpointFiles, killOfRun, killsOr, life, moments, SEED, unfinishedIn } from "../support/kills.js";
import { metricsOf, tinyFolder } from "../support/train_run.js";

const PROGRAM = fileURLToPath(new URL("../support/train_run.js", import.meta.url));
const KILLS = killsOr(2);

/** Two iterations a kill, so that every life has something to do, and some to end with. */
const ITERS = 2 * KILLS + 4;

const ALGORITHMS: Readonly<Record<string, object>> = {
  reinforce: { reinforce: { epochs: 1 } },
  rloo: {
    update: { miniBatch: 2 },
    ar: { lora: { rank: 2 } },
    kl: { coef: 0.01, target: 0.01, horizon: 50, refreshEvery: 3 },
    rloo: { minStd: 0.02 },
    rollout: { redraws: 1 },
  },
  grpo: {
    kl: { coef: 0.01 },
    grpo: { epochs: 2 },
    reward: { credit: "place" },
    update: { codeDistance: 0.5, codeFrequency: 0.5 },
  },
  ppo: { ppo: { epochs: 2 } },
  ste: { rollout: { context: { type: "teacher_forced" } }, update: { miniBatch: 2 } },
};

/** The program and arguments of a run. */
function programOf(folder: string, dir: string, algorithm: string): string[] {
  const config = {
    ...ALGORITHMS[algorithm],
    algorithm,
    run: { dir, ifExists: "resume" },
    ema: { decay: 0.9 },
    // A measure that rises and falls, so that the best checkpoint is one in the middle.
    eval: { every: 3, images: 4, numGenerations: 1, best: "eval/ssim/mean", mode: "max" },
    save: { every: 2, ckptPath: join(dir, "policy.pt") },
    log: { every: 3, imagesEvery: 4 },
    train: { iters: ITERS },
  };
  return [PROGRAM, folder, JSON.stringify(config)];
}

/** What must be the same: all checkpoints, the exported weights, the pages, and metrics without times. */
function outcome(dir: string): Record<string, Buffer | object> {
  const pages = readdirSync(join(dir, "samples"));
  return {
    ...checkpointFiles(dir),
    ...Object.fromEntries(pages.map((name) => [name, readFileSync(join(dir, "samples", name))])),
    "samples.jsonl": readFileSync(join(dir, "samples.jsonl")),
    "policy.pt": readFileSync(join(dir, "policy.pt")),
    metrics: metricsOf(dir),
    unfinished: [dir, join(dir, "checkpoints"), join(dir, "samples")].flatMap(unfinishedIn),
  };
}

async function killAndResume(t: TestContext, algorithm: string): Promise<void> {
  const folder = await tinyFolder(t);
  const wholeDir = join(folder, "whole");
  const { code, errors } = await life(programOf(folder, wholeDir, algorithm));
  assert.equal(code, 0, errors);
  const whole = outcome(wholeDir);

  const dir = join(folder, "killed");
  let [kills, inSave] = [0, 0];
  for (const [i, moment] of moments(algorithm, KILLS).entries()) {
    const end = await life(programOf(folder, dir, algorithm), killOfRun(dir, moment, i));
    if (end.isKilled) kills++;
    else assert.equal(end.code, 0, end.errors);
    if (end.isKilled && unfinishedIn(join(dir, "checkpoints")).length > 0) inSave++;
  }
  const last = await life(programOf(folder, dir, algorithm));
  assert.equal(last.code, 0, last.errors);
  const best = bestCheckpoint(join(folder, "whole", "checkpoints"))?.step ?? "none";
  t.diagnostic(
    `${algorithm}, seed ${SEED}: ${kills} kills of ${KILLS}, ${inSave} inside a save; ${ITERS} steps, the best ${best}`,
  );
  assert.ok(kills >= Math.ceil(KILLS / 2), `${kills} of ${KILLS} kills came before the end`);

  const resumed = outcome(dir);
  assert.deepEqual(Object.keys(resumed).sort(), Object.keys(whole).sort());
  for (const [name, wanted] of Object.entries(whole)) {
    const got = resumed[name];
    if (Buffer.isBuffer(wanted)) assert.ok(wanted.equals(got as Buffer), `seed ${SEED}: ${name} differs`);
    else assert.deepEqual(got, wanted, `seed ${SEED}: ${name}`);
  }
  const newest = `step_${String(ITERS).padStart(6, "0")}`;
  const parts = ["ema", "optimizer", "policy", ...(algorithm === "ppo" ? ["value_head"] : [])];
  for (const part of parts) assert.ok(`${newest}/${part}.safetensors` in whole, part);
}

describe("a run that is killed and resumed ends as the one left alone", { concurrency: 2 }, () => {
  for (const algorithm of Object.keys(ALGORITHMS))
    test(algorithm, (t) => killAndResume(t as TestContext, algorithm));
});
