/**
 * The differentiable baseline: codes drawn with straight-through Gumbel noise, their codebook rows through the frozen
 * decoder, and the reward's gradient back through all of it into the policy. No advantages, no ratio. Draws and their
 * gradient are in `scoring.ts`, rewards in `rewards.ts`.
 *
 * After the STE baseline of VA-pi (2025), with Jang et al. 2017, "Categorical Reparameterization with Gumbel-Softmax".
 * Deviations from the published script:
 * - the decoder reads the rows that it reads for codes, divided by their length where the lookup is the cosine; there
 *   they go in as they lie in the table, which are other images;
 * - what is descended is minus the reward, with all its terms, plus the cross-entropy, on by default, and a bonus for
 *   entropy; there the squared error and LPIPS, with LPIPS and the cross-entropy off;
 * - an image may be drawn several times for one forward pass of the policy; there once;
 * - one step a rollout of `rollout.images`, learning rate by schedule; there every batch of the set, at a constant rate.
 */
import { clipGradNorm } from "../nn/index.js";
import type { ArPolicy } from "../policies/policy.js";
import type { FrozenTokenizer, TokenizerModel } from "../tokenizers/index.js";
import {
  autocast,
  cat,
  type Device,
  deriveSeed,
  expected,
  noGrad,
  stack,
  type Tensor,
  tidy,
} from "../torch/index.js";
import type { Term } from "./rewards.js";
import { type Start, withoutDropout } from "./sampling.js";
import {
  type Passes,
  passesOf,
  rangesOf,
  scoreRows,
  someRows,
  statesOf,
  straightThroughVectors,
} from "./scoring.js";
import {
  imageOrder,
  type Optimizer,
  pickPasses,
  planBatches,
  type UpdateOptions,
  type UpdateResult,
} from "./update.js";

/** Images, and the contexts in which their codes are drawn again. */
export interface SteBatch {
  /** float32 `[B, 3, H, W]` in [-1, 1]. */
  readonly images: Tensor;
  readonly start: Start;
  /** int64 `[B, T]`: the images' codes. */
  readonly trueCodes: Tensor;
  /** int64 `[B, T - 1]`: what is read before codes 1 ... T - 1, as in a rollout of a teacher-forced context. */
  readonly context: Tensor;
}

/** How {@link steUpdate} draws and steps. */
export interface SteOptions
  extends Pick<
    UpdateOptions,
    | "miniBatch"
    | "microBatch"
    | "auxCe"
    | "entropyCoef"
    | "maxGradNorm"
    | "trained"
    | "generator"
    | "lrFactor"
  > {
  readonly tokenizer: FrozenTokenizer;
  /** The reward, whose terms must have a gradient to the samples. */
  readonly terms: readonly Term[];
  /** Draws an image; 1 where left out. */
  readonly numGenerations?: number;
  /** Temperature of the soft draw; 1 where left out. */
  readonly tau?: number;
  /** Decides the draws, together with an image's place in the batch. */
  readonly seed: number | bigint;
}

/** The parts of a tokenizer that a gradient goes through. */
type Decoder = Pick<TokenizerModel, "quantize" | "decode">;

/** Rows of a step, and the share of each in its loss. */
interface Window {
  readonly passes: Passes;
  readonly images: Tensor;
  /** Of each row: its place in the batch. */
  readonly places: readonly number[];
}

/**
 * One step for each mini-batch along the gradient of the reward through the decoder.
 *
 * Draws follow from the seed and an image's place alone, so that `microBatch` changes memory only. Dropout is off.
 *
 * @returns `loss/{total,reward,aux_ce,entropy}`, `reward/straight_through` (the mean over the draws), `policy/entropy`
 *   where it counts, and `optim/...` as other updates have them; a step whose loss or gradient is not finite is left out.
 * @throws RangeError for a tokenizer of the user's own, whose codebook is not known here, and for a term of the reward
 *   without a gradient to the samples.
 */
export function steUpdate(
  policy: ArPolicy,
  optimizer: Optimizer,
  batch: SteBatch,
  options: SteOptions,
): UpdateResult {
  const where = "steUpdate";
  const { microBatch, maxGradNorm = Infinity, generator, lrFactor } = options;
  const decoder = decoderOf(options.tokenizer);
  const trained = options.trained ?? policy.parameters();
  return tidy(() =>
    withoutDropout([policy], () => {
      const { images, start, trueCodes, context } = batch;
      const b = images.size(0);
      const passes = passesOf(where, { tokens: trueCodes.unsqueeze(1), start, context });
      if (passes.rows !== b) throw expected(where, `images of ${passes.rows} rows, as trueCodes has`, images);
      const plan = planBatches({ ...options, images: b, rowsAnImage: 1 }, where);
      const full: Window = { passes, images, places: Array.from({ length: b }, (_, i) => i) };
      const done = new Sums();
      for (const indices of imageOrder(b, plan.miniBatches, generator)) {
        const [sums, norm] = tidy(() => {
          const window = indices === null ? full : someImages(full, indices);
          optimizer.zeroGrad();
          const parts = rangesOf(window.places.length, microBatch ?? b).map(([from, count]) => {
            return tidy(() => rowsGradient(policy, decoder, window, from, count, options));
          });
          return [readSums(parts), clipGradNorm(trained, maxGradNorm)] as const;
        });
        if (!Number.isFinite(sums["loss/total"]) || !Number.isFinite(norm)) {
          done.skipped++;
        } else {
          done.add(sums, norm, norm > maxGradNorm);
          optimizer.step(lrFactor === undefined ? {} : { lrFactor });
        }
        optimizer.zeroGrad();
      }
      const { steps, skipped } = done;
      return {
        steps,
        skippedSteps: skipped,
        stoppedEarly: false,
        constantGroups: 0,
        metrics: done.metrics(),
      };
    }),
  );
}

function decoderOf({ vq }: FrozenTokenizer): Decoder {
  const { quantize, decode } = vq as Partial<TokenizerModel>;
  if (quantize !== undefined && decode !== undefined) return vq as TokenizerModel;
  const remedy = "Take another algorithm: the others need no gradient of the decoder";
  throw expected("steUpdate.tokenizer", "an IBQ or VQ tokenizer", vq, remedy);
}

/** The rows of some images. */
function someImages({ passes, images, places }: Window, indices: Tensor): Window {
  const chosen = indices.to({ device: images.device as Device });
  return {
    passes: pickPasses(passes, chosen, chosen),
    images: images.indexSelect(0, chosen),
    places: (indices.toList() as number[]).map((i) => places[i] as number),
  };
}

/** Forward, loss and backward of some rows of a step; sums without a graph. */
function rowsGradient(
  policy: ArPolicy,
  decoder: Decoder,
  window: Window,
  from: number,
  count: number,
  options: SteOptions,
): Record<string, Tensor> {
  const { tokenizer, terms, numGenerations: g = 1, tau = 1, seed, auxCe = 0, entropyCoef = 0 } = options;
  const share = count / window.places.length;
  const passes = someRows(window.passes, from, count);
  const states = statesOf(policy, passes);
  const images = window.images.narrow(0, from, count);
  const table = noGrad(() => decoder.quantize.table()); // [V, C]
  // Split once: the gradient of each narrow() would be as large as all rows.
  const rows = states.hidden.split(1); // [1, T, D] each
  const vectors = rows.flatMap((hidden, i) => {
    const row = { hidden, nullHidden: null };
    const place = window.places[from + i] as number;
    return Array.from({ length: g }, (_, k) => {
      const own = deriveSeed(seed, "draw", place * g + k);
      return straightThroughVectors(policy, row, table, { seed: own, tau }); // [1, T, C]
    });
  });
  const drawn = plainly(images, () => {
    const grid = [images.size(2) / tokenizer.downsample, images.size(3) / tokenizer.downsample];
    const quantized = cat(vectors).transpose(1, 2).unflatten(2, grid).contiguous(); // [r * G, C, h, w]
    const judged = { images, samples: decoder.decode(quantized) };
    const values = terms.map(({ name, measure, weight, sign }) => {
      const value = measure(judged);
      if (!value.requiresGrad) {
        const remedy = "Leave it out, or take another algorithm";
        throw expected(`reward.${name}`, "a gradient to the samples, for ste", "none", remedy);
      }
      return value.mean().mul(weight * sign);
    });
    return values.reduce((sum, value) => sum.add(value));
  });
  const losses: Record<string, Tensor> = { reward: drawn.mul(-share) };
  const sums: Record<string, Tensor> = { reward: drawn.detach().mul(share) };
  if (auxCe !== 0 || entropyCoef !== 0) {
    const { logprobs, entropy } = scoreRows(policy, passes, states, { wantsEntropy: entropyCoef !== 0 });
    if (auxCe !== 0) losses.aux_ce = logprobs.mean().mul(-auxCe * share);
    if (entropy !== null) {
      losses.entropy = entropy.mean().mul(-entropyCoef * share);
      sums.entropy = entropy.detach().mean().mul(share);
    }
  }
  const total = Object.values(losses).reduce((a, b) => a.add(b));
  total.backward();
  const named = Object.entries({ ...losses, total }).map(([name, loss]) => [`loss/${name}`, loss.detach()]);
  return { ...sums, ...Object.fromEntries(named) };
}

/** Run `fn` outside autocast: rewards and the decoder are float32, whatever the policy is computed in. */
function plainly<T>(like: Tensor, fn: () => T): T {
  return autocast({ device: like.device.startsWith("cuda") ? "cuda" : "cpu", dtype: null }, fn);
}

function readSums(parts: readonly Record<string, Tensor>[]): Record<string, number> {
  const names = Object.keys(parts[0] as Record<string, Tensor>);
  const totals = names.map((name) => stack(parts.map((part) => (part[name] as Tensor).double())).sum());
  const numbers = stack(totals).toArray(); // waits for the device
  return Object.fromEntries(names.map((name, i) => [name, Number(numbers[i])]));
}

/** Means over the steps that were finite. */
class Sums {
  steps = 0;
  skipped = 0;
  #clipped = 0;
  #norm = 0;
  #maxNorm = 0;
  readonly #sums: Record<string, number> = {};

  add(sums: Readonly<Record<string, number>>, norm: number, isClipped: boolean): void {
    for (const [name, value] of Object.entries(sums)) this.#sums[name] = (this.#sums[name] ?? 0) + value;
    this.#norm += norm;
    this.#maxNorm = Math.max(this.#maxNorm, norm);
    if (isClipped) this.#clipped++;
    this.steps++;
  }

  metrics(): Record<string, number> {
    const counts = { "optim/steps": this.steps, "optim/skipped_steps": this.skipped };
    if (this.steps === 0) return counts;
    const names: Record<string, string> = { reward: "reward/straight_through", entropy: "policy/entropy" };
    const means = Object.entries(this.#sums).map(([name, sum]) => [names[name] ?? name, sum / this.steps]);
    return {
      ...counts,
      ...Object.fromEntries(means),
      "optim/grad_norm": this.#norm / this.steps,
      "optim/grad_norm_max": this.#maxNorm,
      "optim/grad_norm_clipped_frac": this.#clipped / this.steps,
    };
  }
}
