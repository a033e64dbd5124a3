/** Compares two runs that differ by the number of their processes. */
import assert from "node:assert/strict";
import { join } from "node:path";

import { loadSafetensors, type Tensor, tidy } from "../../src/torch/index.js";
import { checkpointsOf, metricsOf } from "./train_run.js";

/** Largest |a - b| over the tensors of a file of the last checkpoints of two runs. */
export function difference(a: string, b: string, file = "policy.safetensors"): number {
  const load = (dir: string): Record<string, Tensor> => {
    const path = join(dir, "checkpoints", checkpointsOf(dir).at(-1) as string, file);
    return loadSafetensors(path).tensors as Record<string, Tensor>;
  };
  return tidy(() => {
    const [one, other] = [load(a), load(b)];
    assert.deepEqual(Object.keys(one).sort(), Object.keys(other).sort());
    // The record of the latest codes is of the first process's images.
    const weights = Object.entries(one).filter(([name]) => !name.endsWith("codebook_used"));
    const gaps = weights.map(([name, tensor]) => {
      return Number(
        tensor
          .double()
          .sub((other[name] as Tensor).double())
          .abs()
          .amax()
          .item(),
      );
    });
    return Math.max(...gaps);
  });
}

/** Metrics of codes are equal, since the codes are; the others up to rounding. */
export function assertSameMetrics(a: string, b: string, tolerance: number): void {
  const [one, other] = [metricsOf(a), metricsOf(b)];
  assert.equal(one.length, other.length);
  for (const [i, line] of one.entries()) {
    const there = other[i] as typeof line;
    assert.deepEqual(Object.keys(line).sort(), Object.keys(there).sort());
    for (const [name, value] of Object.entries(line)) {
      const got = there[name];
      if (value === null || got === null || got === undefined) assert.equal(got, value, name);
      else if (/^tokens\/|codebook_used$|accuracy$/.test(name))
        assert.equal(got, value, `${name} of step ${line.step}`);
      else {
        // A difference of two numbers has the rounding of these.
        const size = name === "reward/gap" ? (line["reward/mean"] as number) : value;
        const gap = Math.abs(got - value) / Math.max(1e-3, Math.abs(size), Math.abs(value));
        assert.ok(gap < tolerance, `${name} of step ${line.step}: ${value} and ${got}`);
      }
    }
  }
}
