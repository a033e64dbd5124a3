/** Comparison of numbers within a tolerance, with a message that says where they differ most. */
import { AssertionError } from "node:assert";
import {
  expected,
  expectedType,
  type NestedNumbers,
  Tensor,
  type TypedArray,
} from "../../src/torch/index.js";

/** A tensor, a number, a (nested) list of numbers, or a typed array, which has one dimension. */
export type Numbers = Tensor | number | NestedNumbers | readonly number[] | TypedArray;

export interface CloseOptions {
  /** Part of the wanted value's size that the error may have, at most 1e-2. */
  rtol?: number;
  /** Error that is allowed at any size. */
  atol?: number;
  /** What is compared, for the message. */
  where?: string;
}

interface Elements {
  shape: readonly number[];
  dtype: string | undefined;
  values: ArrayLike<number | bigint>;
}

/**
 * Check that every element of `actual` is within `atol + rtol * |wanted|` of the wanted one, in float64.
 *
 * Shapes must be the same, and dtypes when both are tensors. NaN equals nothing, an infinity only itself.
 *
 * @throws AssertionError with the largest error, its index, both values and the number of elements that
 *   differ.
 * @throws RangeError when `rtol` is above 1e-2: such a check would pass wrong numbers.
 */
export function expectClose(actual: Numbers, wanted: Numbers, options: CloseOptions = {}): void {
  const { rtol = 1e-5, atol = 1e-8, where = "expectClose" } = options;
  if (!(rtol >= 0 && rtol <= 1e-2)) throw expected("expectClose", "rtol in [0, 1e-2]", rtol);
  if (!(atol >= 0 && atol < Infinity)) throw expected("expectClose", "a finite atol of at least 0", atol);
  const a = elements(actual);
  const b = elements(wanted);
  const fail = (message: string): never => {
    throw new AssertionError({ message: `${where}: ${message}`, stackStartFn: expectClose });
  };
  if (a.shape.join() !== b.shape.join()) {
    fail(`expected shape [${b.shape.join(", ")}], got [${a.shape.join(", ")}].`);
  }
  if (a.dtype !== undefined && b.dtype !== undefined && a.dtype !== b.dtype) {
    fail(`expected dtype ${b.dtype}, got ${a.dtype}.`);
  }
  let differing = 0;
  let worst = -1;
  let worstAt = 0;
  for (let i = 0; i < a.values.length; i++) {
    const x = a.values[i] as number | bigint;
    const y = b.values[i] as number | bigint;
    const error = distance(x, y);
    if (error <= atol + rtol * Math.abs(Number(y)) && error < Infinity) continue;
    differing++;
    if (error <= worst) continue;
    worst = error;
    worstAt = i;
  }
  if (differing === 0) return;
  const index = unravel(worstAt, a.shape);
  fail(
    `expected ${a.values.length} elements within rtol ${rtol} and atol ${atol}, got ${differing} that differ. ` +
      `Largest error ${worst.toPrecision(4)} at [${index.join(", ")}]: ` +
      `${a.values[worstAt]}, wanted ${b.values[worstAt]}.`,
  );
}

/** |x - y|, infinite where one of them is not finite and they are not the same. */
function distance(x: number | bigint, y: number | bigint): number {
  if (typeof x === "bigint" && typeof y === "bigint") return Math.abs(Number(x - y)); // exact beyond 2^53
  const [a, b] = [Number(x), Number(y)];
  if (a === b) return 0;
  const error = Math.abs(a - b);
  return Number.isNaN(error) ? Infinity : error;
}

function elements(value: Numbers): Elements {
  if (value instanceof Tensor) return { shape: value.shape, dtype: value.dtype, values: value.toArray() };
  if (ArrayBuffer.isView(value)) return { shape: [value.length], dtype: undefined, values: value };
  const shape: number[] = [];
  for (let level: unknown = value; Array.isArray(level); level = level[0]) shape.push(level.length);
  const values: number[] = [];
  const walk = (item: unknown, depth: number): void => {
    if (Array.isArray(item) && depth < shape.length && item.length === shape[depth]) {
      for (const inner of item) walk(inner, depth + 1);
    } else if (typeof item === "number" && depth === shape.length) {
      values.push(item);
    } else {
      throw expectedType("expectClose", `numbers in nested lists of shape [${shape.join(", ")}]`, item);
    }
  };
  walk(value, 0);
  return { shape, dtype: undefined, values };
}

function unravel(flat: number, shape: readonly number[]): number[] {
  const index: number[] = [];
  let rest = flat;
  for (const size of shape.toReversed()) {
    index.unshift(rest % size);
    rest = Math.floor(rest / size);
  }
  return index;
}
