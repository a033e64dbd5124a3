/** The meta device: operators of networks and losses give the shapes and dtypes that the CPU gives, and refuse the CPU's tensors. */
import assert from "node:assert/strict";
import { test } from "node:test";

import {
  arange,
  autocast,
  call,
  cat,
  checkpoint,
  type Device,
  einsum,
  empty,
  eye,
  functional as F,
  full,
  Generator,
  linspace,
  memory,
  multinomial,
  ones,
  rand,
  randint,
  randn,
  randperm,
  saveSafetensors,
  saveTorch,
  stack,
  stream,
  type Tensor,
  tensor,
  tidy,
  where,
  zeros,
} from "../../src/torch/index.js";
import { noLeak } from "../support/leak.js";

/** Tensors of a device: floats near 1, and indices that are in range. */
interface On {
  device: Device;
  f(...shape: number[]): Tensor;
  /** One that takes a gradient. */
  g(...shape: number[]): Tensor;
  i(...shape: number[]): Tensor;
  b(...shape: number[]): Tensor;
}

const on = (device: Device): On => ({
  device,
  f: (...shape) => ones(shape, { device }),
  g: (...shape) => ones(shape, { device, requiresGrad: true }),
  i: (...shape) => zeros(shape, { device, dtype: "int64" }),
  b: (...shape) => ones(shape, { device, dtype: "bool" }),
});

/** The result and the gradients of `leaves`. */
function withGradients(result: Tensor, ...leaves: Tensor[]): Tensor[] {
  result.float().sum().backward();
  return [result, ...leaves.map((leaf) => leaf.grad as Tensor)];
}

const BATCH = { training: true, momentum: 0.1, eps: 1e-5 };

const CASES: Record<string, (t: On) => Tensor | Tensor[]> = {
  creation: ({ device }) => [
    zeros([2], { device }),
    full([2], 3, { device }),
    arange(0, 5, 1, { device }),
    linspace(0, 1, 5, { device }),
    eye(3, { device }),
    tensor([[1, 2]], { device }),
    empty([1, 2, 3, 4], { device, memoryFormat: "channels_last" }),
  ],
  random: ({ device, f }) => {
    using generator = new Generator(1, device);
    using named = stream(1, "a", 2, device);
    return [
      rand([2], { device, generator }),
      randn([2], { device, generator: named }),
      randint(0, 5, [3], { device, generator }),
      randperm(4, { device, generator }),
      randperm(4, { device }),
      multinomial(f(2, 5), 2, { generator }),
      call("aten::exponential_", [f(2), 1, generator]) as Tensor,
      F.dropout(f(3), 0.5, true),
    ];
  },
  convolution: ({ f, g }) => {
    const [x, w, bias] = [g(2, 4, 9, 8), g(6, 2, 3, 3), g(6)];
    const options = {
      padding: [1, 2] as const,
      stride: [2, 1] as const,
      dilation: [1, 2] as const,
      groups: 2,
    };
    return [
      ...withGradients(F.conv2d(x, w, bias, options), x, w, bias),
      F.conv2d(f(1, 4, 8, 8), f(4, 4, 1, 1)),
    ];
  },
  channelsLast: ({ f }) =>
    F.conv2d(f(1, 4, 8, 8).to({ memoryFormat: "channels_last" }), f(4, 4, 3, 3), null, { padding: 1 }),
  transposedConvolution: ({ g }) => {
    const [x, w] = [g(2, 4, 5, 6), g(4, 3, 3, 3)];
    const options = { stride: 2, padding: 1, outputPadding: 1, groups: 2, dilation: 2 };
    return withGradients(F.convTranspose2d(x, w, null, options), x, w);
  },
  norms: ({ g, f }) => {
    const [x, w, bias] = [g(2, 4, 6), g(6), g(6)];
    const [y, v] = [g(2, 4, 3, 3), g(4)];
    return [
      ...withGradients(F.layerNorm(x, [6], w, bias), x, w, bias),
      F.layerNorm(f(2, 6), [6]),
      ...withGradients(F.rmsNorm(x, [6], w), x, w),
      ...withGradients(F.groupNorm(y, 2, v), y, v),
      ...withGradients(F.batchNorm(y, { mean: f(4), var: f(4) }, v, null, BATCH), y, v),
      F.batchNorm(y, { mean: f(4), var: f(4) }, v, null, { ...BATCH, training: false }),
    ];
  },
  attention: ({ g, f, b }) => {
    const [q, k, v] = [g(1, 4, 5, 8), g(1, 2, 5, 8), g(1, 2, 5, 8)];
    return [
      ...withGradients(F.scaledDotProductAttention(q, k, v, { isCausal: true, enableGqa: true }), q, k, v),
      F.scaledDotProductAttention(f(2, 4, 1, 8), f(2, 4, 7, 8), f(2, 4, 7, 8), { mask: b(1, 7) }),
    ];
  },
  embedding: ({ g, i }) => {
    const w = g(5, 3);
    return withGradients(F.embedding(i(2, 4), w), w);
  },
  cache: ({ f, i }) => {
    const keys = f(2, 4, 7, 8);
    keys.narrow(2, 3, 2).copy_(f(2, 4, 2, 8));
    call("aten::index_put_", [keys, [null, null, i(1)], f(2, 4, 1, 8)]);
    return [keys, keys.indexCopy_(2, i(1), f(2, 4, 1, 8)), keys.index(i(3)), keys.indexSelect(0, i(3))];
  },
  losses: ({ g, f, i }) => {
    const x = g(6, 5);
    return [
      ...withGradients(F.crossEntropy(x, i(6), { reduction: "none", labelSmoothing: 0.1 }), x),
      ...withGradients(F.binaryCrossEntropyWithLogits(x, f(6, 5)), x),
      ...withGradients(F.l1Loss(x, f(6, 5)), x),
      ...withGradients(F.smoothL1Loss(x, f(6, 5)), x),
      F.mseLoss(x, f(6, 5)),
      F.klDiv(x, f(6, 5)),
      x.logSoftmax(-1).gather(1, i(6, 1)),
    ];
  },
  images: ({ g }) => {
    const x = g(1, 2, 8, 8);
    return [
      ...withGradients(F.pad(x, [1, 1, 2, 2], "reflect"), x),
      ...withGradients(F.pad(x, [1, 1, 2, 2], "replicate"), x),
      ...withGradients(F.interpolate(x, { size: [5, 3], mode: "bicubic", antialias: true }), x),
      ...withGradients(F.interpolate(x, { scale: 2 }), x),
      ...withGradients(F.interpolate(x, { scale: 0.5, mode: "area" }), x),
      F.avgPool2d(x, 2),
      F.maxPool2d(x, 3, { stride: 2, padding: 1 }),
    ];
  },
  reductions: ({ f, g }) => {
    const x = g(3, 4);
    return [
      ...withGradients(x.std(1), x),
      ...withGradients(x.var(null, { correction: 0 }), x),
      x.norm(),
      x.logsumexp(1),
      x.argmax(1),
      x.topk(2).values,
      x.sort(1).indices,
      x.cumsum(1),
      x.isfinite().all(),
      f(3).amax(),
    ];
  },
  choices: ({ f, b, g }) => {
    const x = g(3, 4);
    return [...withGradients(where(b(4), x, f(3, 4)), x), f(3).maskedFill(b(3), 0), where(b(3), 1, 0)];
  },
  products: ({ f }) => [
    f(2, 3).matmul(f(3, 4)),
    einsum("bhd,bkd->bhk", f(2, 3, 4), f(2, 5, 4)),
    call("aten::cdist", [f(2, 3), f(4, 3)]) as Tensor,
    cat([f(2), f(3)]),
    stack([f(2), f(2)]),
    call("aten::view_as_complex", [f(3, 2)]) as Tensor,
    call("aten::polar", [f(2), f(2)]) as Tensor,
  ],
  checkpointed: ({ g }) => {
    const x = g(3);
    return withGradients(
      checkpoint((y) => F.dropout(y.mul(2), 0.5, true), [x]),
      x,
    );
  },
  autocast: ({ f }) => autocast({ device: "cpu", dtype: "bfloat16" }, () => f(2, 3).add(1)),
};

const look = (result: Tensor | Tensor[]): unknown[] =>
  (Array.isArray(result) ? result : [result]).map(({ dtype, shape, strides }) => ({ dtype, shape, strides }));

for (const [name, make] of Object.entries(CASES)) {
  test(`on meta as on the CPU: ${name}`, () =>
    noLeak(() =>
      tidy(() => {
        const got = make(on("meta"));
        for (const each of [got].flat()) assert.equal(each.device, "meta");
        assert.deepEqual(look(got), look(make(on("cpu"))));
      }),
    ));
}

test("a tensor or generator of the CPU beside those on meta is refused by name, as on a GPU", () => {
  tidy(() => {
    const meta = on("meta");
    const { f, i, b } = on("cpu");
    using generator = new Generator(1);
    using metaGenerator = new Generator(1, "meta");
    const mixed: Record<string, () => unknown> = {
      add: () => meta.f(2).add(f(2)),
      matmul: () => meta.f(2, 3).matmul(f(3, 4)),
      linear: () => F.linear(meta.f(2, 3), f(4, 3)),
      bias: () => F.linear(meta.f(2, 3), meta.f(4, 3), f(4)),
      embedding: () => F.embedding(i(2), meta.f(5, 3)),
      gather: () => meta.f(2, 5).gather(1, i(2, 1)),
      cat: () => cat([meta.f(2), f(2)]),
      where: () => where(b(2), meta.f(2), meta.f(2)),
      "index_put's values": () => call("aten::index_put_", [meta.f(5, 3), [meta.i(2)], f(2, 3)]),
      "into the CPU": () => call("aten::index_put_", [f(5, 3), [meta.i(2)], f(2, 3)]),
      layerNorm: () => F.layerNorm(meta.f(2, 3), [3], f(3)),
      attention: () => F.scaledDotProductAttention(meta.f(1, 4, 8), f(1, 4, 8), meta.f(1, 4, 8)),
      mask: () =>
        F.scaledDotProductAttention(meta.f(1, 4, 8), meta.f(1, 4, 8), meta.f(1, 4, 8), { mask: b(4, 4) }),
      crossEntropy: () => F.crossEntropy(meta.f(2, 5), i(2)),
      scatter: () => meta.f(2, 5).scatter_(1, i(2, 1), 0),
      maskedFill: () => meta.f(3).maskedFill(b(3), 0),
      foreach: () => call("aten::_foreach_lerp_.Scalar", [[meta.f(2)], [f(2)], 0.5]),
      convolution: () => F.conv2d(meta.f(1, 3, 4, 4), f(2, 3, 3, 3)),
      "rand with a generator of the CPU": () => rand([2], { device: "meta", generator }),
      "a draw in place": () => call("aten::exponential_", [meta.f(2), 1, generator]),
      "the CPU with a generator on meta": () => rand([2], { generator: metaGenerator }),
    };
    for (const [name, use] of Object.entries(mixed)) {
      assert.throws(use, /meta.*(cpu|CPU)|(cpu|CPU).*meta/s, name);
    }
    // What a GPU takes too: numbers, indices, and copies from one device to the other.
    assert.equal(meta.f(2).add(f()).device, "meta");
    assert.equal(meta.f(5, 3).index(i(2)).device, "meta");
    assert.equal(meta.f(2).copy_(f(2)).device, "meta");
    assert.equal(f(2).to({ device: "meta" }).device, "meta");
  });
});

test("what needs a value of a tensor on meta is one sentence that says so", () => {
  tidy(() => {
    const { f, i, b } = on("meta");
    const reads: Record<string, () => unknown> = {
      item: () => f().item(),
      itemBigInt: () => i().itemBigInt(),
      toArray: () => f(2).toArray(),
      toList: () => f(2).toList(),
      cpu: () => f(2).cpu(),
      copy_: () => zeros([2]).copy_(f(2)),
      equal: () => f(2).equal(f(2)),
      nonzero: () => f(2).nonzero(),
      unique: () => i(2).unique(),
      bincount: () => i(2).bincount(),
      maskedSelect: () => f(2).maskedSelect(b(2)),
      saveSafetensors: () => saveSafetensors("/dev/null/none", { f: f(2) }),
      saveTorch: () => saveTorch("/dev/null/none", { f: f(2) }),
    };
    for (const [name, read] of Object.entries(reads)) {
      assert.throws(
        read,
        /: expected (a tensor|tensors) with values, got .*meta.*\. A tensor on meta has a shape alone/s,
        name,
      );
    }
  });
});

test("nothing on meta takes memory", () => {
  tidy(() => {
    const { bytes } = memory();
    const x = empty([1 << 20, 1 << 12], { device: "meta" });
    F.conv2d(x.view(1, 1 << 10, 1 << 11, 1 << 11), empty([1 << 10, 1 << 10, 3, 3], { device: "meta" }));
    assert.equal(memory().bytes, bytes);
  });
});
