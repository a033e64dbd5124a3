/** The parts together: gradients of a composed network, autocast, and memory over many steps. */
import assert from "node:assert/strict";
import { test } from "node:test";
import {
  AdamW,
  Conv2d,
  clipGradNorm,
  Ema,
  Embedding,
  GroupNorm,
  LayerNorm,
  Linear,
  Module,
  RMSNorm,
  Sequential,
} from "../../src/nn/index.js";
import {
  autocast,
  functional as F,
  manualSeed,
  memory,
  noGrad,
  randn,
  setNumThreads,
  type Tensor,
  tensor,
  tidy,
} from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { golden, under } from "./golden.js";

setNumThreads(1); // test files run side by side, and so small a network gains nothing from threads

/** One of every kind of layer, an attention, and a shared weight. */
class Small extends Module {
  readonly conv = new Conv2d(3, 4, 3, { padding: 1 });
  readonly group = new GroupNorm(2, 4);
  readonly tokens = new Embedding(5, 4);
  readonly norm = new RMSNorm(4);
  readonly qkv = new Linear(4, 12);
  readonly out = new LayerNorm(4);

  forward(image: Tensor, index: Tensor): Tensor {
    const h = this.group.forward(this.conv.forward(image)).silu(); // [2, 4, 3, 3]
    const x = h.flatten(2).transpose(1, 2).add(this.tokens.forward(index)); // [2, 9, 4]
    const [q, k, v] = this.qkv.forward(this.norm.forward(x)).chunk(3, -1) as [Tensor, Tensor, Tensor];
    const y = this.out.forward(x.add(F.scaledDotProductAttention(q, k, v, { isCausal: true })));
    return F.linear(y, this.tokens.weight).logSoftmax(-1).select(-1, 2).square().mean();
  }
}

test("gradients of a composed network are those of finite differences", () => {
  manualSeed(3);
  const net = new Small().to({ dtype: "float64" });
  const image = randn([2, 3, 3, 3], { dtype: "float64" });
  const index = tensor(
    [
      [0, 1, 2, 3, 4, 0, 1, 2, 3],
      [4, 4, 2, 0, 0, 1, 1, 3, 3],
    ],
    { dtype: "int64" },
  );
  const loss = (): number => noGrad(() => tidy(() => net.forward(image, index).item()));
  tidy(() => net.forward(image, index).backward());
  const step = 1e-5;
  let checked = 0;
  for (const [name, parameter] of net.namedParameters()) {
    const gradient = parameter.grad?.flatten() as Tensor;
    const flat = parameter.detach().view(-1);
    const differences = Array.from({ length: parameter.numel }, (_, i) => {
      const element = flat.narrow(0, i, 1);
      const at = (shift: number): number => {
        element.add_(shift);
        const value = loss();
        element.sub_(shift);
        return value;
      };
      return (at(step) - at(-step)) / (2 * step);
    });
    expectClose(gradient, differences, { rtol: 1e-6, atol: 1e-8, where: name });
    checked += differences.length;
  }
  assert.equal(checked, 4 * 27 + 4 + 8 + 20 + 4 + 48 + 12 + 8);
});

test("autocast to bfloat16 gives PyTorch's loss and gradients", () => {
  const wanted = golden("autocast");
  const net = new Sequential(
    new Linear(16, 32),
    new LayerNorm(32),
    (x) => x.gelu(),
    new Linear(32, 32, { bias: false }),
    (x) => x.silu(),
    new Linear(32, 5),
  );
  net.loadStateDict(under(wanted, "state"));
  const x = (wanted.x as Tensor).clone().requiresGrad_();
  const { logits, loss } = autocast({ device: "cpu", dtype: "bfloat16" }, () => {
    const logits = net.forward(x);
    return { logits, loss: F.crossEntropy(logits, wanted.target as Tensor) };
  });
  loss.backward();
  // A product rounded to bfloat16 the other way is off by 2^-8 of itself.
  const close = { rtol: 1e-2, atol: 2e-3 };
  expectClose(logits, wanted.logits as Tensor, { ...close, where: "logits" });
  expectClose(loss, wanted.loss as Tensor, { rtol: 1e-3, where: "loss" });
  expectClose(x.grad as Tensor, wanted.x_grad as Tensor, { ...close, where: "x.grad" });
  for (const [name, parameter] of net.namedParameters()) {
    assert.equal(parameter.grad?.dtype, "float32");
    expectClose(parameter.grad as Tensor, wanted[`grad/${name}`] as Tensor, { ...close, where: name });
  }
});

test("1,000 training steps keep handles, bytes and resident memory where they were", () => {
  manualSeed(0);
  using net = new Sequential(new Linear(32, 64), (x) => x.gelu(), new LayerNorm(64), new Linear(64, 4));
  using optimizer = new AdamW(net.namedParameters(), { lr: 1e-3 });
  using ema = new Ema(net);
  let last = 0;
  const step = (): void =>
    tidy(() => {
      const x = randn([16, 32]);
      const target = x.narrow(1, 0, 4).argmax(1);
      const loss = F.crossEntropy(net.forward(x), target);
      optimizer.zeroGrad();
      loss.backward();
      clipGradNorm(net.parameters(), 1);
      optimizer.step();
      ema.update();
      last = loss.item();
    });
  for (let i = 0; i < 200; i++) step();
  const before = memory({ resetPeak: true });
  const rss = process.memoryUsage.rss();
  for (let i = 0; i < 1000; i++) step();
  const after = memory();
  assert.equal(after.tensors, before.tensors);
  // The allocator rounds up by what it happens to have; one float a step would be 4,000 bytes.
  assert.ok(Math.abs(after.bytes - before.bytes) < 1000, `${after.bytes - before.bytes} bytes more`);
  assert.ok(after.peakBytes - before.bytes < 1e6, `${after.peakBytes - before.bytes} bytes at the peak`);
  const growth = (process.memoryUsage.rss() - rss) / 2 ** 20;
  assert.ok(growth < 20, `${growth.toFixed(1)} MB more resident memory`);
  assert.ok(last < 1, `loss ${last}`); // from ln 4 = 1.39: it did train
});
