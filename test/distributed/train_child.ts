/**
 * A process of `train.test.ts`: makes several runs in turn, `node train_child.js FOLDER RUNS`, RUNS in JSON: name and changes
 * to the configuration of each. Among them `stopAt`, the step after which a run is interrupted, and `steer`, the text of its
 * `steer.yaml`.
 */
import { mkdirSync } from "node:fs";
import { join } from "node:path";

import type { TrainConfigInput } from "../../src/config/resolve.js";
import { quietRun, tinyRun, writeSettled } from "../support/train_run.js";

const [folder = ".", runs = "[]"] = process.argv.slice(2);

try {
  type Changes = { stopAt?: number; steer?: string };
  for (const [name, { stopAt, steer, ...changes }] of JSON.parse(runs) as [string, Changes][]) {
    if (process.env.WORLD_SIZE !== undefined) process.env.RLAR_STORE = join(folder, `${name}.store`);
    const config = tinyRun(folder, { run: { dir: join(folder, name), ifExists: "resume" }, ...changes });
    if (steer !== undefined && (process.env.RANK ?? "0") === "0") {
      mkdirSync(join(folder, name), { recursive: true });
      writeSettled(join(folder, name, "steer.yaml"), steer);
    }
    // Only the first process shows its steps, and so is the only one that is interrupted.
    const stop = new AbortController();
    const screen = {
      write: (text: string) => {
        for (const line of text.split("\n")) {
          if (line.startsWith("{") && (JSON.parse(line) as { step?: number }).step === stopAt) stop.abort();
        }
      },
    };
    const options = stopAt === undefined ? {} : { screen, json: true, signal: stop.signal };
    const { step, end } = await quietRun(config as TrainConfigInput, options);
    process.stdout.write(`${name} ${step} ${end}\n`);
  }
} catch (error) {
  process.stderr.write(`${(error as Error).stack}\n`);
  process.exitCode = 1;
}
