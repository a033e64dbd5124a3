/**
 * Whether one policy is better than another at every setting of that other, and the whole evaluation as text for a
 * terminal. The frontier of a policy: what it reaches over its temperatures and guidance scales. A lower temperature or
 * more guidance trades the variety of samples for closeness, so a policy is better only where it gives what no setting
 * of the other gives. Plain numbers in and out.
 */

import type { ModelEvaluation } from "./judge_models.js";
import { type Estimate, type EvalRow, MEASURES, type Measures, type Point } from "./options.js";

/** A policy at a point, in the two measures of a frontier; less is better in both. */
export interface FrontierPoint extends Point {
  /** Fréchet distance. */
  readonly fd: number;
  readonly value: number;
}

/** A point of B and what A has against it. */
export interface Standing {
  readonly point: FrontierPoint;
  /** The best of A's points among those with a Fréchet distance no worse; where A has none, that of its least. */
  readonly rival: FrontierPoint;
  /** Percent by which the point's value lies under the rival's. */
  readonly gain: Estimate;
  /**
   * `beyond`: the value is lower than the rival's. `even`: the same, but the gain's interval holds 0. `behind`: A has as
   * low a value, or lower. `lower_fd`: no point of A has as low a Fréchet distance, and the value is not beyond either.
   */
  readonly standing: "beyond" | "lower_fd" | "even" | "behind";
}

/** How B stands against A's frontier in one measure. */
export interface Verdict {
  /** The network that Fréchet distances, and a perceptual distance, are of. */
  readonly network: string;
  /** `l2` or `perceptual`. */
  readonly measure: string;
  /** Given codes of the completions. */
  readonly prefix: number;
  readonly standings: readonly Standing[];
}

/**
 * Set each of B's points against the best of A's in `value` among those with an FD no worse, or, where B's FD is lower
 * than any, against the one of A's least FD.
 *
 * @param a - at least one point, or nothing is compared.
 * @param gainOf - percent by which a point of B lies under one of A, with the interval over the images.
 */
export function standingsOf(
  a: readonly FrontierPoint[],
  b: readonly FrontierPoint[],
  gainOf: (of: FrontierPoint, rival: FrontierPoint) => Estimate,
): Standing[] {
  const least = leastBy(a, ({ fd }) => fd);
  if (least === undefined) return [];
  return b.map((point): Standing => {
    const among = leastBy(
      a.filter(({ fd }) => fd <= point.fd),
      ({ value }) => value,
    );
    const rival = among ?? least;
    const gain = gainOf(point, rival);
    const isUnder = gain.value > 0;
    const isSure = isUnder && !(gain.low !== null && gain.low <= 0);
    const rest = among === undefined ? "lower_fd" : isUnder ? "even" : "behind";
    return { point, rival, gain, standing: isSure ? "beyond" : rest };
  });
}

/** The point with the least of something, the first of several. */
export function leastBy<P>(points: readonly P[], of: (point: P) => number): P | undefined {
  return points.reduce<P | undefined>(
    (best, point) => (best === undefined || of(point) < of(best) ? point : best),
    undefined,
  );
}

/** The least Fréchet distance of free samples that each policy reaches, and at which point. */
export interface FreeVerdict {
  readonly network: string;
  readonly a: Point & { readonly fd: Estimate };
  readonly b: Point & { readonly fd: Estimate };
}

/** Percent by which `value` lies under `rival`. */
export const percentUnder = (value: number, rival: number): number => (1 - value / rival) * 100;

/** `T 0.8 cfg 1.5`. */
export const pointText = ({ temperature, cfg }: Point): string => `T ${temperature} cfg ${cfg}`;

const NAMES: Readonly<Record<string, string>> = { l2: "l2", perceptual: "perceptual distance" };

/** A verdict in words, a line a point and one that sums up. */
export function verdictText({ network, measure, prefix, standings }: Verdict): string[] {
  const name = NAMES[measure] ?? measure;
  const lines = standings.map(({ point, rival, gain, standing }) => {
    const own = `B ${pointText(point)}: FD ${short(point.fd)}, ${name} ${short(point.value)}`;
    const { value, low, high } = gain;
    const interval = low === null || high === null ? "" : ` [${low.toFixed(1)}, ${high.toFixed(1)}]`;
    const side = value > 0 ? "under" : "over";
    const which = rival.fd > point.fd ? "A's point of least FD, a worse one" : "A's best with FD no worse";
    const of = `${which} (${pointText(rival)}: FD ${short(rival.fd)}, ${short(rival.value)})`;
    const end = standing === "even" ? "; the interval holds 0" : "";
    return `  ${own}, ${Math.abs(value).toFixed(1)} %${interval} ${side} ${of}${end}`;
  });
  const count = (...kinds: Standing["standing"][]): number =>
    standings.filter(({ standing }) => kinds.includes(standing)).length;
  const beyond = count("beyond");
  const most = Math.max(
    ...standings.filter(({ standing }) => standing === "beyond").map(({ gain }) => gain.value),
  );
  const others = [
    count("lower_fd") > 0 ? `${count("lower_fd")} at a lower FD than any of A's` : "",
    count("even") > 0 ? `${count("even")} not told apart from it` : "",
    count("behind") > 0 ? `${count("behind")} behind it` : "",
  ].filter((text) => text !== "");
  const rest = others.length === 0 ? "" : `; ${others.join(", ")}`;
  const points = standings.length === 1 ? "1 point" : `${standings.length} points`;
  const sum =
    beyond > 0
      ? `B lies beyond A's frontier in ${name} at ${beyond} of ${points}, by up to ${most.toFixed(1)} %${rest}.`
      : `B does not lie beyond A's frontier in ${name}, at 0 of ${points}${rest}.`;
  return [`${sum} (completions after ${prefix} codes; FD of ${network})`, ...lines];
}

/** The free samples' verdict in words. */
export function freeVerdictText({ network, a, b }: FreeVerdict): string {
  const percent = percentUnder(b.fd.value, a.fd.value);
  const side = percent >= 0 ? "under" : "over";
  const isApart =
    a.fd.low !== null && a.fd.high !== null && b.fd.low !== null && b.fd.high !== null
      ? b.fd.high < a.fd.low || b.fd.low > a.fd.high
        ? "; their intervals are apart"
        : "; their intervals overlap"
      : "";
  return (
    `Free samples: B's least FD is ${short(b.fd.value)} (${pointText(b)}), ${Math.abs(percent).toFixed(1)} % ${side} ` +
    `A's, ${short(a.fd.value)} (${pointText(a)})${isApart}. (FD of ${network})`
  );
}

/** Four digits that count. */
export function short(value: number): string {
  if (!Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  if (size >= 1000) return value.toFixed(0);
  return size >= 100
    ? value.toFixed(1)
    : size >= 10
      ? value.toFixed(2)
      : size >= 1
        ? value.toFixed(3)
        : value.toFixed(4);
}

/** A column of a table: its heading, and what of a row it shows. */
interface Column {
  readonly heading: string;
  readonly of: (measures: Measures) => Estimate | undefined;
}

const HEADINGS: Readonly<Record<string, string>> = {
  codes_used: "codes used",
  fd_train: "FD train",
  fd_held_out: "FD held out",
  kd_train: "KD train",
  kd_held_out: "KD held out",
  nearest_ratio: "ratio",
};

/** Measures of free samples: how close to the real ones; how varied, and how near to what was learnt. */
const CLOSENESS = ["fd_train", "fd_held_out", "kd_train", "kd_held_out", "score", "accuracy"];
const VARIETY = ["precision", "recall", "density", "coverage", "diversity", "nearest", "nearest_ratio"];

/** The whole of it. */
export function evaluationText(evaluation: ModelEvaluation): string {
  const { networks } = evaluation;
  return [
    headText(evaluation),
    ...reconstructionText(evaluation),
    ...likelihoodText(evaluation),
    ...networks.flatMap(({ name }, k) => freeText(evaluation, name, `[${k + 1}]`)),
    ...completionText(evaluation),
    ...verdictTexts(evaluation),
    ...listed("Notes", evaluation.notes),
  ].join("\n\n");
}

function headText({ data, files, networks, settings, made }: ModelEvaluation): string {
  const heldOut = data.heldOut === null ? "none" : `${data.heldOut.read} of ${data.heldOut.images}`;
  const lines: [string, string][] = [
    ...files
      .filter(({ role }) => role !== "features")
      .map(({ role, path, sha256 }): [string, string] => [role, `${path} (sha256 ${sha256.slice(0, 12)})`]),
    [
      "images",
      `${data.source}: ${data.train.images} to train on, held out ${heldOut}, ${data.classNames.length} classes`,
    ],
    ["codes", `${data.codes} an image of ${data.size} px, ${data.codebookSize} in the codebook`],
    ...networks.map(({ name }, k): [string, string] => [`[${k + 1}]`, name]),
    [
      "intervals",
      settings.seeds.length > 1
        ? `least and greatest of seeds ${settings.seeds.join(", ")}; of what is not drawn, 95 %, ${settings.resamples} resamples`
        : settings.resamples === 0
          ? "none"
          : `95 %, ${settings.resamples} resamples; ± is half the width`,
    ],
    [
      "made with",
      `${made.versions.package} at ${made.commit === null ? "no commit" : commitText(made.commit)}, LibTorch ${made.versions.libtorch}`,
    ],
  ];
  const width = Math.max(...lines.map(([label]) => label.length));
  return lines.map(([label, text]) => `${label.padEnd(width)}  ${text}`).join("\n");
}

const commitText = ({ id, isDirty }: { id: string; isDirty: boolean }): string =>
  `${id.slice(0, 12)}${isDirty ? " and changes" : ""}`;

function reconstructionText({ reconstruction, networks }: ModelEvaluation): string[] {
  if (reconstruction === null) return [];
  const columns = [...followingColumns(networks), plain("codes_used")];
  const table = tableText(columns, [["", reconstruction]]);
  return [`Reconstruction of ${reconstruction.images} held-out images\n${table}`];
}

function likelihoodText({ likelihoods }: ModelEvaluation): string[] {
  if (likelihoods.length === 0) return [];
  const cells = likelihoods.map(({ policy, natsPerToken, perplexity, top1 }) => [
    policy,
    ...[natsPerToken, perplexity, top1].map(cell),
  ]);
  const table = aligned([["", "nats a code", "perplexity", "top-1"], ...cells]);
  return [`True codes of ${likelihoods[0]?.images} held-out images\n${table}`];
}

const nameOf = ({ policy, temperature, cfg }: EvalRow): string => `${policy} T ${temperature} cfg ${cfg}`;

function freeText({ rows, real, settings }: ModelEvaluation, network: string, mark: string): string[] {
  const drawn = rows.flatMap((row): [string, Measures][] =>
    row.free === null ? [] : [[nameOf(row), row.free]],
  );
  if (drawn.length === 0) return [];
  const anchors: [string, Measures | null][] = [
    ["training images", real.training],
    ["their reconstructions", real.reconstructed],
    ["held-out images", real.heldOut],
  ];
  const known = anchors.filter((anchor): anchor is [string, Measures] => anchor[1] !== null);
  const all = [...known, ...drawn];
  const columnsOf = (names: readonly string[]): Column[] => names.map((name) => byNetwork(network, name));
  return [
    `Free samples, ${settings.samples} a row, ${settings.classes === "data" ? "of each class as many as in the training images" : "of each class alike many"}, in ${mark}\n` +
      `${tableText(columnsOf(CLOSENESS), all)}\n\n${tableText([...columnsOf(VARIETY), plain("codes_used")], all)}`,
  ];
}

function completionText({ rows, reconstruction, networks, settings, data }: ModelEvaluation): string[] {
  return settings.prefixes.flatMap((prefix) => {
    const found = rows.flatMap((row): [string, Measures][] => {
      const own = row.completions.find((each) => each.prefix === prefix);
      return own === undefined ? [] : [[nameOf(row), own.measures]];
    });
    if (found.length === 0 || reconstruction === null) return [];
    const table = tableText(followingColumns(networks), [
      ["reconstruction (ceiling)", reconstruction],
      ...found,
    ]);
    const draws = settings.draws === 1 ? "one draw" : `${settings.draws} draws`;
    return [
      `Completions of held-out images, ${prefix} of ${data.codes} codes given, ${draws} an image\n${table}`,
    ];
  });
}

/** Measures of images that follow others; the networks by their numbers. */
function followingColumns(networks: ModelEvaluation["networks"]): Column[] {
  const marked = networks.flatMap(({ name }, k) =>
    ["perceptual", "fd_train", "fd_held_out"].map((measure) => {
      const { heading, of } = byNetwork(name, measure);
      return { heading: `${heading} [${k + 1}]`, of };
    }),
  );
  return [...["l1", "l2", "psnr", "ssim", "ms_ssim", "lpips"].map(plain), ...marked];
}

function plain(name: string): Column {
  return { heading: HEADINGS[name] ?? name, of: (measures) => measures.plain[name] };
}

function byNetwork(network: string, name: string): Column {
  return { heading: HEADINGS[name] ?? name, of: (measures) => measures.networks[network]?.[name] };
}

function verdictTexts({ verdicts }: ModelEvaluation): string[] {
  if (verdicts.completion.length + verdicts.free.length === 0) return [];
  const texts = [
    ...verdicts.completion.map((verdict) => verdictText(verdict).join("\n")),
    ...verdicts.free.map(freeVerdictText),
  ];
  return [`Verdict: does B give what no temperature or scale of A gives?\n${texts.join("\n")}`];
}

/** What the measures mean, for `--explain`. */
export function measuresText(): string {
  return aligned(Object.entries(MEASURES).map(([name, { about, better }]) => [name, about, better]));
}

const listed = (title: string, lines: readonly string[]): string[] =>
  lines.length === 0 ? [] : [`${title}\n${lines.map((line) => `  ${line}`).join("\n")}`];

/** Columns that no row has are left out. */
function tableText(columns: readonly Column[], rows: readonly (readonly [string, Measures])[]): string {
  const shown = columns.filter(({ of }) => rows.some(([, measures]) => of(measures) !== undefined));
  const cells = rows.map(([name, measures]) => [name, ...shown.map(({ of }) => cell(of(measures)))]);
  return aligned([["", ...shown.map(({ heading }) => heading)], ...cells]);
}

function cell(estimate: Estimate | undefined): string {
  if (estimate === undefined) return "-";
  const { value, low, high } = estimate;
  if (low === null || high === null) return short(value);
  const half = (high - low) / 2;
  const digits = short(value).split(".")[1]?.length ?? 0;
  return `${short(value)} ±${half.toFixed(digits).replace(/^0\./, ".")}`;
}

/** Rows of cells, the first column to the left. */
function aligned(rows: readonly (readonly string[])[]): string {
  const widths = (rows[0] ?? []).map((_, c) => Math.max(...rows.map((row) => (row[c] ?? "").length)));
  return rows
    .map((row) =>
      row.map((text, c) => (c === 0 ? text.padEnd(widths[c] ?? 0) : text.padStart(widths[c] ?? 0))),
    )
    .map((row) => `  ${row.join("  ")}`.trimEnd())
    .join("\n");
}
