/**
 * An evaluation as text for a terminal: tables, verdicts in words, warnings. Whether a policy lies beyond another's frontier is
 * decided in `frontier.ts`.
 */

import { betterOf, MEASURES, measureOf } from "../metrics/measures.js";
import { expectedType } from "../torch/index.js";
import {
  bestStanding,
  type FreeVerdict,
  isAbove,
  isApart,
  leastBy,
  percentUnder,
  type Standing,
  type Verdict,
} from "./frontier.js";
import type { ModelEvaluation } from "./judge_models.js";
import type { Estimate, EvalRow, Measures, Point } from "./options.js";

/** `T 0.8`, or `T 0.8, cfg 1.5` with guidance. */
export const pointText = ({ temperature, cfg }: Point): string =>
  cfg === 1 ? `T ${temperature}` : `T ${temperature}, cfg ${cfg}`;

/** How a network is named in texts: by its place in the list, and whether the reward used it. */
export function networkMark(networks: readonly NetworkFact[], name: string): string {
  const k = networks.findIndex((network) => network.name === name);
  return k < 0 ? name : `[${k + 1}${networks[k]?.isRewarded === true ? ", rewarded" : ""}]`;
}

type NetworkFact = Pick<ModelEvaluation["networks"][number], "name" | "isRewarded">;

const intervalText = ({ low, high }: Estimate, text: (value: number) => string): string =>
  low === null || high === null ? "" : ` [${text(low)}, ${text(high)}]`;

/** `0.5200 [0.5000, 0.5400]`. */
const estimateText = (estimate: Estimate): string =>
  `${fewDigits(estimate.value)}${intervalText(estimate, fewDigits)}`;

/** `5.9 % [1.0, 8.0] below`. */
function gainText(gain: Estimate): string {
  const side = gain.value >= 0 ? "below" : "above";
  return `${Math.abs(gain.value).toFixed(1)} %${intervalText(gain, (of) => of.toFixed(1))} ${side}`;
}

/** The definition of a frontier, printed once before the verdicts. */
export const FRONTIER_TEXT: string =
  "A's frontier: at each Fréchet distance (FD), the lowest distance from the images that A reaches at any of its " +
  "temperatures and guidance scales. Lower is better in both. FDs whose intervals overlap count as equal.";

/** A verdict in words, a line that sums up and one a point. */
export function verdictText(
  verdict: Verdict,
  networks: readonly NetworkFact[] = [],
): [summary: string, ...points: string[]] {
  const { network, measure, prefix, standings } = verdict;
  const name = measureOf(measure).title.replace(/^[A-Z](?=[a-z])/, (letter) => letter.toLowerCase());
  const lines = standings.map(({ point, rival, gain, standing }) => {
    const own = `B ${pointText(point)}: FD ${estimateText(point.fd)}, ${name} ${fewDigits(point.value)}`;
    const which = isAbove(rival.fd, point.fd)
      ? "A's point of lowest FD, which is higher"
      : isApart(rival.fd, point.fd)
        ? "A's best with a lower FD"
        : "A's best with an FD not told apart";
    const of = `${which} (${pointText(rival)}: FD ${estimateText(rival.fd)}, ${fewDigits(rival.value)})`;
    const end = standing === "even" ? "; not told apart, the interval holds 0" : "";
    return `  ${own}, ${gainText(gain)} ${of}${end}`;
  });
  const count = (kind: Standing["standing"]): number =>
    standings.filter(({ standing }) => standing === kind).length;
  const beyond = count("beyond");
  const rest = [
    count("lower_fd") > 0 ? `${count("lower_fd")} with a lower FD than any of A's` : "",
    count("even") > 0 ? `${count("even")} without a clear difference` : "",
    count("behind") > 0 ? `${count("behind")} not better` : "",
  ].filter((text) => text !== "");
  const settings = `${beyond === 0 ? "none" : beyond} of ${standings.length} ${standings.length === 1 ? "setting" : "settings"}`;
  const others = rest.length === 0 ? "" : ` (${rest.join(", ")})`;
  const best = bestStanding(verdict);
  const example =
    best === undefined
      ? ""
      : ` At ${pointText(best.point)} B has ${name} ${fewDigits(best.point.value)}, ${gainText(best.gain)} A's ` +
        `${fewDigits(best.rival.value)} at ${pointText(best.rival)}; FD ${fewDigits(best.point.fd.value)} and ` +
        `${fewDigits(best.rival.fd.value)}${isApart(best.point.fd, best.rival.fd) ? "" : ", not told apart"}.`;
  const of = `completions after ${prefix} codes; network ${networkMark(networks, network)}`;
  return [`B is better than A's frontier in ${name} at ${settings}${others}.${example} (${of})`, ...lines];
}

/** The free samples' verdict in words. */
export function freeVerdictText(
  { network, a, b }: FreeVerdict,
  networks: readonly NetworkFact[] = [],
): string {
  const numbers = `B's lowest FD is ${estimateText(b.fd)} at ${pointText(b)}, A's ${estimateText(a.fd)} at ${pointText(a)}`;
  const hasIntervals = a.fd.low !== null && b.fd.low !== null;
  const percent = percentUnder(b.fd.value, a.fd.value);
  const end = !isApart(a.fd, b.fd)
    ? "the intervals overlap"
    : `${Math.abs(percent).toFixed(1)} % ${percent >= 0 ? "lower" : "higher"}${hasIntervals ? "" : " (no intervals)"}`;
  return `Free samples: ${numbers}: ${end}. (network ${networkMark(networks, network)})`;
}

/** Share of the base's own error above which a tokenizer is too poor: what is left cannot be won by the policy. */
export const POOR_CEILING: number = 2 / 3;

/**
 * Warnings: a tokenizer whose error is too large, networks that the reward used, and networks that are not independent
 * judges.
 */
export function warningsOf(
  evaluation: Pick<ModelEvaluation, "reconstruction" | "rows" | "networks">,
): string[] {
  const { networks } = evaluation;
  const rewarded = networks.filter(({ isRewarded }) => isRewarded === true);
  const isUnknown = networks.some(({ isRewarded }) => isRewarded === null);
  const marks = rewarded.map(({ name }) => networkMark(networks, name)).join(", ");
  return [
    ...poorTokenizer(evaluation),
    ...(rewarded.length > 0
      ? [
          `The reward used ${marks}: its numbers say how well the reward was met, not whether images are better. ` +
            "Judge by a network that the reward has not seen.",
        ]
      : []),
    ...(isUnknown && evaluation.rows.some(({ policy }) => policy === "B")
      ? ["Whether the reward used these networks is not known; --run or --config says it."]
      : []),
  ];
}

function poorTokenizer({
  reconstruction,
  rows,
  networks,
}: Pick<ModelEvaluation, "reconstruction" | "rows" | "networks">): string[] {
  const prefixes = [...new Set(rows.flatMap(({ completions }) => completions.map(({ prefix }) => prefix)))];
  const base = rows.filter(({ policy }) => policy === "A");
  const measured: [label: string, of: (measures: Measures) => Estimate | undefined][] = [
    ["L2", ({ plain }) => plain.l2],
    ...networks.map(({ name }): (typeof measured)[number] => [
      `perceptual distance ${networkMark(networks, name)}`,
      (measures) => measures.networks[name]?.perceptual,
    ]),
  ];
  return prefixes.flatMap((prefix) =>
    measured.flatMap(([label, of]) => {
      const ceiling = reconstruction === null ? undefined : of(reconstruction);
      const found = base.flatMap((row) => {
        const own = row.completions.find((each) => each.prefix === prefix);
        const value = own && of(own.measures)?.value;
        return value === undefined ? [] : [{ ...row, value }];
      });
      const best = leastBy(found, ({ value }) => value);
      if (ceiling === undefined || best === undefined || !(ceiling.value > POOR_CEILING * best.value))
        return [];
      const most = percentUnder(ceiling.value, best.value);
      const left = most > 0 ? `can improve it by at most ${most.toFixed(0)} %` : "cannot improve it";
      return [
        `The tokenizer is poor: its own reconstructions have ${label} ${fewDigits(ceiling.value)}, A's completions after ` +
          `${prefix} codes ${fewDigits(best.value)} (${pointText(best)}). Fine-tuning ${left}; train a better tokenizer first.`,
      ];
    }),
  );
}

/** Four digits that count. */
export function fewDigits(value: number): string {
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

/** A column of a table: its heading and its cell in a row. */
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

/** Measures of free samples: distance from real images, variety, and copies of training images. */
const CLOSENESS = ["fd_train", "fd_held_out", "kd_train", "kd_held_out", "score", "accuracy"];
const VARIETY = ["precision", "recall", "density", "coverage", "diversity", "nearest", "nearest_ratio"];

/** The whole evaluation as text. */
export function evaluationText(evaluation: ModelEvaluation): string {
  if (!Array.isArray(evaluation?.networks)) {
    throw expectedType("evaluationText", "what evaluateModels returns", evaluation);
  }
  const { networks } = evaluation;
  return [
    headText(evaluation),
    ...reconstructionText(evaluation),
    ...likelihoodText(evaluation),
    ...networks.flatMap(({ name }) => freeText(evaluation, name, networkMark(networks, name))),
    ...completionText(evaluation),
    ...verdictTexts(evaluation),
    ...listed("Warnings", warningsOf(evaluation)),
    ...listed("Notes", evaluation.notes),
  ].join("\n\n");
}

function headText({ data, files, networks, settings, made, judged }: ModelEvaluation): string {
  const heldOut = data.heldOut === null ? "none" : `${data.heldOut.read} of ${data.heldOut.images}`;
  const lines: [string, string][] = [
    ...(judged === null ? [] : [["judged", judged.text] as [string, string]]),
    ...files
      .filter(({ role }) => role !== "features")
      .map(({ role, path, sha256 }): [string, string] => [role, `${path} (sha256 ${sha256.slice(0, 12)})`]),
    [
      "images",
      `${data.source}: ${data.train.images} to train on, held out ${heldOut}, ${data.classNames.length} classes`,
    ],
    ["codes", `${data.codes} per image of ${data.size} px, ${data.codebookSize} in the codebook`],
    ...networks.map(({ name }): [string, string] => [networkMark(networks, name), name]),
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

function reconstructionText(evaluation: ModelEvaluation): string[] {
  const { reconstruction } = evaluation;
  if (reconstruction === null) return [];
  const columns = [...followingColumns(evaluation), plain("codes_used")];
  const table = tableText(columns, [["", reconstruction]]);
  return [`Reconstruction of ${reconstruction.images} held-out images\n${table}`];
}

function likelihoodText({ likelihoods }: ModelEvaluation): string[] {
  if (likelihoods.length === 0) return [];
  const cells = likelihoods.map(({ policy, natsPerToken, perplexity, top1 }) => [
    policy,
    ...[natsPerToken, perplexity, top1].map(cell),
  ]);
  const table = aligned([["", "nats per code", "perplexity", "top-1"], ...cells]);
  return [`True codes of ${likelihoods[0]?.images} held-out images\n${table}`];
}

const rowName = (row: EvalRow): string => `${row.policy} ${pointText(row)}`;

function freeText({ rows, real, settings }: ModelEvaluation, network: string, mark: string): string[] {
  const drawn = rows.flatMap((row): [string, Measures][] =>
    row.free === null ? [] : [[rowName(row), row.free]],
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
    `Free samples, ${settings.samples} per row, ${settings.classes === "data" ? "classes as often as in the training images" : "all classes equally often"}, in ${mark}\n` +
      `${tableText(columnsOf(CLOSENESS), all)}\n\n${tableText([...columnsOf(VARIETY), plain("codes_used")], all)}`,
  ];
}

function completionText(evaluation: ModelEvaluation): string[] {
  const { rows, reconstruction, settings, data } = evaluation;
  return settings.prefixes.flatMap((prefix) => {
    const found = rows.flatMap((row): [string, Measures][] => {
      const own = row.completions.find((each) => each.prefix === prefix);
      return own === undefined ? [] : [[rowName(row), own.measures]];
    });
    if (found.length === 0 || reconstruction === null) return [];
    const table = tableText(followingColumns(evaluation), [
      ["reconstruction (ceiling)", reconstruction],
      ...found,
    ]);
    const draws = settings.draws === 1 ? "one draw" : `${settings.draws} draws`;
    return [
      `Completions of ${reconstruction.images} held-out images, ${prefix} of ${data.codes} codes given, ${draws} per image\n${table}`,
    ];
  });
}

/** Measures of images that follow others; the networks by their numbers. */
function followingColumns({ networks, files }: ModelEvaluation): Column[] {
  const marked = networks.flatMap(({ name }) =>
    ["perceptual", "fd_train", "fd_held_out"].map((measure) => {
      const { heading, of } = byNetwork(name, measure);
      return { heading: `${heading} ${networkMark(networks, name)}`, of };
    }),
  );
  const isPaid = files.some(({ role, isRewarded }) => role === "lpips" && isRewarded === true);
  const lpips = { ...plain("lpips"), heading: isPaid ? "lpips [rewarded]" : "lpips" };
  return [...["l1", "l2", "psnr", "ssim", "ms_ssim"].map(plain), lpips, ...marked];
}

function plain(name: string): Column {
  return { heading: HEADINGS[name] ?? name, of: (measures) => measures.plain[name] };
}

function byNetwork(network: string, name: string): Column {
  return { heading: HEADINGS[name] ?? name, of: (measures) => measures.networks[network]?.[name] };
}

function verdictTexts({ verdicts, networks }: ModelEvaluation): string[] {
  if (verdicts.completion.length + verdicts.free.length === 0) return [];
  const texts = [
    ...verdicts.completion.map((verdict) => verdictText(verdict, networks).join("\n")),
    ...verdicts.free.map((verdict) => freeVerdictText(verdict, networks)),
  ];
  return [
    `Verdict: is B better than A at all of A's temperatures and scales?\n${FRONTIER_TEXT}\n${texts.join("\n")}`,
  ];
}

/** Explanations of the measures, for `--explain`. */
export function measuresText(): string {
  return aligned(Object.entries(MEASURES).map(([name, measure]) => [name, measure.about, betterOf(measure)]));
}

const listed = (title: string, lines: readonly string[]): string[] =>
  lines.length === 0 ? [] : [`${title}\n${lines.map((line) => `  ${line}`).join("\n")}`];

/** Columns that no row has are omitted. */
function tableText(columns: readonly Column[], rows: readonly (readonly [string, Measures])[]): string {
  const shown = columns.filter(({ of }) => rows.some(([, measures]) => of(measures) !== undefined));
  const cells = rows.map(([name, measures]) => [name, ...shown.map(({ of }) => cell(of(measures)))]);
  return aligned([["", ...shown.map(({ heading }) => heading)], ...cells]);
}

function cell(estimate: Estimate | undefined): string {
  if (estimate === undefined) return "-";
  const { value, low, high } = estimate;
  if (low === null || high === null) return fewDigits(value);
  const half = (high - low) / 2;
  const digits = fewDigits(value).split(".")[1]?.length ?? 0;
  return `${fewDigits(value)} ±${half.toFixed(digits).replace(/^0\./, ".")}`;
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
