/**
 * Rotary position embedding on the grid of an image: two neighbouring channels are a complex number, which is rotated
 * by an angle of its row or its column times a frequency. The attention is in `attention.ts`.
 *
 * Su et al. 2021, "RoFormer"; the two axes as LlamaGen has them (Sun et al. 2024).
 */
import { arange, callTensor, cat, expected, stack, type Tensor, zeros } from "../torch/index.js";

/** Sizes of a table. */
export interface RotaryOptions {
  /** Codes in a full image, a square number. */
  blockSize: number;
  /** Channels of a head, a multiple of 4. */
  headDim: number;
  /** Number of condition tokens, which come before the codes. */
  conditionTokens: number;
  base: number;
}

/**
 * Factors of all positions: complex64 `[conditionTokens + blockSize, 1, headDim / 2]`, which broadcasts over heads.
 *
 * The first half of the channels is rotated by the row, the second by the column. Condition tokens have the factor 0,
 * not 1: their queries and keys become 0, and so do all attention logits from or to them. The released weights were
 * trained this way.
 */
export function rotaryTable(where: string, options: RotaryOptions): Tensor {
  const { blockSize, headDim, conditionTokens, base } = options;
  const side = Math.round(Math.sqrt(blockSize));
  if (side * side !== blockSize || blockSize < 1) {
    throw expected(where, "a square number as blockSize", blockSize, "256 codes are a grid of 16 by 16");
  }
  if (headDim % 4 !== 0) throw expected(where, "a multiple of 4 as the width of a head", headDim);
  const half = headDim / 2;
  const exponents = arange(0, half, 2, { dtype: "float32" }).div(half); // [headDim / 4]
  const frequencies = callTensor<Tensor>("aten::pow.Scalar", [base, exponents]).reciprocal();
  const steps = arange(0, side, 1, { dtype: "float32" });
  const angles = steps.unsqueeze(1).mul(frequencies); // [side, headDim / 4]
  const rows = angles.unsqueeze(1).expand(side, side, half / 2);
  const columns = angles.unsqueeze(0).expand(side, side, half / 2);
  const grid = cat([rows, columns], -1).reshape(blockSize, 1, half);
  const turns = stack([grid.cos(), grid.sin()], -1);
  return callTensor("aten::view_as_complex", [cat([zeros([conditionTokens, 1, half, 2]), turns])]);
}

/**
 * Rotate the pairs of channels of `x`, computed in float32 for every dtype.
 *
 * IBQ's published code returns float32 and rounds in the attention that follows; the result is the same.
 *
 * @param x - `[B, n, H, headDim]`, its last dimension contiguous.
 * @param factors - complex64 `[n, 1, headDim / 2]`: rows of {@link rotaryTable}.
 */
export function rotate(x: Tensor, factors: Tensor): Tensor {
  const [batch, n, heads, headDim] = x.shape as [number, number, number, number];
  const dtype = x.dtype;
  const isWide = dtype === "float32" || dtype === "float64";
  const pairs = (isWide ? x : x.float()).view(batch, n, heads, headDim / 2, 2);
  const turned = callTensor<Tensor>("aten::view_as_complex", [pairs]).mul(factors);
  const y = callTensor<Tensor>("aten::view_as_real", [turned]).view(batch, n, heads, headDim);
  return isWide ? y : y.to({ dtype });
}
