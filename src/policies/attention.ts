/**
 * The attention that all policies use, with and without a KV cache, and its masks. Projections and position embeddings
 * are in the models.
 */
import {
  autocast,
  callTensor,
  cat,
  eye,
  functional as F,
  full,
  ones,
  type Tensor,
  tidy,
  where,
} from "../torch/index.js";
import type { KvCache } from "./kv_cache.js";
import { placeOf } from "./layers.js";

/** What attention uses besides queries, keys and values. */
export interface Seen {
  /** Added to the logits, `[B, 1, n, L]` or `[B, 1, 1, L]`; null for plain causal attention. */
  mask: Tensor | null;
  /** Probability of dropping an attention weight; 0 outside training. */
  dropout?: number;
  /** The KV cache of this layer: earlier keys and values are read from it, new ones appended. */
  cache?: KvCache | null;
  layer?: number;
}

/**
 * Causal attention. With a cache, the keys and values are appended to it first; more than one query is possible only
 * while the cache is empty.
 *
 * @param q - `[B, H, n, headDim]`.
 * @param k - `[B, K, n, headDim]`; H is a multiple of K; each key head serves H / K query heads.
 * @param v - as `k`.
 * @returns `[B, n, H * headDim]`.
 */
export function attend(q: Tensor, k: Tensor, v: Tensor, seen: Seen): Tensor {
  const { mask, dropout = 0, cache = null, layer = 0 } = seen;
  const [, heads, n] = q.shape as [number, number, number];
  const isFirst = cache === null || cache.length === 0;
  const all = cache === null ? { keys: k, values: v } : cache.append(layer, k, v);
  if (!isFirst && !cache.isFixed && q.device === "cpu")
    return attendOne(q, all.keys, all.values, mask, dropout);
  const isGrouped = heads !== k.shape[1];
  const isCausal = mask === null && n > 1;
  const [keys, values] = isFirst ? [k, v] : [all.keys, all.values];
  return join(attention(q, keys, values, mask, dropout, isCausal, isGrouped));
}

/**
 * Attention of one query per sequence on a CPU, as two batched matrix products over the cache. For a single query the
 * fused operator takes 1.5 times as long in float32 and four times in bfloat16. Shapes as {@link attend}, with n = 1.
 */
function attendOne(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | null, dropout: number): Tensor {
  const [batch, heads, , headDim] = q.shape as [number, number, number, number];
  const keyHeads = keys.size(1);
  const dtype = q.dtype;
  // Autocast would cast the whole cache in every step.
  const y = autocast({ device: "cpu", dtype: null }, () => {
    const scaled = q.to({ dtype: keys.dtype }).mul(headDim ** -0.5);
    const queries = scaled.reshape(batch * keyHeads, heads / keyHeads, headDim);
    let logits = queries.bmm(keys.flatten(0, 1).transpose(1, 2)); // [B K, H / K, L]
    if (mask !== null) logits = logits.unflatten(0, [batch, keyHeads]).add(mask).flatten(0, 1);
    const weights = logits.softmax(-1);
    const kept = dropout > 0 ? F.dropout(weights, dropout, true) : weights;
    return kept.bmm(values.flatten(0, 1)); // [B K, H / K, headDim]
  });
  return y.view(batch, 1, heads * headDim).to({ dtype });
}

/**
 * Attention of every query to every key that `mask` does not exclude, for cross-attention to features. Shapes as {@link
 * attend}.
 */
export function attendTo(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | null, dropout: number): Tensor {
  return join(attention(q, k, v, mask, dropout, false, false));
}

function attention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  mask: Tensor | null,
  dropout: number,
  isCausal: boolean,
  isGrouped: boolean,
): Tensor {
  return callTensor("aten::scaled_dot_product_attention", [
    q,
    k,
    v,
    mask,
    dropout,
    isCausal,
    null,
    isGrouped,
  ]);
}

/** `[B, H, n, headDim]` to `[B, n, H * headDim]`. */
function join(heads: Tensor): Tensor {
  return heads.transpose(1, 2).flatten(2);
}

/** `[B, n, H * headDim]` to `[B, H, n, headDim]`, a view. */
export function splitHeads(x: Tensor, heads: number): Tensor {
  return x.unflatten(-1, [heads, -1]).transpose(1, 2);
}

/**
 * Mask to add to the logits of causal attention when the sequence begins with features of which some are padding: no
 * token attends to padding, except that a padding token attends to itself, so that its softmax is defined.
 *
 * @param isReal - bool `[B, S]`.
 * @param length - L, condition included.
 * @param like - a tensor with the dtype and device of the mask.
 * @returns `[B, 1, L, L]` of 0 and -inf.
 */
export function paddingMask(isReal: Tensor, length: number, like: Tensor): Tensor {
  const place = placeOf(like);
  return tidy(() => {
    const real = padReal(isReal, length, place.device).unsqueeze(1); // [B, 1, L]
    const diagonal = eye(length, { dtype: "bool", device: place.device });
    const causal = ones([length, length], { dtype: "bool", device: place.device }).tril();
    return additive(real.logicalOr(diagonal).logicalAnd(causal).unsqueeze(1), place.dtype);
  });
}

/** The last row of {@link paddingMask}, `[B, 1, 1, L]`: the mask of a code. */
export function paddingRow(isReal: Tensor, length: number, like: Tensor): Tensor {
  const place = placeOf(like);
  return tidy(() => additive(padReal(isReal, length, place.device).unsqueeze(1).unsqueeze(1), place.dtype));
}

/** Extends bool `[B, S]` to `[B, length]` with true for the positions after the features. */
function padReal(isReal: Tensor, length: number, device: ReturnType<typeof placeOf>["device"]): Tensor {
  const [batch, s] = isReal.dims(2);
  return cat([isReal.to({ device }), ones([batch, length - s], { dtype: "bool", device })], 1);
}

function additive(isSeen: Tensor, dtype: ReturnType<typeof placeOf>["dtype"]): Tensor {
  const device = placeOf(isSeen).device;
  return where(isSeen, full([], 0, { dtype, device }), full([], -Infinity, { dtype, device }));
}
