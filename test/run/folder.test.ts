/** The folder of a run: every answer to "it exists already", and one writer at a time. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { plainConfig } from "../../src/config/explain.js";
import { resolveConfig, type TrainConfig } from "../../src/config/resolve.js";
import { type IfExists, openRunFolder, runNear, writeConfig } from "../../src/run/folder.js";

const root = mkdtempSync(join(tmpdir(), "rlar-run-"));
after(() => rmSync(root, { recursive: true }));

const configOf = (dir: string | null, ifExists: IfExists | "ask", ...more: string[]): TrainConfig =>
  resolveConfig({ values: { run: { dir, ifExists } }, overrides: more, isComplete: false }).config;

/** The lock has a socket beside it, by which other containers see that its owner lives. */
const isNoSocket = (name: string): boolean => !name.endsWith(".socket");

/** A folder with a run in it, and a file of the user's. */
function usedFolder(name: string): string {
  const folder = join(root, name);
  mkdirSync(join(folder, "checkpoints", "step_000120"), { recursive: true });
  mkdirSync(join(folder, "dumps"));
  writeFileSync(join(folder, "metrics.jsonl"), "");
  writeFileSync(join(folder, "env.120.json"), "");
  writeFileSync(join(folder, "notes.txt"), "mine");
  return folder;
}

test("a new folder, whatever the policy", async () => {
  for (const policy of ["ask", "resume", "new", "overwrite", "fail"] as const) {
    const folder = join(root, `fresh/${policy}`);
    using run = await openRunFolder(configOf(folder, policy));
    assert.deepEqual([run.path, run.isResumed], [folder, false]);
    assert.deepEqual(readdirSync(folder).filter(isNoSocket), [".lock"]);
  }
});

test("a folder with a run: fail, resume, new and overwrite", async () => {
  const folder = usedFolder("used");
  const message =
    `run.dir: expected a folder without a run, got ${folder}, which holds one (step_000120). ` +
    "Set run.ifExists to resume, new or overwrite, or name another folder.";
  await assert.rejects(openRunFolder(configOf(folder, "fail")), { name: "ConfigError", message });
  await assert.rejects(openRunFolder(configOf(folder, "ask")), { name: "ConfigError", message });
  assert.deepEqual(readdirSync(folder).sort(), [
    "checkpoints",
    "dumps",
    "env.120.json",
    "metrics.jsonl",
    "notes.txt",
  ]);
  const asked: string[] = [];
  const ask = async (path: string): Promise<IfExists> => {
    asked.push(path);
    return "resume";
  };
  {
    using resumed = await openRunFolder(configOf(folder, "ask"), { ask });
    assert.deepEqual([resumed.path, resumed.isResumed, asked], [folder, true, [folder]]);
    using other = await openRunFolder(configOf(folder, "new"));
    assert.deepEqual([other.path, other.isResumed], [`${folder}-2`, false]);
    writeFileSync(join(other.path, "metrics.jsonl"), "");
    using third = await openRunFolder(configOf(folder, "new"));
    assert.equal(third.path, `${folder}-3`);
  }
  using overwritten = await openRunFolder(configOf(folder, "overwrite"));
  assert.equal(overwritten.isResumed, false);
  assert.deepEqual(readdirSync(folder).filter(isNoSocket).sort(), [".lock", "notes.txt"]);
});

test("what a start leaves that failed before a record is no run; a configuration of the user's own is kept", async () => {
  const folder = mkdtempSync(join(root, "begun-"));
  const config = configOf(folder, "fail");
  for (const name of ["samples", "tb"]) mkdirSync(join(folder, name));
  for (const name of ["metrics.jsonl", "samples.jsonl", "env.json"]) writeFileSync(join(folder, name), "");
  writeFileSync(join(folder, "metrics.csv"), "\n");
  writeConfig(folder, config);
  writeFileSync(join(folder, "notes.txt"), "mine");
  (await openRunFolder(config)).dispose();
  assert.deepEqual(readdirSync(folder), ["notes.txt"]);
  {
    writeConfig(folder, config);
    using again = await openRunFolder(configOf(folder, "new"));
    assert.equal(again.path, folder, "a folder beside it is not needed");
  }
  for (const [name, text] of [
    ["config.yaml", "seed: 1\n"],
    ["metrics.jsonl", '{"step": 0}\n'],
    ["model.safetensors", ""],
  ] as const) {
    writeFileSync(join(folder, name), text);
    await assert.rejects(openRunFolder(config), /expected a folder without a run/, name);
    rmSync(join(folder, name));
  }
});

test("without a name the folder is named by date and preset", async () => {
  const before = process.cwd();
  process.chdir(root);
  try {
    const now = (): Date => new Date("2026-11-22T18:30:05.123Z");
    using first = await openRunFolder(configOf(null, "ask"), { now });
    assert.equal(first.path, join("runs", "2026-11-22_18-30-05_grpo"));
    writeConfig(first.path, configOf(null, "ask"));
    using second = await openRunFolder(configOf(null, "fail"), { now });
    assert.equal(second.path, join("runs", "2026-11-22_18-30-05_grpo-2"));
    using third = await openRunFolder(configOf(null, "fail", "preset=completion"), { now });
    assert.equal(third.path, join("runs", "2026-11-22_18-30-05_completion"));
  } finally {
    process.chdir(before);
  }
});

test("one process at a time, and no lock of a dead one", async () => {
  const folder = join(root, "locked");
  const config = configOf(folder, "resume");
  const run = await openRunFolder(config);
  const lock = join(folder, ".lock");
  await assert.rejects(openRunFolder(config), {
    name: "ConfigError",
    message:
      `run.dir: expected a folder that no other process writes to, got ${folder} (process ${process.pid} on ${hostname()}). ` +
      `End that process, or remove ${lock} if there is none.`,
  });
  run.dispose();
  const { pid } = spawnSync(process.execPath, ["-e", ""]);
  writeFileSync(lock, JSON.stringify({ pid, host: hostname() }));
  (await openRunFolder(config)).dispose();
  writeFileSync(lock, JSON.stringify({ pid, host: "elsewhere" }));
  await assert.rejects(openRunFolder(config), /process \d+ on elsewhere/);
  writeFileSync(lock, "{");
  (await openRunFolder(config)).dispose();
  assert.deepEqual(readdirSync(folder), []);
});

test("a new folder beside one that another process has just begun", async () => {
  const folder = join(root, "begun");
  using first = await openRunFolder(configOf(folder, "new"));
  using second = await openRunFolder(configOf(folder, "new"));
  assert.deepEqual([first.path, second.path], [folder, `${folder}-2`]);
});

test("a run folder that is a file, or lies in one, says so", async () => {
  const file = join(root, "a_file");
  writeFileSync(file, "");
  for (const policy of ["ask", "resume", "new", "overwrite", "fail"] as const) {
    await assert.rejects(openRunFolder(configOf(file, policy)), {
      name: "ConfigError",
      message: /^run\.dir: expected a folder, got .*a_file, which is a file\. /,
    });
    await assert.rejects(
      openRunFolder(configOf(join(file, "inside"), policy)),
      /a_file\/inside: expected a path that can/,
    );
  }
});

test("the resolved configuration in the folder reads back", () => {
  const config = configOf(root, "fail", "rollout.temperature=0.9");
  writeConfig(root, config);
  const again = resolveConfig({ file: join(root, "config.yaml"), isComplete: false }).config;
  assert.deepEqual(plainConfig(again), plainConfig(config));
});

test("the run near a folder or file that is none: the one that it is part of, or those in it", () => {
  const root = mkdtempSync(join(tmpdir(), "run-near-"));
  after(() => rmSync(root, { recursive: true, force: true }));
  const run = join(root, "first");
  const checkpoint = join(run, "checkpoints", "step_000002");
  mkdirSync(checkpoint, { recursive: true });
  for (const name of ["config.yaml", "env.json", "report.html"]) writeFileSync(join(run, name), "");
  for (const part of [checkpoint, join(run, "checkpoints"), join(run, "report.html")])
    assert.equal(runNear(part), `Name the run that it is part of: ${run}`);
  assert.equal(runNear(root), `Name a run in it: ${run}`);
  assert.equal(runNear(join(root, "secnod")), undefined);
});

test("a file where a resumed run has a folder is said, and stays", async () => {
  const folder = join(root, "blocked");
  mkdirSync(folder);
  writeFileSync(join(folder, "metrics.jsonl"), '{"step":1}\n');
  writeFileSync(join(folder, "checkpoints"), "mine");
  await assert.rejects(openRunFolder(configOf(folder, "resume")), {
    name: "ConfigError",
    message: /^run\.dir: expected a folder checkpoints in .*blocked, got a file\. Move it away/,
  });
  assert.ok(readdirSync(folder).includes("checkpoints"));
});
