/**
 * The KV cache: keys and values of the positions that a policy has seen. Memory is allocated once and written in place.
 *
 * On the CPU a step reads views of the positions that are filled. On a GPU it reads all of them through a mask and takes its
 * position from a tensor, so that every step launches the same kernels over the same memory: one step can then be captured
 * as a CUDA graph and replayed for all others.
 */
import {
  callTensor,
  cat,
  empty,
  expected,
  expectedType,
  isGradEnabled,
  keep,
  readOptions,
  Tensor,
  tidy,
  zeros,
} from "../torch/index.js";
import { placeOf } from "./layers.js";
import type { DecodeCache } from "./policy.js";

/** Sizes of a cache. */
interface CacheSize {
  batch: number;
  capacity: number;
  /** Key heads per layer. */
  heads: number;
  headDim: number;
  /** Whether every step has the same shapes; default on every device but the CPU. */
  isFixed?: boolean;
}

/**
 * Keys and values of every layer, `[B, K, capacity, headDim]`, and the mask and tensors that a policy keeps for its
 * condition.
 */
export class KvCache implements DecodeCache {
  readonly size: CacheSize;
  readonly #keys: Tensor[] = [];
  readonly #values: Tensor[] = [];
  #length = 0;
  /** Mask added to the logits of later codes, `[B, 1, 1, capacity]`; null without padding. */
  #mask: Tensor | null = null;
  #extra: readonly Tensor[] = [];
  /** With fixed shapes: the next position, int64 `[1]`. */
  #position: Tensor | null = null;
  /** With fixed shapes: added to the logits, `[B, 1, 1, capacity]` or `[1, 1, 1, capacity]`; -Infinity at what is not filled. */
  #seen: Tensor | null = null;

  constructor(size: CacheSize) {
    const { batch } = size;
    if (!Number.isInteger(batch) || batch < 1)
      throw expected("openCache", "an integer of at least 1 as batch", batch);
    this.size = size;
  }

  get batch(): number {
    return this.size.batch;
  }

  get capacity(): number {
    return this.size.capacity;
  }

  get length(): number {
    return this.#length;
  }

  /** Tensors that the policy stored at the last prefill; their first dimension is the batch. */
  get extra(): readonly Tensor[] {
    return this.#extra;
  }

  /** Whether every step has the same shapes; known from the first {@link append} on. */
  get isFixed(): boolean {
    const [keys] = this.#keys;
    return keys !== undefined && (this.size.isFixed ?? keys.device !== "cpu");
  }

  /** The mask of a step, over the positions filled and the next one; null where everything is seen. Call it once a step. */
  stepMask(): Tensor | null {
    if (this.#position !== null && this.#seen !== null) {
      return callTensor("aten::index_fill_.int_Scalar", [this.#seen, 3, this.#position, 0]);
    }
    return this.#mask?.narrow(3, 0, this.#length + 1) ?? null;
  }

  /** The rows of a table over all positions that belong to the next `n`. */
  rowsOf(table: Tensor, dim: number, n: number): Tensor {
    if (this.#length > 0 && this.#position !== null) return table.indexSelect(dim, this.#position);
    return table.narrow(dim, this.#length, n);
  }

  /** Keep a condition's mask and tensors until the next {@link reset}. */
  hold(mask: Tensor | null, extra: readonly Tensor[]): void {
    this.#drop();
    this.#mask = mask && keep(mask);
    this.#extra = extra.map((tensor) => keep(tensor));
  }

  /**
   * Write keys and values `[B, K, n, headDim]` of a layer at the next positions.
   *
   * @returns all keys and values of the layer so far, as views; in a step of fixed shapes the whole memory.
   * @throws RangeError if autograd would record the write: the cache would keep the graph of every step.
   */
  append(layer: number, k: Tensor, v: Tensor): { keys: Tensor; values: Tensor } {
    if (isGradEnabled() && (k.requiresGrad || v.requiresGrad)) {
      const remedy = "Call it in noGrad; forward gives gradients";
      throw expected(
        "KvCache.append",
        "keys and values without a graph",
        "some that require gradients",
        remedy,
      );
    }
    const n = k.size(2);
    const end = this.#length + n;
    if (this.#length === 0) this.#allocate(layer, k);
    const [keys, values] = [this.#keys[layer] as Tensor, this.#values[layer] as Tensor];
    if (this.#length > 0 && this.#position !== null) {
      const { dtype } = keys;
      keys.indexCopy_(2, this.#position, k.to({ dtype }));
      values.indexCopy_(2, this.#position, v.to({ dtype }));
      return { keys, values };
    }
    keys.narrow(2, this.#length, n).copy_(k);
    values.narrow(2, this.#length, n).copy_(v);
    return { keys: keys.narrow(2, 0, end), values: values.narrow(2, 0, end) };
  }

  /**
   * On a CPU a cache is at least float32: for the matrix products of a single query this is exact, and faster than
   * bfloat16, which needs half the memory. On other devices the cache has the dtype of the keys.
   */
  #allocate(layer: number, like: Tensor): void {
    const { batch, heads, capacity, headDim } = this.size;
    const { dtype: given, device } = placeOf(like);
    const isCpu = device === "cpu";
    const isWide = isCpu && this.size.isFixed !== true && given !== "float64";
    const dtype = isWide ? "float32" : given;
    for (const side of [this.#keys, this.#values]) {
      const old = side[layer];
      if (old !== undefined && old.dtype === dtype && old.device === like.device) continue;
      old?.dispose();
      side[layer] = tidy(() => keep(empty([batch, heads, capacity, headDim], { dtype, device })));
    }
  }

  /** Count `n` positions as filled, after every layer has appended them. */
  advance(n: number): void {
    const isFirst = this.#length === 0;
    this.#length += n;
    if (isFirst) this.#begin();
    else this.#position?.add_(n);
  }

  /** With fixed shapes: set the next position and the mask, in the same memory as before where it fits. */
  #begin(): void {
    if (!this.isFixed) {
      this.#end();
      return;
    }
    tidy(() => {
      const { dtype, device } = placeOf(this.#keys[0] as Tensor);
      const shape = [this.#mask?.size(0) ?? 1, 1, 1, this.capacity];
      const isSame = this.#seen?.shape.join() === shape.join() && this.#seen.dtype === dtype;
      if (!isSame || this.#seen?.device !== device) this.#end();
      this.#position ??= keep(empty([1], { dtype: "int64", device }));
      this.#seen ??= keep(empty(shape, { dtype, device }));
      this.#position.fill_(this.#length);
      this.#seen.fill_(-Infinity);
      const filled = this.#seen.narrow(3, 0, this.#length);
      if (this.#mask === null) filled.fill_(0);
      else filled.copy_(this.#mask.narrow(3, 0, this.#length));
      // A NaN that the memory happens to hold would pass through the mask: 0 times NaN is NaN.
      const rest = this.capacity - this.#length;
      for (const tensor of [...this.#keys, ...this.#values]) tensor.narrow(2, this.#length, rest).zero_();
    });
  }

  #end(): void {
    this.#position?.dispose();
    this.#seen?.dispose();
    this.#position = this.#seen = null;
  }

  /** Fill `into` with `times` consecutive copies of each sequence. */
  repeatInto(where: string, times: number, into: KvCache): void {
    const { batch } = this.size;
    if (into.batch !== batch * times)
      throw expected(where, `a cache of ${batch * times} sequences`, into.batch);
    if (into.capacity < this.#length) {
      throw expected(where, `a cache of at least ${this.#length} positions`, into.capacity);
    }
    tidy(() => {
      into.reset();
      const grown = this.#mask?.repeatInterleave(times, 0) ?? null;
      into.hold(
        grown && fittedMask(grown, into.capacity),
        this.#extra.map((tensor) => tensor.repeatInterleave(times, 0)),
      );
      for (const [layer, keys] of this.#keys.entries()) {
        into.#allocate(layer, keys);
        this.#repeatFilled(keys, times, into.#keys[layer] as Tensor);
        this.#repeatFilled(this.#values[layer] as Tensor, times, into.#values[layer] as Tensor);
      }
      into.#length = this.#length;
      into.#begin();
    });
  }

  #repeatFilled(source: Tensor, times: number, target: Tensor): void {
    const { batch } = this.size;
    const groups = target.narrow(2, 0, this.#length).unflatten(0, [batch, times]); // [B, times, K, length, headDim]
    groups.copy_(source.narrow(2, 0, this.#length).unsqueeze(1));
  }

  reset(): void {
    this.#length = 0;
    this.#drop();
  }

  #drop(): void {
    this.#mask?.dispose();
    for (const tensor of this.#extra) tensor.dispose();
    this.#mask = null;
    this.#extra = [];
  }

  dispose(): void {
    this.reset();
    this.#end();
    for (const tensor of [...this.#keys, ...this.#values]) tensor.dispose();
    this.#keys.length = 0;
    this.#values.length = 0;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** A mask row cut or extended to `capacity`; added positions are not masked. */
function fittedMask(mask: Tensor, capacity: number): Tensor {
  const [batch, , , length] = mask.dims(4);
  if (length >= capacity) return mask.narrow(3, 0, capacity).clone();
  return cat([mask, zeros([batch, 1, 1, capacity - length], placeOf(mask))], 3);
}

/** Check the codes before the predicted ones: int64 `[B, n]`, n < blockSize. */
export function checkTokens(where: string, tokens: Tensor, blockSize: number): [batch: number, n: number] {
  if (!(tokens instanceof Tensor)) throw expectedType(where, "tokens as an int64 Tensor", tokens);
  const [batch, n] = tokens.shape;
  if (tokens.ndim !== 2 || batch === undefined || n === undefined || tokens.dtype !== "int64") {
    throw expected(where, "int64 tokens of shape [B, n]", tokens);
  }
  if (n >= blockSize) {
    const remedy = "The last code of an image predicts nothing: omit it";
    throw expected(where, `at most ${blockSize - 1} tokens before the predicted ones`, n, remedy);
  }
  return [batch, n];
}

/** Check the arguments of `prefill`. Returns the cache as a {@link KvCache}. */
export function checkPrefill(
  where: string,
  cache: DecodeCache,
  tokens: Tensor,
  conditionTokens: number,
): KvCache {
  const own = ownCache(where, cache);
  if (own.length > 0)
    throw expected(where, "an empty cache", `one of length ${own.length}`, "Call reset() first");
  if (tokens.shape[0] !== own.batch)
    throw expected(where, `tokens of ${own.batch} sequences, as the cache`, tokens);
  checkRoom(where, own, tokens.size(1) + conditionTokens);
  return own;
}

/** Maximum number of codes of a cache: `maxLen` of the options of `openCache`, by default blockSize. */
export function maxLenOf(where: string, options: { maxLen?: number } | undefined, blockSize: number): number {
  const { maxLen = blockSize } = readOptions<{ maxLen?: number }>(where, [options], {
    names: { maxLen: "number" },
  });
  if (!Number.isInteger(maxLen) || maxLen < 1 || maxLen > blockSize) {
    throw expected(where, `an integer in [1, ${blockSize}] as maxLen`, maxLen);
  }
  return maxLen;
}

/** Check the arguments of `decode`. Returns the cache as a {@link KvCache}. */
export function checkDecode(where: string, cache: DecodeCache, token: Tensor): KvCache {
  const own = ownCache(where, cache);
  if (own.length === 0)
    throw expected(where, "a cache with a condition in it", "an empty one", "Call prefill first");
  if (token.ndim !== 1 || token.shape[0] !== own.batch) {
    throw expected(where, `int64 token of shape [${own.batch}]`, token);
  }
  checkRoom(where, own, own.length + 1);
  return own;
}

function checkRoom(where: string, cache: KvCache, length: number): void {
  if (length <= cache.capacity) return;
  const remedy = "Open a cache with a larger maxLen; the last code of an image is not fed";
  throw expected(where, `at most ${cache.capacity} positions, condition included`, length, remedy);
}

/** Check that a cache is a {@link KvCache}, and return it as one. */
export function ownCache(where: string, cache: DecodeCache): KvCache {
  if (!(cache instanceof KvCache)) throw expectedType(where, "a cache of openCache", cache);
  return cache;
}

/** The result of `repeatCache`: `into`, or a new cache of the same length, filled with repeated sequences. */
export function repeatCache(
  where: string,
  cache: DecodeCache,
  times: number,
  into?: DecodeCache,
): DecodeCache {
  const own = ownCache(where, cache);
  if (!Number.isInteger(times) || times < 1)
    throw expected(where, "an integer of at least 1 as times", times);
  const target =
    into === undefined ? new KvCache({ ...own.size, batch: own.batch * times }) : ownCache(where, into);
  own.repeatInto(where, times, target);
  return target;
}
