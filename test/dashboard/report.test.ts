import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { appendFileSync, existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { Script } from "node:vm";
import { SCRIPT } from "../../src/dashboard/page.js";
import { reportHtml, writeReport } from "../../src/dashboard/report.js";
import { newFolder, writePage, writeRun } from "./run_files.js";

/** A record of the loop, with the metrics that have charts of their own. */
const record = (step: number, more: Record<string, unknown> = {}): Record<string, unknown> => ({
  step,
  time: 1767225600 + step,
  "reward/mean": -1 / (step + 1),
  "reward/std": 0.1,
  "reward/vq_ceiling": -0.01 - (step % 7) * 0.001,
  "policy/entropy": 5 - step / 1000,
  "optim/lr": 0.001,
  "time/rollout": 1 + (step % 3),
  "time/update": 0.5,
  ...(step % 10 === 0 && { "eval/reward/mean": -1 / (step + 1), "eval/l2/mean": 1 / (step + 1) }),
  ...more,
});

/** Nothing outside the file is named: no address, no file, no style or script of others. */
function assertAlone(page: string): void {
  assert.deepEqual(page.match(/\b(?:src|href|action|srcset|poster)="(?!#|data:)[^"]*"/g) ?? [], []);
  assert.deepEqual(
    page.match(/<(?:link|iframe|object|embed|base|form)\b|@import|url\(|\bfetch\(|import\(/g) ?? [],
    [],
  );
  assert.ok(!/(?:src|href)="https?:/.test(page));
}

test("a whole run: every section, nothing from elsewhere, only the page's own script", async (t) => {
  const folder = writeRun(newFolder(t), {
    config: { train: { iters: 60 }, data: { source: "images" } },
    metrics: Array.from({ length: 61 }, (_, step) => record(step)),
    env: {
      startedAt: "2026-01-01T00:00:00.000Z",
      command: ["node", "x.mjs"],
      cpu: { model: "CPU", cores: 2 },
    },
  });
  appendFileSync(join(folder, "samples.jsonl"), await writePage(folder, 60));
  const out = await writeReport(folder);
  assert.equal(out, join(folder, "report.html"));
  const page = readFileSync(out, "utf8");
  assertAlone(page);
  for (const title of ["Result", "What happened", "Curves", "Details"])
    assert.ok(page.includes(`>${title}</h2>`), title);
  for (const title of ["Configuration", "Run it again", "Environment"])
    assert.ok(page.includes(`<summary>${title}</summary>`), title);
  assert.match(page, /<span class="state done">done<\/span>/);
  assert.match(page, /<dt>steps<\/dt><dd>60 of 60 /);
  assert.match(page, /Lines are means over 3 steps around each, dots are the steps themselves/);
  assert.match(page, /<h4>Where the time goes<\/h4>/);
  assert.match(page, /optim\/lr<\/code><\/th><td>0\.001<\/td>/, "what stayed the same is in a table");
  const hash = createHash("sha256").update(SCRIPT).digest("base64");
  assert.ok(page.includes(`script-src &#39;sha256-${hash}&#39;`));
  assert.ok(page.includes(`<script>${SCRIPT}</script>`));
  assert.equal(page.match(/<script>/g)?.length, 1);
  assert.doesNotThrow(() => new Script(SCRIPT));
  assert.deepEqual(
    readdirSync(folder).filter((name) => name.endsWith(".tmp")),
    [],
  );
});

test("names and values that look like markup stay text", async (t) => {
  const evil = '"><script>alert(1)</script><img src=x onerror=alert(1)>';
  const folder = writeRun(join(newFolder(t), "<b>run"), {
    config: { data: { source: evil }, train: { iters: 1 } },
    metrics: [record(0, { [`odd/${evil}`]: 1 }), record(1, { [`odd/${evil}`]: 2 })],
    env: { host: evil, command: ["node", evil], commit: { id: evil, isDirty: false } },
  });
  const line = await writePage(folder, 1, {
    about: { columns: [evil], ids: [evil], rewards: [[1]], [evil]: evil },
  });
  appendFileSync(join(folder, "samples.jsonl"), line);
  const page = await reportHtml([folder]);
  assert.ok(!page.includes("<script>alert"));
  assert.ok(!page.includes("<img src=x"));
  assert.ok(!page.includes("<b>run"));
  assertAlone(page);
});

test("runs that lack nearly everything", async (t) => {
  const none = await reportHtml([writeRun(newFolder(t), { config: {} })]);
  assert.match(none, /No iteration has been logged/);
  assert.match(none, /Nothing was evaluated/);
  const bare = await reportHtml([writeRun(newFolder(t), { metrics: [record(1)] })]);
  assert.match(bare, /There is no config\.yaml in the folder/);
  assert.match(bare, /There is no env\.json in the folder/);
  assert.match(bare, /metrics that stayed the same/);
  const empty = await reportHtml([writeRun(newFolder(t), { metrics: ['{"step":1'] })]);
  assert.match(empty, /1 line of metrics\.jsonl could not be read/);
  const nan = Array.from({ length: 5 }, (_, step) =>
    record(step, { "reward/mean": null, "kl/approx": null }),
  );
  const page = await reportHtml([writeRun(newFolder(t), { metrics: nan })]);
  assert.match(page, /Not a number at step 0-4: reward\/mean, kl\/approx\./);
  for (const text of [none, bare, empty, page]) {
    assertAlone(text);
    assert.ok(!/NaN|undefined|Infinity|\[object/.test(text.replace(SCRIPT, "")));
  }
});

test("several runs: a color each, one base, names that tell them apart", async (t) => {
  const folder = newFolder(t);
  const folders = ["a/run", "b/run"].map((name, seed) =>
    writeRun(join(folder, name), {
      config: { seed, train: { iters: 30 } },
      metrics: Array.from({ length: 31 }, (_, step) =>
        record(step, { "policy/entropy": 5 - step * (seed + 1) }),
      ),
    }),
  );
  const out = join(folder, "both.html");
  assert.equal(await writeReport(folders, { out }), out);
  assert.ok(!existsSync(join(folders[0] as string, "report.html")));
  const page = readFileSync(out, "utf8");
  assertAlone(page);
  assert.match(page, /<h1>2 runs<\/h1>/);
  assert.match(page, /mean of a\/run, b\/run/);
  const chart = page.slice(page.indexOf("<h4>Entropy of the policy</h4>"));
  assert.match(
    chart,
    /<i class="key c0"><\/i>a\/run <b>-24.5<\/b>.*?<i class="key c1"><\/i>b\/run <b>-54<\/b>/s,
  );
});

test("a long run with many pages stays below 4 MB", async (t) => {
  const wide = Object.fromEntries(Array.from({ length: 60 }, (_, i) => [`group${i % 6}/metric${i}`, i]));
  const metrics = Array.from({ length: 2000 }, (_, step) =>
    record(step, Object.fromEntries(Object.keys(wide).map((name, i) => [name, Math.sin(step * i)]))),
  );
  const folder = writeRun(newFolder(t), { config: {}, metrics });
  for (let step = 0; step < 10; step++)
    appendFileSync(join(folder, "samples.jsonl"), await writePage(folder, step, { width: 600, height: 600 }));
  const page = await reportHtml([folder]);
  assert.ok(page.length < 4e6, `${page.length}`);
  assert.match(page, /of 10 pages are omitted/);
});

test("no folder, and a folder that is none", async (t) => {
  await assert.rejects(writeReport([]), {
    message: "report: expected at least one folder of a run, got none.",
  });
  const folder = newFolder(t);
  await assert.rejects(writeReport([folder]), /which has neither metrics\.jsonl nor config\.yaml/);
  assert.deepEqual(readdirSync(folder), []);
});
