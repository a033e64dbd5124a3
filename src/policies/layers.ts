/**
 * Parts that the policies share: layers with GPT-2's initialization, the class embedding, dropout and stochastic depth.
 * Attention is in `attention.ts`.
 */
import { Embedding, init, Linear, Module, type Parameter } from "../nn/index.js";
import {
  call,
  checkpoint,
  empty,
  expected,
  functional as F,
  full,
  fullLike,
  isGradEnabled,
  shownValue,
  type Tensor,
  tidy,
  where,
} from "../torch/index.js";
import type { Condition } from "./policy.js";

/** A {@link Linear} whose weight is drawn from N(0, std) and whose bias is zero. */
export function linear(
  inFeatures: number,
  outFeatures: number,
  options: { bias?: boolean; std?: number } = {},
): Linear {
  const { bias = false, std = 0.02 } = options;
  const layer = init.skipInit(() => new Linear(inFeatures, outFeatures, { bias }));
  setData(layer.weight, init.normal([outFeatures, inFeatures], 0, std));
  if (layer.bias !== null) setData(layer.bias, init.zeros([outFeatures]));
  return layer;
}

/** A {@link Linear} whose weight and bias start at zero. */
export function zeroLinear(
  inFeatures: number,
  outFeatures: number,
  options: { bias?: boolean } = {},
): Linear {
  const { bias = false } = options;
  const layer = init.skipInit(() => new Linear(inFeatures, outFeatures, { bias }));
  setData(layer.weight, init.zeros([outFeatures, inFeatures]));
  if (layer.bias !== null) setData(layer.bias, init.zeros([outFeatures]));
  return layer;
}

/** An {@link Embedding} whose rows are drawn from N(0, std). */
export function embedding(rows: number, dim: number, std = 0.02): Embedding {
  const layer = init.skipInit(() => new Embedding(rows, dim));
  setData(layer.weight, init.normal([rows, dim], 0, std));
  return layer;
}

/** Replace a parameter's tensor without a copy and without drawing random numbers again. */
function setData(parameter: Parameter, data: Tensor): void {
  call("aten::set_data", [parameter, data]);
  data.dispose();
}

/** Dropout: in training, zero elements with probability `p` and scale the others by 1 / (1 - p). */
export function dropout(x: Tensor, p: number, training: boolean): Tensor {
  return training && p > 0 ? F.dropout(x, p, true) : x;
}

/**
 * Stochastic depth: in training, zero the branch `x` `[B, ...]` of whole sequences with probability `p` and scale the
 * others by 1 / (1 - p).
 *
 * @see Huang et al. 2016, "Deep Networks with Stochastic Depth".
 */
export function dropPath(x: Tensor, p: number, training: boolean): Tensor {
  if (!training || p === 0) return x;
  const shape = [x.size(0), ...Array<number>(x.ndim - 1).fill(1)];
  const keep = call("aten::bernoulli_.float", [empty(shape, placeOf(x)), 1 - p]) as Tensor;
  return x.mul(keep.div_(1 - p));
}

/** Drop rate of block `i` of `n`, rising linearly from 0 to `rate`. */
export function dropPathRate(rate: number, i: number, n: number): number {
  return n > 1 ? (rate * i) / (n - 1) : 0;
}

/**
 * Check sizes and dropout rates of a policy's options.
 *
 * @throws RangeError unless sizes are integers of at least 1 and rates are in [0, 1).
 */
export function checkSizes(
  where: string,
  sizes: Readonly<Record<string, unknown>>,
  rates: Readonly<Record<string, unknown>>,
): void {
  for (const [name, value] of Object.entries(sizes)) {
    if (Number.isInteger(value) && Number(value) >= 1) continue;
    throw expected(`${where}: ${name}`, "an integer of at least 1", shownValue(value));
  }
  for (const [name, value] of Object.entries(rates)) {
    if (typeof value === "number" && value >= 0 && value < 1) continue;
    throw expected(`${where}: ${name}`, "a number in [0, 1)", shownValue(value));
  }
}

/** Check a number of classes, which may be 0. */
export function checkClasses(where: string, name: string, classes: unknown): void {
  if (Number.isInteger(classes) && Number(classes) >= 0) return;
  throw expected(`${where}: ${name}`, "an integer of at least 0", shownValue(classes));
}

/** Check numbers that must be finite and not negative. */
export function checkNumbers(where: string, numbers: Readonly<Record<string, unknown>>): void {
  for (const [name, value] of Object.entries(numbers)) {
    if (typeof value === "number" && value >= 0 && value < Infinity) continue;
    throw expected(`${where}: ${name}`, "a finite number of at least 0", shownValue(value));
  }
}

/** Check that D is a multiple of the heads, and the heads a multiple of the key heads. */
export function checkHeads(where: string, dim: number, nHead: number, nKvHead: number): void {
  if (dim % nHead !== 0) throw expected(where, `a number of heads that divides ${dim}`, nHead);
  if (nHead % nKvHead !== 0) throw expected(where, `a number of key heads that divides ${nHead}`, nKvHead);
}

/** Options for a tensor with the same dtype and device. */
export function placeOf(x: Tensor): {
  dtype: Tensor["dtype"];
  device: NonNullable<Parameters<Tensor["to"]>[0]["device"]>;
} {
  return { dtype: x.dtype, device: x.device as NonNullable<Parameters<Tensor["to"]>[0]["device"]> };
}

/**
 * Run a block, with gradient checkpointing if asked for: the block then runs again in the backward pass.
 *
 * @param fn - may use only its arguments and parameters: other tensors are freed before the backward pass.
 */
export function runBlock<T extends readonly (Tensor | null)[]>(
  again: boolean,
  fn: (...inputs: T) => Tensor,
  inputs: readonly [...T],
): Tensor {
  if (!again || !isGradEnabled()) return tidy(() => fn(...inputs));
  const whole = (...given: Tensor[]): Tensor => {
    const rest = given.values();
    return fn(...(inputs.map((input) => input && rest.next().value) as unknown as T));
  };
  return checkpoint(
    whole,
    inputs.filter((input) => input !== null),
  );
}

/** Class embedding: one row per class, and a last row for the null class: `embedding_table` `[numClasses + 1, D]`. */
export class LabelEmbedder extends Module {
  readonly embedding_table: Embedding;
  readonly numClasses: number;

  constructor(numClasses: number, dim: number, std = 0.02) {
    super();
    this.numClasses = numClasses;
    this.embedding_table = embedding(numClasses + 1, dim, std);
  }

  /**
   * @param classes - int64 `[B]` in `[0, numClasses]`; the null class if undefined.
   * @param isDropped - bool `[B]`, true where the null class replaces the class.
   * @returns `[B, 1, D]`.
   * @throws RangeError when a class is out of range. Classes on a GPU are not checked, because reading them would
   *   synchronize.
   */
  forward(classes: Tensor | undefined, isDropped: Tensor | undefined, batch: number): Tensor {
    const { numClasses } = this;
    const { device } = placeOf(this.embedding_table.weight);
    if (classes !== undefined && classes.device === "cpu" && batch > 0) {
      const [low, high] = [classes.amin().item(), classes.amax().item()];
      if (low < 0 || high > numClasses) {
        const remedy = `${numClasses} itself is the null class`;
        throw expected("condition.classes", `classes in [0, ${numClasses}]`, low < 0 ? low : high, remedy);
      }
    }
    let ids =
      classes?.to({ device, dtype: "int64" }) ?? full([batch], numClasses, { dtype: "int64", device });
    if (isDropped !== undefined)
      ids = where(isDropped.to({ device }), full([], numClasses, { dtype: "int64", device }), ids);
    return this.embedding_table.forward(ids).unsqueeze(1);
  }

  /** The null class for the same batch. */
  nullCondition(condition: Condition): Condition {
    const { classes } = condition;
    return classes === undefined ? {} : { classes: fullLike(classes, this.numClasses) };
  }
}
