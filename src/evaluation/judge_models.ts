/**
 * Evaluation of a tokenizer, a policy, or two policies with equal seeds, on held-out images: reconstructions, completions, free
 * samples and likelihood, at several temperatures and guidance scales. The same options give the same result, which holds
 * neither times nor machine names. `draws.ts` samples, `measure.ts` computes the numbers, `verdict.ts` compares policies.
 */
import { isFirst, requireSame } from "../distributed/index.js";
import { bootstrap } from "../metrics/distribution.js";
import { packLinears } from "../nn/index.js";
import type { ArPolicy, Condition } from "../policies/index.js";
import { mapCondition, type Sampling } from "../rl_ar_finetune/sampling.js";
import { type Environment, environment } from "../run/environment.js";
import { withProcesses } from "../run/processes.js";
import { replaceFile } from "../torch/files.js";
import { expected, keep, type Tensor, tensor, tidy } from "../torch/index.js";
import { type Agreement, agreementsOf } from "./agreement.js";
import {
  classesOfFreeSamples,
  type Drawer,
  drawCompletions,
  drawFree,
  forEachDecoded,
  likelihoodOf,
} from "./draws.js";
import {
  type FreeVerdict,
  type FrontierPoint,
  leastBy,
  percentUnder,
  standingsOf,
  type Verdict,
} from "./frontier.js";
import {
  describeKept,
  type EvalInputs,
  type FileFact,
  type HeldOut,
  imagesFromBytes,
  type NetworkFact,
  networkFacts,
  openInputs,
  readHeldOut,
  readTrained,
  type Trained,
} from "./inputs.js";
import {
  Comparer,
  Describer,
  dependence,
  type Intervals,
  meanEstimates,
  meanOf,
  meanOverSeeds,
  meansOf,
  measureSet,
  measuresOverSeeds,
  notesOfReference,
  type PerImage,
  type Reference,
  referenceOf,
  unreadableNotes,
  usageOf,
} from "./measure.js";
import {
  type Estimate,
  type Estimates,
  type EvalRow,
  type EvalSettings,
  isSamePoint,
  type JudgedCheckpoint,
  type Likelihood,
  type Measures,
  type ModelEvalOptions,
  type Point,
  readEvalOptions,
  settingsOf,
} from "./options.js";
import {
  type CompletionDraw,
  type FreeDraw,
  prepareOutputs,
  type ShownDraw,
  samplesPath,
  shownOf,
  writePages,
  writeSamples,
} from "./pages.js";

/** Images of one side of the split. */
interface ImagesRead {
  /** In all. */
  readonly images: number;
  /** Of them, those that were read. */
  readonly read: number;
  /** Names of those that could not be read. */
  readonly unreadable: readonly string[];
  readonly fingerprint: string;
}

/** The whole result: plain data, as it is written to the JSON file. */
export interface ModelEvaluation {
  readonly settings: EvalSettings & {
    readonly device: string;
    readonly dtype: string;
  };
  readonly files: readonly FileFact[];
  /** Which checkpoint of a run it is about; null where files were named. */
  readonly judged: JudgedCheckpoint | null;
  readonly made: Pick<Environment, "versions" | "commit" | "threads">;
  readonly data: {
    readonly source: string | null;
    readonly size: number;
    readonly classNames: readonly string[];
    readonly train: ImagesRead;
    readonly heldOut: ImagesRead | null;
    /** T. */
    readonly codes: number;
    readonly codebookSize: number;
  };
  readonly networks: readonly NetworkFact[];
  /** What free samples are to be measured by: as many training images, these as the tokenizer gives them back, the held-out ones. */
  readonly real: {
    readonly training: Measures | null;
    readonly reconstructed: Measures | null;
    readonly heldOut: Measures | null;
  };
  /** Reconstructions of the held-out images: the lower bound for completions. */
  readonly reconstruction: Measures | null;
  readonly likelihoods: readonly Likelihood[];
  readonly rows: readonly EvalRow[];
  readonly verdicts: { readonly completion: readonly Verdict[]; readonly free: readonly FreeVerdict[] };
  /** Whether the networks agree; empty for fewer than two. */
  readonly agreements: readonly Agreement[];
  /** Pages written, below the folder. */
  readonly pages: readonly string[];
  /** Warnings about the numbers. */
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
 * The processes of a launcher share the work and all return the same numbers, those of one process; the first one writes
 * the files and has the names of the pages.
 *
 * @throws ConfigError or RangeError for options, files and images that cannot be used, before anything is computed
 *   where that can be seen before. LostRankError when another process ends.
 */
export async function evaluateModels(given: ModelEvalOptions): Promise<ModelEvaluation> {
  const options = readEvalOptions(given);
  return await withProcesses({ device: options.device ?? "cpu" }, () => evaluateTogether(options));
}

async function evaluateTogether(options: ModelEvalOptions): Promise<ModelEvaluation> {
  const say = options.say ?? (() => {});
  if (isFirst()) prepareOutputs(options);
  using inputs = await openInputs(options);
  const settings = settingsOf(options, inputs.codes);
  requireSame({
    "the options of the evaluation": settings,
    "the models": inputs.files.map(({ role, sha256 }) => [role, sha256]),
    "the images": [inputs.train.fingerprint, inputs.heldOut?.fingerprint],
    "the files to write": [options.out, options.npz, options.json].map((path) => path !== undefined),
  });
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
  const shown = {
    inputs,
    heldOut,
    judge: references.at(-1)?.judge.network.name,
    prefixes: settings.prefixes,
  };
  const pages = options.out === undefined || !isFirst() ? [] : await writePages(options.out, shown, results);
  for (const draw of results.flatMap((result) => [...result.freeDraws, ...result.completionDraws])) {
    draw.codes.dispose();
  }

  const networks = networkFacts(inputs, options.features ?? []);
  const rows = results.flatMap((result) => result.rows);
  const { versions, commit, threads } = environment();
  const evaluation: ModelEvaluation = {
    settings: { ...settings, device: inputs.device, dtype: options.dtype ?? "float32" },
    judged: options.judged ?? null,
    files: inputs.files,
    made: { versions, commit, threads },
    data: {
      source: data.source,
      size: data.size,
      classNames: trainSource.classNames,
      train: {
        images: trainSource.length,
        read: trained?.count ?? 0,
        unreadable: trained?.unreadable ?? [],
        fingerprint: trainSource.fingerprint,
      },
      heldOut:
        inputs.heldOut === null
          ? null
          : {
              images: inputs.heldOut.length,
              read: heldOut?.images.size(0) ?? 0,
              unreadable: heldOut?.unreadable ?? [],
              fingerprint: inputs.heldOut.fingerprint,
            },
      codes: inputs.codes,
      codebookSize: inputs.tokenizer.codebookSize,
    },
    networks,
    real,
    reconstruction,
    likelihoods: results.flatMap(({ likelihood }) => (likelihood === null ? [] : [likelihood])),
    rows,
    verdicts: verdictsOf(context, results),
    agreements: agreementsOf(
      networks.map(({ name }) => name),
      rows,
    ),
    pages,
    notes: [
      ...(heldOut === null
        ? ["No image is held out, so there are no reconstructions, completions and likelihoods."]
        : []),
      ...(inputs.setAside > 0
        ? [`${inputs.setAside} held-out images are set aside: a policy was chosen on them.`]
        : []),
      ...(inputs.train.notes ?? []),
      ...unreadableNotes("held-out", heldOut?.unreadable ?? []),
      ...unreadableNotes("training", trained?.unreadable ?? []),
      ...references.flatMap(notesOfReference),
      ...dependence(
        references.filter((_, k) => networks[k]?.isRewarded === false && networks[k]?.sharesImages === null),
      ),
      ...comparability(context, trained),
    ],
  };
  if (options.json !== undefined && isFirst())
    replaceFile(options.json, `${JSON.stringify(evaluation, null, 2)}\n`);
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
    const published = inputs.published?.judges.includes(judge) ? inputs.published.set.moments : null;
    return referenceOf(judge, described, others?.[k] ?? null, inputs.train.classNames, published);
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
  const drawn = classesOfFreeSamples(counts, samples, classes, 0);
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
          const found = completionNumbers.find((each) => each.prefix === prefix && isSamePoint(each, point));
          const { plain, perceptual } = found as CompletionNumbers;
          return (measure === "l2" ? plain.l2 : perceptual[network.name]) as readonly number[];
        };
        const pointsOf = (result: PolicyResult): FrontierPoint[] =>
          result.rows.flatMap(({ temperature, cfg, completions }) => {
            const found = completions.find((each) => each.prefix === prefix)?.measures;
            const own = found?.networks[network.name];
            const value = measure === "l2" ? found?.plain.l2 : own?.perceptual;
            if (own?.fd_train === undefined || value === undefined) return [];
            return [{ temperature, cfg, fd: own.fd_train, value: value.value }];
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

/** Percent by which the mean of some numbers lies below that of others for the same images. */
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

/** Whether numbers can be compared with published ones. */
function comparability({ inputs, settings, references }: EvalContext, trained: Trained | null): string[] {
  if (references.length === 0 || inputs.policies.length === 0 || settings.samples === 0) return [];
  return references.map(({ judge: { network } }) => {
    const { name } = network;
    if (!/\(FID\)/.test(name)) return `${name}: its numbers compare only with others of this very network.`;
    const used = `${settings.samples} samples against ${trained?.count ?? 0} training images of ${inputs.data.size} px`;
    return settings.samples === PUBLISHED_SAMPLES
      ? `${name}: ${used}; comparable with published numbers of the same data set and size.`
      : `${name}: ${used}; published numbers are of ${PUBLISHED_SAMPLES.toLocaleString("en")} samples, so these do not compare with them.`;
  });
}

/** Inputs shared by the evaluation of all policies. */
interface EvalContext {
  readonly inputs: EvalInputs;
  readonly settings: EvalSettings;
  readonly heldOut: HeldOut | null;
  /** By the judges' order. */
  readonly references: readonly Reference[];
  /** Class of each free sample. */
  readonly classes: readonly number[];
  /** What free samples start from: of as many rows, or none. */
  readonly condition: Condition;
  /** Intervals of what is measured once. */
  readonly intervals: Intervals;
  readonly npz: string | undefined;
  readonly wantsPages: boolean;
  readonly say: (line: string) => void;
}

/** Numbers per image of the completions at a point, the mean over draws and seeds. */
interface CompletionNumbers extends Point {
  readonly prefix: number;
  readonly plain: PerImage;
  readonly perceptual: PerImage;
}

/** All that was found of a policy. Tensors of draws are the caller's to dispose of. */
interface PolicyResult {
  readonly likelihood: Likelihood | null;
  readonly rows: readonly EvalRow[];
  readonly completionNumbers: readonly CompletionNumbers[];
  /** Of the first seed, for pages: rows to show of every point. */
  readonly freeDraws: readonly ShownDraw[];
  readonly completionDraws: readonly CompletionDraw[];
}

/** Evaluate a policy. */
function evaluatePolicy(context: EvalContext, label: string, policy: ArPolicy): PolicyResult {
  const { inputs, settings, say } = context;
  const drawer: Drawer = { policy, device: inputs.device, batch: settings.batch };
  // On a GPU weights have no other layout to take.
  using _packed = inputs.device === "cpu" ? packLinears(policy) : null;
  const likelihood = likelihoodEstimates(context, label, drawer);
  const rows: EvalRow[] = [];
  const completionNumbers: CompletionNumbers[] = [];
  const freeDraws: ShownDraw[] = [];
  const completionDraws: CompletionDraw[] = [];
  for (const temperature of settings.temperatures) {
    for (const cfg of settings.cfg) {
      const point = { temperature, cfg };
      const started = performance.now();
      const free = freeMeasures(context, label, drawer, point, freeDraws);
      const prefixes = context.heldOut === null ? [] : settings.prefixes;
      const completions = prefixes.map((prefix) => {
        const found = completionMeasures(context, label, drawer, { ...point, prefix }, completionDraws);
        completionNumbers.push(found.numbers);
        return { prefix, measures: found.measures };
      });
      rows.push({ policy: label, ...point, free, completions });
      const seconds = (performance.now() - started) / 1000;
      say(`${label} T ${temperature} cfg ${cfg}: ${seconds.toFixed(1)} s`);
    }
  }
  return { likelihood, rows, completionNumbers, freeDraws, completionDraws };
}

function samplingAt({ cfgSchedule, topK, topP }: EvalSettings, { temperature, cfg }: Point): Sampling {
  return { temperature, topK, topP, ...(cfg !== 1 && { guidance: { scale: cfg, schedule: cfgSchedule } }) };
}

/** With several seeds the spread is over them, and nothing is resampled. */
function intervalsOf({ settings, intervals }: EvalContext): Intervals {
  return settings.seeds.length > 1 ? { ...intervals, resamples: 0 } : intervals;
}

function likelihoodEstimates(context: EvalContext, label: string, drawer: Drawer): Likelihood | null {
  const { heldOut, intervals } = context;
  if (heldOut === null) return null;
  return tidy(() => {
    const { nats, top1 } = likelihoodOf(drawer, heldOut.codes, heldOut.condition);
    const natsPerToken = meanOf(nats, intervals);
    const { value, low, high } = natsPerToken;
    const perplexity = {
      value: Math.exp(value),
      low: low === null ? null : Math.exp(low),
      high: high === null ? null : Math.exp(high),
    };
    return { policy: label, images: nats.numel, natsPerToken, perplexity, top1: meanOf(top1, intervals) };
  });
}

function freeMeasures(
  context: EvalContext,
  label: string,
  drawer: Drawer,
  point: Point,
  draws: ShownDraw[],
): Measures | null {
  const { inputs, settings, references, classes, condition, npz, wantsPages } = context;
  const count = classes.length;
  if (count === 0) return null;
  const intervals = intervalsOf(context);
  const sampling = samplingAt(settings, point);
  const perSeed = settings.seeds.map((seed, i) =>
    tidy(() => {
      const codes = drawFree(drawer, condition, { count, codes: inputs.codes, sampling, seed });
      const draw: FreeDraw = { label, ...point, codes, classes };
      if (i === 0 && npz !== undefined) {
        writeSamples(samplesPath(npz, draw, isOnlyPoint(context)), inputs, draw);
      }
      if (i === 0 && wantsPages) {
        const shown = shownOf(draw);
        keep(shown.codes);
        draws.push(shown);
      }
      const networks: Record<string, Estimates> = {};
      if (references.length > 0) {
        using describer = new Describer(inputs.judges);
        forEachDecoded(inputs.tokenizer, codes, sizeAndDevice(inputs), (images) => describer.add(images));
        const asked = tensor([...classes], { dtype: "int64" });
        for (const [k, described] of describer.all().entries()) {
          const reference = references[k] as Reference;
          const set = { described, classes: asked, of: "model" } as const;
          networks[reference.judge.network.name] = measureSet(reference, set, intervals);
        }
      }
      const plain = { codes_used: usageOf(codes, inputs.tokenizer.codebookSize, intervals) };
      return { images: count, plain, networks };
    }),
  );
  return measuresOverSeeds(perSeed);
}

function isOnlyPoint({ inputs, settings }: EvalContext): boolean {
  return inputs.policies.length * settings.temperatures.length * settings.cfg.length === 1;
}

/** Options of decoding samples, which processes share. */
const sizeAndDevice = ({ data, device }: EvalInputs) =>
  ({ size: data.size, device, isShared: true }) as const;

function completionMeasures(
  context: EvalContext,
  label: string,
  drawer: Drawer,
  point: Point & { prefix: number },
  kept: CompletionDraw[],
): { measures: Measures; numbers: CompletionNumbers } {
  const { settings, wantsPages } = context;
  const heldOut = context.heldOut as HeldOut;
  const { prefix } = point;
  const { draws } = settings;
  const intervals = intervalsOf(context);
  const sampling = samplingAt(settings, point);
  const numbers: { plain: PerImage; perceptual: PerImage }[] = [];
  const perSeed = settings.seeds.map((seed, i) =>
    tidy(() => {
      const options = { prefix, draws, sampling, seed };
      const codes = drawCompletions(drawer, heldOut.codes, heldOut.condition, options);
      if (i === 0 && wantsPages) kept.push({ label, ...point, draws, codes: keep(codes) });
      const followed = measureFollowing(context, codes, draws, intervals);
      numbers.push({ plain: followed.plain, perceptual: followed.perceptual });
      return followed.measures;
    }),
  );
  const mean = (of: "plain" | "perceptual"): PerImage => meanOverSeeds(numbers.map((each) => each[of]));
  return {
    measures: measuresOverSeeds(perSeed),
    numbers: { ...point, plain: mean("plain"), perceptual: mean("perceptual") },
  };
}

/**
 * Measure images that follow the held-out ones: completions of them, or their reconstructions. Distances of sets
 * use one draw per image, and the mean over the draws: with more images they would be lower because of the number.
 *
 * @param codes - int64 `[H * draws, T]`, the draws of an image in a row.
 */
function measureFollowing(
  { inputs, heldOut, references }: Pick<EvalContext, "inputs" | "heldOut" | "references">,
  codes: Tensor,
  draws: number,
  intervals: Intervals,
): { measures: Measures; plain: PerImage; perceptual: PerImage } {
  const { tokenizer, judges, data, device, lpips } = inputs;
  const { images, classes } = heldOut as HeldOut;
  return tidy(() => {
    const comparer = new Comparer(judges, data.size, lpips);
    using describer = new Describer(judges);
    forEachDecoded(tokenizer, codes, { ...sizeAndDevice(inputs), multiple: draws }, (samples, from) => {
      comparer.add(imagesFromBytes(images, from / draws, samples.size(0) / draws, device), samples);
      describer.add(samples);
    });
    const { plain, perceptual } = comparer;
    const distances = meansOf(perceptual, intervals);
    const all = references.length === 0 ? [] : describer.all();
    const networks = Object.fromEntries(
      references.map((reference, k) => {
        const { name } = reference.judge.network;
        const { features, probabilities } = all[k] as NonNullable<(typeof all)[number]>;
        const ofDraw = (rows: Tensor, j: number): Tensor => rows.unflatten(0, [-1, draws]).select(1, j);
        const sets = Array.from({ length: draws }, (_, j) => {
          const described = { features: ofDraw(features, j), probabilities: ofDraw(probabilities, j) };
          return measureSet(reference, { described, classes, of: "following" }, intervals);
        });
        const own = distances[name];
        return [name, { ...(own && { perceptual: own }), ...meanEstimates(sets) }];
      }),
    );
    return {
      measures: { images: images.size(0), plain: meansOf(plain, intervals), networks },
      plain,
      perceptual,
    };
  });
}
