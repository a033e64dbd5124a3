/**
 * Rollouts: G sequences for each of B images, in one of four contexts, which determine the codes that the policy is
 * conditioned on. Sampling code by code is in `sampling.ts`, rewards are in `rewards.ts`, updates in `optimize.ts`.
 *
 * The teacher-forced contexts are VA-pi's: at each position G codes are drawn independently from one distribution, so
 * that B rows of one forward pass serve B * G sequences. Deviations: a noisy code is uniform over all V, and the update
 * scores with the same top-k, top-p and guidance as the rollout.
 */
import { packLinears } from "../nn/index.js";
import type { ArPolicy } from "../policies/policy.js";
import {
  arange,
  cat,
  type Device,
  type DType,
  enableGrad,
  expected,
  expectedType,
  type Generator,
  noGrad,
  readOptions,
  Tensor,
  tidy,
  where,
} from "../torch/index.js";
import {
  type BatchPlace,
  drawSequences,
  drawStep,
  type GivenCodes,
  isFiltered,
  mapStart,
  readSampling,
  requireChoice,
  requireCount,
  requireFiniteLogits,
  requireNumber,
  requireOnDevice,
  type Sampling,
  type Start,
  type StartParts,
  skipUniforms,
  startParts,
  uniforms,
  withoutDropout,
} from "./sampling.js";
import {
  type Drawn,
  distributionAt,
  logitChunk,
  passesOf,
  rangesOf,
  type States,
  scalesOf,
  sliceRows,
  statesOf,
} from "./scoring.js";

/**
 * What a policy reads before each code that it draws: its own codes (`free`); the first `length` true codes and then its
 * own (`prefix`); the true codes (`teacher_forced`); or the true codes, each of them replaced by a uniform random code
 * with probability `noise` (`noisy_teacher_forced`). The length of a prefix may be drawn for each image from `shortest` to
 * `length`, and be 0 with probability `free`.
 */
export type RolloutContext =
  | { readonly type: "free" }
  | { readonly type: "prefix"; readonly length: number; readonly shortest?: number; readonly free?: number }
  | { readonly type: "teacher_forced" }
  | { readonly type: "noisy_teacher_forced"; readonly noise: number };

/** Options of {@link sampleRollout}. */
export interface RolloutOptions {
  /** Default `{ type: "free" }`. */
  readonly context?: RolloutContext;
  /** G: sequences per image; default 1. */
  readonly numGenerations?: number;
  /** int64 `[B, T]`: the true codes of the images; needed by every context but `free`. */
  readonly trueCodes?: Tensor;
  /** Codes of a whole sequence, given ones included; default as in `trueCodes`, else the policy's block size. */
  readonly length?: number;
  readonly sampling?: Sampling;
  /** On the CPU; default LibTorch's default generator. */
  readonly generator?: Generator;
  /**
   * Position of the images in the batch of all processes: the drawn codes are those that one process would draw for the
   * whole batch.
   */
  readonly place?: BatchPlace;
  /** Images at a time; default all. The drawn codes are the same. */
  readonly microBatch?: number;
  /**
   * Keep the autograd graph of the hidden states in `states`, for an update with one optimizer step; default false.
   * Only in teacher-forced contexts.
   */
  readonly keepGraph?: boolean;
  /**
   * Dtype of packed weights for linear layers, used while codes are drawn one by one on a CPU where {@link paysToPack}
   * says so; default no packing. Log-probabilities then differ from scored ones by the rounding of another order of sums.
   */
  readonly packAs?: DType;
}

/** Drawn sequences, and everything that an update needs to compute their log-probabilities again. */
export interface Rollout extends Drawn {
  /** int64 `[B, G, T]`: the codes that were drawn, and given ones where `mask` says so. */
  readonly tokens: Tensor;
  /** float32 `[B, G, T]`, nats: under the distributions drawn from. */
  readonly logprobs: Tensor;
  /** float32 `[B, G, T]`, nats: of the same distributions. */
  readonly entropy: Tensor;
  /** int64 `[B, G, S + T]`: whole sequences for the tokenizer to decode, given codes before the drawn tokens. */
  readonly codes: Tensor;
  readonly start: Start;
  readonly context: Tensor | null;
  readonly support: Tensor | null;
  readonly sampling: Sampling;
  /** bool `[B, G, T]`: false where a token was given, in prefixes of several lengths; absent where all were drawn. */
  readonly mask?: Tensor;
  /** Hidden states with their autograd graph; null without `keepGraph`. */
  readonly states: States | null;
}

/**
 * Draw G sequences for each image.
 *
 * No gradient (but see `keepGraph`); dropout is off. A seed gives the same codes for any `microBatch`.
 *
 * @param start - where the B images' sequences start: usually their classes, `{ classes }`; codes only with `free`.
 * @param given - {@link RolloutOptions}.
 * @throws RangeError for an option that is unknown or out of range, when true codes are missing, or for too many start
 *   codes. Error when logits are not finite.
 */
export function sampleRollout(policy: ArPolicy, start: Start, ...given: [options?: RolloutOptions]): Rollout {
  const where = "sampleRollout";
  const options = readRolloutOptions(where, given);
  const { context = { type: "free" }, trueCodes, keepGraph = false } = options;
  return tidy(() => {
    const parts = startParts(where, start, trueCodes);
    requireOnDevice(where, policy, { trueCodes });
    requireOnDevice(`${where}.start`, policy, { ...parts.condition, tokens: parts.given });
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
      const remedy = "Omit the start codes: this context takes its codes from trueCodes";
      throw expected(where, `a start without codes for the context ${context.type}`, parts.given, remedy);
    }
    if (context.type === "prefix") {
      const t = trueCodes.size(1);
      if (context.length >= t) throw expected(where, `a prefix shorter than the ${t} codes`, context.length);
      if (isVaried(context)) return variedPrefix(policy, parts, trueCodes, context, options);
      return ownContext(policy, { ...parts, given: trueCodes.narrow(1, 0, context.length) }, options);
    }
    const noise = context.type === "noisy_teacher_forced" ? context.noise : 0;
    const read = noisyContext(trueCodes, noise, policy.vocabSize, options.generator, options.place);
    return sharedContext(policy, parts, read, options);
  });
}

function readRolloutOptions(where: string, given: readonly unknown[]): RolloutOptions {
  const options = readOptions<RolloutOptions>(where, given, {
    names: {
      context: true,
      numGenerations: "number",
      trueCodes: true,
      length: "number",
      sampling: true,
      generator: true,
      place: true,
      microBatch: "number",
      keepGraph: "boolean",
      packAs: true,
    },
  });
  const { numGenerations, length, microBatch, context, sampling, trueCodes } = options;
  for (const [name, value] of Object.entries({ numGenerations, length, microBatch })) {
    if (value !== undefined) requireCount(`${where}.${name}`, value);
  }
  if (trueCodes !== undefined && !(trueCodes instanceof Tensor))
    throw expectedType(`${where}.trueCodes`, "a Tensor int64 [B, T]", trueCodes);
  return {
    ...options,
    ...(context !== undefined && { context: readContext(`${where}.context`, context) }),
    ...(sampling !== undefined && { sampling: readSampling(`${where}.sampling`, sampling) }),
  };
}

/** The options of each context besides its type. */
const CONTEXT_NAMES = {
  free: {},
  prefix: { length: "number", shortest: "number", free: "number" },
  teacher_forced: {},
  noisy_teacher_forced: { noise: "number" },
} as const;

/** A context; its type alone is accepted too: `"free"` for `{ type: "free" }`. */
function readContext(where: string, given: unknown): RolloutContext {
  type Given = { type: string; length: number; shortest: number; free: number; noise: number };
  const { type, ...rest } = readOptions<Given>(where, [given], {
    names: { type: true, length: "number", shortest: "number", free: "number", noise: "number" },
    order: ["type"],
  });
  requireChoice(`${where}.type`, type, Object.keys(CONTEXT_NAMES));
  readOptions<object>(where, [rest], { names: CONTEXT_NAMES[type as RolloutContext["type"]] });
  const { length, shortest = length, free = 0, noise } = rest;
  if (type === "prefix" && !(Number.isInteger(length) && length >= 0)) {
    throw expected(`${where}.length`, "an integer of at least 0", length);
  }
  if (type === "prefix" && !(Number.isInteger(shortest) && shortest >= 0 && shortest <= length))
    throw expected(`${where}.shortest`, `an integer from 0 to the length ${length}`, shortest);
  if (type === "prefix") requireNumber(`${where}.free`, free, 0, 1);
  if (type === "noisy_teacher_forced") requireNumber(`${where}.noise`, noise, 0, 1);
  return { type, ...rest } as RolloutContext;
}

/**
 * The context of codes 1 ... T - 1: the true codes, each replaced by a uniformly random code with probability `noise`.
 * The update must use the same context, so make it once per rollout.
 *
 * @param trueCodes - int64 `[B, T]`.
 * @param place - as in {@link RolloutOptions}.
 * @returns int64 `[B, T - 1]`.
 */
export function noisyContext(
  trueCodes: Tensor,
  noise: number,
  vocabSize: number,
  generator?: Generator,
  place?: BatchPlace,
): Tensor {
  return tidy(() => {
    const [b, t] = trueCodes.dims(2);
    const before = trueCodes.narrow(1, 0, t - 1);
    if (noise === 0) return before;
    const u = uniforms("noisyContext", [b, t - 1, 2], generator, trueCodes, place);
    const uniformCode = u.select(2, 1).mul(vocabSize).long();
    return where(u.select(2, 0).lt(noise), uniformCode, before);
  });
}

/**
 * Whether packing weights (which copies them) saves more time than it costs.
 *
 * Measured on a processor with AVX-512 (`npm run bench -- rollout`): packing costs what it saves in 7 to 20 steps from a
 * width of 192 on; narrower layers gain nothing, and neither do fewer than 4 rows of layers narrower than 512.
 *
 * @param rows - sequences that are drawn at a time.
 * @param steps - codes of each.
 */
export function paysToPack(
  { hiddenSize }: Pick<ArPolicy, "hiddenSize">,
  rows: number,
  steps: number,
): boolean {
  return hiddenSize >= 192 && (rows >= 4 || hiddenSize >= 512) && steps >= 32;
}

type Prefix = Extract<RolloutContext, { type: "prefix" }>;

const isVaried = ({ length, shortest = length, free = 0 }: Prefix): boolean => shortest < length || free > 0;

/** Codes that every image is given in a context. */
export function commonPrefix(context: RolloutContext): number {
  if (context.type !== "prefix") return 0;
  const { length, shortest = length, free = 0 } = context;
  return free > 0 ? 0 : shortest;
}

/**
 * Prefixes of several lengths: all are given the shortest; further given codes are among the tokens, and masked.
 *
 * Two numbers per image decide, of the generator and before those of the codes: whether it has no prefix, and its length, uniform
 * over `shortest ... length`.
 */
function variedPrefix(
  policy: ArPolicy,
  parts: StartParts,
  trueCodes: Tensor,
  context: Prefix,
  options: RolloutOptions,
): Rollout {
  const where = "sampleRollout";
  const { length, shortest = length, free = 0 } = context;
  const { numGenerations: g = 1, sampling = {}, generator, place } = options;
  if (isFiltered(sampling)) {
    const remedy = "A given code may be none of those that a filter keeps: set topK 0 and topP 1";
    throw expected(where, "no top-k and top-p with prefixes of several lengths", "a filter", remedy);
  }
  const [b, all] = trueCodes.dims(2);
  const least = commonPrefix(context);
  const u = uniforms(where, [b, 2], generator, trueCodes, place);
  const drawn = u
    .select(1, 1)
    .mul(length - shortest + 1)
    .long()
    .add(shortest); // [B]
  const lengths = drawn.mul(u.select(1, 0).ge(free));
  const places = arange(least, all, 1, { device: trueCodes.device as Device });
  const fixed = {
    codes: trueCodes.narrow(1, least, all - least),
    isGiven: places.unsqueeze(0).lt(lengths.unsqueeze(1)), // [B, T]
  };
  const rollout = ownContext(policy, { ...parts, given: trueCodes.narrow(1, 0, least) }, options, fixed);
  const mask = fixed.isGiven
    .logicalNot()
    .unsqueeze(1)
    .expand(b, g, all - least)
    .contiguous();
  return { ...rollout, mask };
}

/** Free and prefix contexts: each sequence is conditioned on its own codes, after given codes, if any. */
function ownContext(
  policy: ArPolicy,
  start: StartParts,
  options: RolloutOptions,
  fixed: GivenCodes | null = null,
): Rollout {
  const { numGenerations: g = 1, sampling = {}, generator, trueCodes } = options;
  const length = options.length ?? trueCodes?.size(1) ?? policy.blockSize;
  const [b, s] = start.given.dims(2);
  const size = options.microBatch ?? b;
  const { packAs } = options;
  const isPacked =
    packAs !== undefined && start.given.device === "cpu" && paysToPack(policy, size * g, length - s);
  skipUniforms((options.place?.from ?? 0) * g * (length - s), generator);
  using _packed = isPacked ? packLinears(policy, { dtype: packAs }) : null;
  const parts = rangesOf(b, size).map(([from, count]) => {
    const rows = (tensor: Tensor): Tensor => tensor.narrow(0, from, count);
    const sampleOptions = { ...sampling, numGenerations: g, ...(generator && { generator }) };
    const some = mapStart(start, rows);
    const given = fixed && { codes: rows(fixed.codes), isGiven: rows(fixed.isGiven) };
    const first: Start = [some.given, some.condition];
    return drawSequences("sampleCodesWithLogprobs", policy, first, length - s, sampleOptions, given);
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

/** G draws per position from one distribution, in a context that does not depend on the draws. */
function sharedContext(
  policy: ArPolicy,
  parts: StartParts,
  context: Tensor,
  options: RolloutOptions,
): Rollout {
  const { numGenerations: g = 1, sampling = {}, generator, keepGraph = false } = options;
  const [b, before] = context.dims(2);
  const t = before + 1;
  const size = keepGraph ? b : (options.microBatch ?? b);
  const start: Start = [parts.given, parts.condition];
  // Uniform numbers are a placeholder for codes that are not drawn yet: statesOf reads only their shape.
  const u = uniforms("sampleRollout", [b, g, t], generator, context, options.place);
  const passes = passesOf("sampleRollout", { tokens: u, start, context, sampling });
  let kept: States | null = null;
  const drawn = withoutDropout([policy], () =>
    rangesOf(b, size).map(([from, count]) => {
      const rows = sliceRows(passes, from, count);
      const run = (): States => statesOf(policy, rows);
      const states = keepGraph ? enableGrad(run) : noGrad(run);
      if (keepGraph) kept = states;
      const flat = (tensor: Tensor): Tensor => tensor.reshape(count * t, -1); // one position a row
      return noGrad(() =>
        tidy(() => {
          const chunk = logitChunk(policy);
          const hidden = flat(states.hidden).split(chunk);
          const nullHidden = states.nullHidden && flat(states.nullHidden).split(chunk);
          const scale = flat(scalesOf(policy, rows, states.hidden)).split(chunk);
          const drawBy = flat(rows.tokens.transpose(1, 2)).split(chunk); // [c, G]
          const steps = hidden.map((piece, i) => {
            const guided = nullHidden && { nullHidden: nullHidden[i] as Tensor, scale: scale[i] as Tensor };
            const { logp } = distributionAt(policy, sampling, { hidden: piece, ...guided });
            return drawStep(logp, sampling.greedy ? null : (drawBy[i] as Tensor), isFiltered(sampling));
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
  requireFiniteLogits("sampleRollout", logprobs);
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
