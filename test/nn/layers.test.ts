import assert from "node:assert/strict";
import { test } from "node:test";
import * as nn from "../../src/nn/index.js";
import { manualSeed, randn, type Tensor, tidy } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";
import { golden, under } from "./golden.js";

type Layer = nn.Module & { forward(x: Tensor): Tensor };

/** The layers of scripts/golden/nn.py, under the same names. */
const LAYERS: Readonly<Record<string, () => Layer>> = {
  linear: () => new nn.Linear(5, 3),
  linear_no_bias: () => new nn.Linear(5, 3, { bias: false }),
  embedding: () => new nn.Embedding(7, 3),
  layer_norm: () => new nn.LayerNorm(6),
  layer_norm_no_bias: () => new nn.LayerNorm(6, { eps: 0.1, bias: false }),
  layer_norm_plain: () => new nn.LayerNorm(6, { elementwiseAffine: false }),
  rms_norm: () => new nn.RMSNorm(6, { eps: 1e-5 }),
  group_norm: () => new nn.GroupNorm(2, 4, { eps: 1e-6 }),
  batch_norm: () => new nn.BatchNorm2d(4, { eps: 1e-3, momentum: 0.2 }),
  batch_norm_eval: () => new nn.BatchNorm2d(4).eval(),
  conv: () => new nn.Conv2d(4, 6, 3, { padding: 1 }),
  conv_strided: () =>
    new nn.Conv2d(4, 6, [2, 3], { stride: [2, 1], padding: [1, 0], dilation: [1, 2], bias: false }),
  conv_grouped: () => new nn.Conv2d(4, 6, 1, { groups: 2 }),
  dropout: () => new nn.Dropout(0.3),
  sequential: () =>
    new nn.Sequential(
      new nn.Conv2d(4, 8, 3, { padding: 1 }),
      new nn.GroupNorm(4, 8),
      (x) => x.silu(),
      new nn.Conv2d(8, 2, 1),
    ),
};

const SEED = 7;
const close = { rtol: 1e-5, atol: 1e-6 };

const values = golden("layers");
for (const [key, build] of Object.entries(LAYERS)) {
  test(`${key}: forward, gradients and buffers are PyTorch's`, () => {
    const wanted = under(values, key);
    const layer = build();
    layer.loadStateDict(under(wanted, "state"));
    const x = (wanted.x as Tensor).clone();
    if (x.dtype === "float32") x.requiresGrad_();
    if (key === "dropout") {
      manualSeed(SEED);
      randn([4, 8]).dispose(); // PyTorch drew the input from the same seed
    }
    const y = layer.forward(x);
    y.backward(wanted.gradient as Tensor);
    expectClose(y, wanted.y as Tensor, { ...close, where: "y" });
    if (wanted.x_grad !== undefined)
      expectClose(x.grad as Tensor, wanted.x_grad, { ...close, where: "x.grad" });
    const gradients = under(wanted, "grad");
    assert.deepEqual(
      Object.keys(gradients).sort(),
      layer
        .namedParameters()
        .map(([name]) => name)
        .sort(),
    );
    for (const [name, parameter] of layer.namedParameters()) {
      expectClose(parameter.grad as Tensor, gradients[name] as Tensor, { ...close, where: `${name}.grad` });
    }
    for (const [name, buffer] of Object.entries(under(wanted, "after"))) {
      expectClose(layer.stateDict()[name] as Tensor, buffer, { ...close, where: name });
    }
  });
}

test("every golden layer is tested", () => {
  assert.deepEqual(
    [...new Set(Object.keys(values).map((name) => name.split("/")[0]))].sort(),
    Object.keys(LAYERS).sort(),
  );
});

test("dropout leaves its input alone outside training", () => {
  const x = values["linear/x"] as Tensor;
  expectClose(new nn.Dropout(0.9).eval().forward(x), x, { rtol: 0, atol: 0 });
});

test("building a layer and disposing of it leaves nothing", () => {
  for (const build of Object.values(LAYERS)) {
    noLeak(() => build().dispose());
    noLeak(() => tidy(build).dispose());
  }
});

test("channels that do not divide into groups are refused", () => {
  assert.throws(() => new nn.Conv2d(4, 6, 3, { groups: 3 }), {
    name: "RangeError",
    message: "Conv2d: expected inChannels and outChannels that 3 groups divide, got 4 and 6.",
  });
});
