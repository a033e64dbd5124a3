/**
 * The trials of a sweep: those that its file names, or values of keys drawn from lists and ranges. The same configuration draws
 * the same trials.
 */
import { layerOfOverrides } from "../config/input.js";
import { ConfigError } from "../config/resolve.js";
import type { SweepConfig } from "../config/sweep.js";
import { trainKind } from "../config/train_kind.js";
import { rand, stream, tidy } from "../torch/index.js";
import { isObject } from "../torch/json.js";

/** A way to set the keys. */
export interface Trial {
  readonly name: string;
  /** Below the sweep's folder. */
  readonly folder: string;
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
 * The trials: those of `compare`; without any the base first, then different draws, fewer than `trials` where lists allow no more.
 *
 * @throws ConfigError for a range that is none, and for names and keys that trials cannot have.
 */
export function trialsOf(
  config: Pick<SweepConfig, "trials" | "keys" | "seed" | "compare" | "set">,
): readonly Trial[] {
  const { keys, compare, set } = config;
  const problems = [
    // A range is no value of its key.
    ...ownProblems("keys", Object.fromEntries(Object.keys(keys).map((key) => [key, null]))),
    ...Object.values(compare).flatMap((values) => ownProblems("compare", values)),
    ...ownProblems("set", set),
  ];
  if (problems.length > 0) throw new ConfigError([...new Set(problems)]);
  return Object.keys(config.compare).length > 0 ? namedTrials(config) : drawnTrials(config);
}

/** Keys that the sweep itself sets for each run, and what sets them. */
const OWN: Readonly<Record<string, string>> = {
  seed: "seeds",
  "train.iters": "rungs",
  "run.dir": "dir",
  "run.ifExists": "dir",
};

/** Values of keys as on a command line of `rlar train`. */
export const overridesOf = (values: object): string[] =>
  Object.entries(values).map(
    ([key, value]) => `${key}=${typeof value === "string" ? value : JSON.stringify(value)}`,
  );

/** Keys, in any of their spellings, that the sweep would override. */
function ownProblems(where: string, values: unknown): string[] {
  if (!isObject(values)) return [];
  const given = layerOfOverrides(trainKind, overridesOf(values)).values;
  return Object.entries(OWN).flatMap(([key, by]) =>
    given.has(key)
      ? [`${where}: expected keys that the sweep does not set, got ${key}. Set ${by} of the sweep instead.`]
      : [],
  );
}

/** Of a folder's name. */
const MOST_BYTES = 255;

function namedTrials({ compare }: Pick<SweepConfig, "compare">): Trial[] {
  const problems: string[] = [];
  const byFolder = new Map<string, string>();
  const trials = Object.entries(compare).map(([name, values]): Trial => {
    const folder = name
      .normalize("NFC")
      .toLowerCase()
      .replace(/[^\p{L}\p{M}\p{N}]+/gu, "_")
      .replace(/^_|_$/g, "");
    const other = byFolder.get(folder);
    byFolder.set(folder, name);
    if (folder === "")
      problems.push(
        `compare: expected names with a letter or a digit, got ${JSON.stringify(name)}. Rename the trial.`,
      );
    else if (Buffer.byteLength(folder) > MOST_BYTES)
      problems.push(`compare: expected names of at most ${MOST_BYTES} bytes, got ${name}. Shorten it.`);
    else if (other !== undefined)
      problems.push(
        `compare: expected names that differ in letters or digits, got ${other} and ${name}, whose runs would share the folder ${folder}. Change one.`,
      );
    if (!isObject(values))
      problems.push(
        `compare.${name}: expected keys of rlar train with values, got ${JSON.stringify(values)}. Write ${name}: {} for the base unchanged.`,
      );
    return { name, folder, values: values as Trial["values"] };
  });
  if (problems.length > 0) throw new ConfigError(problems);
  return trials;
}

function drawnTrials({ trials, keys, seed }: Pick<SweepConfig, "trials" | "keys" | "seed">): Trial[] {
  const ranges = Object.entries(keys).map(([key, given]) => [key, rangeOf(key, given)] as const);
  const found = new Map<string, Trial["values"]>([["{}", {}]]);
  for (let draw = 0; found.size < trials && draw < trials * DRAWS; draw++) {
    const values = Object.fromEntries(
      ranges.map(([key, range]) => [key, valueAt(range, uniform(seed, key, draw))]),
    );
    found.set(JSON.stringify(values), values);
  }
  return [...found.values()].map((values, i) => {
    const name = `trial_${String(i).padStart(3, "0")}`;
    return { name, folder: name, values };
  });
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
