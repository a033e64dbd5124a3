/**
 * Judging a tokenizer, a policy, or two policies one against the other: reconstructions and completions of held-out
 * images, free samples and likelihood, over temperatures and guidance scales. Nothing is trained. The same options give
 * the same numbers; no time and no machine's name is among them.
 */
import { bootstrap } from "../metrics/distribution_bootstrap.js";
import { mapCondition } from "../rl_ar_finetune/sampling.js";
import { type Environment, environment } from "../run/environment.js";
import { replaceFile } from "../torch/files.js";
import { expected, type Tensor, tensor, tidy } from "../torch/index.js";
import { classesOf } from "./draws.js";
import { prepareOutputs, writeCompletionPage, writeFreePage } from "./files.js";
import {
  describeKept,
  type EvalInputs,
  type FileFact,
  type HeldOut,
  openInputs,
  readHeldOut,
  readTrained,
  type Trained,
} from "./inputs.js";
import {
  type Intervals,
  measureSet,
  notesOfReference,
  type Reference,
  referenceOf,
  usageOf,
} from "./measure.js";
import {
  type CompletionNumbers,
  type EvalContext,
  evaluatePolicy,
  measureFollowing,
  type PolicyResult,
} from "./rows.js";
import { type EvalSettings, settingsOf } from "./settings.js";
import type { Estimate, Estimates, EvalRow, Likelihood, Measures, ModelEvalOptions, Point } from "./types.js";
import {
  type FreeVerdict,
  type FrontierPoint,
  leastBy,
  percentUnder,
  standingsOf,
  type Verdict,
} from "./verdict.js";

/** Everything that was found: plain data, as it is written to the JSON file. */
export interface ModelEvaluation {
  readonly settings: EvalSettings & {
    readonly device: string;
    readonly dtype: string;
  };
  readonly files: readonly FileFact[];
  readonly made: Pick<Environment, "versions" | "commit" | "threads">;
  readonly data: {
    readonly source: string | null;
    readonly size: number;
    readonly classNames: readonly string[];
    /** Images in all, and how many of them were read. */
    readonly train: { readonly images: number; readonly read: number; readonly fingerprint: string };
    readonly heldOut: { readonly images: number; readonly read: number; readonly fingerprint: string } | null;
    /** T. */
    readonly codes: number;
    readonly codebookSize: number;
  };
  readonly networks: readonly {
    readonly name: string;
    readonly featureSize: number;
    readonly numClasses: number;
  }[];
  /** What free samples are to be measured by: as many training images, these as the tokenizer gives them back, the held-out ones. */
  readonly real: {
    readonly training: Measures | null;
    readonly reconstructed: Measures | null;
    readonly heldOut: Measures | null;
  };
  /** Held-out images as the tokenizer gives them back: what completions cannot beat. */
  readonly reconstruction: Measures | null;
  readonly likelihoods: readonly Likelihood[];
  readonly rows: readonly EvalRow[];
  readonly verdicts: { readonly completion: readonly Verdict[]; readonly free: readonly FreeVerdict[] };
  /** Pages written, below the folder. */
  readonly pages: readonly string[];
  /** What to know before the numbers are used. */
  readonly notes: readonly string[];
}

/** Samples of which published Fréchet distances are. */
const PUBLISHED_SAMPLES = 50_000;

/**
 * Evaluate a tokenizer alone, a policy with it, or two policies with equal seeds.
 *
 * Models and networks that are passed open stay open. With `json`, `out` or `npz` the files are written too, each whole
 * or not at all.
 *
 * @throws ConfigError or RangeError for options, files and images that cannot be used, before anything is computed
 *   where that can be seen before.
 */
export async function evaluateModels(options: ModelEvalOptions): Promise<ModelEvaluation> {
  const say = options.say ?? (() => {});
  prepareOutputs(options);
  using inputs = await openInputs(options);
  const settings = settingsOf(options, inputs.codes);
  const { judges, policies, train: trainSource, data } = inputs;
  const intervals: Intervals = { resamples: settings.resamples, seed: 0 };
  if (policies.length === 0 && inputs.heldOut === null) {
    throw expected("eval", "held-out images or a policy", "neither", "Set data.evalPart above 0");
  }

  using heldOut =
    inputs.heldOut === null
      ? null
      : await readHeldOut(inputs, inputs.heldOut, {
          limit: settings.images,
          batch: settings.batch,
          start: settings.start,
        });
  say(`held out: ${heldOut === null ? "none" : `${heldOut.images.size(0)} images`}`);
  using trained =
    judges.length === 0
      ? null
      : await readTrained(inputs, {
          limit: settings.trainImages,
          some: policies.length === 0 ? 0 : settings.samples,
          batch: settings.batch,
        });
  if (trained !== null) say(`trained on: ${trained.count} images described`);
  const references = referencesOf(inputs, heldOut, trained, settings.batch);
  const start = freeStart(inputs, settings, heldOut);
  using _owned = {
    [Symbol.dispose]: () => {
      for (const reference of references) reference[Symbol.dispose]();
      for (const part of Object.values(start.condition) as Tensor[]) part.dispose();
    },
  };
  const context: EvalContext = {
    inputs,
    settings,
    heldOut,
    references,
    ...start,
    intervals,
    npz: options.npz,
    wantsPages: options.out !== undefined,
    say,
  };
  const real = realMeasures(context, trained);
  const reconstruction = heldOut === null ? null : reconstructionMeasures(context, heldOut);
  const results = policies.map(({ label, policy }) => evaluatePolicy(context, label, policy));
  const pages = options.out === undefined ? [] : await writePages(options.out, context, results);
  for (const draw of results.flatMap((result) => [...result.freeDraws, ...result.completionDraws])) {
    draw.codes.dispose();
  }

  const { versions, commit, threads } = environment();
  const evaluation: ModelEvaluation = {
    settings: { ...settings, device: inputs.device, dtype: options.dtype ?? "float32" },
    files: inputs.files,
    made: { versions, commit, threads },
    data: {
      source: data.source,
      size: data.size,
      classNames: trainSource.classNames,
      train: { images: trainSource.length, read: trained?.count ?? 0, fingerprint: trainSource.fingerprint },
      heldOut:
        inputs.heldOut === null
          ? null
          : {
              images: inputs.heldOut.length,
              read: heldOut?.images.size(0) ?? 0,
              fingerprint: inputs.heldOut.fingerprint,
            },
      codes: inputs.codes,
      codebookSize: inputs.tokenizer.codebookSize,
    },
    networks: judges.map(({ network: { name, featureSize, numClasses } }) => ({
      name,
      featureSize,
      numClasses,
    })),
    real,
    reconstruction,
    likelihoods: results.flatMap(({ likelihood }) => (likelihood === null ? [] : [likelihood])),
    rows: results.flatMap(({ rows }) => rows),
    verdicts: verdictsOf(context, results),
    pages,
    notes: [
      ...(heldOut === null
        ? ["No image is held out, so nothing is reconstructed, completed or expected."]
        : []),
      ...references.flatMap(notesOfReference),
      ...comparability(context, trained),
    ],
  };
  if (options.json !== undefined) replaceFile(options.json, `${JSON.stringify(evaluation, null, 2)}\n`);
  return evaluation;
}

function referencesOf(
  inputs: EvalInputs,
  heldOut: HeldOut | null,
  trained: Trained | null,
  batch: number,
): Reference[] {
  if (trained === null) return [];
  if (trained.count < 2) {
    throw expected("eval", "at least 2 training images", trained.count, "Distances of sets need more");
  }
  const others = heldOut === null ? null : describeKept(inputs, heldOut, batch);
  return inputs.judges.map((judge, k) => {
    const described = trained.described[k] as Trained["described"][number];
    return referenceOf(judge, described, others?.[k] ?? null, inputs.train.classNames);
  });
}

/** Classes of the free samples, and what the policy is given. */
function freeStart(
  { train }: EvalInputs,
  { samples, classes, start }: EvalSettings,
  heldOut: HeldOut | null,
): Pick<EvalContext, "classes" | "condition"> {
  if (samples === 0) return { classes: [], condition: {} };
  const counts = Array.from(train.classNames, () => 0);
  for (let i = 0; i < train.length; i++) {
    const c = train.classOf(i);
    counts[c] = (counts[c] ?? 0) + 1;
  }
  const drawn = classesOf(counts, samples, classes, 0);
  if (start === "empty") return { classes: drawn, condition: {} };
  if (heldOut?.condition.features === undefined) {
    return { classes: drawn, condition: { classes: tensor(drawn, { dtype: "int64" }) } };
  }
  // Texts are those of the held-out images, over and over.
  const places = Array.from({ length: samples }, (_, i) => i % heldOut.classes.numel);
  const rows = tensor(places, { dtype: "int64" });
  const condition = tidy(() => mapCondition(heldOut.condition, (all) => all.indexSelect(0, rows)));
  const ids = heldOut.classes.toList() as number[];
  return { classes: places.map((place) => ids[place] as number), condition };
}

/** Real images, measured as samples are. */
function realMeasures(context: EvalContext, trained: Trained | null): ModelEvaluation["real"] {
  const { references, intervals, heldOut } = context;
  const none = { training: null, reconstructed: null, heldOut: null };
  if (trained === null || trained.chosen.length < 2) return none;
  const measured = (images: number, each: (reference: Reference, k: number) => Estimates): Measures => ({
    images,
    plain: {},
    networks: Object.fromEntries(
      references.map((reference, k) => [reference.judge.network.name, each(reference, k)]),
    ),
  });
  const { classes, chosen } = trained;
  return tidy(() => {
    const rows = tensor([...chosen], { dtype: "int64" });
    const some = (all: Tensor): Tensor => all.indexSelect(0, rows);
    return {
      training: measured(chosen.length, ({ train, ...rest }) => {
        const described = { features: some(train.features), probabilities: some(train.probabilities) };
        return measureSet({ train, ...rest }, { described, classes, of: "training" }, intervals);
      }),
      reconstructed: measured(chosen.length, (reference, k) => {
        const described = trained.reconstructed[k] as Trained["reconstructed"][number];
        return measureSet(reference, { described, classes, of: "training" }, intervals);
      }),
      heldOut:
        heldOut === null
          ? null
          : measured(heldOut.classes.numel, (reference) => {
              const described = reference.heldOut as NonNullable<Reference["heldOut"]>;
              return measureSet(
                reference,
                { described, classes: heldOut.classes, of: "held_out" },
                intervals,
              );
            }),
    };
  });
}

function reconstructionMeasures(context: EvalContext, heldOut: HeldOut): Measures {
  const { inputs, intervals } = context;
  const { measures } = measureFollowing(context, heldOut.codes, 1, intervals);
  const codes_used = usageOf(heldOut.codes, inputs.tokenizer.codebookSize, intervals);
  return { ...measures, plain: { ...measures.plain, codes_used } };
}

/** Distance from sampling as it is, T 1 without guidance. */
const farness = ({ temperature, cfg }: Point): number => Math.abs(Math.log(temperature)) + Math.abs(cfg - 1);

const isSame = (a: Point, b: Point): boolean => a.temperature === b.temperature && a.cfg === b.cfg;

/** Free samples of each policy at T 1, or next to it, and where its Fréchet distance is least; completions at T 1. */
async function writePages(
  folder: string,
  { inputs, heldOut, references, settings }: EvalContext,
  results: readonly PolicyResult[],
): Promise<string[]> {
  const pages: string[] = [];
  const last = references.at(-1)?.judge.network.name;
  for (const { rows, freeDraws } of results) {
    const plain = leastBy(rows, farness);
    const fdOf = ({ free }: EvalRow): number => free?.networks[last ?? ""]?.fd_train?.value ?? Infinity;
    const best = last === undefined ? undefined : leastBy(rows, fdOf);
    const shown = freeDraws.filter((draw) => [plain, best].some((point) => point && isSame(point, draw)));
    for (const draw of shown) pages.push(await writeFreePage(folder, inputs, draw));
  }
  if (heldOut === null) return pages;
  for (const prefix of settings.prefixes) {
    const draws = results.flatMap(({ completionDraws }) => {
      const draw = leastBy(
        completionDraws.filter((each) => each.prefix === prefix),
        farness,
      );
      return draw === undefined ? [] : [draw];
    });
    if (draws.length > 0) pages.push(await writeCompletionPage(folder, inputs, heldOut, draws));
  }
  return pages;
}

/** B against A's frontier, by each network. */
function verdictsOf(
  { references, settings, intervals }: EvalContext,
  results: readonly PolicyResult[],
): ModelEvaluation["verdicts"] {
  const [a, b] = results;
  if (a === undefined || b === undefined) return { completion: [], free: [] };
  const completion = settings.prefixes.flatMap((prefix) =>
    references.flatMap(({ judge: { network, distance } }) =>
      ["l2", ...(distance === null ? [] : ["perceptual"])].flatMap((measure): Verdict[] => {
        const numbersOf = ({ completionNumbers }: PolicyResult, point: Point): readonly number[] => {
          const found = completionNumbers.find((each) => each.prefix === prefix && isSame(each, point));
          const { plain, perceptual } = found as CompletionNumbers;
          return (measure === "l2" ? plain.l2 : perceptual[network.name]) as readonly number[];
        };
        const pointsOf = (result: PolicyResult): FrontierPoint[] =>
          result.rows.flatMap(({ temperature, cfg, completions }) => {
            const found = completions.find((each) => each.prefix === prefix)?.measures;
            const own = found?.networks[network.name];
            const value = measure === "l2" ? found?.plain.l2 : own?.perceptual;
            if (own?.fd_train === undefined || value === undefined) return [];
            return [{ temperature, cfg, fd: own.fd_train.value, value: value.value }];
          });
        const gainOf = (point: FrontierPoint, rival: FrontierPoint): Estimate =>
          gainOfMeans(numbersOf(b, point), numbersOf(a, rival), intervals);
        const standings = standingsOf(pointsOf(a), pointsOf(b), gainOf);
        return standings.length === 0 ? [] : [{ network: network.name, measure, prefix, standings }];
      }),
    ),
  );
  const free = references.flatMap(({ judge: { network } }): FreeVerdict[] => {
    const least = ({ rows }: PolicyResult): FreeVerdict["a"] | undefined => {
      const found = rows.flatMap(({ temperature, cfg, free }) => {
        const fd = free?.networks[network.name]?.fd_train;
        return fd === undefined ? [] : [{ temperature, cfg, fd }];
      });
      return leastBy(found, ({ fd }) => fd.value);
    };
    const [ofA, ofB] = [least(a), least(b)];
    return ofA === undefined || ofB === undefined ? [] : [{ network: network.name, a: ofA, b: ofB }];
  });
  return { completion, free };
}

/** Percent by which the mean of some numbers lies under that of others of the same images. */
function gainOfMeans(
  of: readonly number[],
  rival: readonly number[],
  { resamples, seed }: Intervals,
): Estimate {
  return tidy(() => {
    const [x, y] = [tensor([...of], { dtype: "float64" }), tensor([...rival], { dtype: "float64" })];
    const gain = (a: Tensor, b: Tensor): number => percentUnder(a.mean().item(), b.mean().item());
    const value = gain(x, y);
    if (resamples === 0 || x.numel < 2 || !Number.isFinite(value)) return { value, low: null, high: null };
    const statistic = (rows: Tensor): number => gain(x.indexSelect(0, rows), y.indexSelect(0, rows));
    return { value, ...bootstrap(x.numel, statistic, { samples: resamples, seed }) };
  });
}

/** Whether numbers may be set beside published ones. */
function comparability({ inputs, settings, references }: EvalContext, trained: Trained | null): string[] {
  if (references.length === 0 || inputs.policies.length === 0 || settings.samples === 0) return [];
  return references.map(({ judge: { network } }) => {
    const { name } = network;
    if (!/\(FID\)/.test(name)) return `${name}: numbers compare with none but those of this very network.`;
    const used = `${settings.samples} samples against ${trained?.count ?? 0} training images of ${inputs.data.size} px`;
    return settings.samples === PUBLISHED_SAMPLES
      ? `${name}: ${used}; comparable with published numbers of the same data set and size.`
      : `${name}: ${used}; published numbers are of ${PUBLISHED_SAMPLES.toLocaleString("en")} samples, so these do not compare with them.`;
  });
}
