/**
 * The report's curves: metrics of one run or several as charts of SVG paths in a frame that stretches, with labels as
 * text beside it. With several runs a color is a run; with one it is a metric. `metrics.ts` decides which metrics share a
 * chart, `scale.ts` places values on an axis.
 */

import { valueAt } from "../config/key.js";
import { NETWORK_TERMS } from "../config/train_kind.js";
import { type ChartGroup, type ChartSpec, chartGroups, type LineSpec } from "./metrics.js";
import { dataElement, type Html, html, raw, table } from "./page.js";
import type { Change, Run } from "./run.js";
import {
  type Axis,
  axisOf,
  finiteMean,
  movingMean,
  numberText,
  type Series,
  smoothingOf,
  thinned,
} from "./scale.js";

/** A metric whose values do not change, so that a chart is useless. */
interface Still {
  readonly metric: string;
  readonly values: readonly number[];
}

/**
 * All curves, under headings: the first chart open, the others to unfold. Metrics with one value all along, but for
 * rounding, are a table at the end.
 */
export function curves(runs: readonly Run[]): Html {
  const still: Still[] = [];
  const groups = chartGroups(new Set(runs.flatMap((run) => [...run.metrics.keys()]))).flatMap((group) => {
    const charts = [
      ...group.charts.flatMap((spec) => chartOf(spec, runs, still)),
      ...runs.flatMap((run) => phasesOf(group, run, runs.length)),
    ];
    return charts.length === 0 ? [] : [{ title: group.title, charts }];
  });
  const [first] = groups;
  const rows = still.map(({ metric, values }) => [
    html`<code>${metric}</code>`,
    ...values.map((value) => numberText(value)),
  ]);
  const rest =
    rows.length > 0 &&
    html`<details><summary>${rows.length} metrics that stayed the same but for rounding, or have one value</summary>
${table(["metric", ...runs.map(({ name }) => name)], rows)}</details>`;
  if (first === undefined)
    return rows.length === 0 ? html`<p>No iteration has been logged.</p>` : html`${rest}`;
  const others = groups.map(({ title, charts }, i) => ({ title, shown: i === 0 ? charts.slice(1) : charts }));
  const count = others.reduce((sum, { shown }) => sum + shown.length, 0);
  const folded = others.map(
    ({ title, shown }) => shown.length > 0 && html`<h3>${title}</h3><div class="charts">${shown}</div>`,
  );
  const unfolds =
    count > 0 && html`<details><summary>All other curves: ${count}</summary>${folded}</details>`;
  return html`${smoothingNote(runs)}<div class="charts">${first.charts[0]}</div>${unfolds}${rest}`;
}

/** How many iterations are behind a point of a line, which is the same on all charts of a run. */
function smoothingNote(runs: readonly Run[]): Html | null {
  const lines = runs.map((run) => {
    const count = Math.max(0, ...[...run.metrics.values()].map(({ steps }) => steps.length));
    const [window, size] = [smoothingOf(count), Math.ceil(count / POINTS)];
    const dots = size > 1 ? `dots are means of ${size} steps` : "dots are the steps themselves";
    return { name: run.name, window, text: `means over ${window} steps around each`, dots };
  });
  const smoothed = lines.filter(({ window }) => window > 1);
  const [first] = smoothed;
  if (first === undefined) return null;
  const isSame = lines.every(({ window }) => window === first.window);
  const text = isSame
    ? `Lines are ${first.text}${runs.length === 1 ? `, ${first.dots}` : ""}`
    : smoothed.map((line) => `${line.name}: lines are ${line.text}`).join("; ");
  return html`<p>${text}; held-out values, with a mark each, are as they were measured. Legends have the last values of the lines. To read values, point at a chart or touch it, or focus it and use the arrow keys.</p>`;
}

/** Relative size of a change that float32 sums make by their rounding alone. */
const ROUNDING = 2e-6;

/** Metrics that are 0 but for rounding until something moves, and the size of that rounding. */
const NOISE: readonly (readonly [RegExp, number])[] = [
  // Squares of differences of log-probabilities.
  [/^kl\/(ref_k2|ref_k3|ref_running|approx)$/, 1e-9],
  [/^kl\/|^sampling\/|^policy\/ratio|^loss\/policy$|^advantage\/mean$/, 2e-5],
];

/** Whether a chart of it would be a flat line: the same but for rounding, or a single value. */
export function isStill(metric: string, { values }: Series): boolean {
  const numbers = values.filter(Number.isFinite);
  let [low, high] = [Infinity, -Infinity];
  for (const value of numbers) [low, high] = [Math.min(low, value), Math.max(high, value)];
  const noise = NOISE.find(([pattern]) => pattern.test(metric))?.[1] ?? 0;
  const least = Math.max(noise, ROUNDING * Math.max(Math.abs(low), Math.abs(high)));
  return numbers.length < 2 || high - low <= least;
}

/** Whether the reward used the network that a metric such as `eval/perceptual/mean` is of. */
export function isRewarded(run: Run, metric: string): boolean {
  const name = metric.split("/").find((part) => NETWORK_TERMS.has(part));
  const weight = name === undefined ? 0 : valueAt(run.config, `${NETWORK_TERMS.get(name)}.weight`);
  return typeof weight === "number" && weight !== 0;
}

/** A chart of those lines that move; the others are noted as still. */
function chartOf(spec: ChartSpec, runs: readonly Run[], still: Still[]): Html[] {
  const moving = spec.lines.filter(({ metric }) => {
    const series = runs.map((run) => run.metrics.get(metric));
    const moves = series.some((of) => of !== undefined && !isStill(metric, of));
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
  const { about, unit = "", mayBeLog = false, hasZero = false, isWide = false } = spec;
  const isPaid = runs.some((run) => drawn.some(({ metric }) => isRewarded(run, metric)));
  const title = isPaid ? `${spec.title} [rewarded]` : spec.title;
  const references = isOne ? referencesOf(spec, runs[0] as Run) : [];
  const changes = isOne ? (runs[0] as Run).changes : [];
  const lastStep = Math.max(...runs.map((run) => run.lastStep));
  const points = Math.round(POINTS / Math.max(1, runs.length / 3));
  const parts = {
    title,
    about,
    lines,
    references,
    changes,
    unit,
    mayBeLog,
    hasZero,
    isWide,
    lastStep,
    points,
  };
  return [lineChart(parts)];
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
  const most = limit === undefined ? undefined : valueAt(run.config, limit.path);
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
  const mean = finiteMean(series?.values ?? []);
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

/** Size of a drawing in its own units; the page stretches it. */
export const WIDTH = 1000;
export const HEIGHT = 400;

/** Points of a line that are drawn: more than a chart has pixels for would only make the file large. */
const POINTS = 300;

/** A line on a chart. */
interface Line {
  readonly label: string;
  /** Its name in metrics.jsonl. */
  readonly metric: string;
  /** Which of the page's colors, from 0; also the order of the legend. */
  readonly color: number;
  readonly series: Series;
  /** Drawn in place of the values: their moving mean. */
  readonly smooth?: readonly number[];
  /** A dot behind the line at each value. */
  readonly hasDots?: boolean;
  /** Distance of the band's edges from the line, at each step. */
  readonly spread?: readonly number[];
  readonly isDashed?: boolean;
  /** A mark at each value, for values that are far apart. */
  readonly hasMarks?: boolean;
}

/** A value to compare lines with: a dotted line across. */
export interface Reference {
  readonly label: string;
  readonly value: number;
  /** The color of the line that it belongs to; default grey. */
  readonly color?: number;
}

/** A chart of lines over the iterations. */
interface LineChart {
  readonly title: string;
  /** What it shows, and what is good. */
  readonly about: string;
  readonly lines: readonly Line[];
  readonly references?: readonly Reference[];
  /** A line up at the step of each that has a label. */
  readonly changes?: readonly Pick<Change, "step" | "label">[];
  readonly unit?: "" | "%";
  readonly mayBeLog?: boolean;
  readonly hasZero?: boolean;
  readonly isWide?: boolean;
  /** The last iteration of the page, so that all its charts have one axis. */
  readonly lastStep: number;
  /** Most points of a line; default {@link POINTS}. */
  readonly points?: number;
}

/** A path through points, in the drawing's units; broken where a value has no place. */
export function pathOf(steps: readonly number[], values: readonly number[], x: Axis, y: Axis): string {
  let path = "";
  let isOpen = false;
  for (const [i, step] of steps.entries()) {
    const at = pointOf(step, values[i] as number, x, y);
    path += at === null ? "" : `${isOpen ? "L" : "M"}${at}`;
    isOpen = at !== null;
  }
  return path;
}

/** A dot at each point: strokes of no length, which round ends make round however the drawing is stretched. */
export function dotsOf(steps: readonly number[], values: readonly number[], x: Axis, y: Axis): string {
  const points = steps.map((step, i) => pointOf(step, values[i] as number, x, y));
  return points.map((at) => (at === null ? "" : `M${at}h0`)).join("");
}

/** The area between two edges. */
export function bandOf(
  steps: readonly number[],
  low: readonly number[],
  high: readonly number[],
  x: Axis,
  y: Axis,
): string {
  const inside = steps.flatMap((step, i) => {
    const from = pointOf(step, Math.max(low[i] as number, y.isLog ? y.low : -Infinity), x, y);
    const to = pointOf(step, high[i] as number, x, y);
    return from === null || to === null ? [] : [{ from, to }];
  });
  if (inside.length < 2) return "";
  const back = inside.toReversed().map(({ from }) => from);
  return `M${inside.map(({ to }) => to).join("L")}L${back.join("L")}Z`;
}

function pointOf(step: number, value: number, x: Axis, y: Axis): string | null {
  const [left, up] = [x.place(step), y.place(value)];
  if (!Number.isFinite(left) || !Number.isFinite(up)) return null;
  return `${round(left * WIDTH)} ${round((1 - up) * HEIGHT)}`;
}

/** A place in the drawing, which needs no more digits. */
export const round = (number: number): number => Number(number.toFixed(1));

/** A chart of lines with its legend, its axes and the numbers that its read-out shows. */
export function lineChart(chart: LineChart): Html {
  const lines = chart.lines.map((line) => thinnedLine(line, chart.points ?? POINTS));
  const x = axisOf([0, chart.lastStep], { margin: 0, isWhole: true });
  const { references = [], changes = [], unit = "", mayBeLog = false, hasZero = false } = chart;
  const heights = lines.flatMap((line) => {
    const { low, high } = edgesOf(line);
    return [...line.series.values, ...low.filter((value) => !mayBeLog || value > 0), ...high];
  });
  const y = axisOf([...heights, ...references.map(({ value }) => value)], {
    mayBeLog,
    hasZero,
    count: chart.isWide ? 8 : 5,
  });
  const drawn = html`${lines.map((line) => drawLine(line, x, y))}${references.map(({ value, color }) => {
    const path = pathOf([x.low, x.high], [value, value], x, y);
    return html`<path class="reference ${colorOf(color)}" d="${path}"/>`;
  })}`;
  const marks = marksOf(changes, x);
  const keys = [
    ...lines.map(({ label, color, isDashed, smooth, series }) => {
      const last = (smooth ?? series.values).findLast(Number.isFinite) ?? Number.NaN;
      return legendKey(isDashed ? "dashed" : "", color, label, numberText(last, unit));
    }),
    ...references.map(({ label, value, color }) =>
      legendKey("reference", color, label, numberText(value, unit)),
    ),
  ];
  const data = {
    x: [x.low, x.high],
    unit,
    lines: lines.map(({ label, color, series, smooth }) => ({
      label,
      color,
      steps: series.steps.map(readable),
      values: series.values.map(readable),
      ...(smooth && { smooth: smooth.map(readable) }),
    })),
  };
  const metrics = [...new Set(chart.lines.map(({ metric }) => metric))].join(", ");
  return chartFigure({
    title: chart.title,
    kind: chart.isWide ? "wide" : "",
    keys,
    frame: chartFrame(html`${marks.lines}${drawn}`, x, y, {
      unit,
      label: `${chart.title}: ${spoken(chart.lines, unit)}`,
      below: "step",
      over: marks.labels,
    }),
    about: html`${chart.about}${y.isLog ? " Logarithmic." : ""} <span class="metrics">${metrics}</span>`,
    data,
  });
}

/** Changes whose labels find room on a chart; with more, there are lines alone. */
const MOST_LABELS = 8;

/** Lines up at the steps of changes, and their labels in four rows. */
function marksOf(changes: NonNullable<LineChart["changes"]>, x: Axis): { lines: Html; labels: Html } {
  const bySteps = new Map<number, string>();
  for (const { step, label } of changes) {
    if (label === null || step < x.low || step > x.high) continue;
    const before = bySteps.get(step);
    bySteps.set(step, before === undefined ? label : `${before}, ${label}`);
  }
  const marks = [...bySteps].map(([step, label]) => ({ label, place: x.place(step) }));
  const lines = marks.map(({ place }) => `M${round(place * WIDTH)} 0v${HEIGHT}`).join("");
  const labels = marks.map(({ label, place }, i) => {
    const side = place > 0.5 ? "left" : "right";
    const at = `left:${round(place * 100)}%;top:${8 + 14 * (i % 4)}px`;
    return html`<span class="at grey ${side}" style="${at}">${label}</span>`;
  });
  return {
    lines: html`${lines !== "" && html`<path class="change" d="${lines}"/>`}`,
    labels: html`${marks.length <= MOST_LABELS && labels}`,
  };
}

/** An entry of a legend. @param kind - `dashed`, `reference`, `solid`, `mark`, or empty for a line. */
export const legendKey = (kind: string, color: number | undefined, label: string, value?: string): Html =>
  html`<li><i class="key${kind && ` ${kind}`} ${colorOf(color)}"></i>${label}${value !== undefined && html` <b>${value}</b>`}</li>`;

/** A chart with its title and legend above and its explanation below. @param data - for the read-out. */
export function chartFigure(parts: {
  title: string;
  kind?: string;
  /** Height of the plot in pixels, in place of the kind's. */
  tall?: number;
  keys: readonly Html[];
  frame: Html;
  about: Html;
  data?: unknown;
}): Html {
  const { title, kind = "", tall, keys, frame, about, data } = parts;
  const style = tall !== undefined && raw(` style="--tall:${tall}px"`);
  return html`<figure class="chart${kind && ` ${kind}`}"${style}>
<figcaption><h4>${title}</h4><ul class="legend">${keys}</ul></figcaption>
${frame}
<p class="about">${about}</p>
${data !== undefined && dataElement(data)}
</figure>`;
}

/** Numbers of the read-out: four digits are enough to read, and NaN is null. */
const readable = (value: number): number | null =>
  Number.isFinite(value) ? Number(value.toPrecision(value >= 1000 && value < 1e9 ? 9 : 4)) : null;

/** A line of at most so many points. */
function thinnedLine(line: Line, most: number): Line {
  const { steps } = line.series;
  const along = (values: readonly number[]): readonly number[] => thinned({ steps, values }, most).values;
  const { smooth, spread } = line;
  return {
    ...line,
    series: thinned(line.series, most),
    ...(smooth && { smooth: along(smooth) }),
    ...(spread && { spread: along(spread) }),
  };
}

/** The edges of a line's band; empty without one. */
function edgesOf({ series, smooth, spread = [] }: Line): { low: number[]; high: number[] } {
  const center = smooth ?? series.values;
  const edge = (sign: number) => spread.map((width, i) => (center[i] as number) + sign * width);
  return { low: edge(-1), high: edge(1) };
}

/** The class of a line's color. */
export const colorOf = (color: number | undefined): string =>
  color === undefined ? "grey" : `c${color % 8}`;

function drawLine(line: Line, x: Axis, y: Axis): Html {
  const { series, smooth, spread, color, isDashed, hasMarks, hasDots } = line;
  const { steps, values } = series;
  const { low, high } = edgesOf(line);
  const band = spread === undefined ? "" : bandOf(steps, low, high, x, y);
  const dots = hasDots || hasMarks || steps.length === 1 ? dotsOf(steps, values, x, y) : "";
  const kind = hasDots ? "dots" : "mark";
  const path = pathOf(steps, smooth ?? values, x, y);
  const dash = isDashed ? " dashed" : "";
  return html`<g class="${colorOf(color)}">${band !== "" && html`<path class="band" d="${band}"/>`}${
    dots !== "" && html`<path class="${kind}" d="${dots}"/>`
  }<path class="line${dash}" d="${path}"/></g>`;
}

/** A description of the chart for screen readers. */
function spoken(lines: readonly Line[], unit: "" | "%"): string {
  return lines
    .map(({ label, series }) => {
      const first = series.values.find(Number.isFinite) ?? Number.NaN;
      const last = series.values.findLast(Number.isFinite) ?? Number.NaN;
      const [from, to] = [series.steps[0] ?? 0, series.steps.at(-1) ?? 0];
      return `${label} ${numberText(first, unit)} at step ${from}, ${numberText(last, unit)} at step ${to}`;
    })
    .join("; ");
}

/** A drawing between its axes. */
export function chartFrame(
  drawing: Html,
  x: Axis,
  y: Axis,
  options: { unit?: "" | "%"; label: string; below: string; beside?: string; over?: Html },
): Html {
  const { unit = "", label, below, beside, over } = options;
  const percent = (place: number): string => `${round(place * 100)}%`;
  const text = (tick: number): string =>
    unit === "%" ? `${Number((tick * 100).toPrecision(6))} %` : y.text(tick);
  const levels = y.ticks.map((tick) => ({ text: text(tick), place: 1 - y.place(tick) }));
  const longest = levels.map((level) => level.text).reduce((a, b) => (b.length > a.length ? b : a), "");
  const grid = levels.map(({ place }) => `M0 ${round(place * HEIGHT)}h${WIDTH}`).join("");
  return html`<div class="frame">
<div class="y"><span class="sizer">${longest}</span>${levels.map((level) => html`<span style="top:${percent(level.place)}">${level.text}</span>`)}</div>
<div class="plot" role="img" tabindex="0" aria-label="${label}"><svg viewBox="0 0 ${WIDTH} ${HEIGHT}" preserveAspectRatio="none" aria-hidden="true"><path class="grid" d="${grid}"/>${drawing}</svg>${over}</div>
<div class="x">${x.ticks.map((tick) => html`<span style="left:${percent(x.place(tick))}">${x.text(tick)}</span>`)}</div>
<p class="below">${beside !== undefined && html`<span>up: ${beside};</span> `}${below}</p>
</div>`;
}

/** A part of a whole over the iterations, such as the seconds of a phase. */
export interface Layer {
  readonly label: string;
  readonly series: Series;
}

/** Parts of a whole, one on the other, as bars of neighbouring steps. */
export function stackedChart(
  chart: { title: string; about: string; unit: string },
  layers: readonly Layer[],
): Html {
  const steps = [...new Set(layers.flatMap(({ series }) => series.steps))].sort((a, b) => a - b);
  const size = Math.ceil(steps.length / 80);
  const bars = Array.from({ length: Math.ceil(steps.length / size) }, (_, i) =>
    steps.slice(i * size, i * size + size),
  );
  const parts = layers.map(({ series }) => {
    const at = new Map(series.steps.map((step, i) => [step, series.values[i] as number]));
    // A phase that a step did not have took no time in it.
    const sums = bars.map((bar) => bar.reduce((sum, step) => sum + finite(at.get(step)), 0));
    return sums.map((sum, i) => sum / (bars[i] as number[]).length);
  });
  const totals = bars.map((_, i) => parts.reduce((sum, part) => sum + (part[i] as number), 0));
  const x = axisOf([(steps[0] ?? 0) - 0.5, (steps.at(-1) ?? 0) + 0.5], {
    margin: 0,
    isWhole: true,
    count: 4,
  });
  const y = axisOf(totals, { hasZero: true });
  const below = bars.map(() => 0);
  const drawn = parts.map((part, k) => {
    const path = part.map((height, i) => {
      const bar = bars[i] as number[];
      const [left, right] = [
        (bar[0] as number) - 0.5,
        (bars[i + 1]?.[0] ?? (bar.at(-1) as number) + 1) - 0.5,
      ];
      const base = below[i] as number;
      below[i] = base + height;
      const [x0, x1] = [round(x.place(left) * WIDTH), round(x.place(right) * WIDTH)];
      const [y0, y1] = [round((1 - y.place(base)) * HEIGHT), round((1 - y.place(base + height)) * HEIGHT)];
      return y0 === y1 ? "" : `M${x0} ${y0}V${y1}H${x1}V${y0}Z`;
    });
    return html`<path class="bar ${colorOf(k)}" d="${path.join("")}"/>`;
  });
  const whole = totals.reduce((a, b) => a + b, 0);
  const keys = layers.map(({ label }, k) => {
    const share = whole === 0 ? 0 : (parts[k] as number[]).reduce((a, b) => a + b, 0) / whole;
    return legendKey("solid", k, label, numberText(share, "%"));
  });
  const data = {
    x: [x.low, x.high],
    unit: "",
    lines: layers.map(({ label }, k) => ({
      label,
      color: k % 8,
      steps: bars.map((bar) => readable(((bar[0] as number) + (bar.at(-1) as number)) / 2)),
      values: (parts[k] as number[]).map(readable),
    })),
  };
  const label = `${chart.title}: ${layers.map((layer) => layer.label).join(", ")}`;
  const mean = size > 1 ? ` Each bar is the mean of ${size} steps.` : "";
  return chartFigure({
    title: chart.title,
    keys,
    frame: chartFrame(html`${drawn}`, x, y, { label, below: "step" }),
    about: html`${chart.about}${mean} In ${chart.unit}; the legend has each part's share.`,
    data,
  });
}

const finite = (value: number | undefined): number =>
  value === undefined || !Number.isFinite(value) ? 0 : value;

/** A small line without axes, beside a number. */
export function sparkPath(values: readonly number[]): string {
  const steps = values.map((_, i) => i);
  const x = axisOf([0, Math.max(1, values.length - 1)], { margin: 0 });
  return pathOf(steps, values, x, axisOf(values, { margin: 0.1 }));
}
