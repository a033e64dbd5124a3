import assert from "node:assert/strict";
import { after, test } from "node:test";

import { FeatureClassifier, PerceptualDistance } from "../../src/metrics/index.js";
import { noGrad, rand, type Tensor, zeros } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";
import { differences, G, goldenClassifier, goldens, gradientOf } from "./golden.js";

const golden = goldens("classifier");
const network = goldenClassifier();
network.requiresGrad_(false);
after(() => network.dispose());
const metric = new PerceptualDistance(network);
const [images, samples] = [golden("images"), golden("samples")];

test("distance, map and gradients are those of PyTorch", () => {
  expectClose(metric.forward(images, samples), golden("distance"), { rtol: 1e-5, atol: 1e-6 });
  const map = metric.distanceMap(metric.reference(images), samples);
  expectClose(map, golden("map"), { rtol: 1e-5, atol: 1e-5 });
  const compare = (gradient: Tensor, wanted: Tensor): void => {
    const largest = wanted.abs().amax().item();
    expectClose(gradient, wanted, { rtol: 1e-4, atol: 1e-5 * largest });
  };
  compare(
    gradientOf((y) => metric.forward(images, y), samples),
    golden("grad.samples"),
  );
  compare(
    gradientOf((x) => metric.forward(x, samples), images),
    golden("grad.images"),
  );
});

test("identical images are at distance 0, others above it, and order does not matter", () => {
  expectClose(metric.forward(images, images), [0, 0], { atol: 0 });
  const [repeated, clamped] = [images.repeatInterleave(G, 0), samples.clamp(-1, 1)];
  const there = metric.forward(repeated, clamped);
  assert.ok(there.equal(metric.forward(clamped, repeated)));
  const [near, far] = there.toList() as number[];
  assert.ok(0 < (near as number) && (near as number) < (far as number) && (far as number) < 2);
});

test("features of the images, once computed, serve all their samples; portions change nothing", () => {
  const whole = metric.forward(images, samples);
  const reference = metric.reference(images);
  assert.deepEqual(reference.size, [14, 10]);
  const map = metric.distanceMap(reference, samples);
  for (const chunk of [1, 2, 3]) {
    const where = `chunk ${chunk}`;
    expectClose(metric.distance(reference, samples, { chunk }), whole, { rtol: 1e-5, where });
    expectClose(metric.forward(images, samples, { chunk }), whole, { rtol: 1e-5, where });
    expectClose(metric.distanceMap(reference, samples, { chunk }), map, { rtol: 1e-5, atol: 1e-6, where });
  }
});

test("the map's mean is the distance, but for what interpolation moves", () => {
  using usual = new FeatureClassifier({ numClasses: 2 });
  const distance = new PerceptualDistance(usual);
  const [x, y] = [rand([2, 3, 32, 32]).mul(2).sub(1), rand([4, 3, 32, 32]).mul(2).sub(1)];
  noGrad(() => {
    const map = distance.distanceMap(distance.reference(x), y);
    assert.deepEqual(map.shape, [4, 32, 32]);
    expectClose(map.mean([1, 2]), distance.forward(x, y), { rtol: 1e-2, atol: 1e-3 });
  });
});

test("the gradient is that of the distance, by finite differences in float64", () => {
  using wide = goldenClassifier().to({ dtype: "float64" });
  wide.requiresGrad_(false);
  const distance = new PerceptualDistance(wide);
  const { analytic, numeric } = differences(
    (y) => distance.forward(images.double(), y),
    samples.double(),
    12,
  );
  const largest = Math.max(...analytic.map(Math.abs));
  expectClose(analytic, numeric, { rtol: 1e-4, atol: 1e-6 * largest });
});

test("nothing is left behind", () => {
  noLeak(() => metric.forward(images, samples).dispose());
  noLeak(() => gradientOf((y) => metric.forward(images, y), samples).dispose());
});

test("images that do not fit or are out of range are refused", () => {
  const unsigned = rand([64, 3, 14, 10]);
  assert.throws(() => new PerceptualDistance(network).forward(unsigned, unsigned), {
    message:
      "PerceptualDistance: expected images in [-1, 1], got 64 images with no value below 0. If they are in [0, 1], map them by 2 x - 1; if they are that bright, switch the range check off.",
  });
  const unguarded = new PerceptualDistance(network, { checkRange: false });
  assert.equal(unguarded.forward(unsigned, unsigned).numel, 64);
  assert.throws(() => metric.distance(metric.reference(images), zeros([3, 3, 14, 10])), {
    message:
      "PerceptualDistance.distance: expected samples [2 * G, 3, 14, 10], got Tensor float32[3, 3, 14, 10] cpu.",
  });
  assert.throws(() => metric.forward(images, zeros([2, 3, 14, 11])), {
    message: "PerceptualDistance: expected samples [2 * G, 3, 14, 10], got Tensor float32[2, 3, 14, 11] cpu.",
  });
});
