/**
 * The common part of all updates: batch and options, epochs, mini-batches, checks before a step, clipping, the step and
 * the metrics. Advantages and losses of each algorithm are in `optimize.ts`, the gradient of a step in `objective.ts`.
 */
import { clipGradNorm } from "../nn/index.js";
import type { ArPolicy } from "../policies/policy.js";
import {
  arange,
  type Device,
  expected,
  expectedType,
  type Generator,
  noGrad,
  type OptionNames,
  onesLike,
  randperm,
  readOptions,
  Tensor,
  tidy,
  toDevice,
} from "../torch/index.js";
import { highestEntropy } from "./advantages.js";
import { type BatchPlan, planBatches } from "./batches.js";
import {
  type Aggregation,
  type KlEstimator,
  type KlLossKind,
  klEstimate,
  klLoss,
  tokenDropout,
} from "./losses.js";
import {
  addSums,
  type CodeDistance,
  type CodeFrequencyLoss,
  type Objective,
  type Window,
  type WindowSums,
  windowGradient,
} from "./objective.js";
import {
  checkGenerator,
  mapStart,
  readNumbers,
  requireChoice,
  requireNumber,
  requireOnDevice,
  requirePositive,
} from "./sampling.js";
import {
  BATCH_NAMES,
  type Drawn,
  type Passes,
  passesOf,
  type States,
  scoredByAll,
  scoreRows,
} from "./scoring.js";

/** The methods of an optimizer that an update needs; `AdamW` has them. */
export interface Optimizer {
  step(options?: { lrFactor?: number }): void;
  zeroGrad(): void;
}

/** A rollout and its rewards: `{ ...rollout, rewards }`. */
export interface UpdateBatch extends Drawn {
  /** float, in the shape of the tokens, nats: under the distribution that each was drawn from. */
  readonly logprobs: Tensor;
  /**
   * float `[B, G]` (`[N]` for tokens `[N, T]`): higher is better. Or in the shape of the tokens, each token's part of the
   * reward, for credit by place; the sum over tokens is the sequence's reward.
   */
  readonly rewards?: Tensor;
  /** float `[B, G]`, or in the shape of the tokens: advantages in place of rewards (not for PPO). */
  readonly advantages?: Tensor;
  /** bool or float, broadcast to the tokens: true where a token counts; default all. */
  readonly mask?: Tensor;
  /** int64 `[B, S + T]`: all true codes of the images, for `auxCe` and `codeDistance`. */
  readonly trueCodes?: Tensor;
  /** float, in the shape of the tokens, nats: of the distributions drawn from, for `topEntropy`. */
  readonly entropy?: Tensor;
  /** Hidden states with their autograd graph, from a rollout with `keepGraph`; for one optimizer step. */
  readonly states?: States | null;
}

/** KL to a reference model, as part of the loss or of the rewards. */
export interface KlOptions {
  /** Weight of the KL in nats, at least 0; with 0 the KL is measured and has no effect. */
  readonly coef: number;
  readonly reference: ArPolicy;
  /**
   * `"loss"` adds it to the loss; `"reward"` subtracts it from the rewards, token by token in PPO and with rewards per
   * token, else summed over the sequence. Default `"loss"`, in PPO `"reward"`.
   */
  readonly placement?: "loss" | "reward";
  /** `"exact"` sums over all codes at every position. Default k3 in the loss, k1 in the reward. */
  readonly estimator?: KlLossKind | "exact";
}

/** Options of all updates. */
export interface UpdateOptions {
  /** Epochs: passes over each rollout; default 1 (PPO: 4). */
  readonly epochs?: number;
  /** Images per optimizer step; must divide the rollout's; default all of them. */
  readonly miniBatch?: number;
  /**
   * Rows per forward pass: images if a group shares its context, otherwise sequences; default all. Changes memory, not
   * results: it need not divide the number of rows, and the gradient is that of the whole mini-batch.
   */
  readonly microBatch?: number;
  /**
   * How the losses of tokens are aggregated; default `"mean"` (REINFORCE and RLOO: `"sum"`). TRL's and verl's names are
   * accepted; without a mask all but `"sum"` are equal.
   */
  readonly aggregation?: Aggregation;
  /** The length that `"dr_grpo"` divides by; default T. */
  readonly maxLen?: number;
  /**
   * With rewards per token: a token is credited with its own reward and with later ones times `creditDecay` for each token
   * in between, in [0, 1]; default 1. PPO has `lambda` for that.
   */
  readonly creditDecay?: number;
  /**
   * Fraction of tokens, those with the highest entropy, that have a policy loss; default 1 (arXiv 2506.01939).
   */
  readonly topEntropy?: number;
  /** Whether groups whose rewards are all the same, with loss 0, count in the policy loss's mean; default `"keep"`. */
  readonly constantGroups?: "keep" | "exclude";
  /** Largest |advantage|; default no limit (GRPO: 5). */
  readonly advantageClip?: number;
  /** Weight of the mean entropy per token, in nats; default 0. */
  readonly entropyCoef?: number;
  /** Weight of the cross-entropy of `trueCodes`, without which a pixel reward ruins a policy; default 0. */
  readonly auxCe?: number;
  /** The expected distance between drawn and true codes, a loss without noise from sampling; default none. */
  readonly codeDistance?: CodeDistance;
  /** How much more often codes are drawn than images have them, in the mean over all codes; default none. */
  readonly codeFrequency?: CodeFrequencyLoss;
  readonly kl?: KlOptions;
  /** Probability of dropping a token from the policy's loss and the KL, in [0, 1); default 0. */
  readonly tokenDropout?: number;
  /** Maximum gradient norm over all parameters together; default no limit. */
  readonly maxGradNorm?: number;
  /** The trained parameters; default those of the policy. Those of a value head are added. */
  readonly trained?: readonly Tensor[];
  /** Stop before a step when KL(old || new) per token is above 1.5 times this; default no limit (PPO: 0.02). */
  readonly targetKl?: number;
  /** Maximum mean of |ratio - 1| before the first step; default 0.1. Set Infinity for rollouts of an older policy. */
  readonly maxRatioGap?: number;
  /** On the CPU: for the order of mini-batches and token dropout. */
  readonly generator?: Generator;
  /** Factor of the learning rate, from a schedule; default 1. */
  readonly lrFactor?: number;
}

/** The result of an update. */
export interface UpdateResult {
  /** Optimizer steps taken. */
  readonly steps: number;
  /** Steps that were skipped because the loss or the gradient norm was not finite; the parameters did not change. */
  readonly skippedSteps: number;
  /** Whether `targetKl` ended the update. */
  readonly stoppedEarly: boolean;
  /** Groups whose rewards were all the same. */
  readonly constantGroups: number;
  /**
   * Means over the tokens that count, in all steps that were not skipped; `docs/algorithms.md` explains each. A metric
   * that does not apply is missing.
   *
   * `loss/{total,policy,kl,entropy,aux_ce,code_distance,code_frequency,value}` (means over steps, coefficients included),
   * `policy/{ratio_mean,ratio_min,ratio_max,entropy}`, `clip_ratio/{low,high,region}_mean` (clips that bind),
   * `kl/{approx,approx_k1}` (old policy against new: k3 and k1), `kl/ref_{k1,k2,k3,exact}` (new policy against the
   * reference) and `kl/ref` (the exact one where it is known, else k3),
   * `advantage/{mean,std,min,max,abs_max,frac_zero_std}`,
   * `optim/{steps,skipped_steps,grad_norm,grad_norm_max,grad_norm_clipped_frac}` (norms before clipping),
   * `sampling/logp_diff_{mean,max}` (scorer against sampler before the first step),
   * `value/{explained_variance,mean,std,clip_ratio}`.
   */
  readonly metrics: Readonly<Record<string, number>>;
}

export const UPDATE_NAMES: OptionNames<UpdateOptions> = {
  epochs: "number",
  miniBatch: "number",
  microBatch: "number",
  aggregation: true,
  maxLen: "number",
  creditDecay: "number",
  topEntropy: "number",
  constantGroups: true,
  advantageClip: "number",
  entropyCoef: "number",
  auxCe: "number",
  codeDistance: true,
  codeFrequency: true,
  kl: true,
  tokenDropout: "number",
  maxGradNorm: "number",
  trained: true,
  targetKl: "number",
  maxRatioGap: "number",
  generator: true,
  lrFactor: "number",
};

/** Arguments of an update after policy and optimizer: a batch and options, or values in Python's order. */
export type UpdateArguments<Options> =
  | [batch: UpdateBatch, options?: Options]
  | [
      tokens: Tensor,
      logprobs: Tensor,
      rewards: Tensor,
      options?: Options & Partial<Omit<UpdateBatch, "tokens" | "logprobs" | "rewards">>,
    ]
  | [
      tokens: Tensor,
      logprobs: Tensor,
      rewards: Tensor,
      mask: Tensor | null | undefined,
      entropyCoef?: number | null,
      maxGradNorm?: number | null,
      options?: Options & Partial<Omit<UpdateBatch, "tokens" | "logprobs" | "rewards">>,
    ];

/**
 * Read the arguments of an update: `(batch, options)`, or `(tokens, logprobs, rewards, mask, entropyCoef, maxGradNorm)`
 * and then an object with further options and fields of the batch, such as `start`.
 *
 * @throws RangeError or TypeError for an argument that is unknown, missing or out of range.
 */
export function readUpdate<Options extends UpdateOptions>(
  where: string,
  policy: ArPolicy,
  given: readonly unknown[],
  names: OptionNames<Options>,
): { batch: UpdateBatch; options: Options } {
  const [first, ...others] = given;
  let batch: UpdateBatch;
  let options: Options;
  if (first instanceof Tensor) {
    const [logprobs, rewards, ...rest] = others;
    const all = readOptions<Record<string, unknown>>(where, rest, {
      names: { ...names, ...BATCH_NAMES } as OptionNames<Record<string, unknown>>,
      order: ["mask", "entropyCoef", "maxGradNorm"],
    });
    const isOfBatch = ([name]: [string, unknown]): boolean => Object.hasOwn(BATCH_NAMES, name);
    const entries = Object.entries(all);
    const named = Object.fromEntries(entries.filter(isOfBatch));
    batch = { ...named, tokens: first, logprobs, rewards } as unknown as UpdateBatch;
    options = Object.fromEntries(entries.filter((entry) => !isOfBatch(entry))) as unknown as Options;
  } else {
    batch = readOptions<UpdateBatch>(`${where}.batch`, [first], {
      names: BATCH_NAMES as OptionNames<UpdateBatch>,
    });
    options = readOptions<Options>(where, others, { names });
  }
  for (const name of ["tokens", "logprobs"] as const) {
    if (!(batch[name] instanceof Tensor))
      throw expectedType(`${where}.batch`, `${name}, a Tensor`, batch[name]);
  }
  for (const name of ["rewards", "advantages", "mask", "trueCodes"] as const) {
    const tensor = batch[name];
    if (tensor !== undefined && !(tensor instanceof Tensor)) {
      throw expectedType(`${where}.batch.${name}`, "a Tensor", tensor);
    }
  }
  requireOnDevice(`${where}.batch`, policy, { ...batch });
  checkOptions(where, options);
  const kl = options.kl && readKl(`${where}.kl`, options.kl);
  if (options.codeDistance) checkCodeDistance(`${where}.codeDistance`, policy, options.codeDistance);
  if (options.codeFrequency) checkCodeFrequency(`${where}.codeFrequency`, policy, options.codeFrequency);
  return { batch, options: { ...options, ...(kl && { kl }) } };
}

function readKl(where: string, given: KlOptions): KlOptions {
  const kl = readOptions<KlOptions>(where, [given], {
    names: { coef: "number", reference: true, placement: true, estimator: true },
  });
  requireNumber(`${where}.coef`, kl.coef ?? Number.NaN, 0);
  if (typeof kl.reference?.hidden !== "function")
    throw expectedType(`${where}.reference`, "a policy", kl.reference);
  requireChoice(`${where}.placement`, kl.placement, ["loss", "reward"]);
  requireChoice(`${where}.estimator`, kl.estimator, ["k1", "k2", "k3", "k3_own", "exact"]);
  return kl;
}

function checkCodeDistance(where: string, { vocabSize }: ArPolicy, given: CodeDistance): void {
  const { weight, vectors } = readOptions<CodeDistance>(where, [given], {
    names: { weight: "number", vectors: true },
  });
  requireNumber(`${where}.weight`, weight, 0);
  if (!(vectors instanceof Tensor)) throw expectedType(where, "vectors, a Tensor", vectors);
  if (vectors.ndim !== 2 || vectors.size(0) !== vocabSize)
    throw expected(`${where}.vectors`, `float [${vocabSize}, D], a row for each code`, vectors);
}

function checkCodeFrequency(where: string, { vocabSize }: ArPolicy, given: CodeFrequencyLoss): void {
  const { weight, logRatio } = readOptions<CodeFrequencyLoss>(where, [given], {
    names: { weight: "number", logRatio: true },
  });
  requireNumber(`${where}.weight`, weight, 0);
  if (!(logRatio instanceof Tensor)) throw expectedType(where, "logRatio, a Tensor", logRatio);
  if (logRatio.shape.join() !== `${vocabSize}`)
    throw expected(`${where}.logRatio`, `float [${vocabSize}], a number for each code`, logRatio);
}

const AGGREGATIONS: readonly Aggregation[] = ["mean", "sum", "grpo", "bnpo", "dapo", "dr_grpo"];

/** @throws RangeError for a value out of range; numbers of rows are checked by {@link planBatches}. */
export function checkOptions(where: string, options: UpdateOptions): void {
  const { creditDecay, advantageClip, entropyCoef, auxCe, maxGradNorm, targetKl, maxRatioGap, lrFactor } =
    options;
  requireChoice(`${where}.aggregation`, options.aggregation, AGGREGATIONS);
  const { maxLen, topEntropy, constantGroups } = options;
  if (topEntropy !== undefined && !(topEntropy > 0 && topEntropy <= 1))
    throw expected(`${where}.topEntropy`, "a fraction above 0 and at most 1", topEntropy);
  requireChoice(`${where}.constantGroups`, constantGroups, ["keep", "exclude"]);
  for (const [name, value] of Object.entries({ advantageClip, maxGradNorm, targetKl, maxLen })) {
    if (value !== undefined) requirePositive(`${where}.${name}`, value);
  }
  for (const [name, value] of Object.entries({ auxCe, maxRatioGap, lrFactor })) {
    if (value !== undefined) requireNumber(`${where}.${name}`, value, 0);
  }
  if (entropyCoef !== undefined) requireNumber(`${where}.entropyCoef`, entropyCoef, -Infinity);
  if (creditDecay !== undefined) requireNumber(`${where}.creditDecay`, creditDecay, 0, 1);
  checkGenerator(where, options.generator);
}

/** A batch as rows of a forward pass; see `Window` for shapes. */
export interface Prepared {
  readonly plan: BatchPlan;
  readonly images: number;
  readonly passes: Passes;
  readonly microBatch: number;
  readonly oldLogprobs: Tensor;
  readonly mask: Tensor;
  readonly trueCodes: Tensor | null;
  readonly targets: Tensor | null;
  readonly prior: Passes | null;
  readonly states: States | null;
  /** float64 `[R, K, T]`: 1 where a token's entropy is among the highest; null for all. */
  readonly isUncertain: Tensor | null;
}

/**
 * Check a batch against the options, and lay it out as rows.
 *
 * @throws RangeError when shapes disagree, or the options ask for something that the batch lacks.
 */
export function prepare(where: string, batch: UpdateBatch, options: UpdateOptions): Prepared {
  const passes = passesOf(where, batch);
  const { rows, repeats } = passes;
  const images = rows / repeats;
  const plan = planBatches({ ...options, images, rowsAnImage: repeats }, where);
  const { tokens, logprobs, trueCodes, entropy } = batch;
  const { topEntropy = 1 } = options;
  if (topEntropy !== 1 && entropy?.shape.join() !== tokens.shape.join())
    throw expected(where, `entropy [${tokens.shape.join(", ")}] with topEntropy`, entropy ?? "none");
  if (logprobs.shape.join() !== tokens.shape.join())
    throw expected(where, `logprobs [${tokens.shape.join(", ")}]`, logprobs);
  const states = batch.states ?? null;
  if (states !== null && plan.steps > 1) {
    const remedy = "Sample with keepGraph: false: a graph serves one step";
    throw expected(where, "one optimizer step with a rollout's states", plan.steps, remedy);
  }
  const ones = onesLike(tokens, { dtype: "float64" });
  const mask = asRows(batch.mask === undefined ? ones : batch.mask.double().expand(...tokens.shape), passes);
  const hasDistance = (options.codeDistance?.weight ?? 0) !== 0;
  if (trueCodes === undefined && (hasDistance || (options.auxCe ?? 0) !== 0))
    throw expected(where, `trueCodes with ${hasDistance ? "codeDistance" : "auxCe"}`, "none");
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
    oldLogprobs: asRows(logprobs, passes),
    mask,
    trueCodes: isShared && trueCodes !== undefined ? trueCodes.narrow(1, s, t) : null,
    targets: hasDistance && trueCodes ? trueCodes.narrow(1, s, t).repeatInterleave(repeats, 0) : null,
    prior: isOwn ? passesOf(where, { tokens: trueCodes, start: passes.start.condition }) : null,
    states,
    isUncertain:
      topEntropy === 1 ? null : highestEntropy(asRows(entropy as Tensor, passes), mask, topEntropy),
  };
}

/** `[B, G]` or `[B, G, T]` (`[N]`, `[N, T]`) as `[R, K, 1]` or `[R, K, T]`. */
export function asRows(tensor: Tensor, passes: Passes): Tensor {
  return tensor.reshape(passes.rows, passes.tokens.size(1), -1);
}

/** Log-probabilities of the drawn codes under the reference, and the KL penalty. */
export interface ReferenceScores {
  /** float `[R, K, T]`; null for an exact KL. */
  readonly referenceLogprobs: Tensor | null;
  /** float64 `[R, K, T]`: what is subtracted from the rewards, coefficient included; null with the KL in the loss. */
  readonly penalty: Tensor | null;
  /** float64 scalar: mean over the tokens that count of an exact KL in the reward, which the loss does not compute. */
  readonly exactKl: Tensor | null;
}

/**
 * Compute the reference's log-probabilities of a rollout once, without autograd.
 *
 * @throws RangeError for k1 in the loss, and for k3_own in the reward.
 */
export function scoreReference(
  policy: ArPolicy,
  prepared: Prepared,
  kl: Required<KlOptions>,
): ReferenceScores {
  const { passes, microBatch, oldLogprobs, mask } = prepared;
  const { coef, reference, placement, estimator } = kl;
  if (placement === "loss" && estimator !== "exact") klLoss(oldLogprobs, oldLogprobs, estimator); // throws for k1
  if (placement === "reward" && estimator === "k3_own") {
    const remedy = "k3 and k3_own differ in their gradient, and a reward has none";
    throw expected("kl.estimator", "k1, k2, k3 or exact in the reward", estimator, remedy);
  }
  const inParts = (score: (rows: Passes) => Tensor): Tensor => scoredByAll(passes, microBatch, score);
  return noGrad(() =>
    tidy(() => {
      if (estimator === "exact") {
        if (placement === "loss") return { referenceLogprobs: null, penalty: null, exactKl: null };
        const kls = inParts((rows) => scoreRows(policy, rows, null, { reference }).kl as Tensor)
          .unsqueeze(1)
          .double()
          .expand(...oldLogprobs.shape);
        const exactKl = kls.mul(mask).sum().div(mask.sum());
        return { referenceLogprobs: null, penalty: kls.mul(coef), exactKl };
      }
      const referenceLogprobs = inParts((rows) => scoreRows(reference, rows, null).logprobs);
      if (placement === "loss") return { referenceLogprobs, penalty: null, exactKl: null };
      const penalty = klEstimate(oldLogprobs, referenceLogprobs, estimator as KlEstimator)
        .double()
        .mul(coef);
      return { referenceLogprobs, penalty, exactKl: null };
    }),
  );
}

/** What {@link runUpdate} needs besides options: advantages, and with a value head its values and returns. */
export interface Signal {
  /** float64 `[R, K, T]` or `[R, K, 1]`. */
  readonly advantages: Tensor;
  /** bool: groups whose rewards are all the same; null where there are no groups. */
  readonly isConstant: Tensor | null;
  readonly reference: ReferenceScores | null;
  readonly oldValues?: Tensor;
  readonly returns?: Tensor;
  /** Scalars to report beside the others, by the names of the metrics. */
  readonly scalars?: Readonly<Record<string, Tensor>>;
}

/** Epochs over mini-batches, with the checks before each step. */
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
    advantages: weighedAdvantages(advantages, prepared, signal, options),
    policyMask: prepared.mask,
    referenceLogprobs: signal.reference?.referenceLogprobs ?? null,
    oldValues: signal.oldValues ?? null,
    returns: signal.returns ?? null,
  };
  const head = objective.value?.head;
  const trained = [...(options.trained ?? policy.parameters()), ...(head ? head.parameters() : [])];
  const totals = new Totals();
  let first: WindowSums = {};
  let stoppedEarly = false;
  for (let epoch = 0; epoch < epochs && !stoppedEarly; epoch++) {
    for (const indices of imageOrder(images, plan.miniBatches, generator)) {
      const isFirst = totals.steps + totals.skipped === 0;
      const [sums, norm] = tidy(() => {
        const device = prepared.oldLogprobs.device as Device;
        const window = indices === null ? full : someImages(full, toDevice(indices, device));
        const p = options.tokenDropout ?? 0;
        const policyMask = p === 0 ? window.mask : tokenDropout(window.mask, p, generator);
        optimizer.zeroGrad();
        const sums = windowGradient(policy, { ...window, policyMask }, objective, microBatch, trained);
        return [sums, clipGradNorm(trained, maxGradNorm)] as const;
      });
      if (isFirst) {
        first = sums;
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
        totals.skipped++;
        continue;
      }
      stoppedEarly = targetKl !== undefined && perToken(sums, "kl_k3") > 1.5 * targetKl;
      totals.add(sums, norm, norm > maxGradNorm);
      if (!stoppedEarly) {
        optimizer.step(lrFactor === undefined ? {} : { lrFactor });
        totals.steps++;
      }
      optimizer.zeroGrad();
      if (stoppedEarly) break;
    }
  }
  const { isConstant, reference } = signal;
  const { constantGroups = 0, ...scalars } = tidy(() =>
    readNumbers({
      ...(isConstant && { constantGroups: isConstant.sum() }),
      ...(reference?.exactKl && { "kl/ref": reference.exactKl, "kl/ref_exact": reference.exactKl }),
      ...signal.scalars,
      ...advantageStatistics(advantages, prepared.mask),
    }),
  );
  return {
    steps: totals.steps,
    skippedSteps: totals.skipped,
    stoppedEarly,
    constantGroups,
    metrics: {
      "advantage/frac_zero_std": constantGroups / (isConstant?.numel ?? 1),
      ...totals.metrics(),
      ...tokenMetrics(totals, first),
      ...scalars,
    },
  };
}

/** Advantages as they enter the loss: 0 for tokens of low entropy, larger where constant groups do not count in its mean. */
function weighedAdvantages(
  advantages: Tensor,
  { isUncertain }: Prepared,
  { isConstant }: Signal,
  { constantGroups }: UpdateOptions,
): Tensor {
  const chosen = isUncertain === null ? advantages : advantages.mul(isUncertain);
  if (constantGroups !== "exclude" || isConstant === null) return chosen;
  const left = isConstant.logicalNot().double().sum().clamp(1);
  return chosen.mul(isConstant.numel).div(left);
}

/** int64 indices of each mini-batch's images on the CPU, in a new order; null where there is one mini-batch. */
export function imageOrder(images: number, miniBatches: number, generator?: Generator): (Tensor | null)[] {
  if (miniBatches === 1) return [null];
  return randperm(images, generator ? { generator } : {}).chunk(miniBatches);
}

/** The passes of some images, given the indices of the images and of their rows. */
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
    oldLogprobs: pick(window.oldLogprobs),
    mask: pick(window.mask),
    policyMask: pick(window.policyMask),
    advantages: pick(window.advantages),
    referenceLogprobs: pick(window.referenceLogprobs),
    oldValues: pick(window.oldValues),
    returns: pick(window.returns),
    trueCodes: pick(window.trueCodes),
    targets: pick(window.targets),
  };
}

/** A sum over tokens as their mean. */
const perToken = (sums: WindowSums, name: string): number => (sums[name] ?? 0) / (sums.tokens ?? 1);

/** Mean, standard deviation (n) and extremes of the advantages of tokens that count. */
function advantageStatistics(advantages: Tensor, mask: Tensor): Record<string, Tensor> {
  const a = advantages.expand(...mask.shape);
  const isCounted = mask.ne(0);
  const count = isCounted.sum();
  const only = (x: Tensor, other: number): Tensor => x.maskedFill(isCounted.logicalNot(), other);
  const mean = only(a, 0).sum().div(count);
  const least = only(a, Infinity).amin();
  const most = only(a, -Infinity).amax();
  return {
    "advantage/mean": mean,
    "advantage/std": only(a.sub(mean), 0).square().sum().div(count).sqrt(),
    "advantage/min": least,
    "advantage/max": most,
    "advantage/abs_max": least.neg().maximum(most),
  };
}

/** Sums over the windows of an update whose loss and gradient were finite. */
export class Totals {
  steps = 0;
  skipped = 0;
  windows = 0;
  readonly sums: WindowSums = {};
  #clipped = 0;
  #norm = 0;
  #maxNorm = 0;

  add(sums: WindowSums, norm: number, isClipped: boolean): void {
    addSums(this.sums, sums);
    this.windows++;
    this.#norm += norm;
    this.#maxNorm = Math.max(this.#maxNorm, norm);
    if (isClipped) this.#clipped++;
  }

  /** `optim/...`, and means of `loss/...` over windows. */
  metrics(): Record<string, number> {
    const result: Record<string, number> = { "optim/steps": this.steps, "optim/skipped_steps": this.skipped };
    if (this.windows === 0) return result;
    for (const [name, sum] of Object.entries(this.sums))
      if (name.startsWith("loss/")) result[name] = sum / this.windows;
    result["optim/grad_norm"] = this.#norm / this.windows;
    result["optim/grad_norm_max"] = this.#maxNorm;
    result["optim/grad_norm_clipped_frac"] = this.#clipped / this.windows;
    return result;
  }
}

/** Metrics that are means over tokens or extremes over them. */
function tokenMetrics({ sums, windows }: Totals, first: WindowSums): Record<string, number> {
  if (windows === 0) return {};
  const result: Record<string, number> = {};
  for (const [name, sum] of PER_TOKEN) if (sums[sum] !== undefined) result[name] = perToken(sums, sum);
  const kl = result["kl/ref_exact"] ?? result["kl/ref_k3"];
  if (kl !== undefined) result["kl/ref"] = kl;
  result["clip_ratio/region_mean"] = perToken(sums, "clip_low") + perToken(sums, "clip_high");
  result["policy/ratio_max"] = sums.ratio_max as number;
  result["policy/ratio_min"] = sums.ratio_min as number;
  result["sampling/logp_diff_mean"] = perToken(first, "logp_gap");
  result["sampling/logp_diff_max"] = first.logp_gap_max as number;
  return result;
}

/** Metrics that are means over tokens, and the sums they come from. */
const PER_TOKEN: readonly (readonly [metric: string, sum: string])[] = [
  ["policy/ratio_mean", "ratio"],
  ["policy/update_entropy", "entropy"],
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
