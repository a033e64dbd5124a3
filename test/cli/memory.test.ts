/**
 * Commands that run out of memory, under a limit that the system keeps: one sentence that says what to lower, exit code
 * 3, and the last checkpoint still good.
 */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { test } from "node:test";

import { readCheckpoint } from "../../src/run/checkpoint.js";
import { explained } from "../../src/run/failure.js";
import { zeros } from "../../src/torch/index.js";
import { folderOfFile } from "../support/folder_of_file.js";
import { checkpointsOf, quietRun, tinyRun } from "../support/train_run.js";

let folder = "";
folderOfFile(async (made) => {
  folder = made;
  await quietRun(tinyRun(folder));
});

test("an operator without memory for its result is told in one sentence", async () => {
  await assert.rejects(
    explained("Lower the size", () => zeros([2 ** 48])),
    { message: "memory: expected room for 1073741824.0 MiB, got less. Lower the size." },
  );
});

/** Run a command with 1.5 GB for its data. */
function limited(...args: string[]): { code: number | null; err: string } {
  const command = 'ulimit -d 1500000 && exec "$0" dist/src/cli/main.js "$@"';
  const { status, stderr } = spawnSync("sh", ["-c", command, process.execPath, ...args], {
    encoding: "utf8",
  });
  return { code: status, err: stderr };
}

const at = (name: string): string => join(folder, name);
const images = (): string[] => [`data.source=${at("images")}`, "data.evalPart=0", "eval.every=0"];
const gpt = "ar={type: gpt, nLayer: 1, nHead: 2, nEmbd: 16, extra: {classNum: 3}}";
const train = ["log={imagesEvery: 0, tensorboard: false}", "train.threads=1"];

const COMMANDS: Readonly<Record<string, () => [args: string[], remedy: RegExp]>> = {
  "train, resumed": () => [
    [
      ...["train", "--force", `run.dir=${at("run")}`, "run.ifExists=resume", ...images(), gpt, ...train],
      ...[`tokenizer.path=${at("tokenizer.safetensors")}`, "data.size=16", "algorithm=grpo"],
      ...["rollout={images: 4, numGenerations: 2000000}", "reward.l2.weight=1", "train.iters=4"],
    ],
    /Lower rollout\.microBatch, update\.microBatch/,
  ],
  pretrain: () => [
    [
      ...["pretrain", `run.dir=${at("policy")}`, ...images(), gpt, ...train],
      ...[`tokenizer.path=${at("tokenizer.safetensors")}`, "data.size=16", "train.batch=1000000"],
    ],
    /Lower pretrain\.microBatch/,
  ],
  "pretrain, a large policy": () => [
    [
      ...["pretrain", `run.dir=${at("policy")}`, ...images(), ...train],
      ...[`tokenizer.path=${at("tokenizer.safetensors")}`, "data.size=16"],
      "ar={type: gpt, nLayer: 12, nHead: 16, nEmbd: 2048, extra: {classNum: 3}}",
    ],
    /ar\.nLayer or ar\.nEmbd/,
  ],
  tokenizer: () => [
    [
      ...["tokenizer", `run.dir=${at("vq")}`, ...images(), ...train, "data.size=1024", "train.batch=20"],
      "model={ch: 32, chMult: [1, 2], numResBlocks: 1, zChannels: 8, normGroups: 4, codebookSize: 32}",
    ],
    /Lower train\.batch, data\.size or model\.ch/,
  ],
  classifier: () => [
    ["classifier", `run.dir=${at("c")}`, ...images(), ...train, "data.size=1024", "train.batch=20"],
    /Lower train\.batch, data\.size or classifier\.widths/,
  ],
  sample: () => [
    ["sample", "--run", at("run"), "--class", "0", "--per-class", "5000000", "--out", at("s.png")],
    /Lower --per-class/,
  ],
  eval: () => [
    ["eval", "--run", at("run"), "--samples", "5000000", "--batch", "5000000", "--json", at("e.json")],
    /Lower --batch/,
  ],
  reconstruct: () => [
    ["reconstruct", at("images"), "--tokenizer", at("tokenizer.safetensors"), "--size", "8192"],
    /Lower --size/,
  ],
};

for (const [name, make] of Object.entries(COMMANDS)) {
  test(`${name} without memory: what to lower, and nothing lost`, {
    skip: process.platform !== "linux",
  }, () => {
    const [args, remedy] = make();
    const { code, err } = limited(...args);
    assert.equal(code, 3, err);
    assert.match(err, /^rlar: memory: expected .+, got less\. Lower .+\.$/m);
    assert.match(err, remedy);
    assert.doesNotMatch(err, /aten::/);
  });
}

test("the checkpoint from before is whole, and no other was written", () => {
  assert.deepEqual(checkpointsOf(at("run")), ["step_000002"]);
  using saved = readCheckpoint(join(at("run"), "checkpoints"));
  assert.deepEqual([saved?.step, saved?.damaged], [2, []]);
});
