/** An evaluation as text for a terminal: tables of values with half the width of their intervals, and the verdicts. */
import type { ModelEvaluation } from "./models.js";
import { type Estimate, type EvalRow, MEASURES, type Measures } from "./types.js";
import { freeVerdictText, short, verdictText } from "./verdict.js";

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
