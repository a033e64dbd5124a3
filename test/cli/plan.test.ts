/** `rlar plan` and `rlar train --dry-run` as a user runs them. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { parse } from "yaml";

import { tinyFolder } from "../support/train_run.js";

function rlar(...args: string[]): { code: number | null; out: string; err: string } {
  const { status, stdout, stderr } = spawnSync(process.execPath, ["dist/src/cli/main.js", ...args], {
    encoding: "utf8",
  });
  return { code: status, out: stdout, err: stderr };
}

test("plan and --dry-run say the same of a run, and make nothing", async (t) => {
  const folder = await tinyFolder(t);
  const keys = [
    `run.dir=${folder}/run`,
    `data.source=${folder}/images`,
    "data.size=16",
    `tokenizer.path=${folder}/tokenizer.safetensors`,
    "ar={type: gpt, nLayer: 1, nHead: 2, nEmbd: 16, extra: {classNum: 3}}",
    "rollout={images: 4, numGenerations: 2, context: {type: prefix}}",
    "eval.every=0",
    "data.evalPart=0",
    "train={iters: 7, device: cpu, threads: 1}",
  ];
  const { code, out, err } = rlar("plan", ...keys, "--no-measure");
  assert.equal(code, 0, err);
  assert.match(out, /^ {2}policy: GPT +4,656 +trained$/m);
  assert.match(out, /^ {2}images: 20 \D+ 0 \D+ 5\.0 steps\D+ 1\.40 epochs\D+ 7 steps$/m);
  assert.match(out, /^ {2}a rollout: 4 images x 2 = 8 sequences of 16 codes, 64 codes drawn$/m);
  assert.match(
    out,
    /^ {2}an update: 1 optimizer step; 8 rows\D+ 1 mini-batch of 4 images, 8 rows.*1 pass.*$/m,
  );
  assert.match(out, /^ {2}peak, at \w+ +[\d.]+ (?:KiB|MiB)$/m);
  assert.match(out, /^ {2}of [\d.]+ GiB, [\d.]+ GiB of it free now: it fits$/m);
  assert.match(out, /^ {2}all 7 steps +[\d.]+ [MG]FLOP$/m);

  const dry = rlar("train", ...keys, "--dry-run");
  assert.equal(dry.code, 0, dry.err);
  const file = join(folder, "again.yaml");
  writeFileSync(file, dry.out);
  assert.deepEqual(parse(rlar("train", file, "--dry-run").out), parse(dry.out));
  const comments = dry.out.split("\n").flatMap((line) => (line.startsWith("# ") ? [line.slice(2)] : []));
  for (const line of out
    .split("\n")
    .filter((one) => /^ {2}(policy|a rollout|an update|peak|all 7)/.test(one)))
    assert.ok(comments.includes(line), line);

  const { config, plan } = JSON.parse(rlar("train", ...keys, "--dry-run", "--json").out);
  assert.equal(config.train.iters, 7);
  assert.equal(plan.time, null);
  const measured = JSON.parse(rlar("plan", ...keys, "--json").out);
  assert.deepEqual(measured.flops, plan.flops);
  assert.ok(measured.time.totalSeconds > 0);
  assert.ok(!existsSync(join(folder, "run")));
});

test("a plan that cannot be made ends with the exit code of its reason", async (t) => {
  const folder = await tinyFolder(t);
  const keys = [`data.source=${folder}/images`, "data.size=16", "ar.type=gpt"];
  const absent = rlar("plan", ...keys, "tokenizer.path=absent.safetensors", "--no-measure");
  assert.equal(absent.code, 3);
  assert.match(absent.err, /^rlar: absent\.safetensors: expected a file that can be read, got ENOENT/);
  assert.equal(rlar("plan", ...keys, "--no-measure").code, 2);
});
