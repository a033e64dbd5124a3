import assert from "node:assert/strict";
import { test } from "node:test";

import {
  arange,
  bernoulli,
  cat,
  type DType,
  empty,
  emptyLike,
  eye,
  full,
  fullLike,
  linspace,
  multinomial,
  ones,
  onesLike,
  rand,
  randint,
  randn,
  randperm,
  stack,
  tensor,
  tidy,
  zeros,
  zerosLike,
} from "../../src/torch/index.js";
import { noLeak } from "../support/leak.js";

test("tensor takes numbers, nested lists, bigints and typed arrays, float32 unless told", () => {
  tidy(() => {
    assert.deepEqual([tensor(3).shape, tensor(3).dtype, tensor(3).item()], [[], "float32", 3]);
    assert.deepEqual(
      [tensor([]).shape, tensor([[], []]).shape, tensor([[[]]]).shape],
      [[0], [2, 0], [1, 1, 0]],
    );
    assert.equal(tensor([1, 2]).dtype, "float32");
    assert.equal(tensor([1n, 2n]).dtype, "int64");
    assert.equal(tensor([1, 2], { dtype: "int64" }).dtype, "int64");
    assert.deepEqual(
      tensor(
        [
          [1, 2],
          [3, 4],
        ],
        { dtype: "int8" },
      ).toArray(),
      new Int8Array([1, 2, 3, 4]),
    );
    assert.deepEqual(tensor([0.1, 1e-9], { dtype: "float64" }).toArray(), new Float64Array([0.1, 1e-9]));
    assert.deepEqual(tensor([0, 2, -1], { dtype: "bool" }).toArray(), new Uint8Array([0, 1, 1]));
    assert.equal(tensor([1, 2], { dtype: "bfloat16", requiresGrad: true }).requiresGrad, true);
    assert.equal(tensor([1, 2]).requiresGrad, false);
    assert.deepEqual(tensor([2], { dtype: "complex64" }).dtype, "complex64");
    const arrays = {
      float32: new Float32Array([1.5, -2]),
      float64: new Float64Array([0.1, 2]),
      int64: new BigInt64Array([-5n, 1n << 62n]),
      int32: new Int32Array([-5, 7]),
      int16: new Int16Array([-5, 7]),
      int8: new Int8Array([-5, 7]),
      uint8: new Uint8Array([0, 255]),
    };
    for (const [dtype, array] of Object.entries(arrays)) {
      const x = tensor(array);
      assert.equal(x.dtype, dtype);
      assert.deepEqual(x.toArray(), array);
      array.reverse();
      assert.notDeepEqual(x.toArray(), array, "the values are copied");
    }
    assert.deepEqual(tensor(new Uint8ClampedArray([1, 255]) as never).toArray(), new Uint8Array([1, 255]));
    assert.deepEqual(tensor(new Float64Array([1, 2]).subarray(1)).toList(), [2]);
    assert.equal(tensor(new Float32Array(4), { dtype: "int64" }).dtype, "int64");
  });
});

test("tensor refuses ragged lists, strangers and values that the dtype cannot hold", () => {
  const refusals: [() => unknown, string, string][] = [
    [() => tensor([[1, 2], [3]]), "RangeError", "tensor: expected lists of length 2 at depth 1, got 1."],
    [
      () => tensor([1, [2]]),
      "RangeError",
      "tensor: expected lists of length 0 (a number) at depth 1, got 1.",
    ],
    [() => tensor([[1], 2]), "RangeError", "tensor: expected lists nested 2 deep, got 1 deep."],
    [
      () => tensor(["1"] as never),
      "TypeError",
      "tensor: expected numbers or nested lists of numbers, got 1.",
    ],
    [
      () => tensor([null] as never),
      "TypeError",
      "tensor: expected numbers or nested lists of numbers, got null.",
    ],
    [
      () => tensor([1, undefined] as never),
      "TypeError",
      "tensor: expected numbers or nested lists of numbers, got undefined.",
    ],
    [
      () => tensor(new Uint16Array(2)),
      "TypeError",
      "tensor: expected a typed array of a known dtype, got Uint16Array.",
    ],
    [
      () => tensor(new BigUint64Array(2) as never),
      "TypeError",
      "tensor: expected a typed array of a known dtype, got BigUint64Array.",
    ],
    [() => tensor([1.5], { dtype: "int64" }), "RangeError", "tensor: expected values of int64, got 1.5."],
    [() => tensor([NaN], { dtype: "int32" }), "RangeError", "tensor: expected values of int32, got NaN."],
    [() => tensor([1n << 63n]), "RangeError", "tensor: expected values of int64, got 9223372036854775808n."],
    [
      () => tensor([2 ** 63], { dtype: "int64" }),
      "RangeError",
      "tensor: expected values of int64, got 9223372036854776000.",
    ],
    [() => tensor([-1], { dtype: "uint8" }), "RangeError", "tensor: expected values of uint8, got -1."],
    [() => tensor([256], { dtype: "uint8" }), "RangeError", "tensor: expected values of uint8, got 256."],
    [() => tensor([128n], { dtype: "int8" }), "RangeError", "tensor: expected values of int8, got 128n."],
  ];
  noLeak(() => {
    for (const [fn, name, message] of refusals) assert.throws(fn, { name, message });
    assert.throws(
      () => tensor([1], { dtype: "float" as DType }),
      /argument 'dtype': expected a dtype such as "float32" or null, got "float"/,
    );
  });
  tidy(() => {
    const edges: [DType, number | bigint][] = [
      ["uint8", 0],
      ["uint8", 255],
      ["int8", -128],
      ["int8", 127],
      ["int16", -32768],
      ["int32", 2 ** 31 - 1],
      ["int64", -(2 ** 63)],
      ["int64", (1n << 63n) - 1n],
    ];
    for (const [dtype, edge] of edges)
      assert.equal(tensor([edge] as never, { dtype }).itemBigInt(), BigInt(edge));
  });
});

test("creation takes dtype, device and requiresGrad", () => {
  tidy(() => {
    for (const make of [zeros, ones, empty, rand, randn]) {
      const x = make([2, 3], { dtype: "float64", requiresGrad: true });
      assert.deepEqual(
        [x.shape, x.dtype, x.device, x.requiresGrad, x.isLeaf],
        [[2, 3], "float64", "cpu", true, true],
      );
      assert.deepEqual(
        [make([]).shape, make([]).dtype, make([2], { device: "meta" }).device],
        [[], "float32", "meta"],
      );
    }
    assert.deepEqual(full([2], 7).toList(), [7, 7]);
    assert.deepEqual([full([1], true).dtype, full([1], true, { dtype: "bool" }).toList()], ["float32", [1]]);
    assert.deepEqual(eye(2).toList(), [
      [1, 0],
      [0, 1],
    ]);
    assert.deepEqual(arange(5, 0, -2).toList(), [5, 3, 1]);
    assert.deepEqual(
      [arange(0, 3).dtype, arange(0, 1, 0.5, { dtype: "float32" }).toList()],
      ["int64", [0, 0.5]],
    );
    assert.deepEqual(linspace(0, 1, 3).toList(), [0, 0.5, 1]);
    assert.equal(empty([1, 2, 3, 4], { memoryFormat: "channels_last" }).isContiguous("channels_last"), true);
    assert.equal(
      empty([1, 2, 3, 4], { memoryFormat: "channels_last", requiresGrad: true }).requiresGrad,
      true,
    );
    const like = ones([2, 1], { dtype: "float64" });
    assert.deepEqual(
      [zerosLike(like).dtype, zerosLike(like, { dtype: "int8" }).dtype, zerosLike(like).toList()],
      ["float64", "int8", [[0], [0]]],
    );
    assert.deepEqual(
      [onesLike(like, { dtype: "int8" }).dtype, onesLike(like).toList()],
      ["int8", [[1], [1]]],
    );
    assert.deepEqual([emptyLike(like).shape, emptyLike(like, { dtype: "bool" }).dtype], [[2, 1], "bool"]);
    assert.deepEqual(fullLike(like, 2.5).toList(), [[2.5], [2.5]]);
    assert.deepEqual(
      [stack([like, like]).shape, cat([like, like]).shape],
      [
        [2, 2, 1],
        [4, 1],
      ],
    );
    assert.throws(() => cat([]), /at least one tensor/);
  });
});

test("random numbers have the dtype and range they say", () => {
  tidy(() => {
    const uniform = rand([1000]);
    assert.ok(uniform.amin().item() >= 0 && uniform.amax().item() < 1);
    const whole = randint(-2, 3, [1000]);
    assert.equal(whole.dtype, "int64");
    assert.deepEqual(whole.unique().toList(), [-2, -1, 0, 1, 2]);
    assert.deepEqual(randperm(6).sort().values.toList(), [0, 1, 2, 3, 4, 5]);
    assert.equal(randint(0, 2, [2], { dtype: "float32" }).dtype, "float32");
    const weights = tensor([0, 1, 0]);
    assert.deepEqual(multinomial(weights, 3, { replacement: true }).toList(), [1, 1, 1]);
    assert.throws(
      () => multinomial(weights, 4),
      /cannot sample n_sample > prob_dist.size\(-1\) samples without replacement/,
    );
    assert.deepEqual(bernoulli(tensor([0, 1])).toList(), [0, 1]);
  });
});

test("sizes are an array or one by one, with options last", () => {
  tidy(() => {
    for (const make of [zeros, ones, empty, rand, randn]) {
      assert.deepEqual(make(2, 3).shape, [2, 3], make.name);
      assert.deepEqual(make(4).shape, [4], make.name);
      assert.deepEqual(make([2, 3]).shape, [2, 3], make.name);
      const double = make(2, 0, { dtype: "float64" });
      assert.deepEqual([double.shape, double.dtype], [[2, 0], "float64"], make.name);
      assert.deepEqual(make([]).shape, [], make.name);
      const refused: readonly unknown[][] = [
        [],
        [-1],
        [1.5],
        [[2, -1]],
        ["2"],
        [[2], 3],
        [Number.NaN],
        [[null]],
      ];
      for (const sizes of refused) {
        const odd = make as (...given: unknown[]) => unknown;
        assert.throws(() => odd(...sizes), { name: "RangeError", message: /^\w+: expected .*sizes, got / });
      }
    }
  });
});

test("arange, eye and randint take PyTorch's forms", () => {
  tidy(() => {
    assert.deepEqual(arange(4).toList(), [0, 1, 2, 3]);
    assert.deepEqual(arange(2, 4).toList(), [2, 3]);
    assert.deepEqual(arange(4, 0, -3).toList(), [4, 1]);
    assert.deepEqual([arange(3).dtype, arange(0).shape, arange(5, 5).shape], ["int64", [0], [0]]);
    const halves = arange(0, 1, 0.25);
    assert.deepEqual([halves.dtype, halves.toList()], ["float32", [0, 0.25, 0.5, 0.75]]);
    assert.deepEqual(arange(0.5, 3).toList(), [0.5, 1.5, 2.5]);
    assert.equal(arange(3, { dtype: "float64" }).dtype, "float64");
    assert.equal(arange(1, 3, { dtype: "int32" }).dtype, "int32");
    assert.deepEqual(eye(2, 3).toList(), [
      [1, 0, 0],
      [0, 1, 0],
    ]);
    assert.deepEqual(eye(1, { dtype: "int64" }).toList(), [[1]]);
    const codes = randint(3, [100]);
    assert.deepEqual([codes.shape, codes.dtype, codes.unique().toList()], [[100], "int64", [0, 1, 2]]);
    assert.deepEqual(randint(7, 8, [2]).toList(), [7, 7]);
    assert.equal(fullLike(ones([2]), 3, { dtype: "float64" }).dtype, "float64");
  });
});

test("what creation functions cannot make is refused in their own words", () => {
  const use = { arange, eye, full, linspace, randint, randperm } as unknown as Record<
    string,
    (...given: unknown[]) => unknown
  >;
  const cases: readonly [string, ...unknown[]][] = [
    ["arange"],
    ["arange", "4"],
    ["arange", 1, 2, 3, 4],
    ["arange", 0, 5, 0],
    ["arange", 5, 0],
    ["arange", 0, -5],
    ["arange", 0, Number.POSITIVE_INFINITY],
    ["arange", Number.NaN],
    ["eye"],
    ["eye", -1],
    ["eye", 2.5],
    ["eye", 2, 2, 2],
    ["full", 3, 1],
    ["full", [2]],
    ["full", [2], "1"],
    ["full", [-2], 1],
    ["linspace", 0, 1],
    ["linspace", 0, 1, -2],
    ["linspace", 0, 1, 2.5],
    ["linspace", "0", 1, 2],
    ["randint", 5],
    ["randint", 5, 2],
    ["randint", 5, 5, [2]],
    ["randint", 0, 5, 2, 3],
    ["randint", 0.5, 5, [2]],
    ["randperm"],
    ["randperm", -1],
    ["randperm", 2.5],
  ];
  for (const [name, ...given] of cases) {
    const message = new RegExp(`^${name}: expected .+, got `);
    assert.throws(() => use[name]?.(...given), { name: /^(Range|Type)Error$/, message }, `${name}(${given})`);
  }
});
