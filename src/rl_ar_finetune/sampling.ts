/**
 * Draws codes from a policy step by step, and defines the distribution that both sampling and `scoring.ts` use, so that
 * log-probabilities are those of the distribution that codes were drawn from. Top-k, top-p, temperature and guidance
 * are applied in {@link distribution} and nowhere else. Contexts other than free-running are in `rollout.ts`.
 *
 * Guidance is that of Ho and Salimans 2022, "Classifier-Free Diffusion Guidance"; top-p that of Holtzman et al. 2020,
 * "The Curious Case of Neural Text Degeneration". Deviation: codes whose logit equals that of the last code kept are
 * kept too, so that top-k and top-p depend only on logits and not on the order of a sort.
 */
import { requireModule } from "../nn/index.js";
import { concatConditions } from "../policies/condition.js";
import { type Guidance, guidanceScale } from "../policies/guidance.js";
import type { ArPolicy, Condition, DecodeCache } from "../policies/policy.js";
import {
  callTensor,
  cat,
  type Device,
  empty,
  expected,
  expectedType,
  Generator,
  isPlainObject,
  noGrad,
  type Operand,
  rand,
  readOptions,
  shownValue,
  stack,
  Tensor,
  tensor,
  tidy,
  toDevice,
  where,
} from "../torch/index.js";

export { guidanceScale };

/** How logits become the distribution that codes are drawn from: guidance, temperature, top-k, top-p, in this order. */
export interface Sampling {
  /** Logits are divided by it; at least 1e-4, default 1. */
  readonly temperature?: number;
  /** Keep the k most probable codes; default 0, which keeps all. */
  readonly topK?: number;
  /**
   * Keep the most probable codes, up to and including the first with which their sum exceeds p, in (0, 1]; default 1,
   * all.
   */
  readonly topP?: number;
  /** Classifier-free guidance; none by default. */
  readonly guidance?: Guidance;
  /** Take the most probable code; its log-probability is that of the distribution above, so it cannot be trained on. */
  readonly greedy?: boolean;
}

/** Whether top-k or top-p is on, so that the set of kept codes has to be recorded. */
export function isFiltered(sampling: Sampling): boolean {
  return (sampling.topK ?? 0) > 0 || (sampling.topP ?? 1) < 1;
}

/** Whether codes are drawn from the softmax of the policy's logits as they are. */
export function isPlain(sampling: Sampling): boolean {
  return (sampling.temperature ?? 1) === 1 && !isFiltered(sampling) && sampling.guidance === undefined;
}

/** Below this, logits divided by the temperature could overflow. */
const LEAST_TEMPERATURE = 1e-4;

/**
 * Check the numbers of a {@link Sampling}.
 *
 * @throws RangeError for the first that is out of range.
 */
export function checkSampling(where: string, sampling: Sampling): void {
  const { temperature = 1, topK = 0, topP = 1, guidance } = sampling;
  if (!(typeof temperature === "number" && temperature >= LEAST_TEMPERATURE && temperature < Infinity)) {
    const remedy = "Use greedy: true for the limit at 0, which takes the most probable code";
    const what = `a number of at least ${LEAST_TEMPERATURE}`;
    throw expected(`${where}.temperature`, what, shownValue(temperature), remedy);
  }
  if (!Number.isInteger(topK) || topK < 0)
    throw expected(`${where}.topK`, "an integer of at least 0", shownValue(topK));
  if (!(typeof topP === "number" && topP > 0 && topP <= 1))
    throw expected(`${where}.topP`, "a number in (0, 1]", shownValue(topP));
  if (guidance === undefined) return;
  const { scale, power = 1 } = guidance;
  if (!Number.isFinite(scale))
    throw expected(`${where}.guidance.scale`, "a finite number", shownValue(scale));
  requirePositive(`${where}.guidance.power`, power);
}

const SAMPLING_NAMES = {
  temperature: "number",
  topK: "number",
  topP: "number",
  guidance: true,
  greedy: "boolean",
} as const;

/**
 * Read a {@link Sampling} from a caller: names in camelCase or snake_case, no unknown names, numbers in range.
 *
 * @throws RangeError on the first that is not.
 */
export function readSampling(where: string, given: Sampling | null | undefined): Sampling {
  const sampling = readOptions<Sampling>(where, [given], { names: SAMPLING_NAMES });
  return withGuidance(where, sampling);
}

/** The same with its guidance read and its numbers checked. */
function withGuidance<T extends Sampling>(where: string, sampling: T): T {
  const { guidance } = sampling;
  const read =
    guidance === undefined
      ? sampling
      : {
          ...sampling,
          guidance: readOptions<Guidance>(`${where}.guidance`, [guidance], {
            names: { scale: "number", schedule: true, power: "number", interval: true },
            order: ["scale"],
          }),
        };
  checkSampling(where, read);
  return read;
}

/** @throws RangeError unless the value is a number in [least, most]. */
export function requireNumber(where: string, value: unknown, least: number, most: number = Infinity): void {
  if (typeof value === "number" && value >= least && value <= most) return;
  const range = most < Infinity ? `a number in [${least}, ${most}]` : `a number of at least ${least}`;
  throw expected(where, least === -Infinity ? "a number" : range, shownValue(value));
}

/** @throws RangeError unless the value is an integer of at least 1. */
export function requireCount(where: string, value: unknown): void {
  if (Number.isInteger(value) && (value as number) >= 1) return;
  throw expected(where, "an integer of at least 1", shownValue(value));
}

/** @throws RangeError unless the value is a number above 0. */
export function requirePositive(where: string, value: unknown): void {
  if (typeof value === "number" && value > 0) return;
  throw expected(where, "a number above 0", shownValue(value));
}

/** @throws RangeError unless the value is one of the choices, or undefined. */
export function requireChoice(where: string, value: unknown, choices: readonly string[]): void {
  if (value === undefined || choices.includes(value as string)) return;
  throw expected(where, `${choices.slice(0, -1).join(", ")} or ${choices.at(-1)}`, shownValue(value));
}

/** Rows of a batch that several processes share: the first one's place, and how many rows the batch has. */
export interface BatchPlace {
  readonly from: number;
  readonly of: number;
}

/**
 * Uniform numbers in [0, 1), float64, on the device of `like`. They are drawn on the CPU, so that a seed gives the same
 * numbers for every device.
 *
 * @param place - of the rows in a larger batch: they get the numbers that they would have there.
 * @throws RangeError for a generator of another device.
 */
export function uniforms(
  where: string,
  shape: readonly number[],
  generator: Generator | undefined,
  like: Tensor,
  place?: BatchPlace,
): Tensor {
  checkGenerator(where, generator);
  return tidy(() => {
    const all = place === undefined ? shape : [place.of, ...shape.slice(1)];
    const drawn = rand(all, { dtype: "float64", ...(generator && { generator }) });
    const own = place === undefined ? drawn : drawn.narrow(0, place.from, shape[0] as number);
    return toDevice(own, like.device as Device);
  });
}

/** Go past the numbers that {@link uniforms} would draw. */
export function skipUniforms(count: number, generator: Generator | undefined): void {
  if (count > 0) tidy(() => void rand([count], { dtype: "float64", ...(generator && { generator }) }));
}

/** @throws TypeError if it is not a generator, RangeError if it is not on the CPU. */
export function checkGenerator(where: string, generator: Generator | undefined): void {
  if (generator === undefined) return;
  const remedy = "Make it with new Generator(seed): it serves policies on every device, with the same draws";
  if (!(generator instanceof Generator)) {
    throw expectedType(`${where}.generator`, "a Generator", shownValue(generator), remedy);
  }
  if (generator.device === "cpu") return;
  throw expected(`${where}.generator`, "a generator on the CPU", `one on ${generator.device}`, remedy);
}

/**
 * Check that codes are in a policy's vocabulary: on a GPU an index out of range would end the process. Synchronizes
 * with the GPU.
 *
 * @throws RangeError for another dtype, and for codes outside [0, V).
 */
function requireCodes(where: string, codes: Tensor, vocabSize: number): void {
  if (codes.dtype !== "int64") throw expected(where, "int64 codes", codes);
  if (codes.numel === 0 || codes.device === "meta") return;
  const [low, high] = stack([codes.amin(), codes.amax()]).toList() as [number, number];
  if (low < 0 || high >= vocabSize)
    throw expected(where, `codes in [0, ${vocabSize})`, `codes from ${low} to ${high}`);
}

/** @throws RangeError for a tensor of another device than the policy's. */
export function requireOnDevice(
  where: string,
  policy: ArPolicy,
  tensors: Readonly<Record<string, unknown>>,
): void {
  const device = policy.parameters()[0]?.device;
  for (const [name, tensor] of Object.entries(tensors)) {
    if (!(tensor instanceof Tensor) || device === undefined || tensor.device === device) continue;
    const remedy = `Move it there: tensor.to({ device: "${device}" })`;
    throw expected(`${where}.${name}`, `a tensor on ${device}, as the policy is`, tensor, remedy);
  }
}

/** Further arguments of {@link distribution}: for guidance, and a recorded support. */
export interface DistributionOptions {
  /** Logits under the null condition, in the shape of the logits. */
  nullLogits?: Tensor;
  /** Guidance scale, a number or broadcast over the logits; with `nullLogits`. */
  scale?: Operand;
  /** uint8 `[..., ceil(V / 8)]` of {@link packSupport}: the codes that may be drawn, in place of top-k and top-p. */
  support?: Tensor;
}

/**
 * Log-probabilities of the distribution that codes are drawn from.
 *
 * Differentiable in the logits; the set of codes that a filter keeps is a constant.
 *
 * @param logits - float `[..., V]`.
 * @returns float32 (float64 for float64 logits) `[..., V]`, nats; -Infinity for codes that a filter removed.
 */
export function distribution(
  logits: Tensor,
  sampling: Sampling = {},
  options: DistributionOptions = {},
): Tensor {
  const { temperature = 1 } = sampling;
  const { nullLogits, scale = 1, support } = options;
  return tidy(() => {
    let x = widen(logits);
    if (nullLogits !== undefined) {
      const none = widen(nullLogits);
      x = none.add(x.sub(none).mul(scale));
    }
    if (temperature !== 1) x = x.div(temperature);
    if (support !== undefined) x = x.maskedFill(unpackSupport(support, x.size(-1)).logicalNot(), -Infinity);
    else if (isFiltered(sampling))
      x = x.maskedFill(
        noGrad(() => isCut(x, sampling)),
        -Infinity,
      );
    return x.logSoftmax(-1);
  });
}

function widen(logits: Tensor): Tensor {
  return logits.dtype === "float64" ? logits : logits.float();
}

/** bool `[..., V]`: true where top-k, or then top-p, cuts a code. */
function isCut(logits: Tensor, { topK = 0, topP = 1 }: Sampling): Tensor {
  const v = logits.size(-1);
  const isAll = topK === 0 || topK >= v;
  const best = isAll ? logits.sort(-1, { descending: true }).values : logits.topk(topK).values; // falling
  if (topP === 1) return logits.lt(best.slice(-1, -1));
  const p = best.softmax(-1);
  const before = p.cumsum(-1).sub(p); // 0 for the first code, so that it is always kept
  return logits.lt(where(before.le(topP), best, Infinity).amin(-1, true));
}

const BITS = [1, 2, 4, 8, 16, 32, 64, 128];

/** Which codes have a finite log-probability, eight to a byte: float `[..., V]` to uint8 `[..., ceil(V / 8)]`. */
export function packSupport(logprobs: Tensor): Tensor {
  return tidy(() => {
    const v = logprobs.size(-1);
    const bytes = Math.ceil(v / 8);
    const isKept = logprobs.gt(-Infinity).to({ dtype: "uint8" });
    const padded = callTensor<Tensor>("aten::constant_pad_nd", [isKept, [0, bytes * 8 - v], 0]);
    return padded.unflatten(-1, [bytes, 8]).mul(bitsOn(logprobs)).sum(-1, { dtype: "uint8" });
  });
}

/** The inverse of {@link packSupport}: bool `[..., V]`. */
export function unpackSupport(support: Tensor, vocabSize: number): Tensor {
  return tidy(() => {
    const bits = support.unsqueeze(-1).bitwiseAnd(bitsOn(support)).ne(0);
    return bits.flatten(-2).narrow(-1, 0, vocabSize);
  });
}

function bitsOn(like: Tensor): Tensor {
  return tensor(BITS, { dtype: "uint8", device: like.device as Device });
}

/**
 * Draw K codes per row by inverting the cumulative distribution.
 *
 * Probabilities become integer multiples of 2^-40, whose sums are exact on every device: a code that was removed is
 * never drawn, and the same uniforms give the same codes whatever else is in the batch. Codes below 1e-12 are never
 * drawn.
 *
 * @param probabilities - float `[R, V]`.
 * @param uniforms - float64 `[R, K]` in [0, 1).
 * @returns int64 `[R, K]`.
 */
export function drawCodes(probabilities: Tensor, uniforms: Tensor): Tensor {
  return tidy(() => {
    const v = probabilities.size(-1);
    const sums = probabilities
      .mul(2 ** 40)
      .long()
      .cumsum(-1); // [R, V]
    const marks = uniforms
      .mul(sums.narrow(-1, v - 1, 1))
      .long()
      .contiguous(); // [R, K], below the last sum
    const codes = callTensor<Tensor>("aten::searchsorted.Tensor", [sums, marks, false, true]);
    return codes.clamp(0, v - 1); // only rows of NaN reach beyond; requireFiniteLogits finds them
  });
}

/** Entropy of each row in nats: log-probabilities `[..., V]` to `[...]`. Codes at -Infinity add nothing. */
export function entropyOf(logprobs: Tensor): Tensor {
  return tidy(() =>
    logprobs
      .exp()
      .mul(logprobs.maskedFill(logprobs.eq(-Infinity), 0))
      .sum(-1)
      .neg(),
  );
}

/**
 * Run `fn` with dropout off in these models, and restore every module's mode afterwards, also when `fn` throws.
 * Rollouts, updates and reference passes all run so: with dropout, ratios and KL would measure its noise.
 */
export function withoutDropout<T>(policies: readonly ArPolicy[], fn: () => T): T {
  const before = policies.flatMap((policy) =>
    [...policy.modules()].map((module) => ({ module, was: module.training })),
  );
  for (const policy of policies) policy.eval();
  try {
    return fn();
  } finally {
    for (const { module, was } of before) module.training = was;
  }
}

/**
 * Where sequences start: codes int64 `[B, S]`, a condition of B images, or the pair of both, in which a tensor is
 * taken as classes int64 `[B]`. Given codes are read and never scored.
 */
export type Start = Tensor | Condition | readonly [tokens: Tensor, condition: Tensor | Condition];

/** A {@link Start} as codes and a condition. */
export interface StartParts {
  /** int64 `[B, S]`, S >= 0. */
  readonly given: Tensor;
  readonly condition: Condition;
}

/**
 * A {@link Start} in one form.
 *
 * @param like - has the number of rows and the device where the start is `{}`.
 * @throws TypeError when neither codes nor a condition say how many sequences there are. RangeError when codes and
 *   condition have different numbers of rows.
 */
export function startParts(where: string, start: Start, like?: Tensor): StartParts {
  const [tokens, condition] = splitStart(where, start);
  const tensors = Object.entries(condition).filter(([, value]) => value !== undefined) as [string, Tensor][];
  const first = tokens ?? tensors[0]?.[1] ?? like;
  if (first === undefined) {
    throw expectedType(where, "start codes or a condition", "neither", START);
  }
  const batch = first.size(0);
  for (const [name, value] of tensors) {
    if (value.size(0) !== batch) throw expected(where, `${batch} rows in the start's ${name}`, value);
  }
  if (tokens === undefined) {
    const device = first.device as "cpu";
    return { given: empty([batch, 0], { dtype: "int64", device }), condition };
  }
  if (tokens.ndim !== 2) throw expected(where, "start codes int64 [B, S]", tokens);
  return { given: tokens, condition };
}

function splitStart(where: string, start: Start): readonly [Tensor | undefined, Condition] {
  if (start instanceof Tensor) return [start, {}];
  const [tokens, second] = Array.isArray(start)
    ? (start as readonly [Tensor | undefined, Tensor | Condition | undefined])
    : [undefined, start as Condition];
  if (tokens !== undefined && !(tokens instanceof Tensor)) {
    throw expectedType(where, "start codes int64 [B, S] before the condition", tokens, START);
  }
  if (second instanceof Tensor) return [tokens, { classes: second }];
  if (second !== undefined && !isPlainObject(second)) {
    throw expectedType(where, "start codes, a condition, or a pair of both", second, START);
  }
  const names = { classes: true, features: true, isReal: true, isDropped: true } as const;
  const condition = readOptions<Condition>(`${where}.start`, [second], { names });
  for (const [name, value] of Object.entries(condition)) {
    if (!(value instanceof Tensor)) throw expectedType(`${where}.start.${name}`, "a Tensor", value, START);
  }
  return [tokens, condition];
}

const START = "Pass int64 codes [B, S], S = 0 for none, { classes: int64 [B] }, or [codes, classes]";

/** The start with `fn` applied to each of its tensors, all of which have one row per image. */
export function mapStart(start: StartParts, fn: (rows: Tensor) => Tensor): StartParts {
  return { given: fn(start.given), condition: mapCondition(start.condition, fn) };
}

/** The condition with `fn` applied to each of its tensors. */
export function mapCondition(condition: Condition, fn: (rows: Tensor) => Tensor): Condition {
  const fields = Object.entries(condition).filter(([, value]) => value !== undefined) as [string, Tensor][];
  return Object.fromEntries(fields.map(([name, value]) => [name, fn(value)]));
}

/** Options of {@link sampleCodesWithLogprobs}. */
export interface SampleOptions extends Sampling {
  /** G: sequences per start, which share its prefill; default 1. */
  readonly numGenerations?: number;
  /** On the CPU; default LibTorch's default generator. One number per code is drawn from it, row after row. */
  readonly generator?: Generator;
}

/** Drawn codes: N = B * G rows; the G rows of a start are consecutive. */
export interface Sampled {
  /** int64 `[N, T]` in `[0, V)`. */
  readonly tokens: Tensor;
  /** float32 `[N, T]`, nats: of the distribution that was drawn from. */
  readonly logprobs: Tensor;
  /** float32 `[N, T]`, nats: of the same distributions. */
  readonly entropy: Tensor;
  /** uint8 `[N, T, ceil(V / 8)]` of {@link packSupport}: the codes that could be drawn; null without top-k and top-p. */
  readonly support: Tensor | null;
}

/**
 * Draw `maxLen` codes per sequence, each after those before it, with the log-probability of each.
 *
 * Log-probabilities are of the distribution drawn from (after guidance, temperature, top-k, top-p), so they serve as
 * the old log-probabilities of PPO and GRPO. No gradient; dropout is off. A seed gives the same codes on every device
 * up to the rounding of logits. A row's codes do not depend on the rows after it: sampling a batch in parts with one
 * generator gives the codes of the whole batch.
 *
 * @param start - where sequences start; given codes are not scored and not returned.
 * @param maxLen - T: codes to draw.
 * @param given - {@link SampleOptions}; or temperature, topK, topP in this order, as in Python.
 * @throws RangeError when given codes and `maxLen` exceed `policy.blockSize`, or for an option that is unknown or out
 *   of range. Error when logits are not finite.
 */
export function sampleCodesWithLogprobs(
  policy: ArPolicy,
  start: Start,
  maxLen: number,
  ...given:
    | [options?: SampleOptions]
    | [temperature?: number | null, topK?: number | null, topP?: number | null, options?: SampleOptions]
): Sampled {
  const name = "sampleCodesWithLogprobs";
  requireModule(name, policy);
  const options = withGuidance(
    name,
    readOptions<SampleOptions>(name, given, {
      names: { ...SAMPLING_NAMES, numGenerations: "number", generator: true },
      order: ["temperature", "topK", "topP"],
    }),
  );
  const { numGenerations = 1 } = options;
  if (!Number.isInteger(numGenerations) || numGenerations < 1) {
    throw expected(name, "numGenerations, an integer of at least 1", shownValue(numGenerations));
  }
  return drawSequences(name, policy, start, maxLen, options);
}

/** Codes at the first places of some starts, which are read in place of drawn ones. */
export interface GivenCodes {
  /** int64 `[B, T]`. */
  readonly codes: Tensor;
  /** bool `[B, T]`. */
  readonly isGiven: Tensor;
}

/**
 * Draw sequences; see {@link sampleCodesWithLogprobs}, which checks the options.
 *
 * @param fixed - given codes among the T, with their log-probabilities in the result; the uniform numbers of their places are unused.
 */
export function drawSequences(
  name: string,
  policy: ArPolicy,
  start: Start,
  maxLen: number,
  options: SampleOptions,
  fixed: GivenCodes | null = null,
): Sampled {
  const { numGenerations = 1, generator, guidance, greedy = false } = options;
  if (!Number.isInteger(maxLen) || maxLen < 1)
    throw expected(name, "maxLen, an integer of at least 1", shownValue(maxLen));
  return withoutDropout([policy], () =>
    noGrad(() =>
      tidy(() => {
        const { given: first, condition } = startParts(name, start);
        requireOnDevice(`${name}.start`, policy, { ...condition, tokens: first });
        const [b, s] = first.dims(2);
        requireCodes(`${name}.start`, first, policy.vocabSize);
        const length = s + maxLen;
        if (length > policy.blockSize) {
          const got = `${s} + ${maxLen}`;
          const remedy = "Lower maxLen or raise the policy's block size";
          throw expected(name, `given codes + maxLen <= blockSize ${policy.blockSize}`, got, remedy);
        }
        const n = b * numGenerations;
        const isGuided = guidance !== undefined;
        const u = uniforms(name, [n, maxLen], generator, first); // [N, T]
        const isGiven = fixed?.isGiven.repeatInterleave(numGenerations, 0);
        const codes = fixed?.codes.repeatInterleave(numGenerations, 0);
        const steps: Step[] = [];
        using run = openRun(policy, isGuided ? 2 * b : b, numGenerations, length);
        let logits = isGuided
          ? run.prefill(cat([first, first]), concatConditions(condition, policy.nullCondition(condition)))
          : run.prefill(first, condition);
        for (let t = 0; t < maxLen; t++) {
          const isLast = t === maxLen - 1;
          const { next, ...step } = tidy(() => {
            const logp = isGuided
              ? distribution(logits.narrow(0, 0, n), options, {
                  nullLogits: logits.narrow(0, n, n),
                  scale: guidanceScale(guidance, s + t, policy.blockSize),
                })
              : distribution(logits, options); // [N, V]
            const own = drawStep(logp, greedy ? null : u.narrow(1, t, 1), isFiltered(options));
            const drawn = isGiven && codes ? withGivenCodes(own, logp, isGiven, codes, t) : own;
            const token = drawn.tokens.squeeze(1); // [N]
            return { ...drawn, next: isLast ? null : run.decode(isGuided ? cat([token, token]) : token) };
          });
          steps.push(step);
          logits.dispose(); // [N, V] each: the scope would keep all T of them
          logits = next ?? logits;
        }
        const sampled = joinSteps(steps);
        requireFiniteLogits(name, sampled.logprobs);
        return sampled;
      }),
    ),
  );
}

/** What one position gave: K codes per row. */
interface Step {
  tokens: Tensor;
  logprobs: Tensor;
  entropy: Tensor;
  support: Tensor | null;
}

/**
 * Draw from log-probabilities `[R, V]`, K codes per row by uniforms `[R, K]`, or the most probable code without uniforms.
 *
 * @returns tokens int64 `[R, K]`, logprobs `[R, K]`, entropy `[R]`, support uint8 `[R, ceil(V / 8)]` when wanted.
 */
export function drawStep(logp: Tensor, uniforms: Tensor | null, wantsSupport: boolean): Step {
  return tidy(() => {
    const p = logp.exp();
    const tokens = uniforms === null ? logp.argmax(-1, true) : drawCodes(p, uniforms);
    return {
      tokens,
      logprobs: logp.gather(-1, tokens),
      // -p log p, and 0 where p is 0; the first form is slow, and needed where many logits are infinite.
      entropy: wantsSupport
        ? callTensor<Tensor>("aten::special_entr", [p]).sum(-1)
        : callTensor<Tensor>("aten::linalg_vecdot", [p, logp.clamp(-1e30)]).neg(),
      support: wantsSupport ? packSupport(logp) : null,
    };
  });
}

/** A step with given codes, `[N, T]`, in place of drawn ones. */
function withGivenCodes(step: Step, logp: Tensor, isGiven: Tensor, codes: Tensor, t: number): Step {
  const tokens = where(isGiven.narrow(1, t, 1), codes.narrow(1, t, 1), step.tokens);
  return { ...step, tokens, logprobs: logp.gather(-1, tokens) };
}

function joinSteps(steps: readonly Step[]): Sampled {
  const supports = steps.map((step) => step.support).filter((support) => support !== null);
  return {
    tokens: cat(
      steps.map((step) => step.tokens),
      1,
    ),
    logprobs: cat(
      steps.map((step) => step.logprobs),
      1,
    ),
    entropy: stack(
      steps.map((step) => step.entropy),
      1,
    ),
    support: supports.length > 0 ? stack(supports, 1) : null,
  };
}

/**
 * Check drawn log-probabilities. Synchronizes with the GPU once, after all codes are drawn.
 *
 * @throws Error when one is NaN or infinite.
 */
export function requireFiniteLogits(name: string, logprobs: Tensor): void {
  if (tidy(() => readNumbers({ isFinite: logprobs.isfinite().all() }, 1)).isFinite === 1) return;
  throw new Error(
    `${name}: expected finite logits from the policy, got NaN or Infinity. ` +
      "Check the weights: a diverged update or a half-loaded checkpoint gives such logits.",
  );
}

/**
 * The values of scalars, by name. Synchronizes with the GPU once.
 *
 * @param placeholder - stands for each value on the meta device, whose tensors have none, so that a whole step can be
 *   run there for its shapes and devices.
 */
export function readNumbers(
  scalars: Readonly<Record<string, Tensor>>,
  placeholder = 0,
): Record<string, number> {
  const names = Object.keys(scalars);
  if (names.length === 0) return {};
  const all = tidy(() => stack(names.map((name) => (scalars[name] as Tensor).double())));
  const values = all.device === "meta" ? names.map(() => placeholder) : all.toArray();
  all.dispose();
  return Object.fromEntries(names.map((name, i) => [name, Number(values[i])]));
}

/** A cache for B starts, which becomes one for B * G sequences after the prefill. */
function openRun(policy: ArPolicy, rows: number, times: number, maxLen: number): Run {
  let cache: DecodeCache = policy.openCache(rows, { maxLen });
  return {
    prefill: (tokens, condition) => {
      const logits = policy.prefill(cache, tokens, condition);
      if (times === 1) return logits;
      const shared = cache;
      cache = policy.repeatCache(shared, times);
      shared.dispose();
      return tidy(() => logits.repeatInterleave(times, 0));
    },
    decode: (token) => policy.decode(cache, token),
    [Symbol.dispose]: () => cache.dispose(),
  };
}

interface Run extends Disposable {
  prefill(tokens: Tensor, condition: Condition): Tensor;
  decode(token: Tensor): Tensor;
}
