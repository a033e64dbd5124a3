/**
 * The folder of a run: which it is, and what happens when there is a run in it already. What is written there is in
 * `log.ts` and `checkpoint.ts`.
 */
import { existsSync, mkdirSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";

import { expected } from "../torch/index.js";
import { listCheckpoints } from "./checkpoint.js";
import type { TrainConfig } from "./config.js";
import { configYaml } from "./config_docs.js";

/** A run's folder, made and ready. */
export interface RunFolder {
  readonly path: string;
  readonly checkpoints: string;
  /** Whether the run in it is to go on. */
  readonly isResumed: boolean;
}

/**
 * Make a run's folder, or take the one that is there as `run.ifExists` says.
 *
 * @throws RangeError when there is a run in it and nobody said what to do.
 */
export function openRunFolder(config: TrainConfig): RunFolder {
  const { dir, ifExists } = config.run;
  let path =
    dir ??
    join(
      "runs",
      `${new Date().toISOString().slice(0, 19).replaceAll(":", "-")}-${config.preset ?? config.algorithm}`,
    );
  const isTaken = (folder: string): boolean => existsSync(folder) && readdirSync(folder).length > 0;
  let isResumed = false;
  if (isTaken(path)) {
    const checkpoints = listCheckpoints(join(path, "checkpoints")).length;
    if (ifExists === "resume") isResumed = checkpoints > 0;
    if (ifExists === "overwrite" || (ifExists === "resume" && !isResumed)) {
      for (const name of OWN) rmSync(join(path, name), { recursive: true, force: true });
    }
    if (ifExists === "new") {
      let number = 2;
      while (isTaken(`${path}-${number}`)) number++;
      path = `${path}-${number}`;
    }
    if (ifExists === "fail" || ifExists === "ask") {
      const remedy = "Set run.ifExists=resume to go on with it, new for another name, or overwrite";
      throw expected("run.dir", "a folder without a run", `${path} with ${checkpoints} checkpoints`, remedy);
    }
  }
  for (const name of ["checkpoints", "dumps"]) mkdirSync(join(path, name), { recursive: true });
  if (!isResumed) writeFileSync(join(path, "config.yaml"), configYaml(config));
  return { path, checkpoints: join(path, "checkpoints"), isResumed };
}

/** What a run writes into its folder: all that overwriting it takes away. */
const OWN: readonly string[] = [
  "checkpoints",
  "config.yaml",
  "dumps",
  "env.json",
  "metrics.csv",
  "metrics.jsonl",
  "samples",
  "samples.jsonl",
  "tb",
];
