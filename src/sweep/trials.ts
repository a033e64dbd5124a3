/** Draws the trials of a sweep: values of keys from lists and ranges. The same configuration draws the same trials. */
import { ConfigError } from "../config/resolve.js";
import type { SweepConfig } from "../config/sweep.js";
import { rand, stream, tidy } from "../torch/index.js";

/** A way to set the keys. */
export interface Trial {
  readonly name: string;
  /** By key; empty for the base. */
  readonly values: Readonly<Record<string, unknown>>;
}

/** A range of a key. */
type Range =
  | { readonly list: readonly unknown[] }
  | { readonly low: number; readonly high: number; readonly isLog: boolean; readonly isInteger: boolean };

/** Draws for one trial before the keys count as exhausted. */
const DRAWS = 64;

/**
 * The trials: the base first, then different draws, fewer than `trials` where lists allow no more.
 *
 * @throws ConfigError for a range that is none.
 */
export function trialsOf({
  trials,
  keys,
  seed,
}: Pick<SweepConfig, "trials" | "keys" | "seed">): readonly Trial[] {
  const ranges = Object.entries(keys).map(([key, given]) => [key, rangeOf(key, given)] as const);
  const found = new Map<string, Trial["values"]>([["{}", {}]]);
  for (let draw = 0; found.size < trials && draw < trials * DRAWS; draw++) {
    const values = Object.fromEntries(
      ranges.map(([key, range]) => [key, valueAt(range, uniform(seed, key, draw))]),
    );
    found.set(JSON.stringify(values), values);
  }
  return [...found.values()].map((values, i) => ({ name: `trial_${String(i).padStart(3, "0")}`, values }));
}

/** In [0, 1), in float64. */
function uniform(seed: number, key: string, draw: number): number {
  using generator = stream(seed, `sweep/${key}`, draw);
  return tidy(() => rand([1], { generator, dtype: "float64" }).item());
}

function rangeOf(key: string, given: unknown): Range {
  const refused = (): ConfigError =>
    new ConfigError([
      `keys.${key}: expected a list of values, {range: [low, high]} or {log: [low, high]}, low below high and above 0 for log, got ${JSON.stringify(given)}. Write for example ${key}: { log: [0.0001, 0.001] }.`,
    ]);
  if (Array.isArray(given)) {
    if (given.length === 0) throw refused();
    return { list: given };
  }
  if (typeof given !== "object" || given === null) throw refused();
  const { range, log, integer = false, ...rest } = given as Record<string, unknown>;
  const [bounds, isLog] = log === undefined ? [range, false] : [log, true];
  const isPair =
    Array.isArray(bounds) && bounds.length === 2 && bounds.every((bound) => Number.isFinite(bound));
  const isKnown = Object.keys(rest).length === 0 && (range === undefined || log === undefined);
  if (!isPair || !isKnown || typeof integer !== "boolean") throw refused();
  const [low, high] = bounds as [number, number];
  if (!(low < high) || (isLog && low <= 0)) throw refused();
  return { low, high, isLog, isInteger: integer };
}

/** The value of a range at a share of it; numbers have three digits that count, so that they can be read and typed. */
function valueAt(range: Range, share: number): unknown {
  if ("list" in range) return range.list[Math.floor(share * range.list.length)];
  const { low, high, isLog, isInteger } = range;
  if (isInteger && !isLog) return Math.floor(low + share * (high - low + 1));
  const value = isLog ? low * (high / low) ** share : low + share * (high - low);
  return isInteger ? Math.round(value) : Number(value.toPrecision(3));
}
