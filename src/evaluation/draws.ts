/**
 * Sampling in an evaluation: free samples, completions of held-out images, and log-probabilities of their true codes. Codes stay
 * on the CPU; images are decoded where they are used.
 *
 * All draws of a seed use the same random numbers for every policy, temperature and scale, so differences come from the
 * policy. The number of sequences at a time changes only the rounding of logits. Several processes share the batches: each
 * does some of those that one process would do, with the same random numbers, and all get the results of all.
 */
import { gatherParts, ownParts } from "../distributed/index.js";
import type { ArPolicy, Condition } from "../policies/index.js";
import { sampleRollout } from "../rl_ar_finetune/rollout.js";
import {
  mapCondition,
  type Sampling,
  sampleCodesWithLogprobs,
  skipUniforms,
  withoutDropout,
} from "../rl_ar_finetune/sampling.js";
import { distributionAt, logitChunk, passesOf, rangesOf, statesOf } from "../rl_ar_finetune/scoring.js";
import type { FrozenTokenizer } from "../tokenizers/index.js";
import {
  cat,
  type Device,
  empty,
  expected,
  noGrad,
  randperm,
  stream,
  type Tensor,
  tidy,
  toDevice,
} from "../torch/index.js";

/** A policy and where it computes. */
export interface Drawer {
  readonly policy: ArPolicy;
  readonly device: Device;
  /** Sequences at a time. */
  readonly batch: number;
}

/** Rows of a condition, on the CPU. */
const conditionRows = (condition: Condition, from: number, count: number, device: Device): Condition =>
  mapCondition(condition, (rows) => toDevice(rows.narrow(0, from, count), device));

/**
 * Draw a sequence for each row of a condition.
 *
 * @param count - N: rows of the condition, which may be `{}`.
 * @returns int64 `[N, codes]`, on the CPU.
 */
export function drawFree(
  { policy, device, batch }: Drawer,
  condition: Condition,
  options: { count: number; codes: number; sampling: Sampling; seed: number },
): Tensor {
  const { count, codes, sampling, seed } = options;
  using generator = stream(seed, "eval/free");
  return tidy(() => {
    const ranges = ownParts(rangesOf(count, batch));
    skipUniforms(rowsBefore(ranges) * codes, generator);
    const parts = ranges.map(([from, some]) =>
      tidy(() => {
        const none = empty([some, 0], { dtype: "int64", device });
        const start = [none, conditionRows(condition, from, some, device)] as const;
        return sampleCodesWithLogprobs(policy, start, codes, { ...sampling, generator }).tokens.cpu();
      }),
    );
    return gatherParts(parts);
  });
}

/** Rows of the batches before those of this process. */
const rowsBefore = (own: readonly (readonly [from: number, count: number])[]): number => own[0]?.[0] ?? 0;

/**
 * Complete images of which the first codes are given.
 *
 * @param trueCodes - int64 `[H, T]`, on the CPU.
 * @param condition - of the H images.
 * @returns int64 `[H * draws, T]`, the draws of an image in a row, on the CPU.
 */
export function drawCompletions(
  { policy, device, batch }: Drawer,
  trueCodes: Tensor,
  condition: Condition,
  options: { prefix: number; draws: number; sampling: Sampling; seed: number },
): Tensor {
  const { prefix, draws, sampling, seed } = options;
  using generator = stream(seed, `eval/complete/${prefix}`);
  return tidy(() => {
    const [images, t] = trueCodes.dims(2);
    const ranges = ownParts(rangesOf(images, Math.max(1, Math.floor(batch / draws))));
    skipUniforms(rowsBefore(ranges) * draws * (t - prefix), generator);
    const parts = ranges.map(([from, some]) =>
      tidy(() => {
        const rollout = sampleRollout(policy, conditionRows(condition, from, some, device), {
          context: { type: "prefix", length: prefix },
          numGenerations: draws,
          trueCodes: toDevice(trueCodes.narrow(0, from, some), device),
          sampling,
          generator,
        });
        return rollout.codes.flatten(0, 1).cpu();
      }),
    );
    return gatherParts(parts);
  });
}

/**
 * Log-probabilities of true codes, each after those before it, under the policy's own softmax.
 *
 * @param trueCodes - int64 `[H, T]`, on the CPU.
 * @returns `nats` float64 `[H]`: the mean over an image's codes of -log p; `top1` float64 `[H]`: the share of them that
 *   are the most probable code.
 */
export function likelihoodOf(
  { policy, device, batch }: Drawer,
  trueCodes: Tensor,
  condition: Condition,
): { nats: Tensor; top1: Tensor } {
  const rowsFrom = (from: number, some: number): Tensor => {
    const tokens = toDevice(trueCodes.narrow(0, from, some), device);
    const passes = passesOf("likelihoodOf", { tokens, start: conditionRows(condition, from, some, device) });
    const chunk = logitChunk(policy);
    const states = statesOf(policy, passes).hidden.reshape(tokens.numel, -1).split(chunk);
    const truth = tokens.reshape(-1, 1).split(chunk);
    const columns = states.map((piece, i) =>
      tidy(() => {
        const { logp } = distributionAt(policy, {}, { hidden: piece });
        const wanted = truth[i] as Tensor;
        return cat([logp.gather(1, wanted).double(), logp.argmax(-1, true).eq(wanted).double()], 1).cpu();
      }),
    );
    return cat(columns).unflatten(0, [some, -1]).mean(1); // [some, 2]
  };
  return withoutDropout([policy], () =>
    noGrad(() =>
      tidy(() => {
        const ranges = ownParts(rangesOf(trueCodes.size(0), batch));
        const all = gatherParts(ranges.map(([from, some]) => tidy(() => rowsFrom(from, some))));
        return { nats: all.select(1, 0).neg(), top1: all.select(1, 1) };
      }),
    ),
  );
}

/** Most pixels, and most images, that a decoder is given at a time: few enough that several processes can share them. */
const PIXELS_AT_A_TIME = 2 ** 19;
const IMAGES_AT_A_TIME = 64;

/**
 * Decode codes and use the images as they come.
 *
 * @param codes - int64 `[n, T]`, on the CPU.
 * @param use - given float32 `[c, 3, size, size]` in [-1, 1], as 8 bits per channel keep it, and the first one's number;
 *   tensors that it makes are freed, except those that it returns.
 * @param options.multiple - the numbers of images at a time are multiples of it.
 * @param options.isShared - whether each process of a run decodes a part of them; default false.
 */
export function forEachDecoded(
  tokenizer: FrozenTokenizer,
  codes: Tensor,
  options: { size: number; device: Device; multiple?: number; isShared?: boolean },
  use: (images: Tensor, from: number) => unknown,
): void {
  const { size, device, multiple = 1, isShared = false } = options;
  const side = size / tokenizer.downsample;
  const most = Math.min(IMAGES_AT_A_TIME, PIXELS_AT_A_TIME / size ** 2);
  const step = Math.max(1, Math.floor(most / multiple)) * multiple;
  const ranges = rangesOf(codes.size(0), step);
  for (const [from, count] of isShared ? ownParts(ranges) : ranges) {
    tidy(() => {
      const decoded = tokenizer.decodeCode(toDevice(codes.narrow(0, from, count), device), [side, side]);
      return use(asSaved(decoded), from);
    });
  }
}

/** Images as 8 bits per channel keep them: float `[n, 3, H, W]`, clamped to [-1, 1] and rounded. */
export function asSaved(images: Tensor): Tensor {
  return tidy(() => images.float().add(1).mul(127.5).clamp(0, 255).round().div(127.5).sub(1));
}

/**
 * The class of each free sample, in random order.
 *
 * @param counts - training images of each class.
 * @param how - shares as among the training images, or equal; met as nearly as whole numbers allow.
 */
export function classesOfFreeSamples(
  counts: readonly number[],
  total: number,
  how: "data" | "balanced",
  seed: number,
): number[] {
  const weights = how === "balanced" ? counts.map((count) => (count > 0 ? 1 : 0)) : counts;
  const sum = weights.reduce<number>((all, weight) => all + weight, 0);
  if (sum === 0) throw expected("classesOfFreeSamples", "at least one training image", "none");
  const exact = weights.map((weight) => (weight * total) / sum);
  const given = exact.map(Math.floor);
  const left = total - given.reduce((all, count) => all + count, 0);
  // Largest remainders first.
  const order = exact.map((value, c) => ({ c, rest: value - Math.floor(value) }));
  for (const { c } of order.sort((a, b) => b.rest - a.rest || a.c - b.c).slice(0, left)) {
    given[c] = (given[c] as number) + 1;
  }
  const ascending = given.flatMap((count, c) => Array<number>(count).fill(c));
  using generator = stream(seed, "eval/classes");
  const places = tidy(() => randperm(total, { generator }).toList() as number[]);
  return places.map((place) => ascending[place] as number);
}
