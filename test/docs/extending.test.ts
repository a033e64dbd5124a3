/** The programs of docs/extending.md compile against the package's types, run, and are short; its module runs as its command says. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { after, test } from "node:test";
import { metricsOf, tinyFolder, tinyRun } from "../support/train_run.js";

const blocks = [
  ...readFileSync("docs/extending.md", "utf8").matchAll(/^## (.+)\n[\s\S]*?```ts\n([\s\S]*?)```/gm),
].map(([, title = "", code = ""]) => ({ name: title.toLowerCase().replaceAll(" ", "_"), code }));

// Below the project, so that its own name is a package that is found.
mkdirSync("build", { recursive: true });
const folder = mkdtempSync(join("build", "extending-"));
after(() => rmSync(folder, { recursive: true, force: true }));
symlinkSync(resolve("models"), join(folder, "models"));

const node = (...args: string[]) => {
  const { status, stdout, stderr } = spawnSync(process.execPath, args, { encoding: "utf8", cwd: folder });
  return { status, stdout, stderr };
};

test("there is a program of under 40 lines for each thing to extend, and all of them compile", () => {
  assert.deepEqual(
    blocks.map(({ name }) => name),
    ["a_reward", "a_policy", "a_tokenizer", "a_data_loader", "an_algorithm"],
  );
  for (const { name, code } of blocks) {
    assert.ok(code.trimEnd().split("\n").length < 40, name);
    writeFileSync(join(folder, `${name}.ts`), code);
  }
  const { compilerOptions: own } = JSON.parse(readFileSync("tsconfig.json", "utf8"));
  const { incremental: _, tsBuildInfoFile: __, isolatedDeclarations: ___, ...shared } = own;
  const compilerOptions = { ...shared, rootDir: ".", outDir: "out", declaration: false, sourceMap: false };
  writeFileSync(join(folder, "tsconfig.json"), JSON.stringify({ compilerOptions, include: ["*.ts"] }));
  const { status, stdout, stderr } = node(resolve("node_modules/typescript/bin/tsc"), "-p", ".");
  assert.equal(status, 0, stdout + stderr);
});

for (const { name } of blocks) {
  test(`${name.replaceAll("_", " ")} runs`, () => {
    const { status, stdout, stderr } = node(`out/${name}.js`);
    assert.equal(status, 0, stderr);
    assert.match(stdout, /2 steps are in |step 2: best reward -?\d/);
  });
}

test("the module runs from the command line, on captions alone", async (t) => {
  const page = readFileSync("docs/extending.md", "utf8");
  const [code = "", words = ""] =
    /(?<=```js\n)\/\/ dark\.mjs: rlar (train .*)\n[\s\S]*?(?=```)/.exec(page) ?? [];
  const tiny = await tinyFolder(t);
  writeFileSync(join(tiny, "dark.mjs"), code);
  writeFileSync(join(tiny, "captions.txt"), "a fox\na hen\na cat\n");
  const { data: _, ...run } = tinyRun(tiny, { rollout: { context: { type: "free" } } });
  writeFileSync(join(tiny, "run.yaml"), JSON.stringify({ ...run, data: { size: 16, evalPart: 0 } }));
  const set = ["data.source=captions.txt", "rollout.start=empty", "reward.l2.weight=0", "update.auxCe=0"];
  const args = [resolve("dist/src/cli/main.js"), ...words.split(" "), ...set];
  const { status, stderr } = spawnSync(process.execPath, args, { encoding: "utf8", cwd: tiny });
  assert.equal(status, 0, stderr);
  const last = metricsOf(join(tiny, "run")).at(-1) as Record<string, number>;
  assert.ok(Math.abs((last["reward/mean"] as number) - 0.5 * (last["reward/dark/mean"] as number)) < 1e-12);
  assert.notEqual(last["reward/mean"], 0);
});
