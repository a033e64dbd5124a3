/**
 * What is measured of one policy: likelihood, and free samples and completions at each temperature and guidance scale.
 */
import { packLinears } from "../nn/index.js";
import type { ArPolicy, Condition } from "../policies/index.js";
import type { Sampling } from "../rl_ar_finetune/sampling.js";
import { keep, type Tensor, tensor, tidy } from "../torch/index.js";
import { type Drawer, drawCompletions, drawFree, forEachDecoded, likelihoodOf } from "./draws.js";
import { type CompletionDraw, type FreeDraw, samplesPath, shownOf, writeSamples } from "./files.js";
import { type EvalInputs, type HeldOut, imagesOf } from "./inputs.js";
import {
  Comparer,
  Describer,
  type Intervals,
  meanEstimates,
  meanOf,
  meansOf,
  measureSet,
  measuresOverSeeds,
  type PerImage,
  type Reference,
  usageOf,
} from "./measure.js";
import type { EvalSettings } from "./settings.js";
import type { Estimates, EvalRow, Likelihood, Measures, Point } from "./types.js";

/** What policies are judged with. */
export interface EvalContext {
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

/** Numbers an image of the completions at a point, the mean over draws and seeds. */
export interface CompletionNumbers extends Point {
  readonly prefix: number;
  readonly plain: PerImage;
  readonly perceptual: PerImage;
}

/** All that was found of a policy. Tensors of draws are the caller's to dispose of. */
export interface PolicyResult {
  readonly likelihood: Likelihood | null;
  readonly rows: readonly EvalRow[];
  readonly completionNumbers: readonly CompletionNumbers[];
  /** Of the first seed, for pages: rows to show of every point. */
  readonly freeDraws: readonly FreeDraw[];
  readonly completionDraws: readonly CompletionDraw[];
}

/** Judge a policy. */
export function evaluatePolicy(context: EvalContext, label: string, policy: ArPolicy): PolicyResult {
  const { inputs, settings, say } = context;
  const drawer: Drawer = { policy, device: inputs.device, batch: settings.batch };
  // On a GPU weights have no other layout to take.
  using _packed = inputs.device === "cpu" ? packLinears(policy) : null;
  const likelihood = likelihoodEstimates(context, label, drawer);
  const rows: EvalRow[] = [];
  const completionNumbers: CompletionNumbers[] = [];
  const freeDraws: FreeDraw[] = [];
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

function samplingOf({ cfgSchedule, topK, topP }: EvalSettings, { temperature, cfg }: Point): Sampling {
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
  draws: FreeDraw[],
): Measures | null {
  const { inputs, settings, references, classes, condition, npz, wantsPages } = context;
  const count = classes.length;
  if (count === 0) return null;
  const intervals = intervalsOf(context);
  const sampling = samplingOf(settings, point);
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
        forEachDecoded(inputs.tokenizer, codes, sizeOf(inputs), (images) => describer.add(images));
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

const sizeOf = ({ data, device }: EvalInputs): { size: number; device: EvalInputs["device"] } => ({
  size: data.size,
  device,
});

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
  const sampling = samplingOf(settings, point);
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
 * Measure images that follow the held-out ones: completions of them, or their reconstructions. Distances of sets are of
 * one draw an image, the mean over the draws: those of more images would be less by their number alone.
 *
 * @param codes - int64 `[H * draws, T]`, the draws of an image in a row.
 */
export function measureFollowing(
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
    forEachDecoded(tokenizer, codes, { ...sizeOf(inputs), multiple: draws }, (samples, from) => {
      comparer.add(imagesOf(images, from / draws, samples.size(0) / draws, device), samples);
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
      measures: { images: codes.size(0), plain: meansOf(plain, intervals), networks },
      plain,
      perceptual,
    };
  });
}

function meanOverSeeds(numbers: readonly PerImage[]): PerImage {
  const names = Object.keys(numbers[0] ?? {});
  return Object.fromEntries(
    names.map((name) => {
      const seeds = numbers.map((each) => each[name] as readonly number[]);
      const first = seeds[0] as readonly number[];
      return [
        name,
        first.map((_, i) => seeds.reduce((sum, seed) => sum + (seed[i] as number), 0) / seeds.length),
      ];
    }),
  );
}
