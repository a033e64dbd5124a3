/**
 * `rlar sweep`: choose keys of `rlar train` by successive halving over a file of ranges, or compare trials that the file names. The
 * work is done in `src/sweep`.
 */
import { join } from "node:path";
import { rlarCommand } from "../config/command.js";
import { ConfigError } from "../config/resolve.js";
import { type SweepConfig, sweepKind } from "../config/sweep.js";
import { writeSweep } from "../dashboard/sweep.js";
import { print } from "../run/console.js";
import { runSweep, type Standing, scoreText } from "../sweep/sweep.js";
import { readConfig } from "./config.js";
import { interruptible, interruptionCode } from "./interrupt.js";

/** Options of `rlar sweep`. */
export interface SweepCommandOptions {
  json?: boolean;
}

/** Run or go on with a sweep. @returns the exit code, as `rlar train` has it. */
export async function sweep(args: readonly string[], { json = false }: SweepCommandOptions): Promise<number> {
  const [file] = args;
  if (file === undefined || file.includes("=")) {
    throw new ConfigError([
      `sweep: expected a YAML file first, got ${file ?? "none"}. docs/sweep.md shows one.`,
    ]);
  }
  const resolved = readConfig(sweepKind, args);
  const { config } = resolved;
  const say = (line: string): void => print(json ? process.stderr : process.stdout, `${line}\n`);
  const result = await interruptible((signal) => runSweep(resolved, file, { signal, say }));
  const { dir, isInterrupted, standings } = result;
  if (isInterrupted) {
    say(`interrupted; go on: ${rlarCommand(["sweep", ...args])}`);
    return interruptionCode();
  }
  const command = finalCommand(config, standings[0] as Standing);
  const page = await writeSweep(result, config, command);
  if (json) print(process.stdout, `${JSON.stringify({ dir, page, standings }, null, 2)}\n`);
  else
    print(
      process.stdout,
      `\n${tableOf(standings)}\n\nlook at it: ${page}\nall numbers: ${join(dir, "sweep.csv")}\njudge the best on other images: ${command}\n`,
    );
  return 0;
}

/** The command that judges the winner on held-out images that no trial was chosen on. */
function finalCommand(
  { eval: { features, images, temperatures, cfg } }: SweepConfig,
  { runs, averages }: Standing,
): string {
  const networks = (features ?? []).flatMap((path) => ["--features", path]);
  const [run] = runs as readonly [string, ...string[]];
  const [averaged] = averages;
  const which =
    averaged === undefined ? ["--run", run] : ["--config", join(run, "config.yaml"), "--against", averaged];
  return rlarCommand([
    "eval",
    ...[...which, ...networks, "--chosen-on", `${images}`],
    ...["--temperatures", temperatures.join(","), ...(cfg.join() === "1" ? [] : ["--cfg", cfg.join(",")])],
  ]);
}

/** A line a trial, the best first. */
function tableOf(standings: readonly Standing[]): string {
  const width = Math.max(...standings.map(({ steps }) => `${steps}`.length));
  const names = Math.max(...standings.map(({ trial }) => trial.name.length));
  return standings
    .map(({ trial, steps, score }) => {
      const values = Object.entries(trial.values).map(([key, value]) => `${key}=${JSON.stringify(value)}`);
      return `${trial.name.padEnd(names)}  step ${`${steps}`.padStart(width)}  ${scoreText(score)}  ${values.join(" ") || "the base"}`;
    })
    .join("\n");
}
