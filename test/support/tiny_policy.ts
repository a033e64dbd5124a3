/** The smallest policy with everything that the interface asks for: one attention layer, classes, a real cache. */
import { Dropout, Embedding, init, Linear, Module, Parameter } from "../../src/nn/index.js";
import type { ArPolicy, Condition, DecodeCache } from "../../src/policies/policy.js";
import {
  arange,
  cat,
  type Device,
  functional as F,
  fullLike,
  keep,
  setNumThreads,
  type Tensor,
  tidy,
  zeros,
} from "../../src/torch/index.js";

// Its arrays are too small to share out: threads would only wait for one another.
setNumThreads(1);

export interface TinyOptions {
  vocabSize?: number;
  blockSize?: number;
  width?: number;
  classes?: number;
  dropout?: number;
}

class TinyCache implements DecodeCache {
  readonly keys: Tensor;
  readonly values: Tensor;
  length = 0;

  constructor(
    readonly batch: number,
    readonly capacity: number,
    like: Tensor,
  ) {
    const options = { dtype: like.dtype, device: like.device as Device };
    this.keys = keep(zeros([batch, capacity, like.size(-1)], options));
    this.values = keep(zeros([batch, capacity, like.size(-1)], options));
  }
  reset(): void {
    this.length = 0;
  }
  dispose(): void {
    this.keys.dispose();
    this.values.dispose();
  }
  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Position 0 is the class; position i reads code i - 1. The null class is the last row of `classes`. */
export class TinyPolicy extends Module implements ArPolicy {
  readonly vocabSize: number;
  readonly blockSize: number;
  readonly hiddenSize: number;
  readonly classes: Embedding;
  readonly codes: Embedding;
  readonly positions: Parameter;
  readonly query: Linear;
  readonly key: Linear;
  readonly value: Linear;
  readonly out: Linear;
  readonly drop: Dropout;
  readonly options: TinyOptions;
  gradientCheckpointing = false;
  /** Rows that went through {@link hidden}, to count forward passes. */
  rowsSeen = 0;

  constructor(options: TinyOptions = {}) {
    super();
    this.options = options;
    const { vocabSize = 11, blockSize = 6, width = 8, classes = 3, dropout = 0 } = options;
    this.vocabSize = vocabSize;
    this.blockSize = blockSize;
    this.hiddenSize = width;
    this.classes = new Embedding(classes + 1, width);
    this.codes = new Embedding(vocabSize, width);
    this.positions = new Parameter(init.normal([blockSize, width]));
    this.query = new Linear(width, width);
    this.key = new Linear(width, width);
    this.value = new Linear(width, width);
    this.out = new Linear(width, vocabSize);
    this.drop = new Dropout(dropout);
  }

  #embed(tokens: Tensor, condition: Condition | null, from: number): Tensor {
    const codes = this.codes.forward(tokens);
    const x = condition === null ? codes : cat([this.#classOf(tokens, condition).unsqueeze(1), codes], 1);
    return x.add(this.positions.narrow(0, from, x.size(1)));
  }

  #classOf(tokens: Tensor, condition: Condition): Tensor {
    const { classes } = condition;
    if (classes !== undefined) return this.classes.forward(classes);
    const none = fullLike(tokens.sum(1).long(), this.classes.weight.size(0) - 1);
    return this.classes.forward(none);
  }

  hidden(tokens: Tensor, condition: Condition): Tensor {
    this.rowsSeen += tokens.size(0);
    return tidy(() => {
      const x = this.drop.forward(this.#embed(tokens, condition, 0)); // [B, n + 1, D]
      const [q, k, v] = [this.query.forward(x), this.key.forward(x), this.value.forward(x)];
      return x.add(F.scaledDotProductAttention(q, k, v, { isCausal: true })).tanh();
    });
  }

  logits(hidden: Tensor): Tensor {
    return this.out.forward(hidden);
  }

  forward(tokens: Tensor, condition: Condition): Tensor {
    return tidy(() => this.logits(this.hidden(tokens, condition)));
  }

  nullCondition(condition: Condition): Condition {
    if (condition.classes === undefined) return {};
    return { classes: fullLike(condition.classes, this.classes.weight.size(0) - 1) };
  }

  openCache(batch: number, options: { maxLen?: number } = {}): TinyCache {
    return new TinyCache(batch, (options.maxLen ?? this.blockSize) + 1, this.positions);
  }

  #step(cache: TinyCache, embedded: Tensor): Tensor {
    const x = this.drop.forward(embedded);
    const [from, n] = [cache.length, x.size(1)];
    cache.keys.narrow(1, from, n).copy_(this.key.forward(x));
    cache.values.narrow(1, from, n).copy_(this.value.forward(x));
    cache.length += n;
    const on = { device: x.device as Device };
    const isSeen = arange(0, cache.length, 1, on)
      .unsqueeze(0)
      .le(arange(from, from + n, 1, on).unsqueeze(1)); // [n, length]
    const [keys, values] = [cache.keys.narrow(1, 0, cache.length), cache.values.narrow(1, 0, cache.length)];
    const read = F.scaledDotProductAttention(this.query.forward(x), keys, values, { mask: isSeen });
    const h = x.add(read).tanh(); // [B, n, D]
    return this.logits(h.select(1, n - 1));
  }

  prefill(cache: DecodeCache, tokens: Tensor, condition: Condition): Tensor {
    return tidy(() => this.#step(cache as TinyCache, this.#embed(tokens, condition, 0)));
  }

  decode(cache: DecodeCache, token: Tensor): Tensor {
    return tidy(() => this.#step(cache as TinyCache, this.#embed(token.unsqueeze(1), null, cache.length)));
  }

  repeatCache(cache: DecodeCache, times: number): TinyCache {
    const { keys, values, batch, capacity, length } = cache as TinyCache;
    const copy = new TinyCache(batch * times, capacity, keys);
    copy.length = length;
    tidy(() => {
      copy.keys.copy_(keys.repeatInterleave(times, 0));
      copy.values.copy_(values.repeatInterleave(times, 0));
    });
    return copy;
  }
}
