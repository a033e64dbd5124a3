/**
 * Scores of a sweep's trials: how far a fine-tuned policy is from the base in percent, in the judge that sees the least gain.
 * Plain numbers in and out.
 */
import { ConfigError } from "../config/resolve.js";
import type { SweepConfig } from "../config/sweep.js";
import type { ModelEvaluation } from "../evaluation/judge_models.js";
import { type EvalRow, isSamePoint, type Point } from "../evaluation/options.js";
import { MEASURES } from "../metrics/measures.js";

/** The rows of an evaluation of one policy. */
type Evaluated = Pick<ModelEvaluation, "rows">;

/** How a trial stands after a rung. */
export interface Score {
  /** Mean of the objective's changes, in percent; lower is better. */
  readonly objective: number;
  /** Sum of what the constraints are exceeded by, in percentage points; 0 where all are kept. */
  readonly excess: number;
  /** The setting that it counts by: the best of those evaluated. */
  readonly point: Point | null;
  /** By measure, of objective and constraints: the change in percent in the worst judge; below 0 is a gain. */
  readonly changes: Readonly<Record<string, number>>;
}

/** The score of a trial that made no policy. */
export const FAILED: Score = { objective: Infinity, excess: Infinity, point: null, changes: {} };

/** Trials that keep the constraints come first, then those that exceed them least; among equals the lower objective. */
export const compareScores = (a: Score, b: Score): number =>
  a.excess === b.excess ? difference(a.objective, b.objective) : difference(a.excess, b.excess);

const difference = (a: number, b: number): number => (a === b ? 0 : a < b ? -1 : 1);

/** Distances of sets, which a lower temperature changes as much as training: compared at the same setting. */
const OF_SETS = /^(fd|kd)_/;

/**
 * Refuse measures that no evaluation has, or of which neither more nor less is better.
 *
 * @throws ConfigError
 */
export function checkMeasures({ objective, constraints, eval: { samples } }: SweepConfig): void {
  const problems = [
    ...objective.map((measure) => ["objective", measure] as const),
    ...Object.keys(constraints).map((measure) => ["constraints", measure] as const),
  ].flatMap(([key, measure]) => {
    const [set = "", name = ""] = measure.split(".");
    const isKnown = /^[^.]+\.[^.]+$/.test(measure) && (set === "completion" || set === "free");
    if (!isKnown || (MEASURES[name]?.sign ?? 0) === 0) {
      return [
        `${key}: expected a measure such as completion.l2, completion.perceptual, completion.fd_train or free.fd_train, got ${measure}. rlar eval --explain lists the measures.`,
      ];
    }
    if (set === "free" && samples < 2)
      return [
        `${key}: expected eval.samples of at least 2 for ${measure}, got ${samples}. Set eval.samples=256.`,
      ];
    return [];
  });
  for (const [measure, most] of Object.entries(constraints)) {
    if (typeof most === "number" && Number.isFinite(most)) continue;
    problems.push(
      `constraints.${measure}: expected a number of percent, got ${JSON.stringify(most)}. 0 allows no rise.`,
    );
  }
  if (problems.length > 0) throw new ConfigError(problems);
}

/**
 * Score a trial by its best setting.
 *
 * @param base - of the policy that all trials start from.
 * @param evaluations - of the trial, one a seed, at the base's settings.
 */
export function scoreOf(
  base: Evaluated,
  evaluations: readonly Evaluated[],
  { objective, constraints }: Pick<SweepConfig, "objective" | "constraints">,
): Score {
  const measures = [...new Set([...objective, ...Object.keys(constraints)])];
  const scores = base.rows.map((point): Score => {
    const changes = Object.fromEntries(
      measures.map((measure) => [measure, changeOf(measure, point, base, evaluations)]),
    );
    const excesses = Object.entries(constraints).map(([measure, most]) =>
      Math.max(0, (changes[measure] as number) - (most as number)),
    );
    return {
      objective: meanOf(objective.map((measure) => changes[measure] as number)),
      excess: excesses.reduce((sum, excess) => sum + excess, 0),
      point: { temperature: point.temperature, cfg: point.cfg },
      changes,
    };
  });
  return [...scores].sort(compareScores)[0] ?? FAILED;
}

/** Percent by which a measure is worse than the base's: the mean over the seeds, in the judge that sees the most of it. */
function changeOf(
  measure: string,
  point: EvalRow,
  base: Evaluated,
  evaluations: readonly Evaluated[],
): number {
  const name = measure.split(".")[1] as string;
  const { sign } = MEASURES[name] as { sign: 1 | -1 };
  const before = OF_SETS.test(name) ? [point] : base.rows;
  const judges = Object.keys(valuesOf(measure, point));
  const changes = judges.map((judge) => {
    const all = before.map((row) => valuesOf(measure, row)[judge] as number);
    const best = sign === 1 ? Math.max(...all) : Math.min(...all);
    const after = meanOf(
      evaluations.map(({ rows }) => {
        const row = rows.find((each) => isSamePoint(each, point));
        return row === undefined ? Number.NaN : (valuesOf(measure, row)[judge] ?? Number.NaN);
      }),
    );
    return (-sign * (after - best) * 100) / Math.abs(best);
  });
  const worst = Math.max(...changes);
  return Number.isNaN(worst) ? Infinity : worst;
}

/** Values of a measure by judge; one of no judge under an empty name. */
function valuesOf(measure: string, { free, completions }: EvalRow): Record<string, number> {
  const [set, name] = measure.split(".") as [string, string];
  const measures = set === "free" ? free : completions[0]?.measures;
  const plain = measures?.plain[name];
  if (plain !== undefined) return { "": plain.value };
  const found = Object.entries(measures?.networks ?? {}).flatMap(([judge, estimates]) => {
    const estimate = estimates[name];
    return estimate === undefined ? [] : [[judge, estimate.value] as const];
  });
  if (found.length > 0) return Object.fromEntries(found);
  throw new ConfigError([
    `objective or constraints: expected measures that this evaluation has, got ${measure}. rlar eval with the same networks shows which it has.`,
  ]);
}

const meanOf = (values: readonly number[]): number =>
  values.reduce((sum, value) => sum + value, 0) / values.length;
