/** The README's example prints what the README says. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { pathToFileURL } from "node:url";

test("the twenty lines run, and print these numbers", () => {
  const readme = readFileSync("README.md", "utf8");
  const [, code, output] = /```ts\n([\s\S]*?)```\n\n```text\n([\s\S]*?)```/.exec(readme) ?? [];
  assert.ok(code && output);
  assert.ok(code.split("\n").length <= 21);
  const folder = mkdtempSync(join(tmpdir(), "rlar-readme-"));
  try {
    const root = pathToFileURL("dist/src/index.js").href;
    writeFileSync(join(folder, "example.mjs"), code.replace('"rl-ar-finetune"', `"${root}"`));
    const { stdout, stderr, status } = spawnSync(process.execPath, [join(folder, "example.mjs")], {
      encoding: "utf8",
    });
    assert.equal(stderr, "");
    assert.equal(status, 0);
    assert.equal(stdout, output);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
