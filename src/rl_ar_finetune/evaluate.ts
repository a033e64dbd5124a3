/**
 * From a batch to drawn sequences to rewards, as training and evaluation share it; and judging a policy on images that it
 * is not trained on: the reward, metrics that are no part of it, and how likely the true codes are. Always the same
 * images and the same draws, so that two evaluations differ by the policy alone.
 */

import type { TrainConfig } from "../config/resolve.js";
import type { Batch } from "../data/index.js";
import type { Condition } from "../policies/index.js";
import { type Spread, spreadOf } from "../run/metrics.js";
import { autocast, cat, expected, noGrad, stream, type Tensor, tidy } from "../torch/index.js";
import { latentsOf } from "./builder.js";
import type { RunParts } from "./parts.js";
import { type Judged, judge, judgeByPlace, reconstructionTerm, type Term, UNREWARDED } from "./rewards.js";
import { type Rollout, type RolloutOptions, sampleRollout } from "./rollout.js";
import { scoreCodes } from "./scoring.js";
import { contextAt, evalSamplingOf } from "./settings.js";
import type { PlainRewards } from "./step_metrics.js";

/** What an evaluation found. */
export interface Evaluation {
  readonly spreads: Readonly<Record<string, Spread>>;
  readonly metrics: Readonly<Record<string, number>>;
}

/** Metrics that are watched whether or not they are rewarded. */
const WATCHED: readonly Term[] = [
  reconstructionTerm("l1"),
  reconstructionTerm("l2"),
  reconstructionTerm("psnr"),
  reconstructionTerm("ssim"),
];

/** The condition of a batch, as a policy takes it. */
export function conditionOf(batch: Batch, start: TrainConfig["rollout"]["start"]): Condition {
  if (start === "empty") return {};
  const { features, isReal } = batch;
  if (features === undefined) return { classes: batch.classes };
  return isReal === undefined ? { features } : { features, isReal };
}

/**
 * Codes of images.
 *
 * @throws RangeError when a program's loader gives images of another size than `rollout.maxLen` says.
 */
export function encodeFor({ rollout }: TrainConfig, { tokenizer }: RunParts, images: Tensor): Tensor {
  const codes = tokenizer.encode(images);
  const { maxLen } = rollout;
  if (maxLen === null || maxLen === codes.size(1)) return codes;
  const remedy = "The decoder wants all codes of an image: give images of another size, or leave maxLen out";
  throw expected("rollout.maxLen", `${codes.size(1)}, the codes of the loader's images`, maxLen, remedy);
}

/**
 * Draw sequences as a run does: in the policy's precision, on packed weights where that pays, with adapters added to the
 * weights while codes are drawn one by one. Weights narrower than float32 would lose what is added: there the adapters
 * stay apart.
 */
export function rolloutFor(
  config: TrainConfig,
  parts: RunParts,
  condition: Condition,
  options: RolloutOptions,
): Rollout {
  const { policy, lora, policyCast, packAs } = parts;
  const { microBatch } = config.rollout;
  const all = { ...options, ...(microBatch !== null && { microBatch }), ...(packAs !== null && { packAs }) };
  const run = (): Rollout => {
    const draw = (): Rollout => sampleRollout(policy, condition, all);
    return policyCast === null ? draw() : autocast(policyCast, draw);
  };
  const isOneByOne = options.context.type === "free" || options.context.type === "prefix";
  if (lora === null || !isOneByOne || policy.parameters()[0]?.dtype !== "float32") return run();
  lora.merge();
  try {
    return run();
  } finally {
    lora.unmerge();
  }
}

/** Rows and columns of the codes of images. */
const gridOf = (parts: RunParts, images: Tensor): readonly [number, number] => {
  const { downsample } = parts.tokenizer;
  return [images.size(2) / downsample, images.size(3) / downsample];
};

/** What drawn codes are worth. */
export interface Credited {
  /** float64 `[B, G]`, or `[B, G, T]` for the codes that were drawn with credit by place: what an update takes. */
  readonly rewards: Tensor;
  readonly plain: PlainRewards;
}

/**
 * Judge a rollout as `reward.credit` says.
 *
 * By place, a code's share is its place's reward over the number of places, so that the shares of an image sum to its
 * reward; those of given codes are left out.
 *
 * @param drawn - T: codes that were drawn, the last ones of each image.
 */
export function creditFor(config: TrainConfig, parts: RunParts, judged: Judged, drawn: number): Credited {
  const { normalize, credit } = config.reward;
  if (credit === "sequence") {
    const { total, plain, terms } = judge(parts.terms, judged, { normalize });
    return { rewards: total, plain: { total: plain, terms } };
  }
  return tidy(() => {
    const grid = gridOf(parts, judged.images);
    const { places, plain, terms } = judgeByPlace(parts.terms, judged, grid, { normalize });
    const all = places.size(2);
    const rewards = places.narrow(2, all - drawn, drawn).div(all);
    return { rewards, plain: { total: plain, terms } };
  });
}

/** Samples and images as the reward wants them, decoded once. `codes` int64 `[B, G, T]`. */
export function decodeFor(parts: RunParts, images: Tensor, codes: Tensor, decodeBatch: number): Judged {
  const { tokenizer, terms } = parts;
  const grid = gridOf(parts, images);
  return noGrad(() =>
    tidy(() => {
      const flat = codes.flatten(0, 1);
      const pieces = flat.split(decodeBatch).map((piece) => tokenizer.decodeCode(piece, grid));
      const samples = cat(pieces);
      if (!terms.some((term) => term.name === "latent_cosine")) return { images, samples };
      return { images, samples, latents: latentsOf(tokenizer, images, flat, grid) };
    }),
  );
}

/**
 * Evaluate the policy as it is now.
 *
 * @returns `eval/reward` and every metric with its spread over all samples, in natural units; `eval/nats_per_token` of the true
 *   codes; the share of the codebook that samples use; how far an image's samples lie apart.
 */
export async function evaluate(config: TrainConfig, parts: RunParts): Promise<Evaluation> {
  const values = new Map<string, number[]>();
  const add = (name: string, tensor: Tensor): void => {
    values.set(name, [...(values.get(name) ?? []), ...(tensor.flatten().toList() as number[])]);
  };
  const used = new Set<number>();
  const rewarded = new Set(parts.terms.map((term) => term.name));
  const watched = WATCHED.filter((term) => !rewarded.has(term.name));
  if (parts.unrewarded !== null) watched.push(parts.unrewarded);
  // The average of the weights is what a user will sample from, where there is one.
  const withAverage = (fn: () => void): void =>
    parts.ema === null ? tidy(fn) : parts.ema.withAverage(() => tidy(fn));
  let index = 0;
  for await (const read of parts.evalBatches()) {
    using batch = read;
    using generator = stream(config.seed, "eval", index++);
    withAverage(() => {
      const images = batch.images as Tensor;
      const trueCodes = encodeFor(config, parts, images);
      const condition = conditionOf(batch, config.rollout.start);
      const rollout = rolloutFor(config, parts, condition, {
        context: contextAt(config, Number.MAX_SAFE_INTEGER, trueCodes.size(1)),
        numGenerations: config.eval.numGenerations,
        trueCodes,
        sampling: evalSamplingOf(config),
        generator,
      });
      const judged = decodeFor(parts, images, rollout.codes, config.tokenizer.decodeBatch ?? 8);
      const { total, terms } = judge(parts.terms, judged);
      add("eval/reward", total);
      const clamped = { ...judged, samples: judged.samples.clamp(-1, 1) };
      const others = watched.length === 0 ? {} : judge(watched, clamped).terms;
      for (const [name, tensor] of Object.entries({ ...terms, ...others })) add(`eval/${name}`, tensor);
      const [b, g] = total.dims(2);
      if (g > 1) {
        const bySample = judged.samples.unflatten(0, [b, g]);
        add("eval/diversity", bySample.std(1).mean([1, 2, 3]));
      }
      for (const code of rollout.tokens.unique().toList() as number[]) used.add(code);
      const truth = { tokens: trueCodes, start: condition, context: null, support: null, sampling: {} };
      const micro = config.rollout.microBatch === null ? {} : { microBatch: config.rollout.microBatch };
      const { logprobs } = noGrad(() => scoreCodes(parts.policy, truth, micro));
      add("eval/nats_per_token", logprobs.neg());
    });
  }
  const spreads = Object.fromEntries([...values].map(([name, numbers]) => [name, spreadOf(numbers)]));
  return { spreads, metrics: { "eval/codebook_usage": used.size / parts.tokenizer.codebookSize } };
}

/**
 * Whether the reward is being gamed: it rose since the first evaluation while every watched metric outside it fell.
 *
 * @param names - rewarded terms.
 */
export function isHacked(first: Evaluation, now: Evaluation, names: ReadonlySet<string>): boolean {
  const mean = (evaluation: Evaluation, name: string): number =>
    evaluation.spreads[`eval/${name}`]?.mean ?? Number.NaN;
  if (!(mean(now, "reward") > mean(first, "reward"))) return false;
  const outside: Pick<Term, "name" | "sign">[] = WATCHED.filter((term) => !names.has(term.name));
  if (first.spreads[`eval/${UNREWARDED}`] !== undefined) outside.push({ name: UNREWARDED, sign: -1 });
  return (
    outside.length > 0 && outside.every(({ name, sign }) => sign * (mean(now, name) - mean(first, name)) < 0)
  );
}
