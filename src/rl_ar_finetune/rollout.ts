/**
 * Rollouts: G sequences for each of B images, under one of four contexts that decide what the policy reads before
 * each code. Rewards are the loop's affair, updates those of `optimize.ts`.
 *
 * The teacher-forced contexts are VA-pi's: at each position G codes are drawn on their own from one distribution, so
 * that B rows of one forward pass serve B * G sequences. Deviation: a noisy code is drawn from all V, and top-k, top-p
 * and guidance, where set, are those of the update too.
 */
import { packLinears } from "../nn/index.js";
import type { ArPolicy } from "../policies/policy.js";
import {
  cat,
  type Device,
  type DType,
  enableGrad,
  expected,
  type Generator,
  noGrad,
  rand,
  type Tensor,
  tidy,
  where,
} from "../torch/index.js";
import {
  draw,
  isFiltered,
  mapStart,
  requireFinite,
  type Sampling,
  type Start,
  type StartParts,
  sampleCodesWithLogprobs,
  startParts,
  withoutDropout,
} from "./sampling.js";
import {
  chunkOf,
  type Drawn,
  distributionAt,
  passesOf,
  rangesOf,
  type States,
  scalesOf,
  someRows,
  statesOf,
} from "./scoring.js";

/**
 * What a policy reads before each code it draws: its own codes; the first `length` true codes and then its own; the
 * true codes; or the true codes, of which each was replaced by a uniform one with probability `noise`.
 */
export type RolloutContext =
  | { readonly type: "free" }
  | { readonly type: "prefix"; readonly length: number }
  | { readonly type: "teacher_forced" }
  | { readonly type: "noisy_teacher_forced"; readonly noise: number };

/** How {@link sampleRollout} draws. */
export interface RolloutOptions {
  readonly context: RolloutContext;
  /** G: sequences an image. */
  readonly numGenerations: number;
  /** int64 `[B, T]`: the images' own codes, which every context but `free` reads. */
  readonly trueCodes?: Tensor;
  /** Codes of a whole sequence, given ones counted; that of `trueCodes`, or the policy's block size, where left out. */
  readonly length?: number;
  readonly sampling?: Sampling;
  /** A CPU generator; the default one where left out. */
  readonly generator?: Generator;
  /** Images at a time; all of them where left out. The codes drawn are the same. */
  readonly microBatch?: number;
  /** Keep the trunk's graph in `states` for an update of one step. Teacher-forced contexts only. */
  readonly keepGraph?: boolean;
  /**
   * Type in which linear layers run on packed weights while codes are drawn one by one on a CPU, where
   * {@link paysToPack} says so; they run as they are where left out. Log-probabilities then differ from scored ones by
   * the rounding of another order of sums.
   */
  readonly packAs?: DType;
}

/** What was drawn, and all that an update needs to score it again. */
export interface Rollout extends Drawn {
  /** int64 `[B, G, T]`: the codes that were drawn. */
  readonly tokens: Tensor;
  /** float32 `[B, G, T]`, nats: of the distributions drawn from. */
  readonly logprobs: Tensor;
  /** float32 `[B, G, T]`, nats: of the same distributions. */
  readonly entropy: Tensor;
  /** int64 `[B, G, S + T]`: whole sequences, given codes and drawn ones, which the tokenizer decodes. */
  readonly codes: Tensor;
  readonly start: Start;
  readonly context: Tensor | null;
  readonly support: Tensor | null;
  readonly sampling: Sampling;
  /** The trunk's states with their graph, when it was kept. */
  readonly states: States | null;
}

/**
 * Draw G sequences for each image.
 *
 * No gradient (but see `keepGraph`); dropout is off. One seed gives the same codes whatever `microBatch` is.
 *
 * @param start - where the B images' sequences start: usually their classes, `{ classes }`; codes only with `free`.
 * @throws RangeError when a context's number cannot be served, true codes are missing, or start codes are too many.
 */
export function sampleRollout(policy: ArPolicy, start: Start, options: RolloutOptions): Rollout {
  const where = "sampleRollout";
  const { context, trueCodes, keepGraph = false } = options;
  checkContext(where, context);
  return tidy(() => {
    const parts = startParts(where, start, trueCodes);
    const [b, s] = parts.given.dims(2);
    if (trueCodes !== undefined && (trueCodes.ndim !== 2 || trueCodes.size(0) !== b)) {
      throw expected(where, `trueCodes int64 [${b}, T]`, trueCodes);
    }
    const isShared = context.type === "teacher_forced" || context.type === "noisy_teacher_forced";
    if (keepGraph && !isShared) {
      const remedy = "Set keepGraph to false: codes drawn step by step have no graph";
      throw expected(where, "a teacher-forced context with keepGraph", context.type, remedy);
    }
    if (context.type === "free") return ownContext(policy, parts, options);
    if (trueCodes === undefined) throw expected(where, `trueCodes for the context ${context.type}`, "none");
    if (s > 0) {
      const remedy = "Leave start codes out: this context takes its codes from trueCodes";
      throw expected(where, `a start without codes for the context ${context.type}`, parts.given, remedy);
    }
    if (context.type === "prefix") {
      const t = trueCodes.size(1);
      if (context.length >= t) throw expected(where, `a prefix shorter than the ${t} codes`, context.length);
      return ownContext(policy, { ...parts, given: trueCodes.narrow(1, 0, context.length) }, options);
    }
    const noise = context.type === "noisy_teacher_forced" ? context.noise : 0;
    return sharedContext(
      policy,
      parts,
      noisyContext(trueCodes, noise, policy.vocabSize, options.generator),
      options,
    );
  });
}

function checkContext(name: string, context: RolloutContext): void {
  if (context.type === "prefix" && !(Number.isInteger(context.length) && context.length >= 0)) {
    throw expected(`${name}.context.length`, "an integer of at least 0", context.length);
  }
  if (context.type === "noisy_teacher_forced" && !(context.noise >= 0 && context.noise <= 1)) {
    throw expected(`${name}.context.noise`, "a probability in [0, 1]", context.noise);
  }
}

/**
 * What the policy reads when it draws codes 1 ... T - 1: the true codes, of which each was replaced by a uniform one
 * with probability `noise`. Make it once a rollout and use it in the update too.
 *
 * @param trueCodes - int64 `[B, T]`.
 * @returns int64 `[B, T - 1]`.
 */
export function noisyContext(
  trueCodes: Tensor,
  noise: number,
  vocabSize: number,
  generator?: Generator,
): Tensor {
  return tidy(() => {
    const [b, t] = trueCodes.dims(2);
    const before = trueCodes.narrow(1, 0, t - 1);
    if (noise === 0) return before;
    const u = rand([b, t - 1, 2], { dtype: "float64", ...(generator && { generator }) });
    const onDevice = u.to({ device: trueCodes.device as Device });
    const uniformCode = onDevice.select(2, 1).mul(vocabSize).long();
    return where(onDevice.select(2, 0).lt(noise), uniformCode, before);
  });
}

/**
 * Whether laying out weights anew, which takes a copy of them, is earned back by the steps that follow.
 *
 * Measured on a processor with AVX-512 (`npm run bench -- rollout`): the layout costs what it saves in 7 to 20 steps
 * from a width of 192 on, narrower layers gain nothing, and neither do fewer than 4 rows on one thread.
 *
 * @param rows - sequences that are drawn at a time.
 * @param steps - codes of each.
 */
export function paysToPack(policy: ArPolicy, rows: number, steps: number): boolean {
  return policy.hiddenSize >= 192 && rows >= 4 && steps >= 32;
}

/** Codes that read one another: free-running, from given codes or none. */
function ownContext(policy: ArPolicy, start: StartParts, options: RolloutOptions): Rollout {
  const { numGenerations: g, sampling = {}, generator, trueCodes } = options;
  const length = options.length ?? trueCodes?.size(1) ?? policy.blockSize;
  const [b, s] = start.given.dims(2);
  const size = options.microBatch ?? b;
  const { packAs } = options;
  const isPacked =
    packAs !== undefined && start.given.device === "cpu" && paysToPack(policy, size * g, length - s);
  using _packed = isPacked ? packLinears(policy, { dtype: packAs }) : null;
  const parts = rangesOf(b, size).map(([from, count]) => {
    const rows = (tensor: Tensor): Tensor => tensor.narrow(0, from, count);
    const sampleOptions = { ...sampling, numGenerations: g, ...(generator && { generator }) };
    const some = mapStart(start, rows);
    return sampleCodesWithLogprobs(policy, [some.given, some.condition], length - s, sampleOptions);
  });
  const grouped = (tensors: Tensor[]): Tensor => cat(tensors).unflatten(0, [b, g]);
  const supports = parts.map((part) => part.support).filter((support) => support !== null);
  const tokens = grouped(parts.map((part) => part.tokens)); // [B, G, T]
  return {
    tokens,
    logprobs: grouped(parts.map((part) => part.logprobs)),
    entropy: grouped(parts.map((part) => part.entropy)),
    codes: withGiven(start.given, tokens),
    start: [start.given, start.condition],
    context: null,
    support: supports.length > 0 ? grouped(supports) : null,
    sampling,
    states: null,
  };
}

/** G draws a position from one distribution, given a context that the draws do not enter. */
function sharedContext(
  policy: ArPolicy,
  parts: StartParts,
  context: Tensor,
  options: RolloutOptions,
): Rollout {
  const { numGenerations: g, sampling = {}, generator, keepGraph = false } = options;
  const [b, before] = context.dims(2);
  const t = before + 1;
  const size = keepGraph ? b : (options.microBatch ?? b);
  const start: Start = [parts.given, parts.condition];
  const device = context.device as Device;
  const uniforms = rand([b, g, t], { dtype: "float64", ...(generator && { generator }) }).to({ device });
  // The codes of these passes are not known yet: only their number and shape are read before the draw.
  const passes = passesOf("sampleRollout", { tokens: uniforms, start, context, sampling });
  let kept: States | null = null;
  const drawn = withoutDropout([policy], () =>
    rangesOf(b, size).map(([from, count]) => {
      const rows = someRows(passes, from, count);
      const run = (): States => statesOf(policy, rows);
      const states = keepGraph ? enableGrad(run) : noGrad(run);
      if (keepGraph) kept = states;
      const flat = (tensor: Tensor): Tensor => tensor.reshape(count * t, -1); // one position a row
      return noGrad(() =>
        tidy(() => {
          const chunk = chunkOf(policy);
          const hidden = flat(states.hidden).split(chunk);
          const nullHidden = states.nullHidden && flat(states.nullHidden).split(chunk);
          const scale = flat(scalesOf(policy, rows, states.hidden)).split(chunk);
          const u = flat(rows.tokens.transpose(1, 2)).split(chunk); // [c, G]
          const steps = hidden.map((piece, i) => {
            const guided = nullHidden && { nullHidden: nullHidden[i] as Tensor, scale: scale[i] as Tensor };
            const { logp } = distributionAt(policy, sampling, { hidden: piece, ...guided });
            return draw(logp, sampling.greedy ? null : (u[i] as Tensor), isFiltered(sampling));
          });
          const grouped = (of: Tensor[]): Tensor =>
            cat(of)
              .expand(count * t, g)
              .unflatten(0, [count, t])
              .transpose(1, 2);
          const supports = steps.map((step) => step.support).filter((support) => support !== null);
          return {
            tokens: grouped(steps.map((step) => step.tokens)).contiguous(),
            logprobs: grouped(steps.map((step) => step.logprobs)),
            entropy: grouped(steps.map((step) => step.entropy.unsqueeze(1))),
            support: supports.length > 0 ? cat(supports).unflatten(0, [count, t]) : null,
          };
        }),
      );
    }),
  );
  const tokens = cat(drawn.map((part) => part.tokens));
  const logprobs = cat(drawn.map((part) => part.logprobs));
  requireFinite("sampleRollout", logprobs);
  const supports = drawn.map((part) => part.support).filter((support) => support !== null);
  return {
    tokens,
    logprobs,
    entropy: cat(drawn.map((part) => part.entropy)),
    codes: withGiven(parts.given, tokens),
    start,
    context,
    support: supports.length > 0 ? cat(supports) : null,
    sampling,
    states: kept,
  };
}

function withGiven(given: Tensor, tokens: Tensor): Tensor {
  const [b, g] = tokens.dims(3);
  return given.size(1) === 0 ? tokens : cat([given.unsqueeze(1).expand(b, g, given.size(1)), tokens], 2);
}
