/**
 * An evaluation as text for a terminal: tables, verdicts in words, warnings. Whether a policy lies beyond another's frontier is
 * decided in `frontier.ts`.
 */

import { betterOf, MEASURES, measureOf } from "../metrics/measures.js";
import { expectedType } from "../torch/index.js";
import { type Agreement, LEAST_RANKED } from "./agreement.js";
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
import type { Estimate, Measures } from "./options.js";
import { type EvalTable, type NetworkFact, networkMark, pointText, prefixesOf, tablesOf } from "./tables.js";

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

/**
 * Whether the networks agree, in words: on the direction from A to B where there is a B, else on the ranks of the points. A
 * sentence for each measure and set of images.
 */
export function agreementTexts(
  agreements: readonly Agreement[],
  networks: readonly NetworkFact[] = [],
): string[] {
  return agreements.map(({ measure, prefix, points, correlations, changes }) => {
    const name = measure === "fd_train" ? "FD" : measureOf(measure).title.toLowerCase();
    const of = `${name} of ${prefix === null ? "free samples" : `completions after ${prefix} codes`}`;
    const ranks = correlations
      .map(({ networks: [a, b], value }) => {
        const pair = `${networkMark(networks, a)} and ${networkMark(networks, b)}`;
        return `${pair} ${value === null ? "have too few different values" : value.toFixed(2)}`;
      })
      .join(", ");
    const end = points < LEAST_RANKED ? "" : ` Rank correlation over ${points} points: ${ranks}.`;
    if (changes === null) return `${of}:${end}`;
    const { settings, agreed } = changes;
    const counts = changes.networks.map(({ network, lower, even, higher }) => {
      const parts = [
        [lower, "lower"],
        [even, "not told apart"],
        [higher, "higher"],
      ] as const;
      const seen = parts.filter(([count]) => count > 0).map(([count, word]) => `${word} at ${count}`);
      return `${networkMark(networks, network)} finds it ${seen.join(", ")}`;
    });
    const verdict =
      agreed === settings ? "The judges agree" : `The judges disagree at ${settings - agreed} of ${settings}`;
    const at = `${settings} ${settings === 1 ? "setting" : "settings"}`;
    return `${verdict} on ${of}. From A to B at the same temperature and scale, ${at}: ${counts.join("; ")}.${end}`;
  });
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
  const kin = networks.filter(
    ({ isRewarded, sharesImages }) => isRewarded === false && sharesImages === true,
  );
  const namesOf = (some: typeof networks): string =>
    some.map(({ name }) => networkMark(networks, name)).join(", ");
  return [
    ...poorTokenizer(evaluation),
    ...(rewarded.length > 0
      ? [
          `The reward used ${namesOf(rewarded)}: its numbers say how well the reward was met, not whether images are better. ` +
            "Judge by a network that the reward has not seen.",
        ]
      : []),
    ...(kin.length > 0
      ? [
          `${kin.length === 1 ? "This network" : "These networks"} learnt from the same images as the reward's: ${namesOf(kin)}. ` +
            "What pleases one pleases the other, so judge by a network that learnt elsewhere as well.",
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
  const base = rows.filter(({ policy }) => policy === "A");
  const measured: [label: string, of: (measures: Measures) => Estimate | undefined][] = [
    ["L2", ({ plain }) => plain.l2],
    ...networks.map(({ name }): (typeof measured)[number] => [
      `perceptual distance ${networkMark(networks, name)}`,
      (measures) => measures.networks[name]?.perceptual,
    ]),
  ];
  return prefixesOf(rows).flatMap((prefix) =>
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
function fewDigits(value: number): string {
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

/** Headings of columns that are shorter than the names of their measures. */
const HEADINGS: Readonly<Record<string, string>> = {
  codes_used: "codes used",
  fd_train: "FD train",
  fd_held_out: "FD held out",
  fd_reference: "FD reference",
  kd_train: "KD train",
  kd_held_out: "KD held out",
  nearest_ratio: "ratio",
  nats_per_token: "nats per code",
  top1: "top-1",
};

/** The whole evaluation as text. */
export function evaluationText(evaluation: ModelEvaluation): string {
  if (!Array.isArray(evaluation?.networks)) {
    throw expectedType("evaluationText", "what evaluateModels returns", evaluation);
  }
  return [
    headText(evaluation),
    ...tablesOf(evaluation).map(tableText),
    ...verdictTexts(evaluation),
    ...listed("Agreement of the judges", agreementTexts(evaluation.agreements, evaluation.networks)),
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

function tableText({ title, columns, rows }: EvalTable): string {
  const headings = columns.map(({ measure, mark }) => `${HEADINGS[measure] ?? measure} ${mark}`.trim());
  return `${title}\n${aligned([["", ...headings], ...rows.map(([name, cells]) => [name, ...cells.map(cell)])])}`;
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
