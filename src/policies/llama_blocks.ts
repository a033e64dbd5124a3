/**
 * What LlamaGen and IBQ's transformer have in common: attention with rotary positions and a gated feed-forward, both
 * without biases. Norms and residuals are in the models.
 *
 * Touvron et al. 2023, "LLaMA"; Shazeer 2020, "GLU Variants Improve Transformer".
 */
import { type Linear, Module } from "../nn/index.js";
import { callTensor, isGradEnabled, type Tensor } from "../torch/index.js";
import { attend, type Seen } from "./attention.js";
import { dropout, linear } from "./layers.js";
import { rotate } from "./rotary.js";

/** Sizes and drop rates of a block. */
export interface LlamaSizes {
  /** D. */
  dim: number;
  /** H. */
  nHead: number;
  /** K: number of key heads; each serves H / K query heads. */
  nKvHead: number;
  /** Width inside the feed-forward. */
  ffnDim: number;
  std: number;
  attnDropoutP: number;
  residDropoutP: number;
  ffnDropoutP: number;
}

/**
 * Two thirds of 4 D, rounded up to a multiple of `multipleOf`. The gated feed-forward then has as many weights as one
 * of width 4 D without a gate.
 */
export function gatedWidth(dim: number, multipleOf: number): number {
  return Math.ceil(Math.trunc((2 * 4 * dim) / 3) / multipleOf) * multipleOf;
}

/** Self-attention with one projection for queries, keys and values. */
export class LlamaAttention extends Module {
  readonly wqkv: Linear;
  readonly wo: Linear;
  readonly #sizes: LlamaSizes;

  constructor(sizes: LlamaSizes) {
    super();
    const { dim, nHead, nKvHead, std } = sizes;
    const headDim = dim / nHead;
    this.#sizes = sizes;
    this.wqkv = linear(dim, (nHead + 2 * nKvHead) * headDim, { std });
    this.wo = linear(dim, dim, { std });
  }

  /**
   * @param x - `[B, n, D]`.
   * @param factors - complex64 `[n, 1, headDim / 2]`.
   */
  forward(x: Tensor, factors: Tensor, seen: Seen): Tensor {
    const { dim, nHead: h, nKvHead: k, attnDropoutP, residDropoutP } = this.#sizes;
    const [batch, n] = x.shape as [number, number];
    const heads = this.wqkv.forward(x).view(batch, n, h + 2 * k, dim / h);
    const turned = rotate(heads.narrow(2, 0, h + k), factors).transpose(1, 2); // [B, H + K, n, headDim]
    const keys = turned.narrow(1, h, k);
    const values = heads.narrow(2, h + k, k).transpose(1, 2);
    const rate = this.training ? attnDropoutP : 0;
    const y = attend(turned.narrow(1, 0, h), keys, values, { ...seen, dropout: rate });
    return dropout(this.wo.forward(y), residDropoutP, this.training);
  }
}

/** `w2(silu(w1(x)) * w3(x))`. */
export class LlamaFeedForward extends Module {
  readonly w1: Linear;
  readonly w3: Linear;
  readonly w2: Linear;
  readonly #p: number;

  constructor(sizes: LlamaSizes) {
    super();
    const { dim, ffnDim, std } = sizes;
    this.#p = sizes.ffnDropoutP;
    this.w1 = linear(dim, ffnDim, { std });
    this.w3 = linear(dim, ffnDim, { std });
    this.w2 = linear(ffnDim, dim, { std });
  }

  forward(x: Tensor): Tensor {
    const [gate, value] = [this.w1.forward(x), this.w3.forward(x)];
    // Without autograd the gate is not needed again.
    const gated = isGradEnabled()
      ? gate.silu().mul(value)
      : callTensor<Tensor>("aten::silu_", [gate]).mul_(value);
    return dropout(this.w2.forward(gated), this.#p, this.training);
  }
}
