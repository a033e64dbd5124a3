/**
 * Scores of a sweep's trials: how far a fine-tuned policy is from the base in percent, in the judge that sees the least gain.
 * Plain numbers in and out.
 */
import { ConfigError } from "../config/resolve.js";
import type { SweepConfig } from "../config/sweep.js";
import type { ModelEvaluation } from "../evaluation/judge_models.js";
import { type EvalRow, isSamePoint, type Point } from "../evaluation/options.js";
import { MEASURES } from "../metrics/measures.js";
import { type MeanInterval, meanInterval } from "./interval.js";

/** The rows of an evaluation of one policy. */
type Evaluated = Pick<ModelEvaluation, "rows">;

/** What training changed in a measure, as one judge sees it, in percent of the base's; below 0 is a gain. */
export interface Change extends MeanInterval {
  /** Such as `completion.perceptual`. */
  readonly measure: string;
  /** The network's name; empty for a measure without a network. */
  readonly judge: string;
  /** One a seed. */
  readonly seeds: readonly number[];
}

/** How a trial stands after a rung, at one setting. */
export interface Score {
  /** Mean of the objective's changes, in percent; lower is better. */
  readonly objective: number;
  /** Sum of what the constraints are exceeded by, in percentage points; 0 where all are kept. */
  readonly excess: number;
  readonly point: Point | null;
  /** Of the measures of objective and constraints, by each judge. */
  readonly changes: readonly Change[];
}

/** The score of a trial that made no policy. */
export const FAILED: Score = { objective: Infinity, excess: Infinity, point: null, changes: [] };

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
 * Score a trial at each setting, the best first: a trial counts by that.
 *
 * @param base - of the policy that all trials start from.
 * @param evaluations - of the trial, one a seed, at the base's settings.
 */
export function scoresOf(
  base: Evaluated,
  evaluations: readonly Evaluated[],
  { objective, constraints }: Pick<SweepConfig, "objective" | "constraints">,
): Score[] {
  const measures = [...new Set([...objective, ...Object.keys(constraints)])];
  const scores = base.rows.map((point): Score => {
    const changes = measures.flatMap((measure) => changesOf(measure, point, base, evaluations));
    const excesses = Object.entries(constraints).map(([measure, most]) =>
      Math.max(0, worstOf(changes, measure) - (most as number)),
    );
    return {
      objective: meanInterval(objective.map((measure) => worstOf(changes, measure))).value,
      excess: excesses.reduce((sum, excess) => sum + excess, 0),
      point: { temperature: point.temperature, cfg: point.cfg },
      changes,
    };
  });
  return scores.sort(compareScores);
}

/** The change of a measure in the judge that sees the least gain. */
export const worstOf = (changes: readonly Change[], measure: string): number =>
  Math.max(...changes.filter((change) => change.measure === measure).map(({ value }) => value));

/** Percent by which a measure is worse than the base's, by each judge. */
function changesOf(
  measure: string,
  point: EvalRow,
  base: Evaluated,
  evaluations: readonly Evaluated[],
): Change[] {
  const name = measure.split(".")[1] as string;
  const { sign } = MEASURES[name] as { sign: 1 | -1 };
  const before = OF_SETS.test(name) ? [point] : base.rows;
  return Object.keys(valuesOf(measure, point)).map((judge) => {
    const all = before.map((row) => valuesOf(measure, row)[judge] as number);
    const best = sign === 1 ? Math.max(...all) : Math.min(...all);
    const seeds = evaluations.map(({ rows }) => {
      const row = rows.find((each) => isSamePoint(each, point));
      const after = row === undefined ? undefined : valuesOf(measure, row)[judge];
      if (after === best) return 0; // also where both are 0
      const change = (-sign * ((after ?? Number.NaN) - best) * 100) / Math.abs(best);
      return Number.isNaN(change) ? Infinity : change;
    });
    return { measure, judge, seeds, ...meanInterval(seeds) };
  });
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
