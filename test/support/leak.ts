/** Check that a piece of work leaves no tensors behind. */
import { AssertionError } from "node:assert";
import { memory } from "../../src/torch/index.js";

/**
 * Run `fn` and check that as many tensor handles are open after it as before.
 *
 * @returns what `fn` returns.
 * @throws AssertionError with both counts.
 */
export function noLeak<T>(fn: () => T): T {
  const before = memory().tensors;
  const result = fn();
  const after = memory().tensors;
  if (after === before) return result;
  throw new AssertionError({
    message: `noLeak: expected ${before} live tensors after the work, as before it, got ${after}.`,
    stackStartFn: noLeak,
  });
}
