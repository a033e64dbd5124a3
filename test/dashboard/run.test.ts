import assert from "node:assert/strict";
import { mkdirSync, writeFileSync } from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

import { valueAt } from "../../src/config/key.js";
import { resolveConfig } from "../../src/config/resolve.js";
import { readRun } from "../../src/dashboard/run.js";
import { saveSafetensors, zeros } from "../../src/torch/index.js";
import { newFolder, writePage, writeRun } from "./run_files.js";

test("metrics are series by name: null is NaN, text and lists are no metrics", (t) => {
  const run = readRun(
    writeRun(newFolder(t), {
      metrics: [
        { step: 0, time: 100, "eval/a": 1 },
        { step: 1, time: 101, b: null, note: "text", list: [1] },
        { step: 2, time: 102, "eval/a": 3, b: 5 },
      ],
    }),
  );
  assert.deepEqual(
    [...run.metrics],
    [
      ["eval/a", { steps: [0, 2], values: [1, 3] }],
      ["b", { steps: [1, 2], values: [Number.NaN, 5] }],
    ],
  );
  assert.deepEqual(
    [run.lastStep, run.damagedLines, run.seconds, run.pages, run.models],
    [2, 0, null, [], []],
  );
});

test("a line that was cut short, and lines that are no records, are counted and passed over", (t) => {
  const lines = [{ step: 1, a: 1 }, "hello\n", '{"a":1}\n', { step: 2, a: 2 }, '{"step":3,"a'];
  const run = readRun(writeRun(newFolder(t), { metrics: lines }));
  assert.deepEqual(run.metrics.get("a"), { steps: [1, 2], values: [1, 2] });
  assert.equal(run.damagedLines, 3);
});

test("the time of a run is that of its parts, without the pauses and without what was lost", (t) => {
  const at = (seconds: number): string => new Date(seconds * 1000).toISOString();
  const metrics = [1, 2, 3, 4].map((step) => ({ step, time: [0, 1010, 1020, 5030, 5040][step] }));
  const folder = writeRun(newFolder(t), {
    metrics,
    env: { startedAt: at(1000) },
    files: { "env.2.json": { startedAt: at(5000) }, "env.10.json.bak": "{" },
  });
  const run = readRun(folder);
  assert.equal(run.seconds, 20 + 40);
  assert.deepEqual(
    run.starts.map(({ step }) => step),
    [0, 2],
  );
});

test("a folder that is no run is refused, with the runs in it", (t) => {
  const folder = newFolder(t);
  assert.throws(() => readRun(join(folder, "none")), {
    name: "RangeError",
    message: `report: expected the folder of a run, got ${folder}/none, which is not there.`,
  });
  writeFileSync(join(folder, "file"), "");
  assert.throws(() => readRun(join(folder, "file")), {
    message: `report: expected the folder of a run, got ${folder}/file, a file.`,
  });
  const lacks = `report: expected the folder of a run, got ${folder}, which has neither metrics.jsonl nor config.yaml.`;
  assert.throws(() => readRun(folder), { message: lacks });
  writeRun(join(folder, "one"), { metrics: [] });
  assert.throws(() => readRun(folder), { message: `${lacks} Name a run in it: ${folder}/one.` });
});

test("files that cannot be read are named, and the rest is there", (t) => {
  const folder = writeRun(newFolder(t), {
    metrics: [{ step: 1, a: 1 }],
    files: { "env.json": "{", "config.yaml": "a: [", "eval.json": '{"a":1}' },
  });
  const { unread, metrics } = readRun(folder);
  assert.equal(metrics.size, 1);
  assert.deepEqual(
    unread.map((reason) => reason.slice(0, reason.indexOf(":"))),
    ["env.json", "config.yaml", "eval.json"],
  );
  assert.equal(unread[2], "eval.json: expected what rlar eval --json writes, got other data.");
});

test("pages are those of the run's own folder that are there", async (t) => {
  const folder = writeRun(newFolder(t), { metrics: [] });
  const line = await writePage(folder, 3, { about: { ids: ["x"] } });
  writeFileSync(join(folder, "other.png"), "");
  const other = join(folder, "other.png");
  const elsewhere = ["other.png", "samples/../other.png", other, "samples/gone.png"];
  const lines = elsewhere.map((file) => `${JSON.stringify({ step: 4, name: "train", file })}\n`);
  writeFileSync(join(folder, "samples.jsonl"), line + lines.join(""));
  const { pages } = readRun(folder);
  assert.deepEqual(pages, [
    { step: 3, name: "train", path: join(folder, "samples/step_000003_train.png"), about: { ids: ["x"] } },
  ]);
});

test("the newest checkpoint gives the policy and the configuration that the run went on with", (t) => {
  const folder = writeRun(newFolder(t), {
    metrics: [],
    config: { train: { iters: 5 }, tokenizer: { path: "gone.safetensors" } },
    files: {
      "checkpoints/step_000004/values.json": { config: { train: { iters: 9 } }, progress: { seen: 1 } },
      "checkpoints/best.json": { name: "step_000004", step: 4, metric: "eval/reward/mean", value: 0.5 },
    },
  });
  using weight = zeros([3, 5]);
  saveSafetensors(join(folder, "checkpoints/step_000004/policy.safetensors"), { weight });
  const run = readRun(folder);
  assert.equal(valueAt(run.config, "train.iters"), 9);
  assert.equal(valueAt(run.config, "train.none.deeper"), undefined);
  assert.deepEqual(run.best, { name: "step_000004", step: 4, metric: "eval/reward/mean", value: 0.5 });
  const file = join("checkpoints", "step_000004", "policy.safetensors");
  assert.deepEqual(run.models, [
    { role: "policy", file, what: "unknown model", parameters: 15 },
    { role: "tokenizer", file: "gone.safetensors", what: "not there any more", parameters: null },
  ]);
});

test("every network of the reward is among the models", (t) => {
  const { reward } = resolveConfig({ isComplete: false }).config;
  const terms = Object.entries(reward).filter(
    ([, term]) => term !== null && Object.hasOwn(Object(term), "path"),
  );
  assert.ok(terms.length >= 9);
  const given = Object.fromEntries(terms.map(([name]) => [name, { path: `${name}.safetensors` }]));
  const { models } = readRun(writeRun(newFolder(t), { metrics: [], config: { reward: given } }));
  assert.deepEqual(
    models.map(({ file }) => file),
    terms.map(([name]) => `${name}.safetensors`),
  );
  assert.equal(new Set(models.map(({ role }) => role)).size, terms.length);
});

test("a run is under way as long as the process that holds its folder", (t) => {
  const folder = writeRun(newFolder(t), { metrics: [] });
  const lock = (pid: number): void =>
    writeFileSync(join(folder, ".lock"), JSON.stringify({ pid, host: hostname() }));
  assert.equal(readRun(folder).isUnderWay, false);
  lock(process.pid);
  assert.equal(readRun(folder).isUnderWay, true);
  lock(2 ** 22 + 1); // more than any process may have
  assert.equal(readRun(folder).isUnderWay, false);
  mkdirSync(join(folder, "dumps"));
  writeFileSync(join(folder, "dumps/step_000001.safetensors"), "");
  assert.equal(readRun(folder).dumps, 1);
});
