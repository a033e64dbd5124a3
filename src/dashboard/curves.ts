/**
 * The charts of one run or several: series from `run.ts` on the charts of `metrics.ts`. With several runs
 * a color is a run; with one it is a metric.
 */
import { type Line, lineChart, POINTS, type Reference, stackedChart } from "./chart.js";
import { type Html, html, table } from "./html.js";
import { type ChartGroup, type ChartSpec, chartGroups, type LineSpec } from "./metrics.js";
import { configAt, type Run } from "./run.js";
import { meanOf, movingMean, numberText, type Series, smoothingOf } from "./scale.js";

/** A metric that a chart would show nothing of. */
interface Still {
  readonly metric: string;
  readonly values: readonly number[];
}

/** All curves, under headings; metrics with one value all along are a table at the end. */
export function curves(runs: readonly Run[]): Html {
  const still: Still[] = [];
  const groups = chartGroups(new Set(runs.flatMap((run) => [...run.metrics.keys()]))).map((group) => {
    const charts = group.charts.flatMap((spec) => chartOf(spec, runs, still));
    const stacks = runs.flatMap((run) => phasesOf(group, run, runs.length));
    return charts.length + stacks.length === 0
      ? null
      : html`<h3>${group.title}</h3><div class="charts">${charts}${stacks}</div>`;
  });
  const rows = still.map(({ metric, values }) => [
    html`<code>${metric}</code>`,
    ...values.map((value) => numberText(value)),
  ]);
  const rest =
    rows.length > 0 &&
    html`<details><summary>${rows.length} metrics that stayed the same, or have one value</summary>
${table(["metric", ...runs.map(({ name }) => name)], rows)}</details>`;
  if (groups.every((group) => group === null) && rows.length === 0)
    return html`<p>No iteration has been logged.</p>`;
  return html`${smoothingNote(runs)}${groups}${rest}`;
}

/** How many iterations are behind a point of a line, which is the same on all charts of a run. */
function smoothingNote(runs: readonly Run[]): Html | null {
  const texts = runs.flatMap((run) => {
    const count = Math.max(0, ...[...run.metrics.values()].map(({ steps }) => steps.length));
    const [window, size] = [smoothingOf(count), Math.ceil(count / POINTS)];
    if (window === 1) return [];
    const line = `lines are means over ${window} steps around each`;
    const dots = size > 1 ? `dots are means of ${size} steps` : "dots are the steps themselves";
    return [runs.length === 1 ? `${line}, ${dots}` : `${run.name}: ${line}`];
  });
  const [first = ""] = texts;
  if (first === "") return null;
  const text = runs.length === 1 ? `${first.charAt(0).toUpperCase()}${first.slice(1)}` : texts.join("; ");
  return html`<p>${text}; held-out values, with a mark each, are as they were measured. Legends have the last values of the lines. Hover over a chart, or focus it and use the arrow keys, to read values.</p>`;
}

/** Whether a chart of it would be a flat line: the same but for rounding, or a single value. */
function isStill({ values }: Series): boolean {
  const numbers = values.filter(Number.isFinite);
  const [low, high] = [
    numbers.reduce((a, b) => Math.min(a, b), Infinity),
    numbers.reduce((a, b) => Math.max(a, b), -Infinity),
  ];
  return numbers.length < 2 || high - low <= 1e-9 * Math.max(1, Math.abs(high));
}

/** A chart of those lines that move; the others are noted as still. */
function chartOf(spec: ChartSpec, runs: readonly Run[], still: Still[]): Html[] {
  const moving = spec.lines.filter(({ metric }) => {
    const series = runs.map((run) => run.metrics.get(metric));
    const moves = series.some((of) => of !== undefined && !isStill(of));
    if (!moves && !still.some((other) => other.metric === metric))
      still.push({ metric, values: series.map((of) => of?.values.findLast(Number.isFinite) ?? Number.NaN) });
    return moves;
  });
  if (moving.length === 0 || (spec.isParts && runs.length > 1)) return [];
  const isOne = runs.length === 1;
  // Lines of several runs are told apart by color, so there is one of each.
  const drawn = isOne ? moving : moving.slice(0, 1);
  const lines = runs.flatMap((run, r) =>
    drawn.flatMap((line, l): Line[] => {
      const series = run.metrics.get(line.metric);
      if (series === undefined || !series.values.some(Number.isFinite)) return [];
      return [
        isOne
          ? lineOf(run, line, series, l)
          : { ...lineOf(run, line, series, r), label: run.name, hasDots: false, isDashed: false },
      ];
    }),
  );
  const { title, about, unit = "", mayBeLog = false, hasZero = false, isWide = false } = spec;
  const references = isOne ? referencesOf(spec, runs[0] as Run) : [];
  const lastStep = Math.max(...runs.map((run) => run.lastStep));
  const points = Math.round(POINTS / Math.max(1, runs.length / 3));
  return [lineChart({ title, about, lines, references, unit, mayBeLog, hasZero, isWide, lastStep, points })];
}

function lineOf(run: Run, spec: LineSpec, series: Series, color: number): Line {
  const { metric, label, isDashed = false, hasMarks = false, isExact = false } = spec;
  const window = hasMarks || isExact ? 1 : smoothingOf(series.steps.length);
  const spread = spec.spread === undefined ? undefined : run.metrics.get(spec.spread);
  const isWhole = spread?.steps.length === series.steps.length;
  return {
    label,
    metric,
    color,
    series,
    isDashed,
    hasMarks,
    ...(window > 1 && { smooth: movingMean(series.values, window), hasDots: true }),
    ...(isWhole && { spread: window === 1 ? spread.values : movingMean(spread.values, window) }),
  };
}

/** The floor of the reward, what an evaluation began with, and limits that the configuration sets. */
function referencesOf(spec: ChartSpec, run: Run): Reference[] {
  const { hasFloor, hasStart, limit } = spec;
  const series = run.metrics.get(spec.lines[0]?.metric ?? "");
  const first = series?.values.find(Number.isFinite);
  const floor = hasFloor ? floorOf(run) : undefined;
  const most = limit === undefined ? undefined : configAt(run.config, limit.path);
  const greatest = Math.max(...(series?.values ?? []).filter(Number.isFinite));
  return [
    ...(floor === undefined ? [] : [{ label: "floor", value: floor }]),
    ...(hasStart && first !== undefined ? [{ label: "at the start", value: first }] : []),
    // A limit far above what happens would squeeze the curve.
    ...(limit && typeof most === "number" && most <= greatest * 4
      ? [{ label: limit.label, value: most }]
      : []),
  ];
}

/** The reward of the policy before training, on held-out images; undefined where that was not evaluated. */
export function floorOf(run: Run): number | undefined {
  const series = run.metrics.get("eval/reward/mean");
  return series?.steps[0] === 0 ? series.values[0] : undefined;
}

/** The mean reward of the tokenizer's reconstructions of the training images; undefined where there is none. */
export function ceilingOf(run: Run): number | undefined {
  const series = run.metrics.get("eval/vq_ceiling") ?? run.metrics.get("reward/vq_ceiling");
  const mean = meanOf(series?.values ?? []);
  return Number.isNaN(mean) ? undefined : mean;
}

/** The phases of an iteration as parts of its seconds. */
function phasesOf({ phases = [] }: ChartGroup, run: Run, runs: number): Html[] {
  const layers = phases.flatMap((name) => {
    const series = run.metrics.get(name);
    return series === undefined ? [] : [{ label: name.slice("time/".length), series }];
  });
  if (layers.length === 0 || runs > 3) return [];
  const title = runs === 1 ? "Where the time goes" : `Where the time goes: ${run.name}`;
  const about = "The phases of a step. Good: little in data and other.";
  return [stackedChart({ title, about, unit: "seconds" }, layers)];
}
