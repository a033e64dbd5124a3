/**
 * Commands that write a result are killed at random moments and run again: a result is there whole or not at all, an
 * older file stays until the new one is complete, and the last run gives the same bytes as one that was left alone.
 */
import assert from "node:assert/strict";
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, type TestContext, test } from "node:test";

import { buildArPolicy } from "../../src/rl_ar_finetune/builder.js";
import { manualSeed, saveSafetensors } from "../../src/torch/index.js";
import { folderOfFile } from "../support/folder_of_file.js";
import { killsOr, life, moments, SEED, unfinishedIn } from "../support/kills.js";
import { quietRun, tinyRun } from "../support/train_run.js";

const KILLS = killsOr(2);

let folder = "";
folderOfFile(async (made) => {
  folder = made;
  await quietRun(tinyRun(folder));
  manualSeed(1);
  const sizes = { nLayer: 1, nHead: 2, nEmbd: 16, extra: { classNum: 3 } };
  const { policy, optimizer } = buildArPolicy(32, 16, { type: "gpt", ...sizes });
  saveSafetensors(at("policy.safetensors"), policy.stateDict(), { config: JSON.stringify(policy.options) });
  optimizer.dispose();
  policy.dispose();
});

const at = (name: string): string => join(folder, name);
const tokenizer = (): string[] => ["--tokenizer", at("tokenizer.safetensors")];
const policy = (): string[] => ["--policy", at("policy.safetensors")];

/** By command: its arguments, with results in a folder. */
const COMMANDS: Readonly<Record<string, (out: string) => string[]>> = {
  sample: (out) => [
    ...tokenizer(),
    ...policy(),
    "--class",
    "0,1,2",
    "--per-class",
    "24",
    "--out",
    `${out}/s.png`,
  ],
  reconstruct: (out) => [at("images"), ...tokenizer(), "--size", "16", "--out", `${out}/r.png`],
  convert: (out) => [at("tokenizer.safetensors"), `${out}/c.safetensors`, "--force"],
  report: (out) => [at("run"), "--out", `${out}/report.html`],
  eval: (out) => [
    ...[...tokenizer(), ...policy(), "--data", at("images"), "--size", "16", "--eval-part", "0.4"],
    ...["--samples", "24", "--resamples", "20", "--threads", "1"],
    ...["--out", out, "--npz", `${out}/s.npz`, "--json", `${out}/eval.json`],
  ],
};

/** The files of a folder by name, without what tells the time. */
function filesIn(out: string): Record<string, string> {
  const names = readdirSync(out).filter((name) => !unfinishedIn(out).includes(join(out, name)));
  return Object.fromEntries(
    names.map((name) => {
      const text = readFileSync(join(out, name)).toString("latin1");
      return [name, text.replaceAll(out, "OUT").replace(/Written by rlar report on [^<]+/, "")];
    }),
  );
}

async function killAndRepeat(t: TestContext, command: string): Promise<void> {
  const argsFor = COMMANDS[command] as (out: string) => string[];
  const program = (out: string): string[] => ["dist/src/cli/main.js", command, ...argsFor(out)];
  const [whole, out] = [at(`${command}_whole`), at(`${command}_killed`)];
  mkdirSync(whole);
  mkdirSync(out);
  const started = performance.now();
  const { code, errors } = await life(program(whole));
  assert.equal(code, 0, errors);
  const duration = performance.now() - started;
  const wanted = filesIn(whole);

  let [kills, inSave] = [0, 0];
  for (const [i, { isInSave, draw }] of moments(command, KILLS).entries()) {
    const isKept = (i + (i >> 1)) % 2 === 1; // half of the times an older result is there, inside of a save or not
    for (const name of Object.keys(wanted)) {
      if (isKept) writeFileSync(join(out, name), "older");
      else rmSync(join(out, name), { force: true });
    }
    const unfinished = unfinishedIn(out).length;
    const end = await life(program(out), {
      isDue: () => true,
      ...(isInSave && { savesIn: [out] }),
      delayMs: draw * (isInSave ? 8 : duration),
    });
    if (end.isKilled) kills++;
    else assert.equal(end.code, 0, end.errors);
    if (end.isKilled && unfinishedIn(out).length > unfinished) inSave++;
    for (const [name, text] of Object.entries(filesIn(out))) {
      const isOlder = isKept && text === "older";
      assert.ok(name in wanted && (isOlder || text === wanted[name]), `seed ${SEED}, kill ${i}: ${name}`);
    }
  }
  t.diagnostic(`${command}, seed ${SEED}: ${kills} kills of ${KILLS}, ${inSave} inside a save`);
  assert.ok(kills >= Math.ceil(KILLS / 3), `${kills} of ${KILLS} kills came before the end`);
  const last = await life(program(out));
  assert.equal(last.code, 0, last.errors);
  assert.deepEqual(filesIn(out), wanted, `seed ${SEED}`);
}

describe("a command that is killed leaves whole results alone", () => {
  for (const command of Object.keys(COMMANDS)) test(command, (t) => killAndRepeat(t as TestContext, command));
});
