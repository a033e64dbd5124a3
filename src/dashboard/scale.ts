/**
 * Axes with ticks at round values, moving means, thinning of long series, and formatting of numbers. `curves.ts` draws with them.
 */
import { short } from "../run/console.js";

/** An axis: where a value lies on it, and where its ticks are. */
export interface Axis {
  readonly low: number;
  readonly high: number;
  readonly isLog: boolean;
  readonly ticks: readonly number[];
  /** 0 at the low end, 1 at the high end; NaN for what has no place, such as 0 on a logarithmic axis. */
  readonly place: (value: number) => number;
  /** A tick as text, with as many decimals as its neighbours. */
  readonly text: (tick: number) => string;
}

/** The smallest of 1, 2, 5 times a power of ten that cuts `span` into at most `count` parts. */
export function roundStep(span: number, count: number): number {
  const least = span / count;
  const power = 10 ** Math.floor(Math.log10(least));
  const factor = [1, 2, 5].find((part) => part * power >= least * (1 - 1e-9)) ?? 10;
  return factor * power;
}

/** Multiples of a round step in a range, both ends included. */
export function linearTicks(low: number, high: number, count = 5): number[] {
  const step = roundStep(high - low, count);
  const from = Math.ceil(low / step - 1e-9);
  const to = Math.floor(high / step + 1e-9);
  return Array.from({ length: to - from + 1 }, (_, i) => Number(((from + i) * step).toPrecision(12)));
}

/** Powers of ten in a range, thinned to about `count`; with 2 and 5 times those where there are fewer than three. */
export function logTicks(low: number, high: number, count = 5): number[] {
  const from = Math.ceil(Math.log10(low) - 1e-9);
  const to = Math.floor(Math.log10(high) + 1e-9);
  // With one power more at either end, of which 2 or 5 times may be inside.
  const powers = Array.from({ length: to - from + 3 }, (_, i) => from - 1 + i);
  if (to - from >= 2) {
    const every = Math.ceil((to - from) / count);
    const inside = powers.slice(1, -1).filter((power) => power % every === 0);
    return inside.map(powerOfTen);
  }
  const inside = (value: number): boolean => value >= low * (1 - 1e-9) && value <= high * (1 + 1e-9);
  return powers.flatMap((power) => [1, 2, 5].map((factor) => factor * powerOfTen(power))).filter(inside);
}

/** Exact where JavaScript's own power is off by a bit, such as 10 ** -5. */
const powerOfTen = (power: number): number => Number(`1e${power}`);

/** How an axis is laid out. */
interface AxisOptions {
  /** Ticks, about; default 5. */
  readonly count?: number;
  /** Logarithmic where the values are all above 0 and span more than a factor of 50. */
  readonly mayBeLog?: boolean;
  /** Whether 0 is on it. */
  readonly hasZero?: boolean;
  /** Room beyond the values, as a part of their range; 0.0default 5. */
  readonly margin?: number;
  /** Ticks at whole numbers only. */
  readonly isWhole?: boolean;
}

/** An axis for all finite values; from 0 to 1 without any. */
export function axisOf(values: Iterable<number>, options: AxisOptions = {}): Axis {
  const { count = 5, mayBeLog = false, hasZero = false, margin = 0.05, isWhole = false } = options;
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (!Number.isFinite(value)) continue;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (low > high) [low, high] = [0, 1];
  // Beyond these the length of the axis would not be finite.
  const most = Number.MAX_VALUE / 16;
  [low, high] = [low, high].map((end) => Math.min(Math.max(end, -most), most)) as [number, number];
  if (mayBeLog && low > 0 && high / low > 50) return logAxis(low, high, margin, count);
  if (hasZero) [low, high] = [Math.min(low, 0), Math.max(high, 0)];
  if (low === high) {
    const around = isWhole ? 1 : Math.abs(low) * 0.1 || 1;
    [low, high] = hasZero && low === 0 ? [0, 1] : [low - around, high + around];
  }
  const room = (high - low) * margin;
  if (!(hasZero && low === 0)) low -= room;
  if (!(hasZero && high === 0)) high += room;
  const all = linearTicks(low, high, count);
  const ticks = isWhole ? all.filter(Number.isInteger) : all;
  const step = roundStep(high - low, count);
  const place = (value: number): number => (value - low) / (high - low);
  return {
    low,
    high,
    isLog: false,
    ticks,
    place,
    text: (tick) => tickText(tick, isWhole ? Math.max(1, step) : step),
  };
}

function logAxis(least: number, most: number, margin: number, count: number): Axis {
  const room = (most / least) ** margin;
  const [low, high] = [least / room, most * room];
  const span = Math.log(high / low);
  const place = (value: number): number => (value > 0 ? Math.log(value / low) / span : Number.NaN);
  const ticks = logTicks(low, high, count);
  return { low, high, isLog: true, ticks, place, text: (tick) => tickText(tick, tick) };
}

/** A tick with the decimals that its step needs: `0.25`, `1.5k`, `2e-6`. */
export function tickText(tick: number, step: number): string {
  if (tick === 0) return "0";
  const size = Math.max(Math.abs(tick), step);
  const digits = Math.max(0, Math.round(Math.log10(size / step)) + 1);
  if (step < 1e-4 || size >= 1e6)
    return Number(tick.toPrecision(digits + 1))
      .toExponential()
      .replace("e+", "e");
  if (size >= 1e4) return `${Number((tick / 1000).toPrecision(digits + 1))}k`;
  return tick.toFixed(Math.max(0, -Math.floor(Math.log10(step) + 1e-9)));
}

/** A number as text: three significant digits, `n/a` for NaN, percent with its sign. */
export function numberText(value: number, unit: "" | "%" = ""): string {
  if (Number.isNaN(value)) return "n/a";
  return unit === "%" ? `${short(value * 100)} %` : short(value);
}

/** Numbers for comparison: the same decimals for all, four digits for the largest. */
export function rowTexts(values: readonly number[], unit: "" | "%" = ""): string[] {
  const factor = unit === "%" ? 100 : 1;
  const largest = Math.max(0, ...values.filter(Number.isFinite).map((value) => Math.abs(value * factor)));
  const decimals = largest === 0 ? 0 : 3 - Math.floor(Math.log10(largest));
  return values.map((value) => {
    if (!Number.isFinite(value) || decimals < -3 || decimals > 7) return numberText(value, unit);
    const text = (value * factor).toFixed(Math.max(0, decimals));
    return unit === "%" ? `${text} %` : text;
  });
}

/** A metric over the run: NaN where it was not finite. */
export interface Series {
  readonly steps: readonly number[];
  readonly values: readonly number[];
}

/** Iterations that a moving mean is taken over: a twentieth of them, an odd number; 1 does not smooth. */
export function smoothingOf(count: number): number {
  const wanted = Math.round(count / 20);
  return wanted < 2 ? 1 : wanted - (wanted % 2) + 1;
}

/** The mean of the `window` values around each, of those that there are near the ends; NaN is ignored. */
export function movingMean(values: readonly number[], window: number): number[] {
  const half = (window - 1) / 2;
  // Each sum anew: running sums would carry the rounding of one huge value to all that come after it.
  return values.map((_, i) => finiteMean(values.slice(Math.max(0, i - half), i + half + 1)));
}

/** Of the finite ones; NaN where there is none. */
export function finiteMean(numbers: readonly number[]): number {
  let [sum, count] = [0, 0];
  for (const value of numbers) {
    if (!Number.isFinite(value)) continue;
    sum += value;
    count++;
  }
  return count === 0 ? Number.NaN : sum / count;
}

/** Neighbours as one: the mean of each `size` steps and values, so that at most `most` points are left. */
export function thinned(series: Series, most: number): Series & { readonly size: number } {
  const size = Math.ceil(series.steps.length / most);
  if (size <= 1) return { ...series, size: 1 };
  const starts = Array.from({ length: Math.ceil(series.steps.length / size) }, (_, i) => i * size);
  return {
    steps: starts.map((at) => finiteMean(series.steps.slice(at, at + size))),
    values: starts.map((at) => finiteMean(series.values.slice(at, at + size))),
    size,
  };
}
