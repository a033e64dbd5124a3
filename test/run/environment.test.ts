/** What a run was made with. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";

import { commitOf, environment, versions } from "../../src/run/environment.js";
import { version } from "../../src/torch/index.js";

const folder = mkdtempSync(join(tmpdir(), "rlar-environment-"));
after(() => rmSync(folder, { recursive: true }));

test("versions, machine and command", () => {
  process.env.OMP_NUM_THREADS = "3";
  const secrets = [
    "NVIDIA_API_KEY",
    "TORCH_HUB_TOKEN",
    "RLAR_SECRET",
    "CUDA_PASSWORD",
    "OMP_SECRET_PLACES",
    "LIBTORCH_AUTH",
  ];
  for (const name of secrets) process.env[name] = `hush-${name}`;
  const found = environment();
  assert.deepEqual(found.versions, versions());
  assert.match(found.versions.package, /^\d+\.\d+\.\d+/);
  assert.equal(found.versions.libtorch, version().torch);
  assert.equal(found.versions.node, process.versions.node);
  assert.equal(found.cpu.cores, cpus().length);
  assert.ok(found.threads >= 1 && found.memoryBytes > 2 ** 20);
  assert.equal(found.variables.OMP_NUM_THREADS, "3");
  assert.doesNotMatch(JSON.stringify(found), /hush/);
  assert.deepEqual(JSON.parse(JSON.stringify(found)), found);
});

test("the commit, and whether files differ from it", () => {
  assert.equal(commitOf(folder), null);
  const git = (...args: string[]): string =>
    execFileSync("git", ["-C", folder, ...args], { encoding: "utf8" });
  git("init", "-q");
  assert.equal(commitOf(folder), null); // no commit yet
  writeFileSync(join(folder, "file"), "1");
  git("add", "file");
  git("-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-q", "-m", "one");
  const id = git("rev-parse", "HEAD").trim();
  assert.deepEqual(commitOf(folder), { id, isDirty: false });
  writeFileSync(join(folder, "file"), "2");
  assert.deepEqual(commitOf(folder), { id, isDirty: true });
  mkdirSync(join(folder, "inner"));
  assert.equal(commitOf(join(folder, "inner")), null); // a package inside another's repository
});

test("the commit of the code itself is asked for once, as the code is loaded once", (t) => {
  const { commit } = environment();
  const path = process.env.PATH;
  t.after(() => {
    process.env.PATH = path;
  });
  process.env.PATH = folder; // without git
  assert.deepEqual(environment().commit, commit);
});
