/**
 * Drawing codes from a policy step by step, and the one distribution that both the sampler here and the scorer
 * (`scoring.ts`) use, so that what is sampled and what is scored cannot drift apart. Contexts other than free-running
 * are in `rollout.ts`.
 *
 * Guidance is that of Ho and Salimans 2022, "Classifier-Free Diffusion Guidance"; top-p that of Holtzman et al. 2020,
 * "The Curious Case of Neural Text Degeneration". Deviation: codes that tie with the last one kept are kept too, so
 * that a filter depends on logits alone and not on the order of a sort.
 */
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
  type Generator,
  noGrad,
  type Operand,
  rand,
  stack,
  Tensor,
  tensor,
  tidy,
  where,
} from "../torch/index.js";

export { guidanceScale };

/** How logits become the distribution that codes are drawn from: guidance, temperature, top-k, top-p, in this order. */
export interface Sampling {
  /** Logits are divided by it; 1 where left out. */
  readonly temperature?: number;
  /** Keep the k most probable codes; 0, or left out, keeps all. */
  readonly topK?: number;
  /** Keep the most probable codes up to the first one that takes their sum above p; 1, or left out, keeps all. */
  readonly topP?: number;
  readonly guidance?: Guidance;
  /** Take the most probable code. Its log-probability is still that of the distribution: nothing to train on. */
  readonly greedy?: boolean;
}

/** Whether codes are cut from the distribution, so that a support has to be recorded. */
export function isFiltered(sampling: Sampling): boolean {
  return (sampling.topK ?? 0) > 0 || (sampling.topP ?? 1) < 1;
}

/** Whether codes are drawn from the policy's own softmax, with nothing done to it. */
export function isPlain(sampling: Sampling): boolean {
  return (sampling.temperature ?? 1) === 1 && !isFiltered(sampling) && sampling.guidance === undefined;
}

/**
 * Check the numbers of a {@link Sampling}.
 *
 * @throws RangeError on the first that cannot be served.
 */
export function checkSampling(where: string, sampling: Sampling): void {
  const { temperature = 1, topK = 0, topP = 1, guidance } = sampling;
  if (!(temperature > 0 && temperature < Infinity)) {
    throw expected(
      `${where}.temperature`,
      "a positive number",
      temperature,
      "Use greedy: true for the limit at 0",
    );
  }
  if (!Number.isInteger(topK) || topK < 0) throw expected(`${where}.topK`, "an integer of at least 0", topK);
  if (!(topP > 0 && topP <= 1)) throw expected(`${where}.topP`, "a number in (0, 1]", topP);
  if (guidance === undefined) return;
  const { scale, power = 1 } = guidance;
  if (!Number.isFinite(scale)) throw expected(`${where}.guidance.scale`, "a finite number", scale);
  if (!(power > 0)) throw expected(`${where}.guidance.power`, "a positive number", power);
}

/** What {@link distribution} needs besides logits where there is guidance or a recorded support. */
export interface DistributionOptions {
  /** Logits under the null condition, in the shape of the logits. */
  nullLogits?: Tensor;
  /** s, a number or broadcast over the logits; with `nullLogits`. */
  scale?: Operand;
  /** uint8 `[..., ceil(V / 8)]` of {@link packSupport}: the codes that may be drawn, in place of top-k and top-p. */
  support?: Tensor;
}

/**
 * Log-probabilities of the distribution that codes are drawn from.
 *
 * Differentiable in the logits; which codes a filter cuts counts as fixed.
 *
 * @param logits - float `[..., V]`.
 * @returns float32 (float64 for float64 logits) `[..., V]`, nats; -Infinity for codes that were cut.
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
  const before = p.cumsum(-1).sub(p); // 0 for the first: one code is always kept
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
 * Draw K codes a row by inverting the cumulative distribution.
 *
 * Probabilities become whole 2^-40ths, whose sums are exact on every device: a code that was cut is never drawn, and
 * the same uniforms give the same codes whatever else is in the batch. Codes below 1e-12 are never drawn.
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
    const marks = uniforms.mul(sums.narrow(-1, v - 1, 1)).long(); // [R, K], below the last sum
    const codes = callTensor<Tensor>("aten::searchsorted.Tensor", [sums, marks, false, true]);
    return codes.clamp(0, v - 1); // only rows of NaN reach beyond; their NaN log-probability tells
  });
}

/** Entropy of each row in nats: log-probabilities `[..., V]` to `[...]`. No gradient at codes that were cut. */
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
 * Run `fn` with dropout off in these models, and put every module's flag back afterwards, also when `fn` throws.
 * Rollouts, updates and reference passes all run so: with dropout, ratios and divergences measure noise.
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
 * Where sequences start: codes int64 `[B, S]`, a condition of B images, or the pair of both, in which a tensor stands
 * for classes int64 `[B]`. Given codes are read and never scored.
 */
export type Start = Tensor | Condition | readonly [tokens: Tensor, condition: Tensor | Condition];

/** A {@link Start} in one form. */
export interface StartParts {
  /** int64 `[B, S]`, S >= 0. */
  readonly given: Tensor;
  readonly condition: Condition;
}

/**
 * A start in one form.
 *
 * @param like - says how many rows there are, and on which device, when the start is `{}`.
 * @throws TypeError when neither codes nor a condition say how many sequences there are. RangeError when codes and
 *   condition have different numbers of rows.
 */
export function startParts(where: string, start: Start, like?: Tensor): StartParts {
  const [tokens, second] = splitStart(start);
  const condition: Condition = second instanceof Tensor ? { classes: second } : second;
  const tensors = Object.entries(condition).filter(([, value]) => value !== undefined) as [string, Tensor][];
  const first = tokens ?? tensors[0]?.[1] ?? like;
  if (first === undefined) {
    throw expectedType(
      where,
      "start codes or a condition",
      "neither",
      "Pass int64 codes [B, S], S = 0 for none, or { classes }",
    );
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

function splitStart(start: Start): readonly [Tensor | undefined, Tensor | Condition] {
  if (start instanceof Tensor) return [start, {}];
  if (Array.isArray(start)) return start as readonly [Tensor, Tensor | Condition];
  return [undefined, start as Condition];
}

/** The start with `fn` applied to each of its tensors, all of which have a row an image. */
export function mapStart(start: StartParts, fn: (rows: Tensor) => Tensor): StartParts {
  return { given: fn(start.given), condition: mapCondition(start.condition, fn) };
}

/** The condition with `fn` applied to each of its tensors. */
export function mapCondition(condition: Condition, fn: (rows: Tensor) => Tensor): Condition {
  const fields = Object.entries(condition).filter(([, value]) => value !== undefined) as [string, Tensor][];
  return Object.fromEntries(fields.map(([name, value]) => [name, fn(value)]));
}

/** What {@link sampleCodesWithLogprobs} takes besides policy, start and length. */
export interface SampleOptions extends Sampling {
  /** G: sequences a start, which share its prefill; 1 where left out. */
  readonly numGenerations?: number;
  /** A CPU generator; the default one where left out. One number a code is drawn from it, row after row. */
  readonly generator?: Generator;
}

/** Codes that were drawn, N = B * G rows, the G of a start in a row. */
export interface Sampled {
  /** int64 `[N, T]` in `[0, V)`. */
  readonly tokens: Tensor;
  /** float32 `[N, T]`, nats: of the distribution that was drawn from. */
  readonly logprobs: Tensor;
  /** float32 `[N, T]`, nats: of the same distributions. */
  readonly entropy: Tensor;
  /** uint8 `[N, T, ceil(V / 8)]`: the codes that could be drawn; null where nothing was cut. */
  readonly support: Tensor | null;
}

/**
 * Draw `maxLen` codes a sequence, each after those before it, with the log-probability of each.
 *
 * Log-probabilities are of the distribution drawn from (after guidance, temperature, top-k, top-p), so they serve as
 * the old log-probabilities of PPO and GRPO. No gradient; dropout is off. A seed gives the same codes on every device
 * up to the rounding of logits, and a row's codes do not depend on the rows after it: sampling in parts with one
 * generator is sampling at once.
 *
 * @param start - where sequences start; given codes are not scored and not returned.
 * @param maxLen - T: codes to draw.
 * @throws RangeError when given codes and `maxLen` exceed `policy.blockSize`. Error when logits are not finite.
 */
export function sampleCodesWithLogprobs(
  policy: ArPolicy,
  start: Start,
  maxLen: number,
  options: SampleOptions = {},
): Sampled {
  const name = "sampleCodesWithLogprobs";
  const { numGenerations = 1, generator, guidance, greedy = false } = options;
  checkSampling(name, options);
  if (!Number.isInteger(maxLen) || maxLen < 1)
    throw expected(name, "maxLen, an integer of at least 1", maxLen);
  if (!Number.isInteger(numGenerations) || numGenerations < 1) {
    throw expected(name, "numGenerations, an integer of at least 1", numGenerations);
  }
  return withoutDropout([policy], () =>
    noGrad(() =>
      tidy(() => {
        const { given, condition } = startParts(name, start);
        const [b, s] = given.dims(2);
        const length = s + maxLen;
        if (length > policy.blockSize) {
          const got = `${s} + ${maxLen}`;
          const remedy = "Lower maxLen or raise the policy's block size";
          throw expected(name, `given codes + maxLen <= blockSize ${policy.blockSize}`, got, remedy);
        }
        const n = b * numGenerations;
        const isGuided = guidance !== undefined;
        const device = given.device as Device;
        const uniforms = rand([n, maxLen], { dtype: "float64", ...(generator && { generator }) }).to({
          device,
        });
        const steps: Step[] = [];
        using run = openRun(policy, isGuided ? 2 * b : b, numGenerations, length);
        let logits = isGuided
          ? run.prefill(cat([given, given]), concatConditions(condition, policy.nullCondition(condition)))
          : run.prefill(given, condition);
        for (let t = 0; t < maxLen; t++) {
          const isLast = t === maxLen - 1;
          const { next, ...step } = tidy(() => {
            const logp = isGuided
              ? distribution(logits.narrow(0, 0, n), options, {
                  nullLogits: logits.narrow(0, n, n),
                  scale: guidanceScale(guidance, s + t, policy.blockSize),
                })
              : distribution(logits, options); // [N, V]
            const drawn = draw(logp, greedy ? null : uniforms.narrow(1, t, 1), isFiltered(options));
            const token = drawn.tokens.squeeze(1); // [N]
            return { ...drawn, next: isLast ? null : run.decode(isGuided ? cat([token, token]) : token) };
          });
          steps.push(step);
          logits.dispose(); // [N, V] each: must not pile up until the scope closes
          logits = next ?? logits;
        }
        const sampled = joinSteps(steps);
        requireFinite(name, sampled.logprobs);
        return sampled;
      }),
    ),
  );
}

/** What one position gave: K codes a row. */
interface Step {
  tokens: Tensor;
  logprobs: Tensor;
  entropy: Tensor;
  support: Tensor | null;
}

/**
 * Draw from log-probabilities `[R, V]`, K codes a row, or the most probable code where there are no uniforms `[R, K]`.
 *
 * @returns tokens int64 `[R, K]`, logprobs `[R, K]`, entropy `[R]`, support uint8 `[R, ceil(V / 8)]` when wanted.
 */
export function draw(logp: Tensor, uniforms: Tensor | null, wantsSupport: boolean): Step {
  return tidy(() => {
    const p = logp.exp();
    const tokens = uniforms === null ? logp.argmax(-1, true) : drawCodes(p, uniforms);
    return {
      tokens,
      logprobs: logp.gather(-1, tokens),
      entropy: callTensor<Tensor>("aten::special_entr", [p]).sum(-1), // -p log p, 0 where p is
      support: wantsSupport ? packSupport(logp) : null,
    };
  });
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

/** One wait for the device, after all codes are drawn. */
export function requireFinite(name: string, logprobs: Tensor): void {
  if (tidy(() => logprobs.isfinite().all().item()) === 1) return;
  throw new Error(
    `${name}: expected finite logits from the policy, got NaN or Infinity. ` +
      "Check the weights: a diverged update or a half-loaded checkpoint gives such logits.",
  );
}

/** A cache for B starts that becomes one for G sequences each after the prefill. */
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
