import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
} from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const root = dirname(dirname(dirname(dirname(fileURLToPath(import.meta.url)))));

test("without the archives, as in an installed package, the demo says what is missing and the two ways", () => {
  const installed = mkdtempSync(join(tmpdir(), "demo-installed-"));
  try {
    cpSync(join(root, "dist", "src"), join(installed, "dist", "src"), { recursive: true });
    cpSync(join(root, "package.json"), join(installed, "package.json"));
    for (const name of ["node_modules", "build", "scripts"])
      symlinkSync(join(root, name), join(installed, name));
    const recipes = join(installed, "models", "emoji_32px");
    mkdirSync(recipes, { recursive: true });
    for (const name of readdirSync(join(root, "models", "emoji_32px")).filter((file) =>
      file.endsWith(".yaml"),
    ))
      cpSync(join(root, "models", "emoji_32px", name), join(recipes, name));
    const { status, stderr } = spawnSync(
      process.execPath,
      [join(installed, "dist", "src", "cli", "main.js"), "demo", "--dir", join(installed, "out")],
      { encoding: "utf8" },
    );
    assert.equal(status, 3, stderr);
    assert.match(stderr, /^rlar: demo: .*clone.*demo --from-scratch[^\n]*\n$/);
  } finally {
    rmSync(installed, { recursive: true });
  }
});

test("recipes name no folder for their run: it would lie inside of an installed package", () => {
  const folder = join(root, "models", "emoji_32px");
  for (const name of readdirSync(folder).filter((file) => file.endsWith(".yaml")))
    assert.doesNotMatch(readFileSync(join(folder, name), "utf8"), /^\s*(run:|dir:)|\bdir:/m, name);
});

test("a few steps of the demo leave a table, pages of pictures, an evaluation and a report", () => {
  const dir = mkdtempSync(join(tmpdir(), "demo-"));
  try {
    const main = join(root, "dist", "src", "cli", "main.js");
    const { status, stdout, stderr } = spawnSync(process.execPath, [main, "demo", "--short", "--dir", dir], {
      cwd: root,
      encoding: "utf8",
    });
    assert.equal(status, 0, stderr);
    assert.match(stdout, /^held-out reward in the first run: -\d\.\d{3} before, -\d\.\d{3} after$/m);
    assert.match(stdout, /^before {2}T 1 .*\nafter {3}T 1 /m);
    assert.match(stdout, /^ceiling /m);
    // The table and the sentences below it call the networks by the same names.
    for (const mark of ["[1]", "[2]"])
      assert.ok(stdout.includes(`by network ${mark}, `) && stdout.includes(`; network ${mark})`), stdout);

    const run = join(dir, "completion");
    const evaluation = JSON.parse(readFileSync(join(run, "eval.json"), "utf8")) as {
      files: { role: string; path: string }[];
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
    const judges = evaluation.networks.map(({ name }) => name);
    assert.equal(judges.length, 2, "by what no reward uses, and by what never saw an emoji");
    assert.match(judges[0] ?? "", /held_out_classifier/);
    assert.match(judges[1] ?? "", /outside_judge/);
    assert.match(readFileSync(join(run, "report.html"), "utf8"), /<svg/);
    assert.ok(readdirSync(join(run, "eval")).some((name) => name.endsWith(".png")));
    assert.ok(existsSync(join(run, "checkpoints")));
    // Two runs that differ in their seed, and their average, which was judged.
    const seeds = ["completion", "completion_again"].map((name) => {
      const config = readFileSync(join(dir, name, "config.yaml"), "utf8");
      return /^seed: (\d+)$/m.exec(config)?.[1];
    });
    assert.deepEqual(seeds, ["0", "1"]);
    assert.deepEqual(
      evaluation.files.filter(({ role }) => role === "B").map(({ path }) => path),
      [join(run, "average.safetensors")],
    );
    assert.match(stdout, /^samples {3}.* sample --policy \S+average\.safetensors --tokenizer /m);
    const [, step = "{}"] = readFileSync(join(run, "metrics.jsonl"), "utf8").split("\n");
    assert.equal(JSON.parse(step)["perf/processes"], availableParallelism() > 1 ? 2 : undefined);
  } finally {
    rmSync(dir, { recursive: true });
  }
});
