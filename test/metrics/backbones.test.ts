import assert from "node:assert/strict";
import { test } from "node:test";

import {
  atTaps,
  BACKBONES,
  backboneShapes,
  buildFeatures,
  type LpipsNet,
  lpipsKey,
} from "../../src/metrics/backbones.js";
import { init, Module } from "../../src/nn/index.js";
import { noGrad, tidy, zeros } from "../../src/torch/index.js";

class Features extends Module {
  readonly features: ReturnType<typeof buildFeatures>;
  constructor(net: LpipsNet) {
    super();
    this.features = init.skipInit(() => buildFeatures(net));
  }
}

test("keys and shapes are torchvision's", () => {
  for (const [net, count] of [
    ["vgg", 14_714_688],
    ["alex", 2_469_696],
    ["squeeze", 722_496],
  ] as const) {
    using network = new Features(net);
    const state = network.stateDict();
    const shapes = Object.fromEntries(Object.entries(state).map(([name, value]) => [name, value.shape]));
    assert.deepEqual(shapes, backboneShapes(net));
    assert.equal(
      Object.values(state).reduce((sum, { numel }) => sum + numel, 0),
      count,
    );
  }
  assert.deepEqual(backboneShapes("vgg")["features.28.weight"], [512, 512, 3, 3]);
  assert.deepEqual(backboneShapes("alex")["features.0.weight"], [64, 3, 11, 11]);
  assert.deepEqual(backboneShapes("squeeze")["features.12.expand3x3.weight"], [256, 64, 3, 3]);
});

test("taps have the stated channels, down to the smallest image", () => {
  for (const net of Object.keys(BACKBONES) as LpipsNet[]) {
    using network = new Features(net);
    const { channels, minSize, taps } = BACKBONES[net];
    const shapes = noGrad(() =>
      tidy(() => atTaps(net, network.features, zeros([1, 3, minSize, minSize]), (x) => x.shape)),
    );
    assert.deepEqual(
      shapes.map((shape) => shape[1]),
      channels,
    );
    assert.deepEqual(shapes.at(-1)?.slice(2), [1, 1], net);
    assert.equal(shapes.length, taps.length);
    const smaller = zeros([1, 3, minSize - 1, minSize - 1]);
    assert.throws(
      () => noGrad(() => tidy(() => atTaps(net, network.features, smaller, () => 0))),
      /too small|greater than/,
    );
  }
});

test("keys of every published form lead to one", () => {
  const same: Record<string, string | null> = {
    "features.0.weight": "features.0.weight",
    "features.3.squeeze.bias": "features.3.squeeze.bias",
    "net.slice2.7.bias": "features.7.bias",
    "net.slices.3.9.expand1x1.weight": "features.9.expand1x1.weight",
    "lin4.model.1.weight": "lin4.model.1.weight",
    "lin4.model.0.weight": "lin4.model.1.weight",
    "lins.6.model.1.weight": "lin6.model.1.weight",
    "classifier.0.weight": null,
    "scaling_layer.scale": null,
    "other.weight": "other.weight",
  };
  for (const [name, key] of Object.entries(same)) assert.equal(lpipsKey(name), key, name);
});
