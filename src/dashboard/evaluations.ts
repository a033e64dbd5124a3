/**
 * What `rlar eval --json` found of a run's models, where its file lies in the run's folder: tables of one policy or of
 * two with intervals, verdicts, and charts of closeness against realism.
 */
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import type { ModelEvaluation } from "../evaluation/judge_models.js";
import { type Estimate, type EvalRow, MEASURES, type Measures } from "../evaluation/options.js";
import { freeVerdictText, verdictText } from "../evaluation/verdict.js";
import { frame, HEIGHT, WIDTH } from "./curves.js";
import { type Html, html, type Piece, table } from "./page.js";
import { type Axis, axisOf, numberText, rowTexts } from "./scale.js";

/** An evaluation in a run's folder. */
export interface EvalFile {
  readonly file: string;
  /** Milliseconds since 1970 when it was written. */
  readonly writtenAt: number;
  readonly evaluation: ModelEvaluation;
}

/** Evaluations in the files `eval*.json` of a folder; those that are none are named in `unread`, with the reason. */
export function readEvaluations(folder: string, unread: string[]): EvalFile[] {
  return readdirSync(folder)
    .filter((name) => /^eval.*\.json$/.test(name))
    .sort()
    .flatMap((file): EvalFile[] => {
      const path = join(folder, file);
      try {
        const evaluation = evaluationOf(JSON.parse(readFileSync(path, "utf8")));
        return [{ file, writtenAt: statSync(path).mtimeMs, evaluation }];
      } catch (error) {
        unread.push(`${file}: ${(error as Error).message}`);
        return [];
      }
    });
}

/** @throws RangeError for what is no evaluation. */
function evaluationOf(value: unknown): ModelEvaluation {
  const given = value as Partial<ModelEvaluation> | null;
  if (typeof given !== "object" || given === null || !Array.isArray(given.rows))
    throw new RangeError("expected what rlar eval --json writes, got other data.");
  const { completion = [], free = [] } = given.verdicts ?? {};
  const none = { training: null, reconstructed: null, heldOut: null };
  return {
    ...(given as ModelEvaluation),
    files: given.files ?? [],
    networks: given.networks ?? [],
    real: given.real ?? none,
    reconstruction: given.reconstruction ?? null,
    likelihoods: given.likelihoods ?? [],
    rows: given.rows.map((row) => ({ ...row, free: row.free ?? null, completions: row.completions ?? [] })),
    verdicts: { completion, free },
    notes: given.notes ?? [],
  };
}

/** A column of a table: what it is of. */
interface Column {
  readonly title: Piece;
  readonly measures: Measures | null;
}

/** The sections on the evaluations of a run; nothing where there are none. */
export function evalSection(files: readonly EvalFile[]): Html {
  return html`${files.map(({ file, evaluation }) => {
    const title = files.length === 1 ? "Evaluation of the models" : `Evaluation of the models: ${file}`;
    return html`<h3>${title}</h3>${oneEvaluation(evaluation)}`;
  })}`;
}

function oneEvaluation(evaluation: ModelEvaluation): Html {
  const { rows, notes, networks, settings, files } = evaluation;
  const labels = [...new Set(rows.map(({ policy }) => policy))];
  const names = labels.map((label) => {
    const path = files.find(({ role }) => role === label)?.path;
    return html`<li><b>${label}</b>: ${path ?? "a program's own policy"}${label === "A" && labels.length > 1 && " (before)"}${label === "B" && " (after)"}</li>`;
  });
  const judges = networks.map(({ name }, k) => html`<li><b>[${k + 1}]</b>: features of ${name}</li>`);
  const verdicts = verdictsOf(evaluation);
  const prefixes = [...new Set(rows.flatMap(({ completions }) => completions.map(({ prefix }) => prefix)))];
  const frontiers = frontiersOf([{ label: "", color: 0, evaluation }]);
  return html`<ul class="plain">${names}${judges}</ul>
${verdicts.length > 0 && html`<ul class="notices">${verdicts.map((text) => html`<li class="verdict"><b>verdict</b> ${text}</li>`)}</ul>`}
${frontiers.length > 0 && html`<div class="charts two">${frontiers.map(frontierChart)}</div>`}
${prefixes.map((prefix) => completionTable(evaluation, prefix, labels))}
${freeTable(evaluation, labels)}
${likelihoodTable(evaluation)}
<p class="about">${intervalText(settings)}</p>
${notes.length > 0 && html`<details><summary>Notes of the evaluation</summary><ul>${notes.map((note) => html`<li>${note}</li>`)}</ul></details>`}`;
}

/** Its first lines, one a verdict; how each point stands is on the chart. */
function verdictsOf({ verdicts: { completion, free } }: ModelEvaluation): string[] {
  return [...completion.flatMap((verdict) => verdictText(verdict).slice(0, 1)), ...free.map(freeVerdictText)];
}

function intervalText(settings: Partial<ModelEvaluation["settings"]> | undefined): string {
  const { seeds = [], resamples = 0, samples } = settings ?? {};
  const drawn = samples === undefined ? "" : ` ${samples} free samples a point.`;
  if (seeds.length > 1) return `In brackets: least and greatest of seeds ${seeds.join(", ")}.${drawn}`;
  if (resamples === 0) return `No intervals were computed.${drawn}`;
  return `In brackets: 95 % intervals, from ${resamples} resamples. A change is called better or worse where the intervals of A and B are apart.${drawn}`;
}

/** The row of a policy that is sampled as it is, at temperature 1 without guidance, or next to that. */
function plainRow(rows: readonly EvalRow[], label: string): EvalRow | undefined {
  const farness = ({ temperature, cfg }: EvalRow): number =>
    Math.abs(Math.log(temperature)) + Math.abs(cfg - 1);
  return rows.filter(({ policy }) => policy === label).sort((a, b) => farness(a) - farness(b))[0];
}

const pointTitle = (label: string, row: EvalRow | undefined): Html =>
  html`${label}<br><span class="quiet">T ${row?.temperature ?? "?"}${row !== undefined && row.cfg !== 1 && ` cfg ${row.cfg}`}</span>`;

function completionTable(
  { rows, reconstruction, networks }: ModelEvaluation,
  prefix: number,
  labels: readonly string[],
): Html {
  const of = (row: EvalRow | undefined): Measures | null =>
    row?.completions.find((each) => each.prefix === prefix)?.measures ?? null;
  const columns = [
    { title: "ceiling: reconstruction", measures: reconstruction },
    ...labels.map((label) => ({
      title: pointTitle(label, plainRow(rows, label)),
      measures: of(plainRow(rows, label)),
    })),
  ];
  const images = columns.at(-1)?.measures?.images;
  return html`<h4>Completions after ${prefix} given codes${images !== undefined && `, ${images} images`}</h4>
${measuresTable(columns, networks, labels.length)}`;
}

function freeTable({ rows, real, networks }: ModelEvaluation, labels: readonly string[]): Html | null {
  if (rows.every(({ free }) => free === null)) return null;
  const columns = [
    { title: "training images", measures: real.training },
    { title: "their reconstructions", measures: real.reconstructed },
    { title: "held-out images", measures: real.heldOut },
    ...labels.map((label) => ({
      title: pointTitle(label, plainRow(rows, label)),
      measures: plainRow(rows, label)?.free ?? null,
    })),
  ];
  return html`<h4>Free samples</h4>${measuresTable(columns, networks, labels.length)}`;
}

/** A row a measure. With two policies, which are the last columns, the change from one to the other. */
function measuresTable(
  columns: readonly Column[],
  networks: ModelEvaluation["networks"],
  policies: number,
): Html {
  const known = columns.filter(({ measures }) => measures !== null);
  const plain = new Set(known.flatMap(({ measures }) => Object.keys(measures?.plain ?? {})));
  const lines = [...plain].map((name) => ({ name, mark: "", of: (m: Measures | null) => m?.plain[name] }));
  for (const [k, { name: network }] of networks.entries()) {
    const names = new Set(known.flatMap(({ measures }) => Object.keys(measures?.networks[network] ?? {})));
    for (const name of names)
      lines.push({ name, mark: ` [${k + 1}]`, of: (measures) => measures?.networks[network]?.[name] });
  }
  const rows = lines.map(({ name, mark, of }) => {
    const estimates = known.map(({ measures }) => of(measures));
    const [before, after] = estimates.slice(-2);
    const about = MEASURES[name]?.about ?? "";
    return [
      html`<abbr title="${about}">${titleOf(name)}</abbr>${mark}`,
      ...estimateCells(estimates),
      ...(policies > 1 ? [changeCell(name, before, after)] : []),
    ];
  });
  return table(["", ...known.map(({ title }) => title), ...(policies > 1 ? ["change"] : [])], rows);
}

const TITLES: Readonly<Record<string, string>> = {
  l1: "L1",
  l2: "L2",
  psnr: "PSNR (dB)",
  ssim: "SSIM",
  ms_ssim: "MS-SSIM",
  lpips: "LPIPS",
  fd_train: "FD to training images",
  fd_held_out: "FD to held-out images",
  kd_train: "KD to training images",
  kd_held_out: "KD to held-out images",
};

const titleOf = (name: string): string => TITLES[name] ?? name.replaceAll("_", " ");

function estimateCells(estimates: readonly (Estimate | undefined)[]): Piece[] {
  const numbers = estimates.flatMap((of) =>
    of === undefined ? [Number.NaN, Number.NaN, Number.NaN] : [of.value, of.low, of.high],
  );
  const texts = rowTexts(numbers.map((number) => number ?? Number.NaN));
  return estimates.map((of, i) => {
    if (of === undefined) return "";
    const [value, low, high] = texts.slice(3 * i, 3 * i + 3);
    return of.low === null || of.high === null
      ? value
      : html`${value}<br><span class="quiet">[${low}, ${high}]</span>`;
  });
}

function changeCell(name: string, before: Estimate | undefined, after: Estimate | undefined): Piece {
  if (before === undefined || after === undefined) return "";
  const change = ((after.value - before.value) / Math.abs(before.value)) * 100;
  const better = MEASURES[name]?.better ?? "none";
  const isApart =
    before.low !== null &&
    before.high !== null &&
    after.low !== null &&
    after.high !== null &&
    (after.high < before.low || after.low > before.high);
  const isBetter = after.value > before.value === (better === "higher");
  const word = better === "none" || !isApart ? "" : isBetter ? "better" : "worse";
  const text =
    name === "psnr" || !Number.isFinite(change) ? "" : `${change > 0 ? "+" : ""}${change.toFixed(1)} %`;
  return html`${text} <span class="${word}">${word}</span>`;
}

function likelihoodTable({ likelihoods }: ModelEvaluation): Html | null {
  if (likelihoods.length === 0) return null;
  const columns = ["nats a code", "perplexity", "top-1"];
  const cells = likelihoods.map(({ natsPerToken, perplexity, top1 }) => [natsPerToken, perplexity, top1]);
  const rows = likelihoods.map(({ policy }, i) => [
    policy,
    // Each column by itself: its numbers are read beside each other.
    ...columns.map((_, c) => estimateCells(cells.map((row) => row[c]))[i]),
  ]);
  return html`<h4>True codes of ${likelihoods[0]?.images ?? "the"} held-out images</h4>${table(["", ...columns], rows)}`;
}

/** An evaluation among others on one chart. */
export interface Compared {
  /** Of the run; empty where there is one alone. */
  readonly label: string;
  readonly color: number;
  readonly evaluation: ModelEvaluation;
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
      { title: `${what} against Fréchet distance`, network, prefix, across: what.replace("P", "p"), series },
    ];
  });
}

function pointsOf(
  rows: readonly EvalRow[],
  wanted: { policy: string; network: string; prefix: number; measure: string },
): FrontierSeries["points"] {
  const hasScales = new Set(rows.map(({ cfg }) => cfg)).size > 1;
  return rows.flatMap(({ policy, temperature, cfg, completions }) => {
    const measures = completions.find(({ prefix }) => prefix === wanted.prefix)?.measures;
    const own = measures?.networks[wanted.network];
    const fd = own?.fd_train?.value;
    const value = (wanted.measure === "l2" ? measures?.plain.l2 : own?.perceptual)?.value;
    if (policy !== wanted.policy || typeof fd !== "number" || typeof value !== "number") return [];
    return [{ label: hasScales ? `${temperature}, ${cfg}` : `${temperature}`, group: cfg, x: value, y: fd }];
  });
}

/** A policy at a setting; less is better in both. */
export interface FrontierPoint {
  /** Such as the temperature. */
  readonly label: string;
  /** Points of a group are joined. */
  readonly group: number;
  readonly x: number;
  readonly y: number;
}

/** The points of a policy. */
export interface FrontierSeries {
  readonly label: string;
  /** Grey where left out. */
  readonly color: number | undefined;
  /** Whether others are measured by it: what it reaches is shaded. */
  readonly isBase: boolean;
  readonly points: readonly FrontierPoint[];
}

/** A chart of them. */
export interface Frontier {
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

export function frontierChart({ title, network, prefix, across, series }: Frontier): Html {
  const all = series.flatMap(({ points }) => points);
  const x = axisOf(
    all.map((point) => point.x),
    { margin: 0.12 },
  );
  const y = axisOf(
    all.map((point) => point.y),
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
  const keys = series.map(
    ({ label, color }) => html`<li><i class="key mark ${colorOf(color)}"></i>${label}</li>`,
  );
  const hasBase = series.some(({ isBase }) => isBase);
  const spoken = series.map(({ label, points }) => {
    const texts = points.map((point) => `${point.label}: ${numberText(point.x)}, ${numberText(point.y)}`);
    return `${label} ${texts.join("; ")}`;
  });
  return html`<figure class="chart square">
<figcaption><h4>${title}</h4><ul class="legend">${keys}</ul></figcaption>
${frame(html`${drawn}`, x, y, { label: `${title}. ${spoken.join(". ")}`, below: `across: ${across}`, beside: "Fréchet distance", over: html`${over}` })}
<p class="about">Completions after ${prefix} codes, a point a temperature (with a guidance scale where there are several); features of ${network}. Less is better in both.${
    hasBase &&
    " Shaded: what the policy before reaches, or worse. Good: points of the other below or to the left of that."
  }</p>
</figure>`;
}

const colorOf = (color: number | undefined): string => (color === undefined ? "grey" : `c${color % 8}`);
const round = (number: number): number => Number(number.toFixed(1));
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
  const edge = isBase ? staircase(points, x, y) : "";
  return html`<g class="${colorOf(color)}">${
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

/** Labels on sides where they cover neither each other nor a point; one that finds no place is left out. */
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
