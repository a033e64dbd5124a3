/**
 * TypeScript: compiled into dist/ when a source, the settings or the compiler changed. Type errors are fatal.
 */
import { existsSync, readdirSync, rmdirSync, rmSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { SetupError, step } from "./report.mjs";
import { listFiles, marks, readJson, run, writeWhole } from "./shell.mjs";

const FOLDERS = ["src", "test", "bench", "examples"];
const stampPath = (root) => join(root, "dist", ".stamp.json");

/** Whether dist/ holds what the sources compile to; starts no process. */
export function typescriptReady(root) {
  if (sources(root).length === 0) return true;
  const stamp = readJson(stampPath(root));
  return JSON.stringify(stamp) === JSON.stringify(inputs(root)) && missingOutputs(root).length === 0;
}

export async function compileTypescript(root) {
  await step("compiling TypeScript", async () => {
    const before = inputs(root); // an edit made while this runs must count as new
    removeStaleOutputs(root);
    // The compiler trusts its own record of what it wrote before.
    if (missingOutputs(root).length > 0) rmSync(join(root, "dist", ".tsbuildinfo"), { force: true });
    const compiler = join(root, "node_modules", "typescript", "bin", "tsc");
    const pretty = process.stderr.isTTY ? ["--pretty"] : [];
    const result = await run([process.execPath, compiler, "-p", "tsconfig.json", ...pretty], { cwd: root });
    if (!result.ok) {
      throw new SetupError(`TypeScript does not compile.\n${result.output.trimEnd()}`, {
        toDo: ["correct the errors above."],
      });
    }
    writeWhole(stampPath(root), JSON.stringify(before));
  });
}

function sources(root) {
  return FOLDERS.flatMap((folder) => listFiles(join(root, folder), [".ts"]));
}

function inputs(root) {
  const settings = ["tsconfig.json", "node_modules/typescript/package.json"].map((name) => join(root, name));
  return marks([...settings, ...sources(root)]);
}

function outputOf(root, source) {
  return join(root, "dist", relative(root, source).replace(/\.ts$/, ".js"));
}

function missingOutputs(root) {
  return sources(root).filter((path) => !path.endsWith(".d.ts") && !existsSync(outputOf(root, path)));
}

/** A test or module whose source is gone must not run or be imported any more. */
function removeStaleOutputs(root) {
  const kept = new Set(sources(root).map((source) => outputOf(root, source)));
  for (const folder of FOLDERS) {
    const outputs = listFiles(join(root, "dist", folder), [".js", ".js.map", ".d.ts"]);
    for (const path of outputs) {
      if (kept.has(path.replace(/(\.js|\.js\.map|\.d\.ts)$/, ".js"))) continue;
      rmSync(path);
      if (readdirSync(dirname(path)).length === 0) rmdirSync(dirname(path));
    }
  }
}
