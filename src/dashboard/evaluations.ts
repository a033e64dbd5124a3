/**
 * The report's section on evaluations: verdicts, tables with intervals, and charts of closeness against realism, from the files of
 * `rlar eval --json` in the run's folder.
 */

import { bestStanding, isApart } from "../evaluation/frontier.js";
import type { Estimate, EvalRow, Measures } from "../evaluation/options.js";
import { followingSources, networkMark, pointText, tablesOf } from "../evaluation/tables.js";
import {
  agreementTexts,
  FRONTIER_TEXT,
  freeVerdictText,
  verdictText,
  warningsOf,
} from "../evaluation/verdict.js";
import { measureOf } from "../metrics/measures.js";
import { chartFigure, chartFrame, colorOf, HEIGHT, legendKey, round, WIDTH } from "./curves.js";
import { type Html, hint, html, list, notices, type Piece, raw, table, told } from "./page.js";
import type { EvalFile, SomeEvaluation } from "./reading.js";
import { changeText } from "./results.js";
import { type Axis, axisOf, numberText, rowTexts } from "./scale.js";

/**
 * The sections on the evaluations of a run; empty without evaluations.
 *
 * @param pictures - shown after the verdicts of the first.
 */
export function evalSection(files: readonly EvalFile[], pictures: Html | null = null): Html {
  return html`${files.map(({ file, evaluation }, i) => {
    const title = files.length === 1 ? "The models, judged by rlar eval" : `The models, judged: ${file}`;
    return html`<h3>${title}</h3>${oneEvaluation(evaluation, i === 0 ? pictures : null)}`;
  })}`;
}

function oneEvaluation(evaluation: SomeEvaluation, pictures: Html | null): Html {
  const { rows, notes, networks, settings, files, judged } = evaluation;
  const labels = [...new Set(rows.map(({ policy }) => policy))];
  const role = (label: string): string =>
    labels.length < 2 ? "" : ({ A: " (before)", B: " (after)" }[label] ?? "");
  const names = labels.map((label) => {
    const path = files.find(({ role }) => role === label)?.path;
    return html`<b>${label}</b>: ${path ?? "a program's own policy"}${role(label)}`;
  });
  const judges = networks.map(({ name }) => html`<b>${networkMark(networks, name)}</b>: features of ${name}`);
  // The first judge is shown. Others, and the reward's own networks, are in parts that unfold.
  const judging = independent(networks);
  const [first, ...others] = judging;
  const verdictsBy = (some: readonly string[]): string[] =>
    verdictsOf(evaluation, (network) => some.includes(network));
  const frontiers = frontiersOf([{ label: "", color: 0, evaluation }]);
  const chartsBy = (some: readonly string[]): Html | null =>
    frontierCharts(frontiers.filter(({ network }) => some.includes(network)));
  const paid = networks.map(({ name }) => name).filter((name) => !judging.includes(name));
  const [split, agreed] = [false, true].map((isAgreed) =>
    agreementTexts(
      evaluation.agreements.filter(({ changes }) => isAgreed === (changes?.agreed === changes?.settings)),
      networks,
    ),
  ) as [string[], string[]];
  const main = verdictTables(evaluation);
  const shown = first === undefined ? [] : [first];
  return html`${judged !== null && html`<p>Judged: ${judged.text}.</p>`}
${notices([
  ...told("verdict", verdictsBy(shown)),
  ...told("verdict", split),
  ...told("warning", warningsOf(evaluation)),
  ...told("problem", unreadableOf(evaluation)),
])}${list([...names, ...judges])}${pictures}${main}
${chartsBy(shown)}
${
  others.length > 0 &&
  html`<details><summary>By the other networks: ${others.map((name) => networkMark(networks, name)).join(", ")}</summary>${notices(
    told("verdict", [...verdictsBy(others), ...agreed]),
  )}${chartsBy(others)}</details>`
}<details${raw(main === null ? " open" : "")}><summary>All tables: reconstruction, likelihood, free samples, completions</summary>${notices(told("verdict", verdictsBy(paid)))}${chartsBy(paid)}
${allTables(evaluation)}<p class="about">${intervalText(settings)}</p>
${notes.length > 0 && html`<h4>Notes of the evaluation</h4>${list(notes)}`}</details>`;
}

/** Images that could not be read. */
function unreadableOf({ data }: SomeEvaluation): string[] {
  const sides = [
    ["held-out", data?.heldOut?.unreadable ?? []],
    ["training", data?.train.unreadable ?? []],
  ] as const;
  return sides.flatMap(([which, names]) =>
    names.length === 0 ? [] : [`${names.length} unreadable ${which} images: ${shortList(names)}.`],
  );
}

/** The first of some names, and how many there are. */
export function shortList(names: readonly string[], most = 10, between = ", "): string {
  const rest = names.length > most ? `${between}... (${names.length} in all)` : "";
  return `${names.slice(0, most).join(between)}${rest}`;
}

/** The summary of each verdict; how each point stands is on the chart. */
function verdictsOf(
  { verdicts: { completion, free }, networks }: SomeEvaluation,
  isWanted: (network: string) => boolean,
): string[] {
  const wanted = <T extends { readonly network: string }>(all: readonly T[]): T[] =>
    all.filter(({ network }) => isWanted(network));
  return [
    ...wanted(completion).map((verdict) => verdictText(verdict, networks)[0]),
    ...wanted(free).map((verdict) => freeVerdictText(verdict, networks)),
  ];
}

function intervalText({ seeds = [], resamples = 0 }: SomeEvaluation["settings"]): string {
  if (seeds.length > 1) return `In brackets: minimum and maximum over seeds ${seeds.join(", ")}.`;
  if (resamples === 0) return "No intervals were computed.";
  return `In brackets: 95 % intervals, from ${resamples} resamples. A change is called better or worse where the intervals of A and B do not overlap.`;
}

/** The networks that the reward has not used, or all where there is none; first those that learnt from other images. */
function independent(networks: SomeEvaluation["networks"]): readonly string[] {
  const free = networks.filter(({ isRewarded }) => isRewarded !== true);
  const kin = ({ sharesImages }: SomeEvaluation["networks"][number]): number =>
    sharesImages === true ? 1 : 0;
  return (free.length > 0 ? free : [...networks]).sort((a, b) => kin(a) - kin(b)).map(({ name }) => name);
}

/** Of each prefix: the settings that the verdict compares, side by side; null where there is no verdict. */
function verdictTables(evaluation: SomeEvaluation): Html | null {
  const { rows, verdicts, networks } = evaluation;
  const judges = independent(networks);
  const of = verdicts.completion.filter(({ network }) => judges.includes(network));
  const rowAt = (policy: string, point: { temperature: number; cfg: number } | undefined) =>
    rows.find(
      (row) => row.policy === policy && row.temperature === point?.temperature && row.cfg === point?.cfg,
    );
  const tables = [...new Set(of.map(({ prefix }) => prefix))].flatMap((prefix) => {
    const own = of.filter((each) => each.prefix === prefix);
    const verdict = own.find(({ network }) => network === judges[0]) ?? own[0];
    const best = verdict && bestStanding(verdict);
    const [a, b] = [rowAt("A", best?.rival), rowAt("B", best?.point)];
    return a === undefined || b === undefined ? [] : [verdictTable(evaluation, prefix, a, b)];
  });
  return tables.length === 0 ? null : html`${tables}`;
}

/** What a verdict is about; all else is in the tables that unfold. */
const MAIN: ReadonlySet<string> = new Set(["l2", "lpips", "perceptual", "fd_train"]);

/** A row per measure: the ceiling, A, B, and the change from one to the other. */
function verdictTable(evaluation: SomeEvaluation, prefix: number, a: EvalRow, b: EvalRow): Html {
  const { reconstruction } = evaluation;
  const completed = (row: EvalRow): Measures | null =>
    row.completions.find((each) => each.prefix === prefix)?.measures ?? null;
  const [before, after] = [completed(a), completed(b)];
  const rows = followingSources(evaluation).flatMap(({ measure, mark, of }): Piece[][] => {
    const [start, end] = [before, after].map((set) => (set === null ? undefined : of(set)));
    if (!MAIN.has(measure) || (start === undefined && end === undefined)) return [];
    const { title, about, unit } = measureOf(measure);
    const cells = estimateCells([...(reconstruction === null ? [] : [of(reconstruction)]), start, end], unit);
    return [[hint(`${title} ${mark}`.trim(), about), ...cells, changeCell(measure, start, end)]];
  });
  const column = (row: EvalRow): Html => html`${row.policy}<br><span class="quiet">${pointText(row)}</span>`;
  const images = reconstruction === null ? "" : ` of ${reconstruction.images} held-out images`;
  return html`<h4>Completions after ${prefix} given codes${images}, at the settings of the verdict</h4>
${table(["", ...(reconstruction === null ? [] : ["ceiling: reconstruction"]), column(a), column(b), "change"], rows)}`;
}

/** All tables, a row per set of images. */
function allTables(evaluation: SomeEvaluation): Html {
  const tables = tablesOf(evaluation).map(({ title, columns, rows }) => {
    const head = columns.map(({ measure, mark }) => {
      const { title, about } = measureOf(measure);
      return hint(`${title} ${mark}`.trim(), about);
    });
    // Numbers of a column are compared with each other.
    const cells = columns.map(({ measure }, c) =>
      estimateCells(
        rows.map(([, row]) => row[c]),
        measureOf(measure).unit,
      ),
    );
    const body = rows.map(([name], r) => [name, ...cells.map((column) => column[r])]);
    return html`<h4>${title}</h4>${table(["", ...head], body)}`;
  });
  return html`${tables}`;
}

function estimateCells(estimates: readonly (Estimate | undefined)[], unit: "" | "%" = ""): Piece[] {
  const texts = rowTexts(
    estimates.flatMap((of) => [of?.value, of?.low, of?.high].map((number) => number ?? Number.NaN)),
    unit,
  );
  return estimates.map((of, i) => {
    if (of === undefined) return "";
    const [value, low, high] = texts.slice(3 * i, 3 * i + 3);
    return of.low === null || of.high === null
      ? value
      : html`${value} <span class="quiet range">[${low}, ${high}]</span>`;
  });
}

function changeCell(name: string, before: Estimate | undefined, after: Estimate | undefined): Piece {
  if (before === undefined || after === undefined) return "";
  const { sign } = measureOf(name);
  const moved = after.value - before.value;
  const hasIntervals = before.low !== null && after.low !== null;
  const word =
    sign === 0 || !hasIntervals || !isApart(before, after) ? "" : moved * sign > 0 ? "better" : "worse";
  const text = changeText({ name, change: moved / Math.abs(before.value) });
  return html`${text} <span class="${word}">${word}</span>`;
}

/** An evaluation among others on one chart. */
interface Compared {
  /** Of the run; empty where there is one alone. */
  readonly label: string;
  readonly color: number;
  readonly evaluation: SomeEvaluation;
}

/**
 * Points of all temperatures: how close completions come to their images against how real they look as a set. A chart
 * for each network, prefix and measure of closeness that has points of at least two temperatures or scales.
 */
export function frontiersOf(compared: readonly Compared[]): Frontier[] {
  const keys = new Map<string, { network: string; prefix: number; measure: string }>();
  for (const { evaluation } of compared)
    for (const { completions } of evaluation.rows)
      for (const { prefix, measures } of completions)
        for (const network of Object.keys(measures.networks))
          for (const measure of ["l2", "perceptual"])
            keys.set(`${network} ${prefix} ${measure}`, { network, prefix, measure });
  return [...keys.values()].flatMap(({ network, prefix, measure }) => {
    const bases = new Set<string>();
    const series = compared.flatMap(({ label, color, evaluation }) =>
      ["A", "B"].flatMap((policy): FrontierSeries[] => {
        const isBase = policy === "A" && evaluation.rows.some((row) => row.policy === "B");
        const points = pointsOf(evaluation.rows, { policy, network, prefix, measure });
        const file = evaluation.files.find(({ role }) => role === policy);
        // Runs that began from the same policy have one base.
        const key = file?.sha256 ?? `${label} ${policy}`;
        if (points.length === 0 || (isBase && bases.has(key))) return [];
        if (isBase) bases.add(key);
        const own = policy === "A" ? "A" : "B, fine-tuned";
        const base = bases.size > 1 ? `${label}: before` : "before";
        const named = label === "" ? (isBase ? "A, before" : own) : isBase ? base : label;
        return [{ label: named, color: isBase ? undefined : color, isBase, points }];
      }),
    );
    const count = Math.max(0, ...series.map(({ points }) => points.length));
    if (count < 2) return [];
    const what = measure === "l2" ? "L2" : "Perceptual distance";
    return [
      {
        title: `${what} against Fréchet distance${isPaid(compared, network) ? " [rewarded]" : ""}`,
        network,
        prefix,
        across: what.replace("P", "p"),
        series,
      },
    ];
  });
}

const rangeOf = ({ low, high }: Estimate): readonly [number, number] | null =>
  low === null || high === null ? null : [low, high];

/** Whether the reward of one of the runs used a network. */
const isPaid = (compared: readonly Compared[], network: string): boolean =>
  compared.some(({ evaluation }) =>
    evaluation.networks.some(({ name, isRewarded }) => name === network && isRewarded === true),
  );

function pointsOf(
  rows: readonly EvalRow[],
  wanted: { policy: string; network: string; prefix: number; measure: string },
): FrontierSeries["points"] {
  const hasScales = new Set(rows.map(({ cfg }) => cfg)).size > 1;
  return rows.flatMap(({ policy, temperature, cfg, completions }) => {
    const measures = completions.find(({ prefix }) => prefix === wanted.prefix)?.measures;
    const own = measures?.networks[wanted.network];
    const fd = own?.fd_train;
    const value = wanted.measure === "l2" ? measures?.plain.l2 : own?.perceptual;
    if (policy !== wanted.policy || fd === undefined || value === undefined) return [];
    const range = rangeOf(fd);
    return [
      {
        label: hasScales ? `${temperature}, ${cfg}` : `${temperature}`,
        group: cfg,
        x: value.value,
        y: fd.value,
        ...(range && { range }),
      },
    ];
  });
}

/** A policy at a setting; lower is better in both. */
export interface FrontierPoint {
  /** Such as the temperature. */
  readonly label: string;
  /** Points of a group are joined. */
  readonly group: number;
  readonly x: number;
  readonly y: number;
  /** The interval of the Fréchet distance, where there is one. Closeness is compared image by image, so has none here. */
  readonly range?: readonly [low: number, high: number];
}

/** The points of a policy. */
interface FrontierSeries {
  readonly label: string;
  /** Default grey. */
  readonly color: number | undefined;
  /** Whether others are measured by it: what it reaches is shaded. */
  readonly isBase: boolean;
  readonly points: readonly FrontierPoint[];
}

/** A chart of them. */
interface Frontier {
  readonly title: string;
  /** That the Fréchet distance is of. */
  readonly network: string;
  readonly prefix: number;
  /** What is across. */
  readonly across: string;
  readonly series: readonly FrontierSeries[];
}

/** Points that none of the others is as good as in both, from the least x on. */
export function undominated<P extends { readonly x: number; readonly y: number }>(points: readonly P[]): P[] {
  const sorted = [...points].sort((a, b) => a.x - b.x || a.y - b.y);
  let least = Infinity;
  return sorted.filter(({ y }) => {
    const isBetter = y < least;
    if (isBetter) least = y;
    return isBetter;
  });
}

/** Charts with what they show; nothing where there are none. */
export const frontierCharts = (charts: readonly Frontier[]): Html | null =>
  charts.length === 0
    ? null
    : html`<p class="about">${FRONTIER_TEXT} A point is a temperature, with its guidance scale where there are several; bars are 95 % intervals of the FD; shaded is what A reaches, or worse. Good: points of B to the left of that, or below it with their bars.</p>
<div class="charts two">${charts.map(frontierChart)}</div>`;

export function frontierChart({ title, network, prefix, across, series }: Frontier): Html {
  const all = series.flatMap(({ points }) => points);
  const x = axisOf(
    all.map((point) => point.x),
    { margin: 0.12, count: 4 },
  );
  const y = axisOf(
    all.flatMap((point) => [point.y, ...(point.range ?? [])]),
    { margin: 0.12 },
  );
  const drawn = series.map((one) => drawSeries(one, x, y));
  const labels = placedLabels(
    series.flatMap(({ points, color, isBase }) =>
      points.map((point) => {
        return { text: point.label, color, isBase, x: x.place(point.x), y: 1 - y.place(point.y) };
      }),
    ),
  );
  const over = labels.map(
    ({ text, left, top, side, color }) =>
      html`<span class="at ${side} ${colorOf(color)}" style="left:${percent(left)};top:${percent(top)}">${text}</span>`,
  );
  const keys = series.map(({ label, color }) => legendKey("mark", color, label));
  const spoken = series.map(({ label, points }) => {
    const texts = points.map((point) => `${point.label}: ${numberText(point.x)}, ${numberText(point.y)}`);
    return `${label} ${texts.join("; ")}`;
  });
  return chartFigure({
    title,
    kind: "square",
    keys,
    frame: chartFrame(html`${drawn}`, x, y, {
      label: `${title}. ${spoken.join(". ")}`,
      below: `across: ${across}`,
      beside: "Fréchet distance",
      over: html`${over}`,
    }),
    about: html`Completions after ${prefix} codes; features of ${network}.`,
  });
}

const percent = (place: number): string => `${round(place * 100)}%`;

function drawSeries({ points, color, isBase }: FrontierSeries, x: Axis, y: Axis): Html {
  const at = (point: FrontierPoint): string =>
    `${round(x.place(point.x) * WIDTH)} ${round((1 - y.place(point.y)) * HEIGHT)}`;
  const groups = [...new Set(points.map(({ group }) => group))];
  const lines = groups.map(
    (group) =>
      `M${points
        .filter((point) => point.group === group)
        .map(at)
        .join("L")}`,
  );
  const marks = points.map((point) => `M${at(point)}h0`).join("");
  const bars = points
    .flatMap((point) => (point.range ?? []).map((y) => ({ ...point, y })))
    .map((end, i) => `${i % 2 === 0 ? "M" : "L"}${at(end)}`)
    .join("");
  const edge = isBase ? staircase(points, x, y) : "";
  return html`<g class="${colorOf(color)}">${bars !== "" && html`<path class="interval" d="${bars}"/>`}${
    edge !== "" && html`<path class="band" d="${edge}L${WIDTH} 0Z"/><path class="line dashed" d="${edge}"/>`
  }${!isBase && html`<path class="line thin" d="${lines.join("")}"/>`}<path class="mark" d="${marks}"/></g>`;
}

/** The edge of what points reach: down to the first, then from one to the next by steps, and on to the right. */
export function staircase(points: readonly FrontierPoint[], x: Axis, y: Axis): string {
  const edge = undominated(points);
  const [first] = edge;
  if (first === undefined) return "";
  const across = (point: FrontierPoint): number => round(x.place(point.x) * WIDTH);
  const down = (point: FrontierPoint): number => round((1 - y.place(point.y)) * HEIGHT);
  const steps = edge.map((point) => `H${across(point)}V${down(point)}`);
  return `M${across(first)} 0${steps.join("")}H${WIDTH}`;
}

/** A label beside a point, in parts of the plot. */
interface Label {
  readonly text: string;
  readonly color: number | undefined;
  readonly x: number;
  readonly y: number;
  readonly isBase?: boolean;
}

interface PlacedLabel {
  readonly text: string;
  readonly color: number | undefined;
  readonly left: number;
  readonly top: number;
  readonly side: string;
}

interface Box {
  readonly left: number;
  readonly top: number;
  readonly right: number;
  readonly bottom: number;
}

/** Pixels of the plot on a narrow screen: labels that keep clear of each other there do so on any wider one. */
const NARROW = { width: 270, height: 360 };

/** Sides of a point in the order in which they are tried; the style sheet moves the labels accordingly. */
const SIDES: readonly (readonly [side: string, dx: number, dy: number])[] = [
  ["right", 1, 0],
  ["left", -1, 0],
  ["above", 0, -1],
  ["under", 0, 1],
  ["right above", 0.7, -0.8],
  ["right under", 0.7, 0.8],
  ["left above", -0.7, -0.8],
  ["left under", -0.7, 0.8],
];

/** The same for points whose line goes up and to the right of them. */
const BASE_SIDES: typeof SIDES = ["left under", "left", "under", "right", "above", "left above"].flatMap(
  (side) => SIDES.filter(([name]) => name === side),
);

/** Labels on sides where they cover neither each other nor a point; one that finds no place is omitted. */
export function placedLabels(labels: readonly Label[]): PlacedLabel[] {
  const { width, height } = NARROW;
  const taken: Box[] = labels.map(({ x, y }) => boxOf(x * width, y * height, 9, 9));
  return labels.flatMap(({ text, color, x, y, isBase = false }, own): PlacedLabel[] => {
    const [w, h] = [text.length * 7 + 2, 16];
    for (const [side, dx, dy] of isBase ? BASE_SIDES : SIDES) {
      const box = boxOf(x * width + dx * (w / 2 + 7), y * height + dy * (h / 2 + 5), w, h);
      const isInside = box.left >= 0 && box.right <= width && box.top >= 0 && box.bottom <= height;
      if (!isInside || taken.some((other, i) => i !== own && overlap(box, other))) continue;
      taken.push(box);
      return [{ text, color, left: x, top: y, side }];
    }
    return [];
  });
}

const boxOf = (x: number, y: number, w: number, h: number): Box => ({
  left: x - w / 2,
  top: y - h / 2,
  right: x + w / 2,
  bottom: y + h / 2,
});

const overlap = (a: Box, b: Box): boolean =>
  a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
