/**
 * The straight-through baseline: it draws codes with straight-through Gumbel noise, decodes their codebook rows with the frozen
 * decoder, and backpropagates the reward through the decoder into the policy. There are no advantages and no ratio. The draws
 * and their gradient are in `scoring.ts`, rewards in `rewards.ts`.
 *
 * After the STE baseline of VA-pi (2025), with Jang et al. 2017, "Categorical Reparameterization with Gumbel-Softmax".
 * Deviations from the published script:
 * - the decoder reads the same rows as for codes, divided by their length where the lookup is by cosine; the script
 *   feeds the table's rows as they are, which decode to other images;
 * - the loss is minus the reward, with all its terms, plus the cross-entropy, on by default, and an entropy bonus; the
 *   script has the squared error and LPIPS, with LPIPS and the cross-entropy off;
 * - an image may have several draws per forward pass of the policy; the script has one;
 * - one step per rollout of `rollout.images` with a learning rate schedule; the script takes a step per batch of the set at a constant rate.
 */
import { accumulateGradients, reduceGradients } from "../distributed/index.js";
import { clipGradNorm } from "../nn/index.js";
import type { ArPolicy } from "../policies/policy.js";
import type { FrozenTokenizer, TokenizerModel } from "../tokenizers/index.js";
import {
  cat,
  type Device,
  deriveSeed,
  expected,
  expectedType,
  noGrad,
  type OptionNames,
  readOptions,
  Tensor,
  tidy,
  toDevice,
  withoutAutocast,
} from "../torch/index.js";
import { planBatches } from "./batches.js";
import { readSums, reducedSums } from "./objective.js";
import { factorOf, keyOf, type Term, termValue } from "./rewards.js";
import { requireCount, requireOnDevice, requirePositive, type Start, withoutDropout } from "./sampling.js";
import {
  ownRangesOf,
  type Passes,
  passesOf,
  scoreRows,
  sliceRows,
  statesOf,
  straightThroughVectors,
} from "./scoring.js";
import {
  checkOptions,
  imageOrder,
  type Optimizer,
  pickPasses,
  Totals,
  type UpdateOptions,
  type UpdateResult,
} from "./update.js";

/** Images, and the contexts in which their codes are drawn. */
export interface SteBatch {
  /** float32 `[B, 3, H, W]` in [-1, 1]. */
  readonly images: Tensor;
  readonly start: Start;
  /** int64 `[B, T]`: the images' codes. */
  readonly trueCodes: Tensor;
  /** int64 `[B, T - 1]`: what is read before codes 1 ... T - 1, as in a teacher-forced rollout. */
  readonly context: Tensor;
}

/** Options of {@link steUpdate}. */
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
  /** The terms of the reward; each must be differentiable in the samples. */
  readonly terms: readonly Term[];
  /** Draws per image; default 1. */
  readonly numGenerations?: number;
  /** Temperature of the soft draw; default 1. */
  readonly tau?: number;
  /** The draws depend on it and on an image's place in the batch alone. */
  readonly seed: number | bigint;
}

/** The parts of a tokenizer that a gradient goes through. */
type Decoder = Pick<TokenizerModel, "quantize" | "decode">;

/** The rows of one optimizer step. */
interface SteRows {
  readonly passes: Passes;
  readonly images: Tensor;
  /** The place of each row in the batch. */
  readonly places: readonly number[];
}

const STE_NAMES: OptionNames<SteOptions> = {
  tokenizer: true,
  terms: true,
  numGenerations: "number",
  tau: "number",
  seed: true,
  miniBatch: "number",
  microBatch: "number",
  auxCe: "number",
  entropyCoef: "number",
  maxGradNorm: "number",
  trained: true,
  generator: true,
  lrFactor: "number",
};

/**
 * One optimizer step for each mini-batch along the gradient of the reward through the decoder.
 *
 * The draws depend on the seed and an image's place alone, so that `microBatch` changes memory only. Dropout is off.
 *
 * @returns `loss/{total,reward,aux_ce,entropy}`, `reward/straight_through` (the mean over the draws), `policy/update_entropy`
 *   with an entropy bonus, and `optim/...` as other updates have them. A step whose loss or gradient is not finite is
 *   skipped.
 * @throws RangeError or TypeError for an argument that is unknown, missing or out of range, for a tokenizer that is not
 *   of the package, whose codebook is unknown here, and for a term of the reward that is not differentiable.
 */
export function steUpdate(
  policy: ArPolicy,
  optimizer: Optimizer,
  given: SteBatch,
  ...more: [options: SteOptions]
): UpdateResult {
  const where = "steUpdate";
  const batch = readOptions<SteBatch>(`${where}.batch`, [given], {
    names: { images: true, start: true, trueCodes: true, context: true },
  });
  const options = readOptions<SteOptions>(where, more, { names: STE_NAMES });
  for (const name of ["images", "trueCodes", "context"] as const) {
    if (!(batch[name] instanceof Tensor))
      throw expectedType(`${where}.batch.${name}`, "a Tensor", batch[name]);
  }
  requireOnDevice(`${where}.batch`, policy, { ...batch });
  checkOptions(where, options);
  const { microBatch, maxGradNorm = Infinity, generator, lrFactor, numGenerations = 1, tau = 1 } = options;
  requireCount(`${where}.numGenerations`, numGenerations);
  requirePositive(`${where}.tau`, tau);
  if (options.seed === undefined) throw expected(`${where}.seed`, "an integer", "none");
  const decoder = decoderOf(options.tokenizer);
  const trained = options.trained ?? policy.parameters();
  return tidy(() =>
    withoutDropout([policy], () => {
      const { images, start, trueCodes, context } = batch;
      const b = images.size(0);
      const passes = passesOf(where, { tokens: trueCodes.unsqueeze(1), start, context });
      if (passes.rows !== b) throw expected(where, `images of ${passes.rows} rows, as trueCodes has`, images);
      const plan = planBatches({ ...options, images: b, rowsAnImage: 1 }, where);
      const full: SteRows = { passes, images, places: Array.from({ length: b }, (_, i) => i) };
      const totals = new Totals();
      for (const indices of imageOrder(b, plan.miniBatches, generator)) {
        const [sums, norm] = tidy(() => {
          const window = indices === null ? full : pickRows(full, indices);
          optimizer.zeroGrad();
          const ranges = ownRangesOf(window.passes, microBatch ?? b);
          const parts = accumulateGradients(trained, ranges, ([from, count]) =>
            tidy(() => rowsGradient(policy, decoder, window, from, count, options)),
          );
          reduceGradients(trained);
          return [reducedSums(readSums(parts)), clipGradNorm(trained, maxGradNorm)] as const;
        });
        if (!Number.isFinite(sums["loss/total"]) || !Number.isFinite(norm)) {
          totals.skipped++;
        } else {
          totals.add(sums, norm, norm > maxGradNorm);
          optimizer.step(lrFactor === undefined ? {} : { lrFactor });
          totals.steps++;
        }
        optimizer.zeroGrad();
      }
      const { steps, skipped, sums } = totals;
      return {
        steps,
        skippedSteps: skipped,
        stoppedEarly: false,
        constantGroups: 0,
        metrics: {
          ...totals.metrics(),
          ...(sums.reward !== undefined && { "reward/straight_through": sums.reward / steps }),
          ...(sums.entropy !== undefined && { "policy/update_entropy": sums.entropy / steps }),
        },
      };
    }),
  );
}

function decoderOf(tokenizer: FrozenTokenizer | undefined): Decoder {
  const model = tokenizer?.vq;
  const { quantize, decode } = (model ?? {}) as Partial<TokenizerModel>;
  if (quantize !== undefined && decode !== undefined) return model as TokenizerModel;
  const remedy = "Use another algorithm: the others need no gradient of the decoder";
  throw expected("steUpdate.tokenizer", "an IBQ or VQ tokenizer", model ?? "none", remedy);
}

/** The rows of some images. */
function pickRows({ passes, images, places }: SteRows, indices: Tensor): SteRows {
  const chosen = toDevice(indices, images.device as Device);
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
  window: SteRows,
  from: number,
  count: number,
  options: SteOptions,
): Record<string, Tensor> {
  const { tokenizer, terms, numGenerations: g = 1, tau = 1, seed, auxCe = 0, entropyCoef = 0 } = options;
  const share = count / window.places.length;
  const passes = sliceRows(window.passes, from, count);
  const states = statesOf(policy, passes);
  const images = window.images.narrow(0, from, count);
  const table = noGrad(() => decoder.quantize.table()); // [V, C]
  // Split once: each narrow() would have a gradient of the size of all rows.
  const rows = states.hidden.split(1); // [1, T, D] each
  const vectors = rows.flatMap((hidden, i) => {
    const row = { hidden, nullHidden: null };
    const place = window.places[from + i] as number;
    return Array.from({ length: g }, (_, k) => {
      const own = deriveSeed(seed, "draw", place * g + k);
      return straightThroughVectors(policy, row, table, { seed: own, tau }); // [1, T, C]
    });
  });
  // Rewards and the decoder are float32 whatever the policy is computed in.
  const drawn = withoutAutocast(images, () => {
    const grid = [images.size(2) / tokenizer.downsample, images.size(3) / tokenizer.downsample];
    const quantized = cat(vectors).transpose(1, 2).unflatten(2, grid).contiguous(); // [r * G, C, h, w]
    const judged = { images, samples: decoder.decode(quantized) };
    const values = terms.map((term) => {
      const value = termValue(term, judged);
      if (!value.requiresGrad) {
        const remedy = "Set its weight to 0, or use another algorithm";
        throw expected(keyOf(term), "a gradient to the samples, for ste", "none", remedy);
      }
      return value.mean().mul(factorOf(term));
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
