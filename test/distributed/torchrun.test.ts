/**
 * A real torchrun starts the run that `rlar launch` starts. Needs a Python with torch: `python3`, or the one that
 * `RLAR_TEST_PYTHON` names.
 */
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { freePort } from "../../src/cli/launch.js";
import { assertSameMetrics, difference } from "../support/same_run.js";
import { tinyFolder, tinyKeys } from "../support/train_run.js";

const MAIN = fileURLToPath(new URL("../../src/cli/main.js", import.meta.url));
const PYTHON = process.env.RLAR_TEST_PYTHON ?? "python3";

function run(program: string, args: readonly string[]): Promise<{ code: number | null; err: string }> {
  const child = spawn(program, args, { stdio: ["ignore", "ignore", "pipe"] });
  let err = "";
  child.stderr.on("data", (text) => {
    err += text;
  });
  return new Promise((resolve) => child.on("close", (code) => resolve({ code, err })));
}

test("torchrun and rlar launch make the same run, bit for bit", async (t) => {
  if (spawnSync(PYTHON, ["-c", "import torch.distributed.run"]).status !== 0)
    return t.skip(`${PYTHON} has no torch`);
  const folder = await tinyFolder(t, 20);
  const keys = (dir: string): string[] => [
    "train",
    `run.dir=${join(folder, dir)}`,
    ...tinyKeys(folder),
    "log={imagesEvery: 0, tensorboard: false}",
    "train={iters: 3, threads: 1, device: cpu}",
  ];
  const launched = await run(process.execPath, [MAIN, "launch", "--processes", "2", ...keys("launch")]);
  assert.equal(launched.code, 0, launched.err);
  const port = await freePort();
  const torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", `${port}`];
  const started = await run(PYTHON, [
    ...torchrun,
    "--no-python",
    process.execPath,
    MAIN,
    ...keys("torchrun"),
  ]);
  assert.equal(started.code, 0, started.err);
  const [a, b] = [join(folder, "launch"), join(folder, "torchrun")];
  assertSameMetrics(a, b, 1e-12);
  assert.equal(difference(a, b), 0);
});
