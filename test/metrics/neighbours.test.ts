import assert from "node:assert/strict";
import { test } from "node:test";

import {
  densityCoverage,
  meanPairwiseDistance,
  nearestNeighbours,
  precisionRecall,
} from "../../src/metrics/index.js";
import {
  callTensor,
  cat,
  Generator,
  ones,
  randn,
  randperm,
  type Tensor,
  tensor,
} from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";
import { goldens } from "./golden.js";

const golden = goldens("distribution");
const real = golden("real");
const fake = golden("fake");

const normal = (seed: number, shape: readonly number[]): Tensor => {
  using generator = new Generator(seed);
  return randn(shape, { generator });
};

/** Distances of all pairs by differences, without inner products. */
const pairDistances = (x: Tensor, y: Tensor): Tensor => callTensor("aten::_cdist_forward", [x, y, 2, 2]);

test("precision, recall, density and coverage are those of the formulas", () => {
  for (const k of [1, 3, 5]) {
    const { precision, recall } = precisionRecall(real, fake, { k });
    expectClose([precision, recall], golden(`precision_recall.${k}`).toList() as number[], {
      rtol: 1e-14,
      atol: 0,
    });
    const { density, coverage } = densityCoverage(real, fake, { k });
    expectClose([density, coverage], golden(`density_coverage.${k}`).toList() as number[], {
      rtol: 1e-14,
      atol: 0,
    });
  }
  assert.deepEqual(precisionRecall(real, fake), precisionRecall(real, fake, { k: 3 }));
  assert.deepEqual(densityCoverage(real, fake), densityCoverage(real, fake, { k: 5 }));
});

test("on a line, by hand", () => {
  // Real 0, 1, 3 reach to 1, 1 and 2 with k = 1; fake 1.5 and 6 reach 4.5 far.
  const a = tensor([[0], [1], [3]]);
  const b = tensor([[1.5], [6]]);
  assert.deepEqual(precisionRecall(a, b, { k: 1 }), { precision: 0.5, recall: 1 });
  // 1.5 lies in the neighbourhoods of 1 and 3.
  assert.deepEqual(densityCoverage(a, b, { k: 1 }), { density: 1, coverage: 2 / 3 });
  // On the border is within.
  assert.equal(precisionRecall(a, tensor([[5], [-1]]), { k: 1 }).precision, 1);
});

test("identical sets have all of both, however they are ordered and even if all are copies", () => {
  using generator = new Generator(3);
  const far = normal(1, [60, 7]).add(1000);
  for (const set of [real, far, cat([fake, fake]), ones([6, 3]).mul(0.1)]) {
    const shuffled = set.indexSelect(0, randperm(set.size(0), { generator }));
    assert.deepEqual(precisionRecall(set, shuffled), { precision: 1, recall: 1 });
    assert.equal(densityCoverage(set, shuffled).coverage, 1);
  }
});

test("far sets have nothing of either, and a collapsed one has precision alone", () => {
  assert.deepEqual(precisionRecall(real, fake.add(100)), { precision: 0, recall: 0 });
  assert.deepEqual(densityCoverage(real, fake.add(100)), { density: 0, coverage: 0 });
  const collapsed = real.narrow(0, 0, 1).expand(50, 12);
  const { precision, recall } = precisionRecall(real, collapsed);
  assert.equal(precision, 1);
  expectClose(recall, 1 / 90, { rtol: 1e-14, atol: 0 });
});

test("portions change nothing", () => {
  const [a, b] = [normal(1, [2150, 3]), normal(2, [2100, 3])]; // two portions each
  const { precision, recall } = precisionRecall(a, b);
  const counts = (x: Tensor, y: Tensor): number => {
    const distances = pairDistances(y.double(), y.double());
    const radii = distances.topk(4, 1, { largest: false }).values.select(1, 3);
    return pairDistances(x.double(), y.double()).le(radii).any(1).double().mean().item();
  };
  assert.equal(precision, counts(b, a));
  assert.equal(recall, counts(a, b));
});

test("the nearest neighbour and its distance", () => {
  const { distance, index } = nearestNeighbours(fake, real);
  expectClose(distance, golden("nearest.distance"), { rtol: 1e-12, atol: 0 });
  expectClose(index, golden("nearest.index"));
  const own = nearestNeighbours(real.add(1e4), real.add(1e4));
  expectClose(own.distance, new Float64Array(90), { atol: 0 });
  expectClose(
    own.index,
    Array.from({ length: 90 }, (_, i) => i),
    { atol: 0 },
  );
});

test("mean distance of pairs, in all and within classes", () => {
  expectClose(meanPairwiseDistance(real), golden("pairwise").item(), { rtol: 1e-12, atol: 0 });
  const within = meanPairwiseDistance(real, golden("classes"));
  expectClose(within, golden("pairwise.classes").item(), { rtol: 1e-12, atol: 0 });
  // Wide: inner products of a sample with itself are rounded otherwise than its squared length.
  const wide = normal(5, [40, 300]);
  const apart = pairDistances(wide.double(), wide.double()).sum().item() / (40 * 39);
  expectClose(meanPairwiseDistance(wide), apart, { rtol: 1e-13, atol: 0 });
  // Classes count alike: pairs of class 0 are 2 apart; those of class 1 are 1, 1 and 2 apart.
  const line = tensor([[0], [2], [5], [6], [7], [90]]);
  const classes = tensor([0, 0, 1, 1, 1, 7], { dtype: "int64" });
  expectClose(meanPairwiseDistance(line, classes), (2 + 4 / 3) / 2, { rtol: 1e-12, atol: 0 });
  assert.throws(() => meanPairwiseDistance(line.narrow(0, 3, 3), tensor([0, 1, 2], { dtype: "int64" })), {
    message: "meanPairwiseDistance: expected a class with at least 2 samples, got 3 classes with less.",
  });
  assert.throws(() => meanPairwiseDistance(line, classes.narrow(0, 0, 3)), /classes \[6\], one per sample/);
});

test("what cannot be measured is refused", () => {
  assert.throws(() => precisionRecall(real.narrow(0, 0, 3), fake), {
    name: "RangeError",
    message: "precisionRecall: real: expected at least 4 samples, got 3.",
  });
  assert.throws(() => densityCoverage(real.narrow(0, 0, 5), fake), /at least 6 samples, got 5/);
  assert.throws(() => precisionRecall(real, fake, { k: 0 }), /k: expected an integer of at least 1, got 0/);
  assert.throws(() => precisionRecall(real, golden("few")), /features of width 12/);
  assert.throws(() => nearestNeighbours(fake.mul(NaN), real), /query: expected finite features, .* row 0/);
  assert.throws(() => meanPairwiseDistance(real.narrow(0, 0, 1)), /at least 2 samples, got 1/);
});

test("nothing is left in memory", () => {
  noLeak(() => {
    precisionRecall(real, fake);
    densityCoverage(real, fake);
    meanPairwiseDistance(real, golden("classes"));
    for (const made of Object.values(nearestNeighbours(fake, real))) made.dispose();
  });
});
