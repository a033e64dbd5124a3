/**
 * Log-probabilities of given codes, with the same `distribution` as in sampling: teacher-forced, with gradients, and in
 * chunks of positions, whose logits the backward pass recomputes, so that logits `[N, T, V]` are never in memory at
 * once. Losses are in `losses.ts`.
 *
 * Sequences of a group with the same context share one forward and one backward pass: position t has one row of logits
 * for all G sequences, and gathering G codes from it gives exactly the gradient of G passes.
 */
import { allGather, ownShare, size } from "../distributed/index.js";
import type { ArPolicy } from "../policies/policy.js";
import {
  arange,
  cat,
  checkpoint,
  type Device,
  expected,
  expectedType,
  noGrad,
  type OptionNames,
  readOptions,
  stream,
  Tensor,
  tensor,
  tidy,
  withoutAutocast,
} from "../torch/index.js";
import { exactKl, straightThroughGumbel } from "./losses.js";
import {
  distribution,
  entropyOf,
  guidanceScale,
  isPlain,
  mapStart,
  readSampling,
  requireCount,
  requireOnDevice,
  type Sampling,
  type Start,
  type StartParts,
  startParts,
  withoutDropout,
} from "./sampling.js";

/** Drawn codes, and everything that their distributions depend on. A `Rollout` has these fields. */
export interface Drawn {
  /** int64 `[B, G, T]`, or `[N, T]` for sequences without groups: the codes whose log-probabilities are computed. */
  readonly tokens: Tensor;
  /** Where the B (or N) sequences start; may be omitted for a policy that needs neither codes nor a condition. */
  readonly start?: Start;
  /**
   * int64 `[B, T - 1]`: the shared context of a group's codes 1 ... T - 1; null if each sequence was conditioned on its
   * own codes.
   */
  readonly context?: Tensor | null;
  /** uint8, what top-k and top-p kept: `[B, G, T, ceil(V / 8)]`, `[B, T, ...]` with a context, `[N, T, ...]` without G. */
  readonly support?: Tensor | null;
  readonly sampling?: Sampling;
}

/** Names of all fields of a rollout and of an update's batch. */
export const BATCH_NAMES = {
  tokens: true,
  start: true,
  context: "nullable",
  support: "nullable",
  sampling: true,
  logprobs: true,
  entropy: true,
  codes: true,
  states: "nullable",
  rewards: true,
  advantages: true,
  mask: true,
  trueCodes: true,
} as const;

/** Hidden states at T positions of R rows, float `[R, T, D]`, and those under the null condition. */
export interface States {
  readonly hidden: Tensor;
  readonly nullHidden: Tensor | null;
}

/** {@link Drawn} as R rows of a forward pass, each with K drawn codes per position. */
export interface Passes {
  readonly rows: number;
  /** Rows per image: G where sequences read their own codes, else 1. */
  readonly repeats: number;
  readonly start: StartParts;
  /** int64 `[R, T - 1]`: the context of codes 1 ... T - 1. */
  readonly inputs: Tensor;
  /** int64 `[R, K, T]`. */
  readonly tokens: Tensor;
  /** uint8 `[R, T, ceil(V / 8)]`. */
  readonly support: Tensor | null;
  readonly sampling: Sampling;
}

/**
 * Arrange codes as rows of a forward pass: B rows if a group shares its context, otherwise B * G.
 *
 * @throws RangeError when shapes disagree.
 */
export function passesOf(where: string, drawn: Drawn): Passes {
  const { context = null, support = null } = drawn;
  const sampling = readSampling(`${where}.sampling`, drawn.sampling);
  const tokens = drawn.tokens.ndim === 2 ? drawn.tokens.unsqueeze(1) : drawn.tokens; // [B, G, T]
  if (tokens.ndim !== 3) throw expected(where, "tokens int64 [B, G, T] or [N, T]", tokens);
  const [b, g, t] = tokens.dims(3);
  const start = startParts(where, drawn.start ?? {}, tokens);
  if (start.given.size(0) !== b) throw expected(where, `a start of ${b} rows, as tokens has`, start.given);
  if (context !== null) {
    if (context.shape.join() !== [b, t - 1].join())
      throw expected(where, `a context int64 [${b}, ${t - 1}]`, context);
    return { rows: b, repeats: 1, start, inputs: context, tokens, support, sampling };
  }
  const own = tokens.reshape(b * g, 1, t);
  const inputs = own.select(1, 0).narrow(1, 0, t - 1);
  const flat = support?.ndim === 4 ? support.flatten(0, 1) : support;
  return { rows: b * g, repeats: g, start, inputs, tokens: own, support: flat, sampling };
}

/** Rows `from` ... `from + count - 1`. Starts are repeated here and not before, so that features stay B rows. */
export function sliceRows(passes: Passes, from: number, count: number): Passes {
  const { repeats, start, inputs, tokens, support } = passes;
  const narrow = (rows: Tensor): Tensor => rows.narrow(0, from, count);
  const images = arange(from, from + count, 1, { device: inputs.device as Device }).floorDivide(repeats);
  return {
    ...passes,
    rows: count,
    repeats: 1,
    start: mapStart(start, (rows) => rows.indexSelect(0, images)),
    inputs: narrow(inputs),
    tokens: narrow(tokens),
    support: support && narrow(support),
  };
}

/** Hidden states of rows from {@link sliceRows}, which have one start each. */
export function statesOf(policy: ArPolicy, passes: Passes): States {
  return tidy(() => {
    const { start, inputs, sampling } = passes;
    const [s, t] = [start.given.size(1), inputs.size(1) + 1];
    const tokens = s === 0 ? inputs : cat([start.given, inputs], 1); // [R, S + T - 1]
    const at = (hidden: Tensor): Tensor => hidden.narrow(1, s, t); // positions that predict what was drawn
    return {
      hidden: at(policy.hidden(tokens, start.condition)),
      nullHidden: sampling.guidance ? at(policy.hidden(tokens, policy.nullCondition(start.condition))) : null,
    };
  });
}

/** What to compute besides log-probabilities, and how. */
export interface ScoreOptions {
  /** Whether to compute the entropy of each position's distribution; default false. */
  readonly wantsEntropy?: boolean;
  /**
   * int64 `[B, T]`: true codes whose log-probabilities are computed too, without temperature, top-k, top-p and
   * guidance.
   */
  readonly trueCodes?: Tensor;
  /** A model to compute KL(policy || reference) from at each position, over all codes. */
  readonly reference?: ArPolicy;
  /** Rows per forward pass; default all. A smaller number saves memory only inside `noGrad`. */
  readonly microBatch?: number;
  /**
   * Number of positions whose logits are in memory at a time; by default such that there are about 4 million logits.
   */
  readonly chunk?: number;
}

/** What {@link scoreRows} can compute besides. */
export interface RowOptions extends ScoreOptions {
  /** The expected distance between the code drawn at a position and the true one. */
  readonly distance?: {
    /** int64 `[R, T]`. */
    readonly trueCodes: Tensor;
    /** float `[V, D]`: codes as points. The distance of two codes is the square of that of their points. */
    readonly vectors: Tensor;
  };
  /** float `[V]`: a cost of each code, whose expectation is computed. */
  readonly costs?: Tensor;
}

/** Nats, float32 (float64 for a float64 policy). R = B with a context, else B * G. */
export interface Scores {
  /** In the shape of the tokens. */
  readonly logprobs: Tensor;
  /** `[R, T]`; null unless asked for. */
  readonly entropy: Tensor | null;
  /** `[R, T]`: log-probabilities of the true codes; null unless asked for. */
  readonly truth: Tensor | null;
  /** `[R, T]`: exact KL to the reference; null unless asked for. */
  readonly kl: Tensor | null;
}

/** Scores of rows, and `[R, T]` the expected {@link RowOptions.distance} and cost; null unless asked for. */
export interface RowScores extends Scores {
  readonly distance: Tensor | null;
  readonly cost: Tensor | null;
}

/**
 * Log-probabilities of codes under a policy, as `sampleCodesWithLogprobs` gives them, with gradients to all its
 * parameters unless inside `noGrad`. Dropout is off.
 *
 * A recorded support is used in place of top-k and top-p: it does not change with the policy, so that ratios to the old
 * policy stay defined. Without a recorded support top-k and top-p are applied again, and a code that they remove has
 * -Infinity.
 *
 * @param drawn - {@link Drawn}: a rollout, or a batch of an update.
 * @param given - {@link ScoreOptions}.
 * @throws RangeError when shapes disagree, or for a name that is unknown.
 */
export function scoreCodes(policy: ArPolicy, drawn: Drawn, ...given: [options?: ScoreOptions]): Scores {
  const where = "scoreCodes";
  const options = readOptions<ScoreOptions>(where, given, {
    names: {
      wantsEntropy: "boolean",
      trueCodes: true,
      reference: true,
      microBatch: "number",
      chunk: "number",
    },
  });
  const batch = readOptions<Drawn>(`${where}.drawn`, [drawn], { names: BATCH_NAMES as OptionNames<Drawn> });
  if (!(batch.tokens instanceof Tensor))
    throw expectedType(`${where}.drawn`, "tokens, a Tensor", batch.tokens);
  const { reference, microBatch } = options;
  for (const [name, value] of Object.entries({ microBatch, chunk: options.chunk })) {
    if (value !== undefined) requireCount(`${where}.${name}`, value);
  }
  return tidy(() =>
    withoutDropout(reference ? [policy, reference] : [policy], () => {
      requireOnDevice(`${where}.drawn`, policy, { ...batch });
      const passes = passesOf(where, batch);
      const parts = rangesOf(passes.rows, microBatch ?? passes.rows).map(([from, count]) => {
        return scoreRows(policy, sliceRows(passes, from, count), null, truthOf(options, from, count));
      });
      const join = (of: (part: Scores) => Tensor | null): Tensor | null => {
        const tensors = parts.map(of).filter((part) => part !== null);
        return tensors.length > 0 ? cat(tensors) : null;
      };
      const logprobs = (join((part) => part.logprobs) as Tensor).reshape(...batch.tokens.shape);
      return {
        logprobs,
        entropy: join((p) => p.entropy),
        truth: join((p) => p.truth),
        kl: join((p) => p.kl),
      };
    }),
  );
}

function truthOf(options: ScoreOptions, from: number, count: number): ScoreOptions {
  const { trueCodes } = options;
  return trueCodes === undefined ? options : { ...options, trueCodes: trueCodes.narrow(0, from, count) };
}

/**
 * Log-probabilities of rows of {@link Passes}.
 *
 * @param states - the trunk's output for these rows, or null to run it now.
 * @param options - `trueCodes` has a row a pass here, `[R, T]`.
 * @returns logprobs `[R, K, T]`, the others `[R, T]`.
 */
export function scoreRows(
  policy: ArPolicy,
  passes: Passes,
  states: States | null,
  options: RowOptions = {},
): RowScores {
  return tidy(() => {
    const { hidden, nullHidden } = states ?? statesOf(policy, passes);
    const { wantsEntropy = false, trueCodes, reference, distance, costs } = options;
    const [r, k, t] = passes.tokens.dims(3);
    const flat = (rows: Tensor): Tensor => rows.reshape(r * t, -1); // one position a row
    const arrays: Partial<Record<keyof Chunk, Tensor>> = {
      hidden: flat(hidden),
      tokens: flat(passes.tokens.transpose(1, 2)),
    };
    if (nullHidden !== null) {
      arrays.nullHidden = flat(nullHidden);
      arrays.scale = flat(scalesOf(policy, passes, hidden));
    }
    if (passes.support !== null) arrays.support = flat(passes.support);
    if (trueCodes !== undefined) arrays.truth = flat(trueCodes);
    if (distance !== undefined) arrays.target = flat(distance.trueCodes);
    if (reference !== undefined) {
      const other = noGrad(() => statesOf(reference, passes));
      arrays.otherHidden = flat(other.hidden);
      if (other.nullHidden !== null) arrays.otherNullHidden = flat(other.nullHidden);
    }
    const names = Object.keys(arrays) as (keyof Chunk)[];
    const size = options.chunk ?? logitChunk(policy);
    // `split` gathers its gradients once; a slice per chunk would add up as many full-size gradients as chunks.
    const pieces = names.map((name) => (arrays[name] as Tensor).split(size));
    const columnsOf = (...inputs: Tensor[]): Tensor => {
      const chunk = Object.fromEntries(names.map((name, i) => [name, inputs[i]])) as unknown as Chunk;
      return scoreChunk(policy, passes.sampling, chunk, options);
    };
    const columns = (pieces[0] as Tensor[]).map((_, i) => {
      return checkpoint(
        columnsOf,
        pieces.map((piece) => piece[i] as Tensor),
      );
    });
    const all = cat(columns).reshape(r, t, -1); // [R, T, K + extras]
    let next = k;
    const extra = (isWanted: boolean): Tensor | null => (isWanted ? all.select(2, next++) : null);
    return {
      logprobs: all.narrow(2, 0, k).transpose(1, 2),
      entropy: extra(wantsEntropy),
      truth: extra(trueCodes !== undefined),
      kl: extra(reference !== undefined),
      distance: extra(distance !== undefined),
      cost: extra(costs !== undefined),
    };
  });
}

/** What the distribution at c positions depends on: `[c, D]`, `[c, D]`, `[c, 1]`, uint8 `[c, ceil(V / 8)]`. */
export interface PositionStates {
  hidden: Tensor;
  nullHidden?: Tensor;
  /** Guidance scale; with `nullHidden`. */
  scale?: Tensor;
  support?: Tensor;
}

/** Log-probabilities `[c, V]` of the distribution at c positions, and the policy's own logits. */
export function distributionAt(
  policy: ArPolicy,
  sampling: Sampling,
  { hidden, nullHidden, scale, support }: PositionStates,
): { logp: Tensor; logits: Tensor } {
  return tidy(() => {
    const logits = policy.logits(hidden);
    const guided = nullHidden && { nullLogits: policy.logits(nullHidden), scale: scale ?? 1 };
    return { logits, logp: distribution(logits, sampling, { ...guided, ...(support && { support }) }) };
  });
}

interface Chunk extends PositionStates {
  tokens: Tensor;
  truth?: Tensor;
  target?: Tensor;
  otherHidden?: Tensor;
  otherNullHidden?: Tensor;
}

/** Columns `[c, K + extras]`: log-probabilities of K codes, then entropy, truth, KL, distance and cost where asked for. */
function scoreChunk(policy: ArPolicy, sampling: Sampling, chunk: Chunk, options: RowOptions): Tensor {
  return tidy(() => {
    const { tokens, truth, target, otherHidden, otherNullHidden, ...here } = chunk;
    const { logp, logits } = distributionAt(policy, sampling, here);
    const columns = [logp.gather(1, tokens)];
    if (options.wantsEntropy) columns.push(entropyOf(logp).unsqueeze(1));
    if (truth !== undefined) columns.push((isPlain(sampling) ? logp : distribution(logits)).gather(1, truth));
    if (options.reference !== undefined && otherHidden !== undefined) {
      const { nullHidden: _, ...shared } = here;
      const there = {
        ...shared,
        hidden: otherHidden,
        ...(otherNullHidden && { nullHidden: otherNullHidden }),
      };
      const other = noGrad(() => distributionAt(options.reference as ArPolicy, sampling, there).logp);
      columns.push(exactKl(logp, other).unsqueeze(1));
    }
    const { distance, costs } = options;
    if (distance !== undefined || costs !== undefined) {
      const probabilities = logp.exp();
      const push = (column: Tensor): unknown => columns.push(column.to({ dtype: logp.dtype }));
      if (target !== undefined && distance !== undefined)
        push(expectedDistance(probabilities, target, distance.vectors));
      if (costs !== undefined) push(probabilities.to({ dtype: costs.dtype }).mul(costs).sum(1, true));
    }
    return columns.length === 1 ? (columns[0] as Tensor) : cat(columns, 1);
  });
}

/**
 * `sum_k p_k |v_k - v_y|^2`, as `|v_y|^2 - 2 v_y . sum_k p_k v_k + sum_k p_k |v_k|^2`: no matrix of all pairs of codes is needed.
 *
 * @param given - float `[c, V]`: p.
 * @param target - int64 `[c, 1]`: y.
 * @param vectors - float `[V, D]`: v.
 * @returns float `[c, 1]`.
 */
function expectedDistance(given: Tensor, target: Tensor, vectors: Tensor): Tensor {
  const squares = vectors.square().sum(1, true); // [V, 1]
  const probabilities = given.to({ dtype: vectors.dtype });
  const own = target.flatten();
  // In bfloat16 the difference of these sums would be rounding alone.
  return withoutAutocast(given, () => {
    const cross = probabilities.matmul(vectors).mul(vectors.indexSelect(0, own)).sum(1, true);
    return probabilities.matmul(squares).add(squares.indexSelect(0, own)).sub(cross.mul(2));
  });
}

/**
 * Codebook vectors of drawn codes, with the gradient of the soft draw (see `straightThroughGumbel`). In chunks like the
 * scores; the same seed draws the same codes.
 *
 * @param codebook - float `[V, C]`: rows as the frozen decoder reads them (divided by their length where it does so).
 * @returns float `[R, T, C]`.
 */
export function straightThroughVectors(
  policy: ArPolicy,
  states: States,
  codebook: Tensor,
  options: { seed: number | bigint; tau?: number; chunk?: number },
): Tensor {
  const { seed, chunk = logitChunk(policy), ...gumbel } = options;
  return tidy(() => {
    const [r, t, d] = states.hidden.dims(3);
    const vectors = states.hidden
      .reshape(r * t, d)
      .split(chunk)
      .map((piece, i) => {
        const drawn = (hidden: Tensor): Tensor => {
          const logits = policy.logits(hidden).to({ dtype: codebook.dtype });
          // The backward pass runs this again and must draw the same noise.
          using generator = stream(seed, "straight-through", i, logits.device as Device);
          const hot = straightThroughGumbel(logits, { ...gumbel, generator });
          // In bfloat16 the rows would be rounded, and the decoder would get other inputs than for codes.
          return withoutAutocast(logits, () => hot.matmul(codebook));
        };
        return checkpoint((hidden) => tidy(() => drawn(hidden)), [piece]);
      });
    return cat(vectors).reshape(r, t, codebook.size(1));
  });
}

/** Positions whose logits may exist at a time: about 4 million logits. */
export function logitChunk(policy: ArPolicy): number {
  return Math.max(1, Math.floor(2 ** 22 / policy.vocabSize));
}

/** Guidance scale at each position, `[R, T]`; schedules run over the policy's whole block. */
export function scalesOf(policy: ArPolicy, passes: Passes, like: Tensor): Tensor {
  const { guidance } = passes.sampling;
  const [r, , t] = passes.tokens.dims(3);
  const s = passes.start.given.size(1);
  const scaleAt = (i: number): number => (guidance ? guidanceScale(guidance, s + i, policy.blockSize) : 1);
  const dtype = like.dtype === "float64" ? "float64" : "float32";
  return tensor(
    Array.from({ length: t }, (_, i) => scaleAt(i)),
    { dtype, device: like.device as Device },
  ).expand(r, t);
}

/** `[from, count]` of parts of at most `size` that cover `total`. */
export function rangesOf(total: number, size: number): (readonly [number, number])[] {
  return Array.from(
    { length: Math.ceil(total / size) },
    (_, i) => [i * size, Math.min(size, total - i * size)] as const,
  );
}

/** The same for the rows of this process: several share the images of a batch. With one process, all rows. */
export function ownRangesOf({ rows, repeats }: Passes, size: number): (readonly [number, number])[] {
  const [first, images] = ownShare(rows / repeats);
  return rangesOf(images * repeats, size).map(([from, count]) => [first * repeats + from, count] as const);
}

/** What `score` gives for rows, of all rows: each process scores its own. */
export function scoredByAll(passes: Passes, size: number, score: (rows: Passes) => Tensor): Tensor {
  const own = cat(
    ownRangesOf(passes, size).map(([from, count]) => tidy(() => score(sliceRows(passes, from, count)))),
  );
  return gatherRows(own, passes);
}

/** A tensor of this process's rows, of all rows. */
export function gatherRows(own: Tensor, { rows, repeats }: Passes): Tensor {
  if (size() === 1) return own;
  return allGather(own.unflatten(0, [-1, repeats]), rows / repeats).flatten(0, 1);
}
