/** The optional arguments of Tensor's methods: by name, or in PyTorch's order. What the methods do is in `tensor.ts`. */
import { readOptions } from "./arguments.js";
import type { DType } from "./dtype.js";

interface Sum {
  keepdim?: boolean;
  dtype?: DType;
}
export type SumOptions = [options?: Sum] | [keepdim: boolean, options?: Pick<Sum, "dtype">];

export function readSum(where: string, given: SumOptions): Sum {
  return readOptions<Sum>(where, given, { names: { keepdim: "boolean", dtype: true }, order: ["keepdim"] });
}

export interface SpreadOptions {
  keepdim?: boolean;
  correction?: number;
}

/** Not positional: PyTorch's second positional argument is `unbiased`, which `correction` replaces. */
export function readSpread(where: string, options: SpreadOptions): SpreadOptions {
  return readOptions<SpreadOptions>(where, [options], {
    names: { keepdim: "boolean", correction: "number" },
  });
}

interface TopK {
  largest?: boolean;
  sorted?: boolean;
}
export type TopKOptions =
  | [options?: TopK]
  | [largest: boolean, options?: Pick<TopK, "sorted">]
  | [largest: boolean, sorted: boolean];

export function readTopK(given: TopKOptions): TopK {
  const order = ["largest", "sorted"] as const;
  return readOptions<TopK>("Tensor.topk", given, { names: { largest: "boolean", sorted: "boolean" }, order });
}

interface Sort {
  descending?: boolean;
  stable?: boolean;
}
export type SortOptions = [options?: Sort] | [descending: boolean, options?: Pick<Sort, "stable">];

export function readSort(given: SortOptions): Sort {
  const names = { descending: "boolean", stable: "boolean" } as const;
  return readOptions<Sort>("Tensor.sort", given, { names, order: ["descending"] });
}

/** What a backward keeps and builds besides the gradients. */
export interface BackwardOptions {
  /** Keep what the graph saved, for another backward. */
  retainGraph?: boolean;
  /** Build the graph of the gradients too, for second derivatives. */
  createGraph?: boolean;
}

/** Defaults of {@link BackwardOptions}; `retainGraph` is as `createGraph`. */
export const BACKWARD = { createGraph: false, retainGraph: undefined };
