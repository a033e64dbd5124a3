import assert from "node:assert/strict";
import { test } from "node:test";

import { atTaps, BACKBONES, buildFeatures, type LpipsNet } from "../../src/metrics/backbones.js";
import { FeatureClassifier, NLayerDiscriminator } from "../../src/metrics/index.js";
import { init, type Module } from "../../src/nn/index.js";
import { backboneCosts, classifierCosts, discriminatorCosts } from "../../src/plan/costs.js";
import { rand, setNumThreads, tidy, zeros } from "../../src/torch/index.js";
import { countFlops } from "../support/flops.js";

setNumThreads(1);

test("operations and feature maps of LPIPS's networks are those of a pass", () => {
  for (const net of Object.keys(BACKBONES) as LpipsNet[]) {
    for (const side of [40, 51]) {
      const features = init.skipInit(() => buildFeatures(net));
      const layers = features.filter((layer) => layer !== null) as Module[];
      for (const parameter of layers.flatMap((layer) => layer.parameters())) {
        parameter.requiresGrad_(false).zero_();
      }
      let numbers = 0;
      const flops = countFlops(layers, () =>
        atTaps(net, features, zeros([1, 3, side, side]), (map) => {
          numbers += map.numel;
        }),
      );
      const costs = backboneCosts(net, side);
      assert.equal(costs.flops, flops, `${net} ${side}`);
      assert.equal(costs.features, numbers, `${net} ${side}`);
      for (const layer of layers) layer.dispose();
    }
  }
  // 2 x 15.3 billion products of VGG16's convolutions at 224 px, the usual figure.
  assert.equal((backboneCosts("vgg", 224).flops / 1e9).toFixed(1), "30.7");
});

test("operations of a classifier and of a discriminator are those of a pass", () => {
  for (const [config, side] of [
    [{ numClasses: 3, widths: [8, 16, 24], depth: 2 }, 20],
    [{ numClasses: 5, widths: [32, 48, 96, 128], depth: 1 }, 32],
    [{ numClasses: 5, widths: [8, 8], depth: 1 }, 13],
  ] as const) {
    using model = new FeatureClassifier(config);
    let numbers = 0;
    const flops = countFlops([model], () => {
      for (const map of model.stages(rand([1, 3, side, side]))) numbers += map.numel;
    });
    const costs = classifierCosts(config, side);
    assert.deepEqual([costs.flops, costs.features], [flops, numbers]);
  }
  for (const [options, side] of [
    [{ ndf: 8, nLayers: 3 }, 64],
    [{ ndf: 4, nLayers: 2 }, 45],
  ] as const) {
    using model = new NLayerDiscriminator(options).eval();
    const flops = countFlops([model], () => tidy(() => model.forward(rand([1, 3, side, side]))));
    const shapes = Object.fromEntries(Object.entries(model.stateDict()).map(([k, v]) => [k, v.shape]));
    assert.equal(discriminatorCosts(shapes, side).flops, flops);
  }
});
