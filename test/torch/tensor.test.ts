import assert from "node:assert/strict";
import { test } from "node:test";
import { inspect } from "node:util";

import fc from "fast-check";

import {
  arange,
  call,
  DTYPES,
  type DType,
  einsum,
  empty,
  functional as F,
  full,
  meshgrid,
  ones,
  randn,
  type Tensor,
  tensor,
  tidy,
  zeros,
} from "../../src/torch/index.js";
import { elementBytes } from "../support/bytes.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";

test("shape, strides, dtype, device, offset and counts are LibTorch's", () => {
  tidy(() => {
    const x = zeros([2, 3, 4]);
    assert.deepEqual(
      [x.shape, x.strides, x.ndim, x.numel, x.dtype, x.device, x.storageOffset, x.isDisposed],
      [[2, 3, 4], [12, 4, 1], 3, 24, "float32", "cpu", 0, false],
    );
    const view = x.narrow(1, 1, 2).transpose(0, 2);
    assert.deepEqual([view.shape, view.strides, view.storageOffset], [[4, 2, 2], [1, 4, 12], 4]);
    const number = full([], 3, { dtype: "int16" });
    assert.deepEqual(
      [number.shape, number.strides, number.ndim, number.numel, number.dtype],
      [[], [], 0, 1, "int16"],
    );
    const nothing = zeros([0, 5]);
    assert.deepEqual([nothing.shape, nothing.numel], [[0, 5], 0]);
    assert.equal(empty([1 << 20, 1 << 12], { device: "meta" }).device, "meta");
  });
});

test("every dtype says its name and size", () => {
  tidy(() => {
    for (const [name, { size, code }] of Object.entries(DTYPES)) {
      const x = zeros([3], { dtype: name as DType });
      assert.equal(x.dtype, name);
      assert.equal(elementBytes(x).length, 3 * size);
      assert.ok(code >= 0);
    }
    const bits = call("aten::zeros", [[2]], { dtype: "float32" }) as Tensor;
    const odd = call("aten::view_as_complex", [bits.view(1, 2)]) as Tensor;
    assert.equal(odd.dtype, "complex64");
  });
});

test("a tensor prints its type, shape and device, never its values", () => {
  tidy(() => {
    const x = zeros([2, 3], { dtype: "bfloat16" });
    assert.equal(String(x), "Tensor bfloat16[2, 3] cpu");
    assert.equal(inspect(x), "Tensor bfloat16[2, 3] cpu");
    assert.equal(inspect({ x: full([], 1) }), "{ x: Tensor float32[] cpu }");
    x.dispose();
    assert.equal(inspect(x), "Tensor (freed)");
  });
});

test("toArray gives each dtype its own array, in row-major order whatever the strides", () => {
  tidy(() => {
    const x = tensor([
      [1, 2, 3],
      [4, 5, 6],
    ]);
    assert.deepEqual(x.toArray(), new Float32Array([1, 2, 3, 4, 5, 6]));
    assert.deepEqual(x.transpose(0, 1).toArray(), new Float32Array([1, 4, 2, 5, 3, 6]));
    assert.deepEqual(x.double().toArray(), new Float64Array([1, 2, 3, 4, 5, 6]));
    assert.deepEqual(x.half().toArray(), new Float32Array([1, 2, 3, 4, 5, 6]));
    assert.deepEqual(x.bfloat16().slice(1, 1).toArray(), new Float32Array([2, 3, 5, 6]));
    assert.deepEqual(x.long().toArray(), new BigInt64Array([1n, 2n, 3n, 4n, 5n, 6n]));
    assert.deepEqual(x.int().toArray(), new Int32Array([1, 2, 3, 4, 5, 6]));
    assert.deepEqual(x.to({ dtype: "int16" }).toArray(), new Int16Array([1, 2, 3, 4, 5, 6]));
    assert.deepEqual(x.neg().to({ dtype: "int8" }).toArray(), new Int8Array([-1, -2, -3, -4, -5, -6]));
    assert.deepEqual(x.to({ dtype: "uint8" }).toArray(), new Uint8Array([1, 2, 3, 4, 5, 6]));
    assert.deepEqual(x.gt(3).toArray(), new Uint8Array([0, 0, 0, 1, 1, 1]));
    assert.deepEqual(zeros([0, 2]).toArray(), new Float32Array(0));
    assert.deepEqual(x.requiresGrad_().mul(2).toArray(), new Float32Array([2, 4, 6, 8, 10, 12]));
    assert.throws(() => zeros([1], { dtype: "complex64" }).toArray(), {
      name: "RangeError",
      message: "Tensor.toArray: expected a real dtype, got complex64. Take real or imag first.",
    });
  });
});

test("toList nests as the shape does", () => {
  tidy(() => {
    assert.equal(full([], 2.5).toList(), 2.5);
    assert.deepEqual(arange(0, 12).view(2, 3, 2).toList(), [
      [
        [0, 1],
        [2, 3],
        [4, 5],
      ],
      [
        [6, 7],
        [8, 9],
        [10, 11],
      ],
    ]);
    assert.deepEqual(zeros([2, 0]).toList(), [[], []]);
    assert.deepEqual(zeros([0, 2]).toList(), []);
    assert.deepEqual(tensor([1, 0]).bool().toList(), [1, 0]);
    assert.deepEqual(tensor([NaN, -Infinity]).toList(), [NaN, -Infinity]);
    assert.throws(() => tensor([1n << 53n]).toList(), {
      name: "RangeError",
      message: "Tensor.toList: expected integers within 2^53, got 9007199254740992n. Use toArray().",
    });
  });
});

test("item gives numbers, 0 or 1 for booleans, and refuses what would lose digits", () => {
  tidy(() => {
    assert.equal(tensor([[2.5]]).item(), 2.5);
    assert.equal(tensor([7n]).item(), 7);
    assert.equal(tensor([1]).bool().item(), 1);
    assert.equal(tensor([0]).bool().item(), 0);
    assert.equal(tensor([-(1n << 63n)]).itemBigInt(), -(1n << 63n));
    assert.equal(tensor([5]).int().itemBigInt(), 5n);
    assert.equal(tensor([1]).bool().itemBigInt(), 1n);
    assert.throws(() => tensor([(1n << 53n) + 1n]).item(), {
      name: "RangeError",
      message: "Tensor.item: expected an integer within 2^53, got 9007199254740993n. Use itemBigInt().",
    });
    for (const shape of [[2], [0], [1, 3]]) {
      const message = /^Tensor\.item: expected a tensor of one element, got Tensor float32\[/;
      assert.throws(() => zeros(shape).item(), { name: "RangeError", message });
    }
  });
});

test("values go in and come out as they were, any shape, any double, any 64-bit integer", () => {
  const shapes = fc.array(fc.integer({ min: 0, max: 4 }), { maxLength: 4 });
  const count = (shape: number[]): number => shape.reduce((product, size) => product * size, 1);
  const filled = <T>(element: fc.Arbitrary<T>): fc.Arbitrary<{ shape: number[]; flat: T[] }> =>
    shapes.chain((shape) =>
      fc
        .array(element, { minLength: count(shape), maxLength: count(shape) })
        .map((flat) => ({ shape, flat })),
    );
  const nest = (flat: unknown[], shape: number[]): unknown => {
    const [size, ...inner] = shape;
    if (size === undefined) return flat[0];
    const step = count(inner);
    return Array.from({ length: size }, (_, i) => nest(flat.slice(i * step, (i + 1) * step), inner));
  };
  // A list without elements does not say the sizes inside it.
  const visible = (shape: number[]): number[] => {
    const zero = shape.indexOf(0);
    return zero < 0 ? shape : shape.slice(0, zero + 1);
  };
  fc.assert(
    fc.property(filled(fc.double()), ({ shape, flat }) =>
      tidy(() => {
        const nested = nest(flat, shape);
        const x = tensor(nested as never, { dtype: "float64" });
        assert.deepEqual(x.shape, visible(shape));
        assert.deepEqual(x.toArray(), Float64Array.from(flat));
        assert.deepEqual(x.toList(), nested);
      }),
    ),
  );
  fc.assert(
    fc.property(filled(fc.bigInt({ min: -(1n << 63n), max: (1n << 63n) - 1n })), ({ shape, flat }) =>
      tidy(() => {
        const x = tensor(nest(flat, shape) as never, { dtype: "int64" });
        assert.deepEqual(x.toArray(), BigInt64Array.from(flat));
      }),
    ),
  );
  fc.assert(
    fc.property(fc.float32Array(), (array) => tidy(() => assert.deepEqual(tensor(array).toArray(), array))),
  );
});

test("dims checks the rank, size takes negative dimensions", () => {
  tidy(() => {
    const x = zeros([2, 3, 4]);
    const [n, t, v] = x.dims(3);
    assert.deepEqual([n, t, v], [2, 3, 4]);
    assert.throws(() => x.dims(2), {
      name: "RangeError",
      message: "Tensor.dims: expected 2 dimensions, got Tensor float32[2, 3, 4] cpu.",
    });
    assert.deepEqual([x.size(0), x.size(-1), x.size(-3)], [2, 4, 2]);
    for (const dim of [3, -4, 0.5 + 3]) {
      assert.throws(() => x.size(dim), {
        name: "RangeError",
        message: `Tensor.size: expected a dimension of Tensor float32[2, 3, 4] cpu, got ${dim}.`,
      });
    }
  });
});

test("to and its short forms give the tensor itself where nothing changes, as a second handle", () => {
  tidy(() => {
    const x = ones([2, 3]);
    const same = x.to({ dtype: "float32", device: "cpu" });
    same.fill_(4);
    assert.equal(x.amax().item(), 4);
    const copy = x.to({ copy: true });
    copy.fill_(5);
    assert.equal(x.amax().item(), 4);
    assert.equal(x.cpu().device, "cpu");
    assert.equal(x.to({ dtype: "float64", memoryFormat: "contiguous_format" }).dtype, "float64");
    assert.equal(x.to({ device: "meta" }).device, "meta");
  });
});

test("channels_last stays through a convolution, and contiguous takes it away", () => {
  tidy(() => {
    const image = randn([2, 3, 5, 4]);
    const last = image.contiguous("channels_last");
    assert.deepEqual([last.isContiguous(), last.isContiguous("channels_last")], [false, true]);
    assert.deepEqual(last.strides, [60, 1, 12, 3]);
    const out = F.conv2d(last, randn([6, 3, 3, 3]));
    assert.deepEqual([out.isContiguous(), out.isContiguous("channels_last")], [false, true]);
    assert.equal(out.contiguous().isContiguous(), true);
    assert.equal(image.to({ memoryFormat: "channels_last" }).isContiguous("channels_last"), true);
    assert.equal(image.clone("channels_last").isContiguous("channels_last"), true);
    assert.equal(last.clone().isContiguous("channels_last"), true, "clone keeps the format");
    assert.ok(last.equal(image));
  });
});

test("equal compares shape and values; NaN equals nothing", () => {
  tidy(() => {
    const x = tensor([1, 2]);
    assert.equal(x.equal(tensor([1, 2])), true);
    assert.equal(x.equal(tensor([1, 3])), false);
    assert.equal(x.equal(tensor([[1, 2]])), false);
    assert.equal(tensor([NaN]).equal(tensor([NaN])), false);
  });
});

test("arguments left out are PyTorch's defaults", () => {
  tidy(() => {
    const x = tensor([1, 3]);
    expectClose(x.softplus(), [Math.log1p(Math.E), Math.log1p(Math.exp(3))]);
    expectClose(x.neg().leakyRelu(), [-0.01, -0.03]);
    expectClose(x.mul(20).softplus(), [20, 60], { rtol: 1e-7 });
    const square = ones([2, 2]);
    const lists = [
      square.triu(),
      square.tril(),
      square.diagonal(),
      square.addcmul(square, square),
      square.clone().add_(1),
      square.clone().sub_(1),
      square.add(1),
      square.sub(1),
      tensor([0n, 2n]).bincount(),
      x.sort().values,
      x.argsort(),
      x.amax(),
      x.flatten(),
      square.split(1)[0] as Tensor,
      square.unbind()[0] as Tensor,
      square.chunk(2)[0] as Tensor,
      x.topk(1).values,
      x.max(0).values,
      x.slice(0, 1),
      x.std(),
      x.var(),
    ].map((each) => each.toList());
    assert.deepEqual(lists, [
      [
        [1, 1],
        [0, 1],
      ],
      [
        [1, 0],
        [1, 1],
      ],
      [1, 1],
      [
        [2, 2],
        [2, 2],
      ],
      [
        [2, 2],
        [2, 2],
      ],
      [
        [0, 0],
        [0, 0],
      ],
      [
        [2, 2],
        [2, 2],
      ],
      [
        [0, 0],
        [0, 0],
      ],
      [1, 0, 1],
      [1, 3],
      [0, 1],
      3,
      [1, 3],
      [[1, 1]],
      [1, 1],
      [[1, 1]],
      [3],
      3,
      [3],
      Math.fround(Math.SQRT2),
      2,
    ]);
  });
});

test("in-place methods give the tensor itself and leave no handle", () => {
  tidy(() => {
    const x = ones([2, 2]);
    const index = tensor([[0, 1]], { dtype: "int64" });
    const row = tensor([0], { dtype: "int64" });
    const one = ones([1, 2]);
    const steps: (() => Tensor)[] = [
      () => x.copy_(one),
      () => x.fill_(2),
      () => x.add_(1),
      () => x.sub_(1),
      () => x.mul_(2),
      () => x.div_(2),
      () => x.addcmul_(x, x),
      () => x.addcdiv_(x, x),
      () => x.lerp_(x, 0.5),
      () => x.clamp_(0, 1),
      () => x.maskedFill_(x.detach().gt(5), 0),
      () => x.scatter_(0, index, 1),
      () => x.scatterAdd_(0, index, one),
      () => x.indexCopy_(0, row, one),
      () => x.zero_(),
      () => x.requiresGrad_(false),
    ];
    for (const step of steps) noLeak(() => tidy(() => assert.equal(step(), x)));
  });
});

test("views share memory with what they look at, which lives as long as they do", () => {
  tidy(() => {
    const x = zeros([2, 3]);
    const row = x.select(0, 1);
    x.dispose();
    row.fill_(2);
    assert.deepEqual(row.toList(), [2, 2, 2]);
  });
});

test("sizes and dimensions are given one by one or as one array", () => {
  tidy(() => {
    const x = arange(0, 24).view(2, 3, 4);
    const pairs: [Tensor, Tensor][] = [
      [x.view([6, -1]), x.view(6, -1)],
      [x.reshape([4, 6]), x.reshape(4, 6)],
      [x.permute([0, 2, 1]), x.permute(0, 2, 1)],
      [x.flip([0, 2]), x.flip(0, 2)],
      [x.repeat([2, 1, 1]), x.repeat(2, 1, 1)],
      [x.select(0, 0).expand([5, 3, 4]), x.select(0, 0).expand(5, 3, 4)],
      [x.view([24]), x.view(24)],
      [x.movedim([0, 1], [1, 0]), x.transpose(0, 1)],
      [x.float().sum([0, 2]), x.float().sum(2).sum(0)],
      [x.float().mean([1]), x.float().mean(1)],
      [x.amax([0]), x.amax(0)],
      [x.float().std([1]), x.float().std(1)],
      [x.float().norm(2, [1]), x.float().norm(2, 1)],
      [x.unsqueeze(0).squeeze([0]), x],
      [x.unsqueeze(0).squeeze(), x],
    ];
    for (const [list, single] of pairs) {
      assert.deepEqual(list.toList(), single.toList());
      assert.deepEqual(list.shape, single.shape);
    }
    const [row, column] = [ones([2]), ones([3])];
    assert.deepEqual(
      meshgrid([row, column]).map(({ shape }) => shape),
      meshgrid(row, column).map(({ shape }) => shape),
    );
    assert.deepEqual(einsum("i,j->ij", [row, column]).toList(), einsum("i,j->ij", row, column).toList());
    const scalar = zeros([1]);
    assert.deepEqual(scalar.view().shape, []);
    assert.deepEqual(scalar.view([]).shape, []);
  });
});

test("a message about a list says what was inside, and where", () => {
  tidy(() => {
    const x = zeros([2, 3, 4]);
    type Any = (...args: unknown[]) => unknown;
    const wrong =
      (use: Any, ...args: unknown[]): (() => unknown) =>
      () =>
        Reflect.apply(use, x, args);
    const cases: [() => unknown, RegExp][] = [
      [wrong(x.permute as Any, [0, 2], 1), /'dims': expected a list of integers, got \[0, 2\] at index 0/],
      [wrong(x.permute as Any, [[0, 2, 1]]), /expected a list of integers, got \[0, 2, 1\] at index 0/],
      [wrong(x.view as Any, 2, 1.5), /expected a list of integers, got 1\.5 at index 1/],
      [wrong(x.reshape as Any, [2, "x"]), /expected a list of integers, got "x" at index 1/],
      [wrong(x.reshape as Any, 24, null), /got null at index 1/],
      [wrong(x.expand as Any, 2, undefined), /got nothing at index 1/],
      [wrong(x.repeat as Any, x), /got a Tensor at index 0/],
      [wrong(x.sum as Any, [0, true]), /got true at index 1/],
      [() => call("aten::zeros", [[2, 0.5]]), /'size': expected a list of integers, got 0\.5 at index 1/],
      [() => call("aten::zeros", ["x"]), /'size': expected a list of integers, got "x"/],
      [
        () => call("aten::relu", [[1, 2, 3, 4, 5, 6, 7, 8, 9, [10]]]),
        /a Tensor, got \[1, 2, 3, 4, 5, 6, 7, 8, \.\.\. 10 in all\]/,
      ],
      [() => call("aten::cat", [[x, 3, null]]), /got null at index 2/],
    ];
    for (const [use, message] of cases) assert.throws(use, { name: "TorchError", message });
  });
});
