import assert from "node:assert/strict";
import { test } from "node:test";

import {
  classAccuracy,
  frechetDistance,
  inceptionScore,
  kernelDistance,
  kernelDistanceOfSubsets,
  MomentsAccumulator,
  moments,
} from "../../src/metrics/index.js";
import {
  arange,
  callTensor,
  eye,
  Generator,
  randn,
  type Tensor,
  tensor,
  tidy,
  zeros,
} from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";
import { goldens } from "./golden.js";

const golden = goldens("distribution");
const real = golden("real");
const fake = golden("fake");

const normal = (seed: number, shape: readonly number[]): Tensor => {
  using generator = new Generator(seed);
  return randn(shape, { generator, dtype: "float64" });
};

/** A random rotation, from the QR decomposition of a random matrix. */
const rotation = (d: number): Tensor => {
  const [q] = callTensor("aten::linalg_qr", [normal(9, [d, d])]) as unknown as Tensor[];
  return q as Tensor;
};

test("moments are numpy's, whole or in batches", () => {
  const { mean, cov, count } = moments(real);
  expectClose(mean, golden("mean"), { rtol: 1e-13, atol: 0 });
  expectClose(cov, golden("cov"), { rtol: 1e-11, atol: 1e-14 });
  assert.equal(count, 90);
  using accumulator = new MomentsAccumulator();
  for (const [start, length] of [
    [0, 1],
    [1, 37],
    [38, 50],
    [88, 2],
  ] as const) {
    accumulator.add(real.narrow(0, start, length));
  }
  assert.equal(accumulator.count, 90);
  const inBatches = accumulator.moments();
  expectClose(inBatches.mean, mean, { rtol: 1e-13, atol: 0 });
  expectClose(inBatches.cov, cov, { rtol: 1e-11, atol: 1e-14 });
});

test("a far mean costs no digits", () => {
  const { cov } = tidy(() => moments(real.double().add(1e5)));
  expectClose(cov, golden("cov"), { rtol: 1e-6, atol: 1e-9 });
});

test("Fréchet distance is SciPy's, of features and of moments", () => {
  const wanted = golden("frechet").item();
  expectClose(frechetDistance(real, fake), wanted, { rtol: 1e-9, atol: 0 });
  expectClose(frechetDistance(fake, real), wanted, { rtol: 1e-9, atol: 0 });
  expectClose(frechetDistance(moments(real), fake), wanted, { rtol: 1e-9, atol: 0 });
  expectClose(frechetDistance(real, moments(fake)), wanted, { rtol: 1e-9, atol: 0 });
});

test("Fréchet distance is exact for fewer samples than features", () => {
  const wanted = golden("frechet.singular").item();
  expectClose(frechetDistance(golden("few"), golden("fewer")), wanted, { rtol: 1e-12, atol: 0 });
  for (const x of [real, golden("few"), normal(1, [3, 100])]) {
    const trace = tidy(() => moments(x).cov.diagonal().sum().item());
    const distance = frechetDistance(x, x);
    assert.ok(distance >= 0 && distance < 1e-12 * trace, `${distance} of ${trace}`);
  }
  expectClose(
    frechetDistance(
      zeros([4, 3]),
      tensor([
        [3, 0, 4],
        [3, 0, 4],
      ]),
    ),
    25,
    { rtol: 1e-15, atol: 0 },
  );
});

test("Fréchet distance of known moments", () => {
  // Commuting covariances: |m - m'|^2 + sum (s - s')^2 with standard deviations s.
  const of = (mean: number[], deviations: number[]): { mean: Tensor; cov: Tensor; count: number } => {
    const turn = rotation(3);
    const cov = turn.mul(tensor(deviations, { dtype: "float64" }).square()).matmul(turn.transpose(0, 1));
    return { mean: tensor(mean, { dtype: "float64" }), cov, count: 100 };
  };
  const distance = frechetDistance(of([1, 2, 3], [1, 2, 0]), of([1, 0, 3.5], [4, 0.5, 1]));
  expectClose(distance, 4 + 0.25 + 9 + 2.25 + 1, { rtol: 1e-12, atol: 0 });
  // 2 x 2 by hand: C = I, so the last trace is that of the square root of [[2, 1], [1, 2]], which is sqrt(3) + 1.
  const one = { mean: zeros([2], { dtype: "float64" }), cov: eye(2, { dtype: "float64" }), count: 9 };
  const other = {
    ...one,
    cov: tensor(
      [
        [2, 1],
        [1, 2],
      ],
      { dtype: "float64" },
    ),
  };
  expectClose(frechetDistance(one, other), 2 + 4 - 2 * (Math.sqrt(3) + 1), { rtol: 1e-12, atol: 0 });
});

test("Fréchet distance is blind to a rotation of both", () => {
  const turn = rotation(12);
  const distance = frechetDistance(real.double().matmul(turn), fake.double().matmul(turn));
  expectClose(distance, frechetDistance(real, fake), { rtol: 1e-10, atol: 0 });
});

test("kernel distance is TorchMetrics', and NumPy's for unequal sizes", () => {
  const same = real.narrow(0, 0, 70);
  expectClose(kernelDistance(same, fake), golden("kernel").item(), { rtol: 1e-10, atol: 0 });
  const options = { degree: 2, gamma: 0.05, coef: 0.5 };
  expectClose(kernelDistance(same, fake, options), golden("kernel.other").item(), { rtol: 1e-10, atol: 0 });
  expectClose(kernelDistance(real, fake), golden("kernel.unequal").item(), { rtol: 1e-10, atol: 0 });
  const biased = kernelDistance(real, fake, { isUnbiased: false });
  expectClose(biased, golden("kernel.biased").item(), { rtol: 1e-10, atol: 0 });
  // By hand, D = 1: k(x, y) = (x y + 1)^3 over {0, 1} and {0, 2}: 1 + 1 - 2 (1 + 1 + 1 + 27) / 4.
  expectClose(kernelDistance(tensor([[0], [1]]), tensor([[0], [2]])), -13, { rtol: 1e-14, atol: 0 });
});

test("kernel distance does not depend on the portions it is computed in", () => {
  const [a, b] = [normal(2, [2100, 2]), normal(3, [500, 2])];
  const whole = kernelDistance(a, b); // the first with itself in two portions
  const centre = (x: Tensor): Tensor => x.square().sum(1);
  const k = (x: Tensor, y: Tensor): Tensor => x.matmul(y.transpose(0, 1)).div(2).add(1).pow(3);
  const wanted = tidy(() => {
    const diagonal = (x: Tensor): number => centre(x).div(2).add(1).pow(3).sum().item();
    return (
      (k(a, a).sum().item() - diagonal(a)) / (2100 * 2099) +
      (k(b, b).sum().item() - diagonal(b)) / (500 * 499) -
      2 * k(a, b).mean().item()
    );
  });
  expectClose(whole, wanted, { rtol: 1e-6, atol: 1e-12 });
});

test("kernel distance is 0 on average for one distribution, and not below for two", () => {
  const distances = Array.from({ length: 200 }, (_, i) =>
    kernelDistance(normal(2 * i, [40, 4]), normal(2 * i + 1, [40, 4])),
  );
  const mean = distances.reduce((sum, x) => sum + x) / 200;
  const std = Math.sqrt(distances.reduce((sum, x) => sum + (x - mean) ** 2, 0) / 199);
  assert.ok(Math.abs(mean) < (3 * std) / Math.sqrt(200), `${mean} with ${std}`);
  assert.ok(distances.some((x) => x < 0));
  assert.ok(kernelDistance(normal(1, [40, 4]), normal(2, [40, 4]).add(2)) > 10 * std);
});

test("the mean over subsets estimates the same", () => {
  const wanted = kernelDistance(real, fake);
  const { mean, std } = kernelDistanceOfSubsets(real, fake, { subsets: 400, size: 30, seed: 1 });
  assert.ok(Math.abs(mean - wanted) < (4 * std) / Math.sqrt(400), `${mean} with ${std}, wanted ${wanted}`);
  const options = { subsets: 3, size: 20, seed: 5 };
  assert.deepEqual(
    kernelDistanceOfSubsets(real, fake, options),
    kernelDistanceOfSubsets(real, fake, options),
  );
  const all = kernelDistanceOfSubsets(fake, fake.add(1), { subsets: 1, size: 70 });
  expectClose(all.mean, kernelDistance(fake, fake.add(1)), { rtol: 1e-10, atol: 0 });
  assert.equal(all.std, 0);
  assert.throws(() => kernelDistanceOfSubsets(real, fake), {
    name: "RangeError",
    message:
      "kernelDistanceOfSubsets: real: expected at least 1000 samples, got 90. Take smaller subsets, or " +
      "kernelDistance, which takes all samples.",
  });
});

test("inception score is the published formula's", () => {
  const p = golden("probabilities");
  for (const splits of [1, 10]) {
    const { mean, std, splits: made } = inceptionScore(p, { splits });
    expectClose([mean, std], golden(`inception_score.${splits}`).toList() as number[], {
      rtol: 1e-12,
      atol: 0,
    });
    assert.equal(made, splits);
  }
  assert.equal(inceptionScore(p).splits, 2);
  assert.equal(inceptionScore(p.narrow(0, 0, 20)).splits, 1);
  assert.equal(inceptionScore(p.repeat(6, 1)).splits, 10);
});

test("inception score is 1 for images of no class, and K for certain images of all", () => {
  expectClose(inceptionScore(tensor([[0.2, 0.8]]).expand(8, 2)).mean, 1, { rtol: 1e-14, atol: 0 });
  expectClose(inceptionScore(eye(5)).mean, 5, { rtol: 1e-14, atol: 0 });
  expectClose(inceptionScore(eye(5).repeat(1, 1).narrow(0, 0, 1)).mean, 1, { rtol: 1e-14, atol: 0 });
});

test("class accuracy counts the most probable class", () => {
  const p = tensor([
    [0.7, 0.3],
    [0.4, 0.6],
    [0.1, 0.9],
    [0.8, 0.2],
  ]);
  assert.equal(classAccuracy(p, tensor([0, 1, 0, 0], { dtype: "int64" })), 0.75);
  assert.throws(() => classAccuracy(p, tensor([0, 1, 2, 0], { dtype: "int64" })), {
    message: "classAccuracy: expected classes in [0, 2), got 2.",
  });
  assert.throws(
    () => classAccuracy(p, arange(0, 3)),
    /expected classes \[4\], one per sample, got Tensor int64\[3\]/,
  );
  assert.throws(() => classAccuracy(p, tensor([0, 0, 0, 0])), { name: "TypeError" });
  assert.throws(() => classAccuracy(p, tensor([0, -1, 0, 0], { dtype: "int64" })), /at least 0, got -1/);
});

test("what cannot be measured is refused, and the row is named", () => {
  const broken = real.clone();
  broken.narrow(0, 41, 1).narrow(1, 3, 1).fill_(NaN);
  broken.narrow(0, 60, 1).fill_(Infinity);
  const message = "frechetDistance: fake: expected finite features, got NaN or infinity in row 41.";
  assert.throws(() => frechetDistance(real, broken), { name: "RangeError", message });
  assert.throws(() => kernelDistance(broken, real), /kernelDistance: real: .* in row 41/);
  assert.throws(() => frechetDistance(real, golden("few")), {
    message:
      "frechetDistance: fake: expected features of width 12, got Tensor float32[10, 24] cpu. " +
      "Take both sets from one network.",
  });
  assert.throws(() => frechetDistance(moments(real), moments(golden("few"))), /moments of width 12/);
  assert.throws(() => frechetDistance(real.narrow(0, 0, 1), fake), /at least 2 samples, got 1\.$/);
  assert.throws(() => kernelDistance(real, fake.narrow(0, 0, 1)), /fake: expected at least 2 samples, got 1/);
  assert.throws(() => moments(real.flatten()), /expected features \[N, D\], got Tensor float32\[1080\]/);
  assert.throws(() => moments(zeros([4, 4], { dtype: "int64" })), { name: "TypeError" });
  const { mean, cov } = moments(real);
  assert.throws(
    () => frechetDistance({ mean, cov: cov.mul(NaN), count: 90 }, fake),
    /expected finite moments/,
  );
  using accumulator = new MomentsAccumulator();
  assert.throws(() => accumulator.moments(), /at least 2 samples, got 0/);
  accumulator.add(real.narrow(0, 0, 1));
  assert.throws(() => accumulator.moments(), /at least 2 samples, got 1/);
  assert.throws(() => accumulator.add(golden("few")), /features of width 12/);
  assert.throws(() => inceptionScore(real), {
    message:
      /^inceptionScore: expected rows of probabilities that sum to 1, got row 0 with sum .* softmax\(1\)\.$/,
  });
  const p = golden("probabilities");
  assert.throws(() => inceptionScore(p, { splits: 204 }), /an integer from 1 to 203/);
  assert.throws(() => inceptionScore(p.mul(NaN)), /got row 0 with sum NaN/);
});

test("nothing is left in memory", () => {
  using broken = real.mul(NaN);
  using classes = zeros([203], { dtype: "int64" });
  noLeak(() => {
    frechetDistance(real, fake);
    kernelDistance(real, fake);
    kernelDistanceOfSubsets(real, fake, { subsets: 2, size: 10 });
    inceptionScore(golden("probabilities"));
    tidy(() => moments(real).count);
    classAccuracy(golden("probabilities"), classes);
    assert.throws(() => frechetDistance(real, broken));
  });
});
