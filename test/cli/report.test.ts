/** `rlar report` as a user runs it, and the page that `rlar train` leaves. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { newFolder, writeRun } from "../dashboard/run_files.js";
import { pasted } from "../support/pasted.js";
import { tinyFolder, tinyRun } from "../support/train_run.js";

function rlar(...args: string[]): { code: number | null; out: string; err: string } {
  const { status, stdout, stderr } = spawnSync(process.execPath, ["dist/src/cli/main.js", ...args], {
    encoding: "utf8",
  });
  return { code: status, out: stdout, err: stderr };
}

test("report writes the page and prints where it is", (t) => {
  const folder = writeRun(join(newFolder(t), "run"), { metrics: [{ step: 1, a: 1 }] });
  const out = join(folder, "page.html");
  assert.deepEqual(rlar("report", folder, "--out", out), { code: 0, out: `${out}\n`, err: "" });
  assert.match(readFileSync(out, "utf8"), /^<!doctype html>/);
  const { out: json } = rlar("report", folder, folder, "--json");
  assert.deepEqual(JSON.parse(json), { file: join(folder, "comparison.html") });
  assert.match(readFileSync(join(folder, "comparison.html"), "utf8"), /<h1>2 runs<\/h1>/);
  assert.ok(!existsSync(join(folder, "report.html")), "a run's own page is not overwritten");
});

test("report of a folder that is no run says so, with exit code 3", (t) => {
  const folder = newFolder(t);
  const { code, err } = rlar("report", folder);
  assert.equal(code, 3);
  assert.equal(
    err,
    `rlar: report: expected the folder of a run, got ${folder}, which has neither metrics.jsonl nor config.yaml.\n`,
  );
  assert.ok(!existsSync(join(folder, "report.html")));
});

test("train ends with a report that shows what it did", async (t) => {
  const folder = await tinyFolder(t);
  const changes = { eval: { every: 2, images: 2, numGenerations: 1 }, log: { imagesEvery: 2 } };
  const file = join(folder, "config.json");
  writeFileSync(file, JSON.stringify(tinyRun(folder, changes)));
  const { code, out, err } = rlar("train", file);
  assert.equal(code, 0, err);
  const path = join(folder, "run", "report.html");
  assert.ok(out.includes(`look at it: ${path}\n`));
  assert.match(out, /^reward of held-out images: -\d\S* -> -\d\S* \(ceiling -\d/m);
  for (const what of ["judge it", "samples"]) {
    const line = out.split("\n").find((text) => text.startsWith(`${what}: `)) ?? "";
    const next = pasted(what === "samples" ? line : `${line} --samples 0 --resamples 0`);
    assert.equal(next.code, 0, next.err);
  }
  assert.ok(existsSync(join(folder, "run", "eval.json")) && existsSync(join(folder, "run", "sample.png")));
  const page = readFileSync(path, "utf8");
  assert.match(page, /<p class="what">GRPO · prefix contexts · seed 0<\/p>/);
  assert.match(page, /<span class="state done">done<\/span>/);
  assert.match(page, /<dt>policy<\/dt><dd>GPT, [\d.]+ k parameters /);
  assert.match(page, /<dt>tokenizer<\/dt><dd>[^<]+parameters /);
  assert.match(page, /<img src="data:image\/webp;base64,/);
  assert.match(page, /The held-out reward /);
});
