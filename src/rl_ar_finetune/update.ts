/**
 * What every update shares: its batch and options, epochs, mini-batches, checks before a step, clipping, the step and
 * the metrics. Advantages and losses of each algorithm are in `optimize.ts`, a step's gradient in `window.ts`.
 */
import { clipGradNorm } from "../nn/index.js";
import type { ArPolicy } from "../policies/policy.js";
import {
  arange,
  cat,
  type Device,
  expected,
  type Generator,
  noGrad,
  onesLike,
  randperm,
  type Tensor,
  tidy,
} from "../torch/index.js";
import {
  type Aggregation,
  type KlEstimator,
  type KlLossKind,
  klEstimate,
  klLoss,
  tokenDropout,
} from "./losses.js";
import { mapStart } from "./sampling.js";
import { type Drawn, type Passes, passesOf, rangesOf, type States, scoreRows, someRows } from "./scoring.js";
import { type Objective, type Window, type WindowSums, windowGradient } from "./window.js";

/** What an update needs of an optimizer; `AdamW` is one. */
export interface Optimizer {
  step(options?: { lrFactor?: number }): void;
  zeroGrad(): void;
}

/** A rollout and what it was worth: `{ ...rollout, rewards }`. */
export interface UpdateBatch extends Drawn {
  /** float, in the shape of the tokens: nats under the distribution that each was drawn from. */
  readonly logprobs: Tensor;
  /**
   * float `[B, G]` (`[N]` for tokens `[N, T]`): higher is better. Or in the shape of the tokens, the share of the reward
   * that came with each of them, for credit by place; the sum is the sequence's reward.
   */
  readonly rewards?: Tensor;
  /** float `[B, G]`, or `[B, G, T]` for credit a token: in place of rewards (not in PPO). */
  readonly advantages?: Tensor;
  /** bool or float, broadcast to the tokens: true where a token counts; all of them where left out. */
  readonly mask?: Tensor;
  /** int64 `[B, S + T]`: the images' own codes from the first one on, for `auxCe`. */
  readonly trueCodes?: Tensor;
  /** The trunk's states with their graph, from a rollout with `keepGraph`: for an update of one step. */
  readonly states?: States | null;
}

/** A pull towards a reference model. */
export interface KlOptions {
  /** Weight of the divergence in nats; at 0 it is measured and pulls at nothing. */
  readonly coef: number;
  readonly reference: ArPolicy;
  /** In the loss, or taken from the rewards: a token's in PPO, else the sequence's sum. */
  readonly placement?: "loss" | "reward";
  /** `"exact"` sums over all codes at every position. In the loss k3 is the default, in the reward k1. */
  readonly estimator?: KlLossKind | "exact";
}

/** What all updates take. */
export interface UpdateOptions {
  /** Times each rollout is gone through; 1 where left out (PPO: 4). */
  readonly epochs?: number;
  /** Images an optimizer step; must divide those of the rollout; all of them where left out. */
  readonly miniBatch?: number;
  /** Rows of a forward pass: images where a group shares its context, else sequences. Changes memory only. */
  readonly microBatch?: number;
  readonly aggregation?: Aggregation;
  /** L of `dr_grpo`; T where left out. */
  readonly maxLen?: number;
  /**
   * With rewards a token: how much of a later one a token is credited with for each token in between, 0 to 1; 1, all
   * that comes after it, where left out. PPO has `lambda` for that.
   */
  readonly creditDecay?: number;
  /** Largest |advantage|. */
  readonly advantageClip?: number;
  /** Weight of the mean entropy a token, in nats. */
  readonly entropyCoef?: number;
  /** Weight of the cross-entropy of `trueCodes`, the term that keeps pixel rewards from wrecking a generator. */
  readonly auxCe?: number;
  readonly kl?: KlOptions;
  /** Probability of leaving a token out of the policy's loss. */
  readonly tokenDropout?: number;
  /** Largest norm of the gradient, all parameters as one vector. */
  readonly maxGradNorm?: number;
  /** What the optimizer moves; the policy's parameters where left out. A value head's come on top. */
  readonly trained?: readonly Tensor[];
  /** Stop before a step when KL(old || new), a token, is above 1.5 times this. */
  readonly targetKl?: number;
  /** Largest mean |ratio - 1| before the first step; 0.1 where left out, Infinity for stale rollouts. */
  readonly maxRatioGap?: number;
  /** A CPU generator for the order of mini-batches and token dropout. */
  readonly generator?: Generator;
  /** Factor of the learning rate, from a schedule. */
  readonly lrFactor?: number;
}

/** What an update did. */
export interface UpdateResult {
  /** Optimizer steps taken. */
  readonly steps: number;
  /** Steps left out because the loss or the gradient's norm was not finite; parameters stayed as they were. */
  readonly skippedSteps: number;
  /** Whether `targetKl` ended the update. */
  readonly stoppedEarly: boolean;
  /** Groups whose rewards were all the same. */
  readonly constantGroups: number;
  /**
   * Means over the tokens that count in all steps that were finite; a name is there when what it measures is.
   *
   * `loss/{total,policy,kl,entropy,aux_ce,value}` (means over steps, coefficients included),
   * `policy/{ratio_mean,ratio_min,ratio_max,entropy}`, `clip_ratio/{low,high,region}_mean` (clips that bind),
   * `kl/{approx,approx_k1}` (old policy against new: k3 and k1), `kl/ref_{k1,k2,k3,exact}` (new policy against the
   * reference) and `kl/ref` (the exact one where it is known, else k3), `advantage/{mean,std,min,max,abs_max,frac_zero_std}`, `optim/{steps,skipped_steps,grad_norm,
   * grad_norm_max,grad_norm_clipped_frac}` (norms before clipping), `sampling/logp_diff_{mean,max}` (scorer against
   * sampler before the first step), `value/{explained_variance,mean,std,clip_ratio}`.
   */
  readonly metrics: Readonly<Record<string, number>>;
}

/** Optimizer steps and forward passes of an update. */
export interface BatchPlan {
  readonly rows: number;
  readonly miniBatches: number;
  readonly steps: number;
  readonly microBatchesAStep: number;
}

/**
 * How rollout, mini-batch and micro-batch divide the work.
 *
 * @param sizes.images - B of the rollout.
 * @param sizes.rowsAnImage - forward rows an image: 1 where its group shares a context, else G.
 * @throws RangeError when a size is no integer of at least 1, or the mini-batch does not divide the rollout: a
 *   remainder would weigh its images more.
 */
export function planBatches(
  sizes: { images: number; rowsAnImage: number } & Pick<UpdateOptions, "epochs" | "miniBatch" | "microBatch">,
  where = "planBatches",
): BatchPlan {
  const { images, rowsAnImage, epochs = 1, miniBatch = images } = sizes;
  const rows = images * rowsAnImage;
  const { microBatch = miniBatch * rowsAnImage } = sizes;
  for (const [name, value] of Object.entries({ images, rowsAnImage, epochs, miniBatch, microBatch })) {
    if (!Number.isInteger(value) || value < 1)
      throw expected(`${where}.${name}`, "an integer of at least 1", value);
  }
  if (images % miniBatch !== 0) {
    throw expected(`${where}.miniBatch`, `a divisor of the rollout's ${images} images`, miniBatch);
  }
  const miniBatches = images / miniBatch;
  const microBatchesAStep = Math.ceil((miniBatch * rowsAnImage) / microBatch);
  return { rows, miniBatches, steps: epochs * miniBatches, microBatchesAStep };
}

/** A batch seen as rows of a forward pass; see `Window` for shapes. */
export interface Prepared {
  readonly plan: BatchPlan;
  readonly images: number;
  readonly passes: Passes;
  readonly microBatch: number;
  readonly old: Tensor;
  readonly mask: Tensor;
  readonly trueCodes: Tensor | null;
  readonly prior: Passes | null;
  readonly states: States | null;
}

/** Check a batch against the options, and see it as rows. */
export function prepare(where: string, batch: UpdateBatch, options: UpdateOptions): Prepared {
  const passes = passesOf(where, batch);
  const { rows, repeats } = passes;
  const images = rows / repeats;
  const plan = planBatches({ ...options, images, rowsAnImage: repeats }, where);
  const { tokens, logprobs, trueCodes } = batch;
  if (logprobs.shape.join() !== tokens.shape.join())
    throw expected(where, `logprobs [${tokens.shape.join(", ")}]`, logprobs);
  const states = batch.states ?? null;
  if (states !== null && plan.steps > 1) {
    const remedy = "Sample with keepGraph: false: a graph serves one step";
    throw expected(where, "one optimizer step with a rollout's states", plan.steps, remedy);
  }
  const ones = onesLike(tokens, { dtype: "float64" });
  const mask = asRows(batch.mask === undefined ? ones : batch.mask.double().expand(...tokens.shape), passes);
  if ((options.auxCe ?? 0) !== 0 && trueCodes === undefined)
    throw expected(where, "trueCodes with auxCe", "none");
  const s = passes.start.given.size(1);
  const t = tokens.size(-1);
  if (trueCodes !== undefined && trueCodes.shape.join() !== [images, s + t].join()) {
    throw expected(where, `trueCodes int64 [${images}, ${s + t}]`, trueCodes);
  }
  const isShared = batch.context !== null && batch.context !== undefined;
  const isOwn = trueCodes !== undefined && !isShared;
  return {
    plan,
    images,
    passes,
    microBatch: options.microBatch ?? rows,
    old: asRows(logprobs, passes),
    mask,
    trueCodes: isShared && trueCodes !== undefined ? trueCodes.narrow(1, s, t) : null,
    prior: isOwn ? passesOf(where, { tokens: trueCodes, start: passes.start.condition }) : null,
    states,
  };
}

/** `[B, G]` or `[B, G, T]` (`[N]`, `[N, T]`) as `[R, K, 1]` or `[R, K, T]`. */
export function asRows(tensor: Tensor, passes: Passes): Tensor {
  return tensor.reshape(passes.rows, passes.tokens.size(1), -1);
}

/** What the reference thinks of the codes that were drawn. */
export interface ReferenceView {
  /** float `[R, K, T]`: its log-probabilities; null for an exact divergence. */
  readonly logprobs: Tensor | null;
  /** float64 `[R, K, T]`: what is taken from the rewards, coefficient included; null with the divergence in the loss. */
  readonly penalty: Tensor | null;
  /** The mean over tokens that count of an exact divergence in the reward, which the loss does not see. */
  readonly exact: number | null;
}

/**
 * Ask the reference once for the whole rollout, without a graph.
 *
 * @throws RangeError for k1 in the loss, and for estimators that make no sense in a reward.
 */
export function askReference(policy: ArPolicy, prepared: Prepared, kl: Required<KlOptions>): ReferenceView {
  const { passes, microBatch, old } = prepared;
  const { coef, reference, placement, estimator } = kl;
  if (placement === "loss" && estimator !== "exact") klLoss(old, old, estimator); // refuses k1 before any work
  if (placement === "reward" && estimator === "k3_own") {
    throw expected(
      "kl.estimator",
      "k1, k2, k3 or exact in the reward",
      estimator,
      "A reward has no gradient to choose",
    );
  }
  return noGrad(() =>
    tidy(() => {
      const score = (model: ArPolicy, other?: ArPolicy): Tensor =>
        cat(
          rangesOf(passes.rows, microBatch).map(([from, count]) => {
            const scores = scoreRows(
              model,
              someRows(passes, from, count),
              null,
              other ? { reference: other } : {},
            );
            return other ? (scores.kl as Tensor).unsqueeze(1) : scores.logprobs;
          }),
        );
      if (estimator === "exact") {
        if (placement === "loss") return { logprobs: null, penalty: null, exact: null };
        const divergence = score(policy, reference)
          .double()
          .expand(...old.shape);
        const exact = divergence.mul(prepared.mask).sum().div(prepared.mask.sum()).item();
        return { logprobs: null, penalty: divergence.mul(coef), exact };
      }
      const logprobs = score(reference);
      if (placement === "loss") return { logprobs, penalty: null, exact: null };
      return {
        logprobs,
        exact: null,
        penalty: klEstimate(old, logprobs, estimator as KlEstimator)
          .double()
          .mul(coef),
      };
    }),
  );
}

/** What {@link runUpdate} needs beside options: advantages, and what comes with values. */
export interface Signal {
  /** float64 `[R, K, T]` or `[R, K, 1]`. */
  readonly advantages: Tensor;
  readonly constantGroups: number;
  readonly groups: number;
  readonly view: ReferenceView | null;
  readonly oldValues?: Tensor;
  readonly returns?: Tensor;
}

/** Epochs over mini-batches, with the checks that stand before each step. */
export function runUpdate(
  where: string,
  policy: ArPolicy,
  optimizer: Optimizer,
  prepared: Prepared,
  signal: Signal,
  objective: Objective,
  options: UpdateOptions,
): UpdateResult {
  const {
    epochs = 1,
    advantageClip,
    maxGradNorm = Infinity,
    targetKl,
    maxRatioGap = 0.1,
    lrFactor,
    generator,
  } = options;
  const { plan, images, microBatch } = prepared;
  const advantages =
    advantageClip === undefined ? signal.advantages : signal.advantages.clamp(-advantageClip, advantageClip);
  const full: Window = {
    ...prepared,
    advantages,
    kept: prepared.mask,
    reference: signal.view?.logprobs ?? null,
    oldValues: signal.oldValues ?? null,
    returns: signal.returns ?? null,
  };
  const head = objective.value?.head;
  const trained = [...(options.trained ?? policy.parameters()), ...(head ? head.parameters() : [])];
  const done = new Progress();
  let stoppedEarly = false;
  for (let epoch = 0; epoch < epochs && !stoppedEarly; epoch++) {
    for (const indices of imageOrder(images, plan.miniBatches, generator)) {
      const isFirst = done.steps + done.skipped === 0;
      const [sums, norm] = tidy(() => {
        const device = prepared.old.device as Device;
        const window = indices === null ? full : someImages(full, indices.to({ device }));
        const p = options.tokenDropout ?? 0;
        const kept = p > 0 ? tokenDropout(window.mask, p, generator) : window.mask;
        optimizer.zeroGrad();
        const sums = windowGradient(policy, { ...window, kept }, objective, microBatch);
        return [sums, clipGradNorm(trained, maxGradNorm)] as const;
      });
      if (isFirst) {
        done.first = sums;
        const gap = perToken(sums, "ratio_off");
        if (gap > maxRatioGap) {
          optimizer.zeroGrad();
          throw new Error(
            `${where}: expected mean |ratio - 1| of at most ${maxRatioGap} before the first step, got ${gap.toPrecision(3)}. ` +
              "Score with the sampling, start and context that drew the codes and with the weights that did, " +
              "or raise maxRatioGap for a stale rollout.",
          );
        }
      }
      if (!Number.isFinite(sums["loss/total"]) || !Number.isFinite(norm)) {
        optimizer.zeroGrad();
        done.skipped++;
        continue;
      }
      stoppedEarly = targetKl !== undefined && perToken(sums, "kl_k3") > 1.5 * targetKl;
      done.add(sums, norm, norm > maxGradNorm, !stoppedEarly);
      if (!stoppedEarly) optimizer.step(lrFactor === undefined ? {} : { lrFactor });
      optimizer.zeroGrad();
      if (stoppedEarly) break;
    }
  }
  const { constantGroups, groups } = signal;
  const exact = signal.view?.exact ?? null;
  return {
    steps: done.steps,
    skippedSteps: done.skipped,
    stoppedEarly,
    constantGroups,
    metrics: {
      ...advantageMetrics(advantages, prepared.mask, constantGroups / groups),
      ...done.metrics(),
      ...(exact !== null && { "kl/ref": exact, "kl/ref_exact": exact }),
    },
  };
}

/** int64 indices of each mini-batch's images on the CPU, in a new order; null where there is one mini-batch. */
export function imageOrder(images: number, miniBatches: number, generator?: Generator): (Tensor | null)[] {
  if (miniBatches === 1) return [null];
  return randperm(images, generator ? { generator } : {}).chunk(miniBatches);
}

/** The passes of some images, which are these rows of them. */
export function pickPasses(passes: Passes, images: Tensor, rows: Tensor): Passes {
  return {
    ...passes,
    rows: rows.size(0),
    start: mapStart(passes.start, (tensor) => tensor.indexSelect(0, images)),
    inputs: passes.inputs.indexSelect(0, rows),
    tokens: passes.tokens.indexSelect(0, rows),
    support: passes.support?.indexSelect(0, rows) ?? null,
  };
}

/** The rows of some images. */
function someImages(window: Window, images: Tensor): Window {
  const { passes, prior } = window;
  const { repeats } = passes;
  const offsets = arange(0, repeats, 1, { device: images.device as Device });
  const rows = images.unsqueeze(1).mul(repeats).add(offsets).flatten();
  const pick = <T extends Tensor | null>(tensor: T): T =>
    (tensor === null ? tensor : tensor.indexSelect(0, rows)) as T;
  return {
    passes: pickPasses(passes, images, rows),
    prior: prior && pickPasses(prior, images, images),
    states: null,
    old: pick(window.old),
    mask: pick(window.mask),
    kept: pick(window.kept),
    advantages: pick(window.advantages),
    reference: pick(window.reference),
    oldValues: pick(window.oldValues),
    returns: pick(window.returns),
    trueCodes: pick(window.trueCodes),
  };
}

/** A sum over tokens as their mean. */
const perToken = (sums: WindowSums, name: string): number => (sums[name] ?? 0) / (sums.tokens ?? 1);

/** What the advantages of tokens that count are like. */
function advantageMetrics(advantages: Tensor, mask: Tensor, fracZeroStd: number): Record<string, number> {
  return tidy(() => {
    const counted = advantages.expand(...mask.shape).maskedSelect(mask.ne(0));
    const numbers =
      counted.numel === 0
        ? []
        : [
            ["advantage/mean", counted.mean().item()],
            ["advantage/std", counted.std(null, { correction: 0 }).item()],
            ["advantage/min", counted.amin().item()],
            ["advantage/max", counted.amax().item()],
            ["advantage/abs_max", counted.abs().amax().item()],
          ];
    return { ...Object.fromEntries(numbers), "advantage/frac_zero_std": fracZeroStd };
  });
}

/** Sums over the windows of an update. */
class Progress {
  steps = 0;
  skipped = 0;
  /** Sums of the first window, before any step. */
  first: WindowSums = {};
  #windows = 0;
  #clipped = 0;
  #norm = 0;
  #maxNorm = 0;
  readonly #sums: WindowSums = {};

  add(sums: WindowSums, norm: number, isClipped: boolean, isStep: boolean): void {
    for (const [name, value] of Object.entries(sums)) {
      const before = this.#sums[name];
      if (before === undefined) this.#sums[name] = value;
      else if (name.endsWith("_max")) this.#sums[name] = Math.max(before, value);
      else if (name.endsWith("_min")) this.#sums[name] = Math.min(before, value);
      else this.#sums[name] = before + value;
    }
    this.#windows++;
    this.#norm += norm;
    this.#maxNorm = Math.max(this.#maxNorm, norm);
    if (isClipped) this.#clipped++;
    if (isStep) this.steps++;
  }

  metrics(): Record<string, number> {
    const result: Record<string, number> = { "optim/steps": this.steps, "optim/skipped_steps": this.skipped };
    if (this.#windows === 0) return result;
    const sums = this.#sums;
    for (const name of Object.keys(sums))
      if (name.startsWith("loss/")) result[name] = (sums[name] as number) / this.#windows;
    for (const [name, sum] of PER_TOKEN) if (sums[sum] !== undefined) result[name] = perToken(sums, sum);
    const reference = result["kl/ref_exact"] ?? result["kl/ref_k3"];
    if (reference !== undefined) result["kl/ref"] = reference;
    result["clip_ratio/region_mean"] = perToken(sums, "clip_low") + perToken(sums, "clip_high");
    result["policy/ratio_max"] = sums.ratio_max as number;
    result["policy/ratio_min"] = sums.ratio_min as number;
    result["sampling/logp_diff_mean"] = perToken(this.first, "logp_gap");
    result["sampling/logp_diff_max"] = this.first.logp_gap_max as number;
    result["optim/grad_norm"] = this.#norm / this.#windows;
    result["optim/grad_norm_max"] = this.#maxNorm;
    result["optim/grad_norm_clipped_frac"] = this.#clipped / this.#windows;
    return result;
  }
}

/** Metrics that are means over tokens, and the sums they come from. */
const PER_TOKEN: readonly (readonly [metric: string, sum: string])[] = [
  ["policy/ratio_mean", "ratio"],
  ["policy/entropy", "entropy"],
  ["clip_ratio/low_mean", "clip_low"],
  ["clip_ratio/high_mean", "clip_high"],
  ["kl/approx", "kl_k3"],
  ["kl/approx_k1", "kl_k1"],
  ["kl/ref_k1", "ref_k1"],
  ["kl/ref_k2", "ref_k2"],
  ["kl/ref_k3", "ref_k3"],
  ["kl/ref_exact", "ref_exact"],
  ["value/clip_ratio", "value_clipped"],
];
