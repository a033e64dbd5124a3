/** Tensors as the bytes of their elements, whatever the dtype, for tests of files. */
import { call, type DType, type Tensor, tensor } from "../../src/torch/index.js";

/** The bytes of a tensor's elements in row-major order, copied. */
export function elementBytes(x: Tensor): Uint8Array {
  const flat = x.detach().contiguous().reshape(-1);
  return (call("aten::view.dtype", [flat, "uint8"]) as Tensor).toArray() as Uint8Array;
}

/** A tensor whose elements have these bytes. */
export function fromBytes(bytes: Uint8Array, shape: readonly number[], dtype: DType): Tensor {
  return (call("aten::view.dtype", [tensor(bytes), dtype]) as Tensor).reshape(shape);
}
