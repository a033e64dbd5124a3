import assert from "node:assert/strict";
import { test } from "node:test";

import { BACKBONES, backboneShapes } from "../../src/metrics/backbones.js";
import {
  FeatureClassifier,
  NLayerDiscriminator,
  recogniseClassifier,
  recogniseMetricNetwork,
} from "../../src/metrics/index.js";

type Shapes = Record<string, readonly number[]>;

const headsOf = (net: "vgg" | "alex" | "squeeze"): Shapes =>
  Object.fromEntries(BACKBONES[net].channels.map((c, k) => [`lin${k}.model.1.weight`, [1, c, 1, 1]]));

test("backbones are told apart, with a classifier or without", () => {
  for (const [net, name] of [
    ["vgg", "torchvision vgg16"],
    ["alex", "torchvision alexnet"],
    ["squeeze", "torchvision squeezenet1_1"],
  ] as const) {
    const shapes = backboneShapes(net);
    assert.equal(recogniseMetricNetwork(shapes), name);
    assert.equal(recogniseMetricNetwork({ ...shapes, "classifier.6.weight": [1000, 4096] }), name);
    assert.equal(recogniseMetricNetwork(headsOf(net)), `LPIPS heads ${net}`);
    assert.equal(
      recogniseMetricNetwork({ ...shapes, ...headsOf(net), "scaling_layer.shift": [1, 3, 1, 1] }),
      `LPIPS ${net}`,
    );
  }
});

test("another depth or width is not recognised", () => {
  const vgg = backboneShapes("vgg");
  const { "features.28.bias": _, ...less } = vgg;
  assert.equal(recogniseMetricNetwork(less), null);
  assert.equal(recogniseMetricNetwork({ ...vgg, "features.30.weight": [512, 512, 3, 3] }), null);
  assert.equal(recogniseMetricNetwork({ ...vgg, "features.28.weight": [512, 512, 1, 1] }), null);
  const shallow = {
    "main.0.weight": [8, 3, 4, 4],
    "main.0.bias": [8],
    "main.2.weight": [1, 8, 4, 4],
    "main.2.bias": [1],
  };
  assert.equal(recogniseMetricNetwork(shallow), null);
  assert.equal(recogniseMetricNetwork({}), null);
  assert.equal(recogniseMetricNetwork({ weight: [3, 3] }), null);
});

test("discriminators of any width and depth are recognised", () => {
  for (const options of [{}, { ndf: 8 }, { ndf: 4, nLayers: 1 }, { ndf: 4, nLayers: 5 }]) {
    using network = new NLayerDiscriminator(options);
    const shapes = Object.fromEntries(
      Object.entries(network.stateDict()).map(([name, value]) => [name, value.shape]),
    );
    assert.equal(recogniseMetricNetwork(shapes), "PatchGAN discriminator");
    assert.equal(recogniseMetricNetwork({ ...shapes, extra: [1] }), null);
    assert.equal(recogniseMetricNetwork({ ...shapes, "main.2.weight": [2, 2, 4, 4] }), null);
  }
});

test("classifiers of any widths and depth are recognised, and tell their sizes", () => {
  for (const config of [
    { numClasses: 20, widths: [32, 48, 96, 128], depth: 1 },
    { numClasses: 2, widths: [8, 8], depth: 3 },
  ]) {
    using network = new FeatureClassifier(config);
    const shapes = Object.fromEntries(
      Object.entries(network.stateDict()).map(([name, value]) => [name, value.shape]),
    );
    assert.deepEqual(recogniseClassifier(shapes), config);
    assert.equal(recogniseMetricNetwork(shapes), null);
    assert.equal(recogniseClassifier({ ...shapes, extra: [1] }), null);
    const { "norm.bias": _, ...less } = shapes;
    assert.equal(recogniseClassifier(less), null);
    assert.equal(recogniseClassifier({ ...shapes, "stem.weight": [8, 1, 3, 3] }), null);
  }
  assert.equal(recogniseClassifier({}), null);
  assert.equal(recogniseClassifier({ "stem.weight": [8, 3, 3, 3], "head.weight": [2, 8] }), null);
});
