/** `rlar pretrain`, and `rlar config` for it, as a user runs them. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { rlarCommand } from "../../src/config/command.js";
import { plainConfig } from "../../src/config/explain.js";
import { pretrainKind } from "../../src/config/pretrain.js";
import { resolveConfig } from "../../src/config/resolve.js";
import { folderOfFile } from "../support/folder_of_file.js";
import { pasted } from "../support/pasted.js";

let folder = "";
folderOfFile((made) => {
  folder = made;
});

function rlar(...args: string[]): { code: number | null; out: string; err: string } {
  const { status, stdout, stderr } = spawnSync(process.execPath, ["dist/src/cli/main.js", ...args], {
    encoding: "utf8",
  });
  return { code: status, out: stdout, err: stderr };
}

/** Keys of a run that takes a second. */
const keys = (dir: string): string[] => [
  `run.dir=${join(folder, dir)}`,
  `data.source=${join(folder, "images")}`,
  `tokenizer.path=${join(folder, "tokenizer.safetensors")}`,
  "data.size=16",
  "data.evalPart=0.2",
  "ar={type: gpt, nLayer: 1, nHead: 2, nEmbd: 16}",
  "train={iters: 4, batch: 4, threads: 1, device: cpu}",
  "eval.every=2",
];

test("a run, its samples, and the same command again", () => {
  const dir = join(folder, "run");
  const { code, out, err } = rlar("pretrain", ...keys("run"));
  assert.equal(code, 0, err);
  const all = out.trimEnd().split("\n");
  const begun = all.findIndex((line) => line.startsWith("step="));
  const notes = all.slice(0, begun).join("\n");
  assert.match(notes, /^codes in memory: \d+ images x 16 codes, 0\.0 MB$/m);
  assert.match(notes, /^3 classes: 0 a \(\d+ images\), 1 b \(\d+\), 2 c \(\d+\)$/m);
  const lines = all.slice(begun - 1);
  assert.match(lines[1] ?? "", /^step=0\/4 eval\/nats_per_token=3\.\d+ eval\/perplexity=/);
  assert.match(
    lines[2] ?? "",
    /^step=4\/4 train\/loss=3\.\d+ eval\/nats_per_token=3\.\d+ .*perf\/images_per_s=\d/,
  );
  assert.match(lines[3] ?? "", /^model: .*model\.safetensors \(update \d: eval\/nats_per_token 3\.\d+, /);
  const model = join(dir, "model.safetensors");
  assert.deepEqual(lines.slice(4), [
    `done after update 4: ${dir}`,
    `look at it: ${join(dir, "report.html")}`,
    `samples: ${rlarCommand(["sample", "--run", dir, "--class", "0,1,2", "--out", join(dir, "sample.png")])}`,
  ]);
  const samples = pasted(lines.at(-1) ?? "");
  assert.equal(samples.code, 0, samples.err);
  assert.match(samples.out, /classes 0 \(a\), 1 \(b\), 2 \(c\)/);
  const inspected = rlar("inspect", model).out;
  assert.match(inspected, /policy minGPT|policy GPT/);
  const page = join(folder, "page.png");
  const sampled = rlar(
    "sample",
    "--policy",
    model,
    "--tokenizer",
    join(folder, "tokenizer.safetensors"),
    "--class",
    "0,2",
    "--out",
    page,
  );
  assert.equal(sampled.code, 0, sampled.err);

  const again = rlar("pretrain", ...keys("run"));
  assert.equal(again.code, 2);
  assert.equal(
    again.err,
    `rlar: run.dir: expected a folder without a run, got ${dir}, which holds one (step_000004). ` +
      "Set run.ifExists to resume, new or overwrite, or name another folder.\n",
  );
  const changed = rlar("pretrain", ...keys("run"), "run.ifExists=resume", "seed=1");
  assert.equal(changed.code, 2);
  assert.match(
    changed.err,
    /^rlar: .*got seed: 0 -> 1\. Undo it, start a new run, or resume with --force\./s,
  );
  const forced = rlar("pretrain", ...keys("run"), "run.ifExists=resume", "seed=1", "--force");
  assert.equal(forced.code, 0, forced.err);
});

test("an unconditional policy's samples are drawn by the command that is printed", () => {
  const { code, out, err } = rlar("pretrain", ...keys("empty"), "train.iters=1", "pretrain.start=empty");
  assert.equal(code, 0, err);
  const samples = pasted(out.trimEnd().split("\n").at(-1) ?? "");
  assert.equal(samples.code, 0, samples.err);
  assert.match(samples.out, /without a condition/);
});

test("a start that fails can be tried again in the same folder", () => {
  const failed = rlar("pretrain", ...keys("again"), "tokenizer.path=nowhere.safetensors");
  assert.equal(failed.code, 3);
  const begun = rlar("pretrain", ...keys("again"), "train.iters=1");
  assert.equal(begun.code, 0, begun.err);
});

test("--json is one object a line, and what is said goes to the other stream", () => {
  const { code, out, err } = rlar("pretrain", ...keys("json"), "--json");
  assert.equal(code, 0, err);
  const lines = out
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line));
  assert.deepEqual(
    lines.map(({ step }) => step),
    [0, 1, 2, 3, 4],
  );
  for (const step of [0, 4]) assert.equal(typeof lines[step]["eval/nats_per_token"], "number");
  assert.match(err, /^codes in memory: /m);
});

test("what cannot be used ends with an exit code and what to do", () => {
  const unknown = rlar("pretrain", ...keys("none"), "pretrain.nois=1");
  assert.deepEqual(
    [unknown.code, unknown.err],
    [2, 'rlar: command line: pretrain.nois: unknown key. Did you mean "pretrain.noise"?\n'],
  );
  const absent = rlar("pretrain", "no_such_file.yaml");
  assert.deepEqual(
    [absent.code, absent.err],
    [
      2,
      "rlar: no_such_file.yaml: expected a configuration file or key=value, got neither. Check the path, and write keys as key=value.\n",
    ],
  );
  const noFile = rlar(
    "pretrain",
    ...keys("none").filter((text) => !text.startsWith("tokenizer")),
    "tokenizer.path=nowhere.safetensors",
  );
  assert.equal(noFile.code, 3);
  assert.match(noFile.err, /^rlar: nowhere\.safetensors: expected a file that can be read/);
  const preset = rlar("pretrain", "--preset", "vapi");
  assert.equal(preset.code, 2);
  assert.match(preset.err, /Allowed choices are small, llamagen/);
  const diverged = rlar(
    "pretrain",
    ...keys("diverged"),
    "optimizer.lr=1e38",
    "optimizer.maxGradNorm=null",
    "limits.nonFiniteInARow=1",
  );
  assert.equal(diverged.code, 4, diverged.err);
  assert.match(
    diverged.err,
    /^rlar: step \d+: expected finite (losses and gradients|weights).* got .*optimizer\.lr/m,
  );
});

test("--dry-run prints a configuration that reads back, and makes nothing", () => {
  const file = join(folder, "config.yaml");
  const { code, out } = rlar("pretrain", ...keys("dry"), "pretrain.classDropout=0", "--dry-run");
  assert.equal(code, 0);
  assert.match(out, /\n# pretrain\.classDropout is 0: /);
  writeFileSync(file, out);
  const wanted = resolveConfig(
    { overrides: [...keys("dry"), "pretrain.classDropout=0"] },
    pretrainKind,
  ).config;
  assert.deepEqual(
    plainConfig(resolveConfig({ file }, pretrainKind).config, pretrainKind),
    plainConfig(wanted, pretrainKind),
  );
});

test("rlar config --for a command", () => {
  const explained = rlar("config", "explain", "pretrain.noise", "--for", "pretrain");
  assert.equal(explained.code, 0);
  assert.match(explained.out, /^pretrain\.noise = 0\n {2}[A-Z].*noise/);
  const none = rlar("config", "explain", "rollout", "--for", "pretrain");
  assert.equal(none.code, 2);
  assert.match(none.err, /^rlar: config explain: expected a key or a section, got rollout\. .*pretrain/);
  const shown = rlar("config", "show", "preset=small", "--for", "pretrain");
  assert.match(shown.out, /^ {2}nEmbd: 192$/m);
  assert.doesNotMatch(shown.out, /^rollout:/m);
  assert.match(rlar("config", "presets", "--for", "pretrain").out, /^small\n .*\nllamagen\n/);
  assert.match(
    rlar("config", "schema", "--for", "pretrain").out,
    /"title": "Configuration of rl-ar-finetune: rlar pretrain"/,
  );
  assert.match(rlar("config", "show").out, /^rollout:/m);
  const other = rlar("config", "show", "--for", "supper");
  assert.equal(other.code, 2);
  assert.match(other.err, /Allowed choices are train, pretrain/);
});
