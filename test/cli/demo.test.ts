import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const root = dirname(dirname(dirname(dirname(fileURLToPath(import.meta.url)))));

test("a few steps of the demo leave a table, pages of pictures, an evaluation and a report", () => {
  const dir = mkdtempSync(join(tmpdir(), "demo-"));
  try {
    const main = join(root, "dist", "src", "cli", "main.js");
    const { status, stdout, stderr } = spawnSync(process.execPath, [main, "demo", "--short", "--dir", dir], {
      cwd: root,
      encoding: "utf8",
    });
    assert.equal(status, 0, stderr);
    assert.match(stdout, /^held-out reward in the run: -\d\.\d{3} before, -\d\.\d{3} after$/m);
    assert.match(stdout, /^before {2}T 1 .*\nafter {3}T 1 /m);
    assert.match(stdout, /^ceiling /m);

    const run = join(dir, "completion");
    const evaluation = JSON.parse(readFileSync(join(run, "eval.json"), "utf8")) as {
      rows: { policy: string; temperature: number }[];
      networks: { name: string }[];
    };
    assert.deepEqual(
      evaluation.rows.map(({ policy, temperature }) => [policy, temperature]),
      [
        ["A", 1],
        ["B", 1],
      ],
    );
    assert.match(evaluation.networks[0]?.name ?? "", /held_out_classifier/, "judged by what no reward uses");
    assert.match(readFileSync(join(run, "report.html"), "utf8"), /<svg/);
    assert.ok(readdirSync(join(run, "eval")).some((name) => name.endsWith(".png")));
    assert.ok(existsSync(join(run, "checkpoints")));
  } finally {
    rmSync(dir, { recursive: true });
  }
});
