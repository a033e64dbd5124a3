/** What a run leaves behind, and how a resumed run goes on with it. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import {
  appendFileSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";

import { RunConsole } from "../../src/run/console.js";
import { RunLog, type RunLogOptions, readLines, StepLines, writeCsv } from "../../src/run/log.js";
import { spreadOf } from "../../src/run/metrics.js";
import { decodeData, encodeData } from "../../src/run/plain_data.js";
import { zeros } from "../../src/torch/index.js";

const root = mkdtempSync(join(tmpdir(), "rlar-log-"));
after(() => rmSync(root, { recursive: true }));

let folders = 0;
const newFolder = (): string => join(root, String(folders++));

/** A log whose screen is kept. */
function open(folder: string, options: Partial<RunLogOptions> = {}): { log: RunLog; screen: string[] } {
  const screen: string[] = [];
  const console = new RunConsole({ total: 6, screen: { write: (text) => screen.push(text) }, now: () => 0 });
  return { log: new RunLog(folder, { every: 2, total: 6, console, ...options }), screen };
}

const linesOf = (path: string): Record<string, unknown>[] =>
  readLines(path).records.map(({ record }) => record);

const withoutTime = (records: Record<string, unknown>[]): Record<string, unknown>[] =>
  records.map(({ time, ...rest }) => {
    assert.equal(typeof time, "number");
    return rest;
  });

test("a line an iteration, with NaN as null, there as soon as it is added", () => {
  const folder = newFolder();
  const { log } = open(folder);
  log.step(0, { "eval/reward/mean": -2 });
  log.step(1, { "reward/mean": Number.NaN, "loss/total": 1 }, { spreads: { advantage: spreadOf([-1, 1]) } });
  assert.deepEqual(withoutTime(linesOf(join(folder, "metrics.jsonl"))), [
    { step: 0, "eval/reward/mean": -2 },
    {
      step: 1,
      "advantage/mean": 0,
      "advantage/std": 1,
      "advantage/min": -1,
      "advantage/max": 1,
      "reward/mean": null,
      "loss/total": 1,
    },
  ]);
  assert.throws(() => log.step(1, {}), {
    message: "RunLog.step: expected a step after 1, got 1. Log each iteration once, in order.",
  });
  log.close();
});

test("intervals: means over their iterations on the screen; TensorBoard has every step", () => {
  const folder = newFolder();
  const { log, screen } = open(folder);
  log.step(1, { "reward/mean": 1 }, { count: 1 });
  assert.deepEqual(screen, []);
  log.step(2, { "reward/mean": 5 }, { count: 3 });
  log.step(3, { "reward/mean": 7 });
  log.say("note");
  log.close();
  assert.deepEqual(screen, ["step=2/6 reward/mean=4 left=0s\n", "note\n"]);
  const [file] = readdirSync(join(folder, "tb"));
  const bytes = readFileSync(join(folder, "tb", file as string));
  const scalar = (number: number): Buffer => {
    const value = Buffer.alloc(4);
    value.writeFloatLE(number);
    return Buffer.concat([Buffer.from("\x0breward/mean\x15", "latin1"), value]);
  };
  assert.deepEqual(
    [1, 5, 7, 4].map((number) => bytes.includes(scalar(number))),
    [true, true, true, false],
  );
});

test("without a terminal a slow run has a line at least every ten seconds", () => {
  const screen: string[] = [];
  let time = 0;
  const console = new RunConsole({
    total: 100,
    screen: { write: (text) => screen.push(text) },
    now: () => time,
  });
  using log = new RunLog(newFolder(), { every: 50, total: 100, console });
  for (let step = 1; step <= 7; step++) {
    time += 4_000;
    log.step(step, { "reward/mean": step });
  }
  assert.deepEqual(
    screen.map((line) => line.split(" ").slice(0, 2).join(" ")),
    ["step=3/100 reward/mean=3", "step=6/100 reward/mean=6"],
  );
});

test("the configuration is TensorBoard's hyper-parameters: numbers, switches and text by their paths", () => {
  const folder = newFolder();
  const { log } = open(folder);
  log.hparams({ seed: 0, optimizer: { lr: 0.5, betas: [0.9, 0.95] }, path: null, log: { csv: true } });
  log.close();
  const [file] = readdirSync(join(folder, "tb"));
  const text = readFileSync(join(folder, "tb", file as string)).toString("latin1");
  assert.match(text, /hparams/);
  for (const name of ["seed", "optimizer.lr", "optimizer.betas", "[0.9,0.95]", "log.csv"])
    assert.ok(text.includes(name), name);
  assert.ok(!text.includes("path"));
});

test("the last iteration ends an interval", () => {
  const { log, screen } = open(newFolder(), { every: 4 });
  for (let step = 1; step <= 6; step++) log.step(step, { "reward/mean": step });
  log.close();
  assert.deepEqual(screen, ["step=4/6 reward/mean=2.5 left=0s\n", "step=6/6 reward/mean=5.5 left=0s\n"]);
});

test("resumed, the files go on from the checkpoint's step, without duplicates", () => {
  const folder = newFolder();
  const first = open(folder, { every: 4 }).log;
  for (let step = 1; step <= 2; step++) first.step(step, { "reward/mean": step });
  first.flush();
  const state = decodeData(encodeData(first.state()));
  first.step(3, { "reward/mean": 3 }); // after the checkpoint
  first.close();
  appendFileSync(join(folder, "metrics.jsonl"), '{"step": 4, "rewa'); // killed while it wrote
  const { log, screen } = open(folder, { every: 4, resumeAt: 2 });
  log.load(state);
  assert.throws(() => log.step(2, {}), /expected a step after 2, got 2/);
  for (let step = 3; step <= 4; step++) log.step(step, { "reward/mean": step * 10 });
  log.close();
  assert.deepEqual(withoutTime(linesOf(join(folder, "metrics.jsonl"))), [
    { step: 1, "reward/mean": 1 },
    { step: 2, "reward/mean": 2 },
    { step: 3, "reward/mean": 30 },
    { step: 4, "reward/mean": 40 },
  ]);
  assert.deepEqual(screen, ["step=4/6 reward/mean=18.3 left=0s\n"]); // (1 + 2 + 30 + 40) / 4
  assert.equal(readdirSync(join(folder, "tb")).length, 2);
  assert.ok(existsSync(join(folder, "env.json")) && existsSync(join(folder, "env.2.json")));
});

test("another run's folder is refused", () => {
  const folder = newFolder();
  open(folder).log.close();
  assert.throws(() => open(folder), {
    name: "RangeError",
    message: `${join(folder, "metrics.jsonl")}: expected no file, got one of another run. Resume that run, or take another folder.`,
  });
});

test("pages of samples with an index, dropped after the checkpoint's step too", async () => {
  const folder = newFolder();
  const { log } = open(folder);
  const page = zeros([1, 3, 2, 5]);
  await log.image(1, "train", page, { rewards: [0.5, Number.NaN] });
  await log.image(3, "train", page);
  page.dispose();
  log.close();
  const png = readFileSync(join(folder, "samples/step_000001_train.png"));
  assert.equal(png.subarray(1, 4).toString(), "PNG");
  assert.deepEqual(linesOf(join(folder, "samples.jsonl")), [
    { step: 1, name: "train", file: "samples/step_000001_train.png", rewards: [0.5, null] },
    { step: 3, name: "train", file: "samples/step_000003_train.png" },
  ]);
  const [file] = readdirSync(join(folder, "tb"));
  assert.ok(readFileSync(join(folder, "tb", file as string)).includes(png));
  open(folder, { resumeAt: 2 }).log.close();
  assert.equal(linesOf(join(folder, "samples.jsonl")).length, 1);
});

test("without TensorBoard or CSV there are no such files", () => {
  const folder = newFolder();
  const { log } = open(folder, { tensorboard: false, csv: false });
  log.step(1, { a: 1 });
  log.text(1, "config", "x");
  log.close();
  assert.deepEqual(readdirSync(folder).sort(), ["env.json", "metrics.jsonl", "samples", "samples.jsonl"]);
});

test("metrics as CSV: a column a metric, empty where there is none", () => {
  const folder = newFolder();
  const { log } = open(folder);
  log.step(1, { a: 1.5, b: Number.NaN });
  log.step(2, { a: 2, 'odd,"name"': 3 });
  log.close();
  const lines = readFileSync(join(folder, "metrics.csv"), "utf8").split("\n");
  assert.equal(lines[0], 'step,time,a,b,"odd,""name"""');
  assert.match(lines[1] as string, /^1,[\d.]+,1\.5,,$/);
  assert.match(lines[2] as string, /^2,[\d.]+,2,,3$/);
  const path = join(root, "plain.csv");
  writeCsv(path, [{ a: "x\ny", b: { c: 1 } }, {}]);
  assert.equal(readFileSync(path, "utf8"), 'a,b\n"x\ny","{""c"":1}"\n,\n');
});

test("a line that was cut short is no record, and a closed file takes none", () => {
  const path = join(root, "bad.jsonl");
  writeFileSync(path, '{"step":1}\nhello\n{"st');
  assert.deepEqual([linesOf(path), readLines(path).damaged], [[{ step: 1 }], 1]);
  const lines = new StepLines(path, { resumeAt: 5 });
  lines.close();
  assert.throws(() => lines.add({ step: 2 }), {
    message: `StepLines.add: expected an open file, got ${path}, which was closed.`,
  });
});

test("damaged lines and steps without a record are dropped, counted and told when a run is resumed", () => {
  const folder = newFolder();
  const { log } = open(folder);
  for (let step = 1; step <= 8; step++) log.step(step, { a: step });
  log.close();
  const file = join(folder, "metrics.jsonl");
  const lines = readFileSync(file, "utf8").split("\n");
  lines[1] = "\0".repeat(40);
  lines[3] = "null";
  lines[4] = "[5]";
  writeFileSync(
    file,
    [...lines.slice(0, 6), '{"step": "7"}', '{"step": -1}', "garbage", ...lines.slice(6)].join("\n"),
  );
  writeFileSync(join(folder, "samples.jsonl"), "\0\0\n{}\n");
  const resumed = open(folder, { resumeAt: 8 }).log;
  assert.deepEqual(resumed.notes, [
    `${file}: 6 damaged lines dropped`,
    `${file}: no record of steps 2, 4-5`,
    `${join(folder, "samples.jsonl")}: 2 damaged lines dropped`,
  ]);
  resumed.close();
  assert.deepEqual(
    linesOf(file).map(({ step }) => step),
    [1, 3, 6, 7, 8],
  );
  rmSync(file);
  assert.deepEqual(open(folder, { resumeAt: 8 }).log.notes, [`${file}: no record of steps 1-8`]);
});

test("a byte order mark and other line ends lose no record; a named pipe is none and nothing waits for it", {
  timeout: 10_000,
}, () => {
  const path = join(root, "marked.jsonl");
  writeFileSync(path, '\ufeff{"step":1}\r\n{"step":2}\r\n');
  assert.deepEqual([linesOf(path), readLines(path).damaged], [[{ step: 1 }, { step: 2 }], 0]);
  const pipe = join(root, "pipe.jsonl");
  execFileSync("mkfifo", [pipe]);
  assert.deepEqual(readLines(pipe), { records: [], damaged: 0 });
});
