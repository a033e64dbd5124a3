/**
 * Aggregation of metrics over several iterations: weighted means, extremes, sums and spreads, from sufficient statistics that
 * a checkpoint can hold; and the times of the parts of a step. All values are plain numbers, so no metric keeps a graph
 * alive.
 */
import { expected, memory } from "../torch/index.js";
import type { PlainData } from "./plain_data.js";

/** Count, mean, standard deviation (over n) and extremes of some numbers. */
export interface Spread {
  readonly count: number;
  readonly mean: number;
  readonly std: number;
  readonly min: number;
  readonly max: number;
}

/** Two passes in float64. NaN does not count; without any number all are NaN. */
export function spreadOf(numbers: Iterable<number>): Spread {
  const finite = [...numbers].filter((x) => !Number.isNaN(x));
  const count = finite.length;
  if (count === 0) return { count, mean: Number.NaN, std: Number.NaN, min: Number.NaN, max: Number.NaN };
  let [sum, squares, min, max] = [0, 0, Infinity, -Infinity];
  for (const x of finite) [sum, min, max] = [sum + x, Math.min(min, x), Math.max(max, x)];
  const mean = sum / count;
  for (const x of finite) squares += (x - mean) ** 2;
  return { count, mean, std: Math.sqrt(squares / count), min, max };
}

/**
 * Metrics of several sources as one record.
 *
 * @throws RangeError when two sources give one name: the second would hide the first.
 */
export function joined(...sources: readonly Readonly<Record<string, number>>[]): Record<string, number> {
  const all: Record<string, number> = {};
  for (const source of sources) {
    for (const [name, value] of Object.entries(source)) {
      if (name in all) throw expected(`metrics: ${name}`, "one value", "two, from different sources");
      all[name] = value;
    }
  }
  return all;
}

/** How the values of a metric are aggregated. */
type Rule = "mean" | "max" | "min" | "sum" | "last";

/** Metrics that are counts of what happened, to be added up. */
const SUMS = new Set(["optim/steps", "optim/skipped_steps"]);

/** A metric's rule follows from its name. */
export function ruleOf(name: string): Rule {
  if (/[/_]max$/.test(name)) return "max";
  if (/[/_]min$/.test(name)) return "min";
  if (SUMS.has(name)) return "sum";
  return /^progress\/|^optim\/lr$|_total$/.test(name) ? "last" : "mean";
}

interface Entry {
  readonly kind: Rule | "spread";
  /** Weights so far. */
  count: number;
  /** Mean, extreme, sum or last value. */
  value: number;
  /** Of a spread: sum of squared distances from the mean, and extremes. */
  squares: number;
  min: number;
  max: number;
}

/** Metrics over a window of iterations. */
export class MetricWindow {
  #entries = new Map<string, Entry>();

  /** Whether nothing has been added since the last {@link reset}. */
  get isEmpty(): boolean {
    return this.#entries.size === 0;
  }

  /**
   * Add an iteration's metrics.
   *
   * Names that end in `max` or `min` give extremes, counts of steps are added up, `progress/...`, `optim/lr` and
   * names that end in `_total` stay as they were last, everything else becomes a mean. NaN does not count.
   *
   * @param count - weight in means: the tokens, samples or groups that the values are means of.
   */
  add(values: Readonly<Record<string, number>>, count = 1): void {
    if (!(count >= 0 && count < Infinity))
      throw expected("MetricWindow.add", "a finite count of at least 0", count);
    for (const [name, value] of Object.entries(values)) {
      if (typeof value !== "number")
        throw expected(`MetricWindow.add: ${name}`, "a number", value, "Read tensors with item()");
      const entry = this.#entry(name, ruleOf(name));
      if (Number.isNaN(value) || count === 0) continue;
      const isFirst = entry.count === 0;
      entry.count += count;
      if (isFirst) entry.value = value;
      else if (entry.kind === "mean") entry.value += ((value - entry.value) * count) / entry.count;
      else if (entry.kind === "sum") entry.value += value;
      else if (entry.kind === "last") entry.value = value;
      else entry.value = Math[entry.kind as "max" | "min"](entry.value, value);
    }
  }

  /** Add numbers whose spread over all iterations is wanted: it becomes `<name>/mean`, `/std`, `/min` and `/max`. */
  addSpread(name: string, { count, mean, std, min, max }: Spread): void {
    const entry = this.#entry(name, "spread");
    if (count === 0) return;
    const total = entry.count + count;
    const distance = entry.count === 0 ? 0 : mean - entry.value;
    entry.squares += std ** 2 * count + (distance ** 2 * entry.count * count) / total;
    entry.value = entry.count === 0 ? mean : entry.value + (distance * count) / total;
    entry.min = Math.min(entry.min, min);
    entry.max = Math.max(entry.max, max);
    entry.count = total;
  }

  /** The metrics of the window; NaN for those that had no number. */
  values(): Record<string, number> {
    const result: Record<string, number> = {};
    for (const [name, entry] of this.#entries) {
      const { kind, count, value, squares, min, max } = entry;
      const isKnown = count > 0;
      if (kind !== "spread") result[name] = isKnown ? value : Number.NaN;
      else {
        result[`${name}/mean`] = isKnown ? value : Number.NaN;
        result[`${name}/std`] = isKnown ? Math.sqrt(squares / count) : Number.NaN;
        result[`${name}/min`] = isKnown ? min : Number.NaN;
        result[`${name}/max`] = isKnown ? max : Number.NaN;
      }
    }
    return result;
  }

  reset(): void {
    this.#entries.clear();
  }

  /** What has been added, for a checkpoint. */
  state(): PlainData {
    return [...this.#entries].map(([name, entry]) => ({ name, ...entry }));
  }

  load(state: PlainData): void {
    const entries = state as unknown as readonly (Entry & { name: string })[];
    this.#entries = new Map(entries.map(({ name, ...entry }) => [name, entry]));
  }

  #entry(name: string, kind: Entry["kind"]): Entry {
    let entry = this.#entries.get(name);
    if (entry === undefined) {
      entry = { kind, count: 0, value: 0, squares: 0, min: Infinity, max: -Infinity };
      this.#entries.set(name, entry);
    }
    if (entry.kind !== kind) throw expected(`MetricWindow: ${name}`, `a ${entry.kind}, as before`, kind);
    return entry;
  }
}

/** Seconds since the last mark, by name. */
export class Clock {
  readonly #start: number = performance.now();
  #last: number = this.#start;
  readonly #times: Record<string, number> = {};

  /** What was done since the last mark; a name that comes again adds up. */
  mark(name: string): void {
    const now = performance.now();
    this.#times[name] = (this.#times[name] ?? 0) + (now - this.#last) / 1000;
    this.#last = now;
  }

  /** Since the beginning. */
  seconds(): number {
    return (performance.now() - this.#start) / 1000;
  }

  /** All marks, and what lies after the last, so that they sum to the step's seconds. */
  times(): Record<string, number> {
    const rest = (performance.now() - this.#last) / 1000;
    return { ...this.#times, "time/other": (this.#times["time/other"] ?? 0) + rest };
  }
}

/** Peak CPU bytes of tensors since the last call. */
export function takePeakBytes(): number {
  const { peakBytes } = memory();
  memory({ resetPeak: true });
  return peakBytes;
}
