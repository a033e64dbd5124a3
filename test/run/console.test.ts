/** What a run shows: whole screens. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

import {
  duration,
  jsonLine,
  liveLine,
  plainLine,
  RunConsole,
  short,
  sparkline,
  table,
} from "../../src/run/console.js";

const METRICS = {
  "reward/mean": -0.0312,
  "reward/vq_ceiling": -0.0118,
  "kl/ref": 0.004,
  "policy/entropy": 6.1,
  "clip_ratio/low_mean": 0,
  "clip_ratio/high_mean": 0.012,
  "optim/grad_norm": 0.81,
  "perf/step_s": 1.42,
  "perf/tokens_per_s": 46_123,
  "time/rollout": 0.71,
  "time/update": 0.38,
  "time/decode": 0.22,
  "time/reward": 0.09,
  "time/save": 0.01,
};

const NO_COLOR = { NO_COLOR: "1" };
const GREEN_UP = "\x1b[32m↑\x1b[0m";
const RED_DOWN = "\x1b[31m↓\x1b[0m";

/** A screen that remembers. */
class Paper {
  text = "";
  readonly isTTY: boolean;
  readonly columns: number;
  constructor(isTTY = false, columns = 100) {
    this.isTTY = isTTY;
    this.columns = columns;
  }
  write(text: string): void {
    this.text += text;
  }
  take(): string {
    const { text } = this;
    this.text = "";
    return text;
  }
}

test("the live line has what fits, the most important first", () => {
  const options = { total: 1000, rewards: [-0.05, -0.04, -0.0312], secondsLeft: 1250, width: 300 };
  assert.equal(
    liveLine(120, METRICS, options),
    "step 120/1000 ▕█       ▏  reward -0.0312 ↑ ▁▃▄ (ceil -0.0118)  21m left  kl 0.004  H 6.1  clip 0/1.2%  gn 0.81  " +
      "1.42s (rollout 0.71, update 0.38, decode 0.22, reward 0.09)  46.1k tok/s",
  );
  assert.equal(
    liveLine(120, METRICS, { ...options, width: 80 }),
    "step 120/1000 ▕█       ▏  reward -0.0312 ↑ ▁▃▄ (ceil -0.0118)  21m left",
  );
  assert.equal(liveLine(120, METRICS, { ...options, width: 10 }), "step 120/1");
  assert.equal(
    liveLine(1000, {}, { ...options, rewards: [], secondsLeft: null }),
    "step 1000/1000 ▕████████▏",
  );
  assert.ok(liveLine(120, METRICS, { ...options, isColored: true }).includes(GREEN_UP));
  const falling = { ...options, rewards: [0, -0.0312], isColored: true };
  assert.ok(liveLine(120, METRICS, falling).includes(RED_DOWN));
});

test("the sparkline reaches up to its ceiling", () => {
  assert.equal(sparkline([0, 1, 2, 7]), "▁▂▃█");
  assert.equal(sparkline([0, 7], 14), "▁▅");
  assert.equal(sparkline([3, 3]), "▁▁");
  assert.equal(sparkline([]), "");
});

test("numbers and times in few characters", () => {
  const numbers = [0, -0.03125, 12345.678, 1e-5, -123456, 0.1, Number.NaN, -Infinity];
  assert.deepEqual(numbers.map(short), ["0", "-0.0313", "12300", "1.0e-5", "-1.2e5", "0.1", "nan", "-inf"]);
  assert.deepEqual([0.4, 59.4, 61, 599, 600, 3599, 3600, 11_100].map(duration), [
    "0s",
    "59s",
    "1m01s",
    "9m59s",
    "10m",
    "1h00m",
    "1h00m",
    "3h05m",
  ]);
});

test("the table has a group a line and stays within the width", () => {
  assert.equal(
    table({ "loss/total": 1, "reward/gap": 2, "reward/mean": -0.0312, "eval/l2/mean": 0.1, odd: 2 }, 80),
    "  reward  gap 2  mean -0.0312\n  eval    l2/mean 0.1\n  loss    total 1\n          odd 2\n",
  );
  const many = Object.fromEntries(Array.from({ length: 9 }, (_, i) => [`optim/name_${i}`, i]));
  const lines = table(many, 40).split("\n").slice(0, -1);
  assert.ok(lines.length > 2 && lines.every((line) => line.length <= 40), lines.join("\n"));
  assert.ok(lines.slice(1).every((line) => line.startsWith("         name_")));
});

test("in the table a mean and its deviation are one number, and the reward's come first", () => {
  const spread = (name: string, mean: number): Record<string, number> => ({
    [`${name}/mean`]: mean,
    [`${name}/std`]: 0.5,
    [`${name}/min`]: -9,
    [`${name}/max`]: 9,
  });
  const metrics = {
    "reward/gap": 2,
    ...spread("reward", -1),
    ...spread("reward/l2", 0.25),
    ...spread("eval/reward", -2),
    "policy/ratio_mean": 1,
    "policy/ratio_max": 1.5,
  };
  assert.equal(
    table(metrics, 80),
    "  reward  mean -1 ±0.5  gap 2  l2 0.25 ±0.5\n  eval    reward -2 ±0.5\n  policy  ratio_mean 1  ratio_max 1.5\n",
  );
});

test("a terminal: a live line that is rewritten, and a table that stays", () => {
  const screen = new Paper(true);
  let time = 0;
  const console = new RunConsole({ total: 4, screen, env: NO_COLOR, now: () => time });
  assert.ok(console.isLive);
  time = 1000;
  console.step(1, { "reward/mean": -1 });
  assert.equal(screen.take(), "\r\x1b[Kstep 1/4 ▕██      ▏  reward -1 ▁  3s left");
  time = 2000;
  console.step(2, { "reward/mean": -0.5 });
  assert.equal(screen.take(), "\r\x1b[Kstep 2/4 ▕████    ▏  reward -0.5 ↑ ▁█  2s left");
  console.interval(2, { "reward/mean": -0.75 });
  assert.equal(screen.take(), "\r\x1b[Kstep 2/4, 2s left\n  reward  mean -0.75\n");
  console.say("saved");
  assert.equal(screen.take(), "saved\n");
  time = 2001; // too soon after the last line
  console.step(3, { "reward/mean": -0.5 });
  assert.equal(screen.take(), "");
  console.step(4, { "reward/mean": -0.5 }); // the last is always shown
  assert.match(screen.take(), /Kstep 4\/4 .* 0s left$/);
  console.close();
  console.close();
  assert.equal(screen.take(), "\n");
});

test("on a terminal a slow iteration shows its seconds while it goes on, behind the last line", () => {
  const folder = mkdtempSync(join(tmpdir(), "rlar-console-"));
  const path = join(folder, "out");
  const fd = openSync(path, "w");
  // The terminal is a file, which the process, blocked as an iteration blocks it, waits for.
  const code = `
    import { readFileSync } from "node:fs";
    import { RunConsole } from ${JSON.stringify(new URL("../../src/run/console.js", import.meta.url).href)};
    Object.assign(process.stdout, { isTTY: true, columns: 60 });
    let time = 0;
    const shown = new RunConsole({ total: 9, now: () => time, env: { NO_COLOR: "1" } });
    const done = (step, ms) => {
      time += ms;
      shown.step(step, { "reward/mean": step });
    };
    const cell = new Int32Array(new SharedArrayBuffer(4));
    const ticks = (text) => {
      while (!readFileSync(${JSON.stringify(path)}, "utf8").includes(text)) Atomics.wait(cell, 0, 0, 20);
    };
    done(1, 2000);
    shown.between(1, {});
    ticks("step 2: ");
    done(2, 2000);
    shown.interval(2, { "reward/mean": 2 });
    ticks("step 3: ");
    done(3, 1999);
    shown.between(3, {});
    done(4, 2000);
    shown.between(4, {});
    shown.close();
  `;
  try {
    const file = join(folder, "program.mjs");
    writeFileSync(file, code);
    execFileSync(process.execPath, [file], { stdio: ["ignore", fd, "inherit"], timeout: 60_000 });
    const written = readFileSync(path, "utf8");
    const [first, table, last, ...none] = written.split("\n").filter((line) => line !== "");
    const back = "\r\x1b[K";
    const ticking = (line: string): string => line.replace(/(: )\d+s(?=\r)/g, "$11s");
    assert.equal(none.length, 0);
    assert.ok(ticking(first as string).startsWith(`${back}step 1/9`), first);
    assert.match(ticking(first as string), /reward 1 .*16s left {2}step 2: 1s\r.*step 2\/9/);
    assert.match(table as string, /^ *reward +mean 2$/);
    assert.ok(ticking(last as string).startsWith(`${back}step 3: 1s${back}`), last);
    assert.doesNotMatch(last as string, /step 4: /);
    assert.match(last as string, /step 4\/9[^\r]*$/, "the last line stays, without seconds");
    const widths = written.split(/[\r\n]+/).map((line) => line.replace("\x1b[K", "").length);
    assert.ok(Math.max(...widths) < 60);
  } finally {
    closeSync(fd);
    rmSync(folder, { recursive: true });
  }
});

test("a terminal that does not know its width has 80 columns", () => {
  const screen = new Paper(true, 0);
  new RunConsole({ total: 1000, screen, env: NO_COLOR }).interval(1, METRICS);
  const widths = screen.text.split("\n").map((line) => line.length);
  assert.ok(Math.max(...widths) > 60 && Math.max(...widths) < 80, String(widths));
});

test("elsewhere: a line an interval, to be searched and cut", () => {
  const screen = new Paper();
  let time = 0;
  const console = new RunConsole({ total: 1000, screen, now: () => time });
  assert.equal(console.isLive, false);
  time = 1000;
  console.step(120, METRICS);
  assert.equal(screen.take(), "");
  console.interval(120, METRICS);
  assert.equal(
    screen.take(),
    "step=120/1000 reward/mean=-0.0312 reward/vq_ceiling=-0.0118 kl/ref=0.004 policy/entropy=6.1 optim/grad_norm=0.81 " +
      "perf/step_s=1.42 perf/tokens_per_s=46100 left=15m\n",
  );
  assert.equal(plainLine(0, 10, {}, null), "step=0/10");
  const dumb = new RunConsole({ total: 1, screen: new Paper(true), env: { TERM: "dumb" } });
  assert.equal(dumb.isLive, false);
});

test("colours are for terminals without NO_COLOR", () => {
  const lineOf = (env: Record<string, string>): string => {
    const screen = new Paper(true);
    let time = 0;
    const console = new RunConsole({ total: 2, screen, env, now: () => (time += 1000) });
    console.step(1, { "reward/mean": 0 });
    console.step(2, { "reward/mean": 1 });
    return screen.text;
  };
  assert.ok(lineOf({}).includes(GREEN_UP));
  assert.ok(lineOf({ NO_COLOR: "" }).includes(GREEN_UP));
  assert.ok(lineOf(NO_COLOR).includes("↑") && !lineOf(NO_COLOR).includes(GREEN_UP));
});

test("--json: an object an iteration and nothing else; --quiet: what is said", () => {
  const [screen, errors] = [new Paper(true), new Paper()];
  const console = new RunConsole({ total: 2, screen, errors, json: true });
  console.step(0, { "eval/reward/mean": -1 });
  console.step(1, { "reward/mean": -0.5, "loss/value": Number.NaN });
  console.interval(1, METRICS);
  console.say("saved");
  console.close();
  const first = '{"step":0,"eval/reward/mean":-1}\n';
  assert.equal(screen.text, `${first}{"step":1,"reward/mean":-0.5,"loss/value":null}\n`);
  assert.equal(errors.text, "saved\n");
  const quiet = new Paper(true);
  const silent = new RunConsole({ total: 2, screen: quiet, quiet: true });
  silent.step(1, METRICS);
  silent.interval(1, METRICS);
  silent.say("saved");
  assert.equal(quiet.text, "saved\n");
});

test("the time left follows the last twenty iterations, and the sparkline goes through a checkpoint", () => {
  let time = 0;
  const console = new RunConsole({ total: 100, screen: new Paper(), now: () => time });
  assert.equal(console.secondsLeft(0), null);
  for (let step = 1; step <= 30; step++) {
    time += step <= 10 ? 60_000 : 1000;
    console.step(step, { "reward/mean": step });
  }
  assert.equal(console.secondsLeft(30), 70);
  assert.deepEqual(
    console.state(),
    Array.from({ length: 24 }, (_, i) => i + 7),
  );
  const other = new RunConsole({ total: 100, screen: new Paper() });
  other.load([...console.state()]);
  assert.deepEqual(other.state(), console.state());
});

test("JSON of numbers that JSON has no word for", () => {
  assert.equal(
    jsonLine({ a: Number.NaN, b: -Infinity, c: [Infinity, 1], d: "x" }),
    '{"a":null,"b":null,"c":[null,1],"d":"x"}',
  );
});
