/**
 * `rlar sweep`: successive halving (Jamieson and Talwalkar 2016). All trials train to the first rung and are evaluated on
 * held-out images; the better ones go on to the next, or all of them where the file names them. Each trial is an ordinary run in a
 * folder of its own, and what is done is known by the files that are there, so a sweep that was killed goes on where it was.
 */
import { existsSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";
import { plainConfig } from "../config/explain.js";
import { ConfigError, type ResolvedConfig, resolveConfig } from "../config/resolve.js";
import { type SweepConfig, sweepKind } from "../config/sweep.js";
import { trainKind } from "../config/train_kind.js";
import { evaluateModels, type ModelEvaluation } from "../evaluation/judge_models.js";
import { optionsOfRun } from "../evaluation/options.js";
import { pointText } from "../evaluation/tables.js";
import { averagePolicies } from "../rl_ar_finetune/average.js";
import { deviceOf } from "../rl_ar_finetune/parts.js";
import { trainRlLoop } from "../rl_ar_finetune/train_loop.js";
import { listCheckpoints } from "../run/checkpoint.js";
import { DivergedError } from "../run/failure.js";
import { NOWHERE } from "../run/log.js";
import { makeFolder, replaceFile } from "../torch/files.js";
import { expected } from "../torch/index.js";
import { checkMeasures, compareScores, FAILED, type Score, scoresOf } from "./score.js";
import { overridesOf, type Trial, trialsOf } from "./trials.js";

/** A trial and how far it came. */
export interface Standing {
  readonly trial: Trial;
  /** Steps of the last rung that it was evaluated at. */
  readonly steps: number;
  /** At its best setting. */
  readonly score: Score;
  /** At every setting, the best first; empty for a trial that made no policy. */
  readonly settings: readonly Score[];
  /** Folders of its runs, one a seed, or for each seed those that are averaged. */
  readonly runs: readonly string[];
  /** Files of the averages that were judged, one a seed; empty where runs are judged as they are. */
  readonly averages: readonly string[];
}

/** What came of a sweep. */
export interface SweepResult {
  readonly dir: string;
  readonly isInterrupted: boolean;
  readonly isNamed: boolean;
  /** The best first: by the rung that they reached, then by score. */
  readonly standings: readonly Standing[];
}

/** Options of {@link runSweep}. */
export interface SweepOptions {
  /** Ends the sweep after the step that is under way; run it again to go on. */
  readonly signal?: AbortSignal;
  /** Called with a line of progress. */
  readonly say?: (line: string) => void;
}

/** A trial with one seed. */
interface TrialRun {
  /** Where its evaluations are. */
  readonly dir: string;
  /** Its runs, several where they are averaged. */
  readonly parts: readonly Part[];
}

interface Part {
  readonly dir: string;
  readonly resolved: ResolvedConfig;
}

/**
 * Run a sweep, or go on with it.
 *
 * @param file - of the sweep, which its folder is named after.
 * @throws ConfigError for keys, ranges and measures that cannot be used, before any trial begins, and for a folder of another
 *   sweep.
 */
export async function runSweep(
  { config }: ResolvedConfig<SweepConfig>,
  file: string,
  { signal, say = () => {} }: SweepOptions = {},
): Promise<SweepResult> {
  checkMeasures(config);
  const dir = config.dir ?? join("runs", basename(file).replace(/\.ya?ml$/, ""));
  const trials = trialsOf(config);
  const features = config.eval.features ?? [];
  const last = config.rungs.at(-1) as number;
  const isNamed = Object.keys(config.compare).length > 0;
  const runsOf = ({ name, folder: own, values }: Trial): TrialRun[] =>
    config.seeds.map((seed) => {
      const folder = join(dir, config.seeds.length === 1 ? own : join(own, `seed_${seed}`));
      const { runs } = config.average;
      const parts = Array.from({ length: runs }, (_, k): Part => {
        const place = { seed: seed * runs + k, folder: runs === 1 ? folder : join(folder, `run_${k}`) };
        const resolved = inTrial(name, () => runConfig(config, values, { ...place, iters: last }));
        return { dir: place.folder, resolved };
      });
      return { dir: folder, parts };
    });
  const all = trials.map((trial) => ({ trial, runs: runsOf(trial) }));
  const parts = all.flatMap(({ runs }) => runs.flatMap((run) => run.parts));
  for (const { ar, tokenizer } of parts.map(({ resolved }) => resolved.config)) {
    if (ar.path !== null && tokenizer.path !== null) continue;
    const missing = ar.path === null ? "ar.path" : "tokenizer.path";
    throw new ConfigError([
      `${config.base}: expected ${missing}, a file that is evaluated before and after, got none. Give the file.`,
    ]);
  }
  keepPlan(dir, config);
  sayNotes(all, say);
  say(`trials in ${dir}: ${trials.length}, evaluated after step ${config.rungs.join(", ")}`);

  const stopped = (...some: readonly Standing[][]): SweepResult => {
    return { dir, isInterrupted: true, isNamed, standings: ranked(some.flat()) };
  };
  const isAveraged = config.average.runs > 1 || config.average.scale !== 1;
  let base: ModelEvaluation | null = null;
  let standings: Standing[] = [];
  let alive = all;
  for (const steps of config.rungs) {
    const digits = String(steps).padStart(6, "0");
    const averageOf = ({ dir }: TrialRun): string => join(dir, `average_${digits}.safetensors`);
    const rung: Standing[] = [];
    for (const { trial, runs } of alive) {
      const found: ModelEvaluation[] = [];
      let problem: string | null = null;
      for (const run of runs) {
        const done = join(run.dir, `eval_${digits}.json`);
        for (const part of existsSync(done) ? [] : run.parts) {
          problem ??= await trainTo(steps, part, signal);
          if (signal?.aborted) break;
        }
        if (signal?.aborted) return stopped(rung, standings);
        if (problem !== null) break;
        base ??= await evaluation(config, { ...run, features, judged: "base" }, join(dir, "base.json"));
        const judged = isAveraged ? { average: averageOf(run) } : "run";
        found.push(await evaluation(config, { ...run, features, judged }, done));
        if (signal?.aborted) return stopped(rung, standings);
      }
      const settings = problem === null ? scoresOf(base as ModelEvaluation, found, config) : [];
      const [score = FAILED] = settings;
      rung.push({
        trial,
        steps,
        score,
        settings,
        runs: runs.flatMap((run) => run.parts.map((part) => part.dir)),
        averages: isAveraged ? runs.map(averageOf) : [],
      });
      say(`${trial.name}, step ${steps}: ${problem ?? scoreText(score)}`);
    }
    const better = ranked(rung);
    standings = [...better, ...standings.filter(({ trial }) => !better.some((own) => own.trial === trial))];
    if (steps === last) break;
    const going = new Set(
      better
        .filter(({ score }) => score !== FAILED)
        .slice(0, Math.ceil((isNamed ? 1 : config.keep) * better.length))
        .map(({ trial }) => trial),
    );
    alive = alive.filter(({ trial }) => going.has(trial));
  }
  return { dir, isInterrupted: false, isNamed, standings };
}

const ranked = (standings: readonly Standing[]): Standing[] =>
  [...standings].sort((a, b) => b.steps - a.steps || compareScores(a.score, b.score));

/** A score in words. */
export const scoreText = ({ objective, excess, point }: Score): string =>
  point === null
    ? "no policy"
    : `${percent(objective)} at ${pointText(point)}` +
      (excess > 0 ? `, constraints exceeded by ${excess.toFixed(1)} points` : "");

/** Such as `-6.5 %`. */
export const percent = (value: number): string => `${value > 0 ? "+" : ""}${value.toFixed(1)} %`;

/** Say each note on the runs' keys once, with the trials that it is about where it is not about all. */
function sayNotes(
  all: readonly { readonly trial: Trial; readonly runs: readonly TrialRun[] }[],
  say: (line: string) => void,
): void {
  const noted = all.map(({ trial, runs }) => ({
    name: trial.name,
    notes: new Set(runs.flatMap(({ parts }) => parts.flatMap(({ resolved }) => resolved.notes))),
  }));
  for (const note of new Set(noted.flatMap(({ notes }) => [...notes]))) {
    const names = noted.filter(({ notes }) => notes.has(note)).map(({ name }) => name);
    say(`note${names.length === all.length ? "" : ` (${names.join("; ")})`}: ${note}`);
  }
}

/** Say in which trial a key is wrong. */
function inTrial<T>(name: string, read: () => T): T {
  try {
    return read();
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    throw new ConfigError(error.problems.map((text) => `${name}: ${text.replace(/^command line: /, "")}`));
  }
}

/** The configuration of a trial's run: the base, what the sweep sets, and the trial's own values. */
function runConfig(
  { base, set }: SweepConfig,
  values: Trial["values"],
  { seed, folder, iters }: { seed: number; folder: string; iters: number },
): ResolvedConfig {
  const own = { "run.dir": folder, "run.ifExists": "resume", seed, "train.iters": iters };
  const overrides = [set, values, own].flatMap(overridesOf); // a later one wins, in whatever spelling
  return resolveConfig({ file: base as string, overrides }, trainKind); // base is required
}

/** Write what the sweep is, or refuse a folder of another one. */
function keepPlan(dir: string, config: SweepConfig): void {
  const path = join(dir, "sweep.json");
  const text = planText(config);
  if (!existsSync(path)) {
    makeFolder(dir);
    replaceFile(path, text);
    return;
  }
  if (planBefore(readFileSync(path, "utf8")) === text) return;
  throw new ConfigError([
    `${dir}: expected the folder of this sweep, got one that was begun with other keys (${path}). Name another folder with dir, or undo the change.`,
  ]);
}

function planText(config: object): string {
  const { dir: _, ...plan } = plainConfig(config, sweepKind) as Record<string, unknown>;
  return `${JSON.stringify(plan, null, 2)}\n`;
}

/** A plan that was written, with defaults for keys that are newer than it; null for one that cannot be read. */
function planBefore(text: string): string | null {
  try {
    return planText(sweepKind.schema.parse(JSON.parse(text)));
  } catch {
    return null;
  }
}

/**
 * Train a run to a number of steps, if it is not there yet.
 *
 * @returns why there is no policy; null where there is one.
 */
async function trainTo(steps: number, { dir, resolved }: Part, signal?: AbortSignal): Promise<string | null> {
  const failed = join(dir, "failed.txt");
  if (existsSync(failed)) return readFileSync(failed, "utf8");
  const done = Number(/\d+/.exec(listCheckpoints(join(dir, "checkpoints")).at(-1) ?? "")?.[0] ?? 0);
  if (done >= steps) return null;
  try {
    await trainRlLoop(resolved, { until: steps, screen: NOWHERE, ...(signal && { signal }) });
    return null;
  } catch (error) {
    if (!(error instanceof DivergedError)) throw error;
    replaceFile(failed, error.message);
    return error.message;
  }
}

/**
 * The evaluation of a policy on the runs' device: from the file, or made and written.
 *
 * @param judged - the policy that the runs started from, that of the only run, or the file to write the runs' average to.
 */
async function evaluation(
  { average, eval: { images, samples, trainImages, temperatures, cfg, prefix } }: SweepConfig,
  {
    parts,
    features,
    judged,
  }: TrialRun & { features: readonly string[]; judged: "base" | "run" | { readonly average: string } },
  json: string,
): Promise<ModelEvaluation> {
  if (existsSync(json)) return JSON.parse(readFileSync(json, "utf8")) as ModelEvaluation;
  const [{ dir, resolved }] = parts as [Part];
  const own = parts.map((part) => optionsOfRun(part.dir));
  const [{ policy: base, tokenizer, data, start, rewardNetworks }] = own as [(typeof own)[number]];
  const made = own.flatMap(({ against }) => against ?? []);
  const [first] = made;
  if (tokenizer === undefined || base === undefined || first === undefined || made.length < parts.length)
    throw expected(dir, "a run that began from files and has made a policy", "none", "Remove its folder");
  let policy = judged === "base" ? base : first;
  if (typeof judged === "object") {
    policy = { path: judged.average };
    averagePolicies(made, { base, scale: average.scale, out: judged.average });
  }
  return await evaluateModels({
    ...{ tokenizer, policy, features, images, samples, trainImages, temperatures, cfg, json },
    ...{ data: data ?? {}, start: start ?? "condition", resamples: 0, device: deviceOf(resolved.config) },
    ...(prefix !== null && { prefixes: [prefix] }),
    ...(rewardNetworks && { rewardNetworks }),
  });
}
