/**
 * The tables of an evaluation: which measures of which sets of images stand together. `verdict.ts` prints them, the report
 * shows them.
 */
import type { ModelEvaluation } from "./judge_models.js";
import type { Estimate, EvalSettings, Measures, Point } from "./options.js";

/** A table; columns and rows that have no number at all are omitted. */
export interface EvalTable {
  readonly title: string;
  readonly columns: readonly EvalColumn[];
  readonly rows: readonly (readonly [name: string, cells: readonly (Estimate | undefined)[]])[];
}

/** What a column is of. */
interface EvalColumn {
  readonly measure: string;
  /** The network, and whether the reward used it, such as `[1, rewarded]`; empty for a measure without one. */
  readonly mark: string;
}

/** The parts of an evaluation that tables need; the settings of an older file may be unknown. */
type Tabled = Pick<
  ModelEvaluation,
  "networks" | "files" | "real" | "reconstruction" | "likelihoods" | "rows"
> & {
  readonly settings: Partial<EvalSettings>;
  readonly data: { readonly codes?: number | undefined } | null;
};

/** `T 0.8`, or `T 0.8, cfg 1.5` with guidance. */
export const pointText = ({ temperature, cfg }: Point): string =>
  cfg === 1 ? `T ${temperature}` : `T ${temperature}, cfg ${cfg}`;

/** A network as it is known from its file, and whether the reward used it. */
export type NetworkFact = Pick<ModelEvaluation["networks"][number], "name" | "isRewarded">;

/** How a network is named in texts: by its place in the list, and whether the reward used it. */
export function networkMark(networks: readonly NetworkFact[], name: string): string {
  const k = networks.findIndex((network) => network.name === name);
  return k < 0 ? name : `[${k + 1}${networks[k]?.isRewarded === true ? ", rewarded" : ""}]`;
}

/** Numbers of given codes, of which there are completions. */
export const prefixesOf = (rows: Tabled["rows"]): number[] => [
  ...new Set(rows.flatMap(({ completions }) => completions.map(({ prefix }) => prefix))),
];

/** Measures of free samples: distance from real images, variety, and copies of training images. */
const CLOSENESS = ["fd_train", "fd_held_out", "fd_reference", "kd_train", "kd_held_out", "score", "accuracy"];
const VARIETY = ["precision", "recall", "density", "coverage", "diversity", "nearest", "nearest_ratio"];

/** Measures of images that follow others: without a network, and of each. */
const FOLLOWING = ["l1", "l2", "psnr", "ssim", "ms_ssim", "lpips"];
const FOLLOWING_IN = ["perceptual", "fd_train", "fd_held_out"];

/** A column and where its number is in the measures of a set. */
export type Source = EvalColumn & { readonly of: (measures: Measures) => Estimate | undefined };

const plainSource = (measure: string, mark = ""): Source => ({
  measure,
  mark,
  of: (measures) => measures.plain[measure],
});

const networkSource = (networks: readonly NetworkFact[], name: string, measure: string): Source => ({
  measure,
  mark: networkMark(networks, name),
  of: (measures) => measures.networks[name]?.[measure],
});

/** What is measured of images that follow others: completions and reconstructions. */
export function followingSources({ networks, files }: Pick<Tabled, "networks" | "files">): Source[] {
  const isPaid = files.some(({ role, isRewarded }) => role === "lpips" && isRewarded === true);
  return [
    ...FOLLOWING.map((measure) => plainSource(measure, measure === "lpips" && isPaid ? "[rewarded]" : "")),
    ...networks.flatMap(({ name }) => FOLLOWING_IN.map((measure) => networkSource(networks, name, measure))),
  ];
}

/** All tables, in reading order. */
export function tablesOf(evaluation: Tabled): EvalTable[] {
  const { networks, rows, real, reconstruction, likelihoods, settings, data } = evaluation;
  const following = followingSources(evaluation);
  const codesUsed = plainSource("codes_used");
  const rowName = (row: Tabled["rows"][number]): string => `${row.policy} ${pointText(row)}`;
  const images = reconstruction === null ? "" : ` of ${reconstruction.images} held-out images`;

  const drawn = rows.map((row): NamedSet => [rowName(row), row.free]);
  const anchors: NamedSet[] = [
    ["training images", real.training],
    ["their reconstructions", real.reconstructed],
    ["held-out images", real.heldOut],
  ];
  const freeRows = rows.some(({ free }) => free !== null) ? [...anchors, ...drawn] : [];
  const frequency = { data: "as often as in the training images", balanced: "all equally often" };
  const title =
    `Free samples${settings.samples === undefined ? "" : `, ${settings.samples} per row`}` +
    (settings.classes === undefined ? "" : `, classes ${frequency[settings.classes]}`);
  return [
    tableOf(`Reconstruction${images}`, [...following, codesUsed], [["", reconstruction]]),
    likelihoodTable(likelihoods),
    ...networks.flatMap(({ name }) => {
      // The title names the network.
      const of = (measures: readonly string[]): Source[] =>
        measures.map((measure) => ({ ...networkSource(networks, name, measure), mark: "" }));
      const mark = networkMark(networks, name);
      return [
        tableOf(`${title}, in ${mark}: closeness`, of(CLOSENESS), freeRows),
        tableOf(`${title}, in ${mark}: variety`, [...of(VARIETY), codesUsed], freeRows),
      ];
    }),
    ...prefixesOf(rows).map((prefix) => {
      const given = data?.codes === undefined ? `${prefix}` : `${prefix} of ${data.codes}`;
      const { draws = 1 } = settings;
      return tableOf(
        `Completions${images}, ${given} codes given, ${draws === 1 ? "one draw" : `${draws} draws`} per image`,
        following,
        [
          ["reconstruction (ceiling)", reconstruction],
          ...rows.map(
            (row): NamedSet => [
              rowName(row),
              row.completions.find((each) => each.prefix === prefix)?.measures ?? null,
            ],
          ),
        ],
      );
    }),
  ].filter(({ columns, rows }) => columns.length > 0 && rows.length > 0);
}

type NamedSet = readonly [name: string, measures: Measures | null];

function tableOf(title: string, sources: readonly Source[], sets: readonly NamedSet[]): EvalTable {
  const known = sets.filter((set): set is readonly [string, Measures] => set[1] !== null);
  const columns = sources.filter(({ of }) => known.some(([, measures]) => of(measures) !== undefined));
  const rows = known.map(([name, measures]) => [name, columns.map(({ of }) => of(measures))] as const);
  return { title, columns, rows };
}

function likelihoodTable(likelihoods: Tabled["likelihoods"]): EvalTable {
  return {
    title: `True codes of ${likelihoods[0]?.images} held-out images`,
    columns: ["nats_per_token", "perplexity", "top1"].map((measure) => ({ measure, mark: "" })),
    rows: likelihoods.map(({ policy, natsPerToken, perplexity, top1 }) => [
      policy,
      [natsPerToken, perplexity, top1],
    ]),
  };
}
