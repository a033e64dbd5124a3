/** Base class of policies without a KV cache: a subclass defines only `hidden` and `logits`. */
import { Module } from "../nn/index.js";
import { cat, expected, expectedType, keep, noGrad, Tensor, tidy } from "../torch/index.js";
import { repeatCondition } from "./condition.js";
import type { ArPolicy, Condition, DecodeCache } from "./policy.js";

/**
 * A policy defined by `hidden` and `logits` alone. To draw a code, `hidden` runs on the whole sequence so far: about T
 * / 2 times the work of a policy with a KV cache, for the same codes.
 *
 * If a run needs a reference (`kl.coef`), the policy is copied by `new Policy(policy.options)`.
 */
export abstract class UncachedPolicy extends Module implements ArPolicy {
  abstract readonly vocabSize: number;
  abstract readonly blockSize: number;
  abstract readonly hiddenSize: number;
  readonly options: object = {};
  gradientCheckpointing = false;

  abstract hidden(tokens: Tensor, condition: Condition): Tensor;

  abstract logits(hidden: Tensor): Tensor;

  forward(tokens: Tensor, condition: Condition): Tensor {
    return tidy(() => this.logits(this.hidden(tokens, condition)));
  }

  /**
   * By default the empty condition. For guidance with classes, override it to return `{ classes }` with the null class.
   */
  nullCondition(_condition: Condition): Condition {
    return {};
  }

  openCache(batch: number, { maxLen = this.blockSize }: { maxLen?: number } = {}): DecodeCache {
    return new CodesSoFar(batch, maxLen);
  }

  prefill(cache: DecodeCache, tokens: Tensor, condition: Condition): Tensor {
    const own = ownCache(cache);
    own.fill(tokens, condition);
    return this.#next(own);
  }

  decode(cache: DecodeCache, token: Tensor): Tensor {
    const own = ownCache(cache);
    const { codes, condition } = own.held;
    tidy(() => own.fill(cat([codes, token.unsqueeze(1)], 1), condition));
    return this.#next(own);
  }

  repeatCache(cache: DecodeCache, times: number, into?: DecodeCache): DecodeCache {
    const own = ownCache(cache);
    const target = ownCache(into ?? new CodesSoFar(own.batch * times, own.capacity));
    const { codes, condition } = own.held;
    tidy(() => target.fill(codes.repeatInterleave(times, 0), repeatCondition(condition, times)));
    return target;
  }

  /** float32 `[B, V]`: logits of the next code. */
  #next({ held: { codes, condition } }: CodesSoFar): Tensor {
    return noGrad(() => tidy(() => this.logits(this.hidden(codes, condition).select(1, -1))));
  }
}

/** Holds the codes and the condition instead of keys and values. */
class CodesSoFar implements DecodeCache {
  readonly batch: number;
  readonly capacity: number;
  #held: { codes: Tensor; condition: Condition } | null = null;

  constructor(batch: number, capacity: number) {
    this.batch = batch;
    this.capacity = capacity;
  }

  get held(): { readonly codes: Tensor; readonly condition: Condition } {
    if (this.#held === null) throw expected("decode", "a cache with a condition in it", "an empty one");
    return this.#held;
  }

  get length(): number {
    return this.#held?.codes.size(1) ?? 0;
  }

  /** Keep copies of both. */
  fill(codes: Tensor, condition: Condition): void {
    if (codes.size(0) !== this.batch) throw expected("prefill", `codes of ${this.batch} sequences`, codes);
    if (codes.size(1) > this.capacity)
      throw expected("decode", `at most ${this.capacity} codes`, codes.size(1));
    const copy = (tensor: Tensor): Tensor => keep(tensor.clone());
    const parts = Object.entries(condition).filter(([, part]) => part instanceof Tensor);
    const held = {
      codes: copy(codes),
      condition: Object.fromEntries(parts.map(([name, part]) => [name, copy(part)])),
    };
    this.reset();
    this.#held = held;
  }

  reset(): void {
    if (this.#held === null) return;
    for (const tensor of [this.#held.codes, ...Object.values(this.#held.condition)]) tensor.dispose();
    this.#held = null;
  }

  dispose(): void {
    this.reset();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

function ownCache(cache: DecodeCache): CodesSoFar {
  if (!(cache instanceof CodesSoFar)) throw expectedType("UncachedPolicy", "a cache of openCache", cache);
  return cache;
}
