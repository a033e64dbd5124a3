/** The share of the kernel distance, on features whose kernels are worked out by hand. */
import assert from "node:assert/strict";
import { test } from "node:test";

import type { FeatureNetwork } from "../../src/metrics/features.js";
import { kernelDistance } from "../../src/metrics/index.js";
import { kernelTerm, kernelWitness, meanSquaredDistance } from "../../src/rl_ar_finetune/kernel_reward.js";
import { judge } from "../../src/rl_ar_finetune/rewards.js";
import { Generator, keep, randn, tensor, tidy, zeros } from "../../src/torch/index.js";

const numbers = (
  rows: number[][],
  real: number[][],
  options: Parameters<typeof kernelWitness>[2],
): number[] => tidy(() => kernelWitness(tensor(rows), tensor(real), options).toList() as number[]);

test("the witness of the cubic kernel is what it is by hand", () => {
  // D = 1, so k(x, y) = (x y + 1)^3; real features 0 and 1, samples 1 and 2 of two images.
  // Sample 1: (1 + 8) / 2 - k(1, 2) = 4.5 - 27; sample 2: (1 + 27) / 2 - 27.
  const found = numbers([[1], [2]], [[0], [1]], { kernel: "polynomial", generations: 1 });
  assert.deepEqual(found, [-22.5, -13]);
  // Two columns that are alike: x . y / D is the same.
  const wide = numbers(
    [
      [1, 1],
      [2, 2],
    ],
    [
      [0, 0],
      [1, 1],
    ],
    { kernel: "polynomial", generations: 1 },
  );
  assert.deepEqual(wide, [-22.5, -13]);
});

test("samples of one image are not compared with each other", () => {
  // G = 2: samples 1, 2 of one image, 0, 3 of another. k(1, 0) = 1, k(1, 3) = 64; k(2, 0) = 1, k(2, 3) = 343.
  const found = numbers([[1], [2], [0], [3]], [[0], [1]], { kernel: "polynomial", generations: 2 });
  // 0 is as like to all: 1 - (1 + 1) / 2; 3: (1 + 64) / 2 - (64 + 343) / 2.
  assert.deepEqual(found, [4.5 - 32.5, 14 - 172, 0, 32.5 - 203.5]);
  const alone = numbers([[1], [2]], [[0], [1]], { kernel: "polynomial", generations: 2 });
  assert.deepEqual(alone, [4.5, 14], "no other image: only the real ones count");
});

test("the width of rbf is the mean squared distance of real features", () => {
  assert.equal(
    tidy(() => meanSquaredDistance(tensor([[0], [2]]))),
    4,
  );
  // Pairs of 0, 1, 3: (1 + 9 + 4) / 3
  assert.ok(Math.abs(tidy(() => meanSquaredDistance(tensor([[0], [1], [3]]))) - 14 / 3) < 1e-12);
  const found = numbers([[0], [2]], [[0], [2]], { kernel: "rbf", generations: 1, variance: 4 });
  const far = Math.exp(-4 / 8);
  for (const value of found) assert.ok(Math.abs(value - ((1 + far) / 2 - far)) < 1e-12);
});

test("its mean is minus the kernel distance, up to what no sample moves", () => {
  using generator = new Generator(4);
  tidy(() => {
    const real = randn([40, 3], { generator });
    const [a, b] = [randn([20, 3], { generator }).add(0.5), randn([20, 3], { generator })];
    const mean = (x: typeof a): number =>
      kernelWitness(x, real, { kernel: "polynomial", generations: 1 }).mean().item();
    const cross = (x: typeof a): number =>
      x.double().matmul(real.double().transpose(0, 1)).div(3).add(1).pow(3).mean().item();
    // KD = E k(r, r') + E k(f, f') - 2 E k(f, r), and the mean is E k(f, r) - E k(f, f').
    const rest = (x: typeof a): number => kernelDistance(real, x) + mean(x) + cross(x);
    assert.ok(Math.abs(rest(a) - rest(b)) < 1e-9);
    assert.ok(mean(a) < mean(b), "samples of another distribution are worth less");
  });
});

test("as a term of a reward, a batch of samples that repeat each other is worth less than one like the real images", () => {
  const network: FeatureNetwork = {
    name: "means",
    featureSize: 1,
    numClasses: 0,
    describe: (images) =>
      tidy(() => ({
        features: images.mean([1, 2, 3]).unsqueeze(1),
        probabilities: zeros([images.size(0), 0]),
      })),
  };
  const grey = (levels: number[]) =>
    tidy(() => keep(tensor(levels).reshape(-1, 1, 1, 1).expand(levels.length, 3, 2, 2).contiguous()));
  const real = tensor([[-0.5], [0], [0.5]]);
  const term = kernelTerm(network, real, { weight: 2, kernel: "rbf" });
  const images = grey([0, 0, 0]);
  const meanOf = (levels: number[]): number => {
    using samples = grey(levels);
    return tidy(() => judge([term], { images, samples }).total.mean().item());
  };
  assert.ok(meanOf([-0.5, 0, 0.5]) > meanOf([0.5, 0.5, 0.5]));
  assert.equal(term.sign, 1);
  term.dispose?.();
  images.dispose();
});
