import assert from "node:assert/strict";
import { test } from "node:test";
import { AdamW, Conv2d, GroupNorm, Linear, packConvs, packLinears, Sequential } from "../../src/nn/index.js";
import {
  functional as F,
  memory,
  noGrad,
  operatorNames,
  randn,
  type Tensor,
  zeros,
} from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";

const net = new Sequential(new Linear(48, 64), (x) => x.gelu(), new Linear(64, 40, { bias: false }));
net.requiresGrad_(false);
const layer = net.steps[0] as Linear;
const close = { rtol: 1e-5, atol: 1e-6 };

for (const shape of [[48], [1, 48], [16, 48], [2, 3, 48], [0, 48]]) {
  test(`packed and plain agree on [${shape.join(", ")}]`, () => {
    const x = randn(shape);
    const wanted = net.forward(x);
    using packed = packLinears(net);
    assert.equal(packed.count, 2);
    expectClose(net.forward(x), wanted, close);
  });
}

test("an input that is not contiguous is read as it is", () => {
  const x = randn([48, 5]).transpose(0, 1);
  const wanted = layer.forward(x);
  using _ = packLinears(net);
  expectClose(layer.forward(x), wanted, close);
});

test("weights are laid out by oneDNN where it is there", () => {
  // Only then is the copy of float32 weights a second one.
  const hasOneDnn = operatorNames().includes("mkldnn::_linear_pointwise");
  const before = memory().bytes;
  using _ = packLinears(layer);
  assert.equal(memory().bytes - before >= 48 * 64 * 4, hasOneDnn);
});

test("in another dtype it computes and returns that dtype, as autocast does", () => {
  const x = randn([16, 48]);
  const wanted = F.linear(x.bfloat16(), layer.weight.bfloat16(), layer.bias?.bfloat16());
  using _ = packLinears(net, { dtype: "bfloat16" });
  expectClose(layer.forward(x).float(), wanted.float(), { rtol: 8e-3, atol: 1e-4 });
  assert.equal(layer.forward(x).dtype, "bfloat16");
  assert.equal(net.forward(x).dtype, "bfloat16");
});

test("a dtype that oneDNN does not serve, always or on this processor, is computed by linear", () => {
  for (const dtype of ["float64", "float16"] as const) {
    const x = randn([4, 48], { dtype });
    using _ = packLinears(layer, { dtype });
    const wanted = F.linear(x, layer.weight.to({ dtype }), layer.bias?.to({ dtype }));
    const close = dtype === "float64" ? { rtol: 1e-12 } : { rtol: 2e-3, atol: 1e-4 };
    expectClose(layer.forward(x), wanted, { ...close, where: dtype });
  }
});

test("a gradient that is asked for goes through the layer's own weights", () => {
  const trained = new Linear(3, 2);
  using _ = packLinears(trained, { dtype: "bfloat16" });
  const x = randn([4, 3]);
  const y = trained.forward(x);
  assert.ok(y.requiresGrad);
  assert.equal(y.dtype, "float32");
  y.sum().backward();
  expectClose(trained.bias?.grad as Tensor, [4, 4]);
  assert.equal(noGrad(() => trained.forward(x)).dtype, "bfloat16");
  trained.requiresGrad_(false);
  assert.ok(trained.forward(x.clone().requiresGrad_()).requiresGrad);
  assert.equal(trained.forward(x).dtype, "bfloat16");
});

test("weights that change are packed again: by copy, by an optimizer, by a load, by a move", () => {
  const own = new Linear(8, 8);
  const x = randn([4, 8]);
  using _ = packLinears(own);
  const check = (what: string, input: Tensor = x): void => {
    const wanted = F.linear(input, own.weight, own.bias).detach();
    expectClose(
      noGrad(() => own.forward(input)),
      wanted,
      { ...close, where: what },
    );
  };
  check("at first");
  noGrad(() => own.weight.mul_(2));
  check("weight in place");
  noGrad(() => own.bias?.add_(1));
  check("bias in place");
  using optimizer = new AdamW(own.parameters(), { lr: 0.1 });
  own.forward(x).square().sum().backward();
  optimizer.step();
  check("optimizer");
  own.loadStateDict(new Linear(8, 8).stateDict());
  check("load");
  own.to({ dtype: "float64" });
  check("move", x.double());
});

test("a bias that changes is converted again", () => {
  const own = new Linear(2, 2);
  using _ = packLinears(own, { dtype: "bfloat16" });
  const forward = (): Tensor => noGrad(() => own.forward(zeros([1, 2])).float());
  noGrad(() => own.bias?.fill_(1));
  expectClose(forward(), [[1, 1]], { rtol: 0, atol: 0 });
  noGrad(() => own.bias?.fill_(3));
  expectClose(forward(), [[3, 3]], { rtol: 0, atol: 0 });
});

test("disposing gives the copies back", () => {
  const x = randn([2, 48]);
  noLeak(() => packLinears(net).dispose());
  const packed = packLinears(net);
  packed.dispose();
  packed.dispose();
  assert.equal(layer.packed, null);
  noLeak(() => {
    using _ = packLinears(net, { dtype: "bfloat16" });
    for (let i = 0; i < 3; i++) layer.forward(x).dispose();
  });
});

test("a layer is packed once", () => {
  using _ = packLinears(net.steps[2] as Linear);
  const message = "packLinears: expected layers that are not packed, got 2. Dispose of the other pack first.";
  assert.throws(() => packLinears(net), { name: "RangeError", message });
  assert.equal(layer.packed, null); // it came before, and was packed
  const shared = new Linear(1, 1);
  using both = packLinears(new Sequential(shared, new Sequential(shared)));
  assert.equal(both.count, 1);
});

test("packed convolutions agree with plain ones, have channels last, and spare those that are named", () => {
  const [first, last] = [
    new Conv2d(8, 16, 3, { padding: 1, stride: 2 }),
    new Conv2d(16, 4, 1, { bias: false }),
  ];
  const convs = new Sequential(first, last);
  convs.requiresGrad_(false);
  const x = randn([2, 8, 6, 6]);
  const wanted = convs.forward(x);
  {
    using packed = packConvs(convs);
    assert.equal(packed.count, 2);
    expectClose(convs.forward(x), wanted, close);
    assert.ok(first.forward(x).isContiguous("channels_last"));
  }
  using packed = packConvs(convs, { dtype: "bfloat16", except: [last] });
  assert.equal(packed.count, 1);
  const narrow = first.forward(x);
  assert.equal(narrow.dtype, "bfloat16");
  // Products of bfloat16 numbers are summed in float32 and rounded once: 2^-9 of the result, and of each factor.
  expectClose(narrow.float(), F.conv2d(x, first.weight, first.bias, first.options), { rtol: 0, atol: 0.02 });
  packed.without(() => expectClose(convs.forward(x), wanted, { rtol: 0, atol: 0 }));
  assert.equal(first.forward(x).dtype, "bfloat16");
  assert.ok(first.forward(x.clone().requiresGrad_()).requiresGrad, "a gradient goes through the own weights");
  assert.throws(() => packConvs(first), /not packed/);
});

test("a norm computes a narrower input in float32", () => {
  const norm = new GroupNorm(2, 8);
  const x = randn([2, 8, 4, 4]).mul(3).bfloat16();
  const y = norm.forward(x);
  expectClose(y.float(), norm.forward(x.float()).bfloat16().float(), { rtol: 0, atol: 0 });
});
