/**
 * Trainings that are killed and resumed again and again: they must end as the one that was left alone, bit for bit.
 * `RLAR_TEST_KILLS=20` kills each more often, `RLAR_TEST_SEED` draws other moments.
 */
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, type TestContext, test } from "node:test";
import { fileURLToPath } from "node:url";

import { bestCheckpoint } from "../../src/run/checkpoint.js";
import { loadSafetensors } from "../../src/torch/index.js";
import { checkpointFiles, killOfRun, killsOr, life, moments, SEED, unfinishedIn } from "../support/kills.js";
import { metricsOf, tinyFolder } from "../support/train_run.js";

const PROGRAM = fileURLToPath(new URL("../support/fit_run.js", import.meta.url));
const KILLS = killsOr(2);
const ITERS = 2 * KILLS + 4;

/** The program and arguments of a training. */
function programOf(name: string, folder: string, dir: string): string[] {
  const [command = name, , cached] = name.split(" ");
  const config = {
    run: { dir, ifExists: "resume" },
    ema: { decay: 0.9 },
    eval: { every: 3, images: 4 },
    save: { every: 2 },
    train: { iters: ITERS },
    ...(command === "pretrain" && {
      pretrain: { classDropout: 0.2, noise: 0.2, cache: cached !== undefined },
      data: { flip: true },
    }),
  };
  return [PROGRAM, folder, JSON.stringify(config), command];
}

/** What must be the same: all checkpoints, the result, pages, and metrics without times. */
function outcome(dir: string): Record<string, unknown> {
  const found: Record<string, unknown> = { ...checkpointFiles(dir), metrics: metricsOf(dir) };
  for (const page of readdirSync(join(dir, "samples")))
    found[page] = readFileSync(join(dir, "samples", page));
  // Its header holds the seconds that the training took.
  const { tensors } = loadSafetensors(join(dir, "model.safetensors"));
  for (const [name, tensor] of Object.entries(tensors)) {
    found[`model/${name}`] = tensor.toList();
    tensor.dispose();
  }
  found.unfinished = [dir, join(dir, "checkpoints"), join(dir, "samples")].flatMap(unfinishedIn);
  return found;
}

async function killAndResume(t: TestContext, name: string): Promise<void> {
  const folder = await tinyFolder(t, 30);
  const whole = join(folder, "whole");
  const { code, errors } = await life(programOf(name, folder, whole));
  assert.equal(code, 0, errors);
  const dir = join(folder, "killed");
  let [kills, inSave] = [0, 0];
  for (const [i, moment] of moments(name, KILLS).entries()) {
    const end = await life(programOf(name, folder, dir), killOfRun(dir, moment, i));
    if (end.isKilled) kills++;
    else assert.equal(end.code, 0, end.errors);
    if (end.isKilled && unfinishedIn(join(dir, "checkpoints")).length > 0) inSave++;
  }
  const last = await life(programOf(name, folder, dir));
  assert.equal(last.code, 0, last.errors);
  const best = bestCheckpoint(join(whole, "checkpoints"))?.step ?? "none";
  t.diagnostic(
    `${name}, seed ${SEED}: ${kills} kills of ${KILLS}, ${inSave} inside a save; ${ITERS} updates, the best ${best}`,
  );
  assert.ok(kills >= Math.ceil(KILLS / 2), `${kills} of ${KILLS} kills came before the end`);
  const [wanted, got] = [outcome(whole), outcome(dir)];
  assert.deepEqual(Object.keys(got).sort(), Object.keys(wanted).sort());
  for (const [name, value] of Object.entries(wanted))
    assert.deepEqual(got[name], value, `seed ${SEED}: ${name}`);
}

describe("a training that is killed and resumed ends as the one left alone", () => {
  for (const name of ["pretrain", "pretrain with cache", "tokenizer", "classifier"])
    test(name, (t) => killAndResume(t as TestContext, name));
});
