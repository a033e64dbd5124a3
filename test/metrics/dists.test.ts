/** DISTS against its own program, with the same random VGG16. */
import assert from "node:assert/strict";
import { after, test } from "node:test";

import { buildFeatures } from "../../src/metrics/backbones.js";
import { DISTS } from "../../src/metrics/index.js";
import { Module, type StateDict } from "../../src/nn/index.js";
import { manualSeed, noGrad, type Tensor, tidy, zeros } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";
import { goldenImages, goldens, gradientOf, thinned } from "./golden.js";

class Backbone extends Module {
  readonly features = buildFeatures("vgg");
}

const golden = goldens("dists");
const { images, samples } = goldenImages();
manualSeed(0);
const backbone: StateDict = new Backbone().stateDict();
noGrad(() => {
  for (const [name, value] of Object.entries(backbone)) if (name.endsWith("weight")) value.mul_(6 ** 0.5);
});
const weights = { alpha: golden("alpha"), beta: golden("beta") };
const metric = new DISTS({ backbone, weights });
after(() => metric.dispose());

test("distances and gradients agree with the published program", () => {
  noLeak(() => {
    tidy(() => {
      expectClose(metric.forward(images, samples), golden("distance"), { rtol: 1e-4, atol: 1e-6 });
      expectClose(metric.forward(images, samples, { chunk: 1 }), golden("distance"), {
        rtol: 1e-4,
        atol: 1e-6,
      });
      const gradient = gradientOf((x) => metric.forward(images, x), samples);
      expectClose(thinned(gradient), golden("grad"), { rtol: 1e-3, atol: 1e-7 });
    });
  });
});

test("equal images have distance 0", () => {
  tidy(() => expectClose(metric.forward(images, images), zeros([2]), { atol: 1e-6 }));
});

test("missing and unknown weights, and images that are too small, are refused", () => {
  assert.throws(() => new DISTS({ backbone, weights: { alpha: weights.alpha } }), /beta/);
  assert.throws(() => new DISTS({ backbone, weights: { ...weights, gamma: weights.alpha } }), /gamma/);
  const small = zeros([1, 3, 8, 8]) as Tensor;
  assert.throws(() => metric.forward(small, small), /at least 16 x 16/);
});
