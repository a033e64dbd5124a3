/**
 * Initial values with PyTorch's formulas: the same seed of the default generator gives PyTorch's numbers.
 */
import { call, empty, type Tensor, ones as torchOnes, zeros as torchZeros } from "../torch/index.js";

let isSkipped = false;
let device: "cpu" | "meta" = "cpu";

/**
 * Build modules without drawing initial values, if a checkpoint will fill them. Until then the values of the parameters are
 * undefined.
 */
export function skipInit<T>(build: () => T): T {
  const before = isSkipped;
  isSkipped = true;
  try {
    return build();
  } finally {
    isSkipped = before;
  }
}

/** Build modules on LibTorch's `meta` device: their parameters have shapes and dtypes, and take no memory. */
export function onMeta<T>(build: () => T): T {
  const before = device;
  device = "meta";
  try {
    return skipInit(build);
  } finally {
    device = before;
  }
}

/** Uniform in `[low, high)`, float32. */
export function uniform(shape: readonly number[], low: number, high: number): Tensor {
  const values = empty(shape, { device });
  return isSkipped ? values : (call("aten::uniform_", [values, low, high]) as Tensor);
}

/** Normal with the given mean and standard deviation, float32. */
export function normal(shape: readonly number[], mean = 0, std = 1): Tensor {
  const values = empty(shape, { device });
  return isSkipped ? values : (call("aten::normal_", [values, mean, std]) as Tensor);
}

export function zeros(shape: readonly number[]): Tensor {
  return isSkipped ? empty(shape, { device }) : torchZeros(shape);
}

export function ones(shape: readonly number[]): Tensor {
  return isSkipped ? empty(shape, { device }) : torchOnes(shape);
}

/** Inputs that one output sees: columns times the kernel's area, for a weight `[out, in, ...kernel]`. */
export function fanIn(shape: readonly number[]): number {
  return shape.slice(1).reduce((product, size) => product * size, 1);
}

function fanOut(shape: readonly number[]): number {
  return (shape[0] as number) * shape.slice(2).reduce((product, size) => product * size, 1);
}

/**
 * Uniform within `sqrt(6 / ((1 + a^2) fanIn))`. `a` = sqrt(5) is what PyTorch's Linear and Conv2d use.
 *
 * @see He et al. 2015, "Delving Deep into Rectifiers", eq. 14.
 */
export function kaimingUniform(shape: readonly number[], a: number = Math.sqrt(5)): Tensor {
  const std = Math.sqrt(2 / (1 + a * a)) / Math.sqrt(fanIn(shape));
  const bound = Math.sqrt(3) * std;
  return uniform(shape, -bound, bound);
}

/**
 * Uniform within `gain * sqrt(6 / (fanIn + fanOut))`.
 *
 * @see Glorot and Bengio 2010, "Understanding the Difficulty of Training Deep Feedforward Neural Networks",
 *   eq. 16.
 */
export function xavierUniform(shape: readonly number[], gain = 1): Tensor {
  const bound = gain * Math.sqrt(6 / (fanIn(shape) + fanOut(shape)));
  return uniform(shape, -bound, bound);
}
