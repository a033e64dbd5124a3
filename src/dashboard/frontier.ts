/**
 * Two measures against each other, a point a temperature: what a policy gives at any of its settings, and whether
 * another gives what it cannot.
 */
import { frame, HEIGHT, WIDTH } from "./chart.js";
import { type Html, html } from "./html.js";
import { type Axis, axisOf, numberText } from "./scale.js";

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
