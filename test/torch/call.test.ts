import assert from "node:assert/strict";
import { test } from "node:test";
import { inspect } from "node:util";

import fc from "fast-check";

import {
  type Argument,
  arange,
  call,
  callTensor,
  DTYPES,
  type DType,
  full,
  Generator,
  memory,
  ones,
  operatorNames,
  randn,
  schemaOf,
  Tensor,
  TorchError,
  tensor,
  tidy,
  zeros,
} from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";

const scalar = (value: Argument, dtype: DType): Tensor =>
  callTensor("aten::scalar_tensor", [value], { dtype });

/** The error that `fn` throws, whose message is checked whole by the caller. */
function thrown(fn: () => unknown): Error {
  try {
    fn();
  } catch (error) {
    return error as Error;
  }
  throw new assert.AssertionError({ message: "expected an error", stackStartFn: thrown });
}

const RELU = "aten::relu(Tensor self) -> Tensor";
const ADD = "aten::add.Tensor(Tensor self, Tensor other, *, Scalar alpha=1) -> Tensor";
const TO_DTYPE =
  "aten::to.dtype(Tensor(a) self, ScalarType dtype, bool non_blocking=False, bool copy=False, MemoryFormat? memory_format=None) -> Tensor(a)";

test("every double crosses as it is: -0, NaN, the infinities, subnormals", () => {
  const roundTrip = (value: number): boolean =>
    tidy(() => Object.is(call("aten::item", [scalar(value, "float64")]), value));
  fc.assert(fc.property(fc.double(), roundTrip), { numRuns: 500 });
  for (const value of [
    0,
    -0,
    NaN,
    Infinity,
    -Infinity,
    5e-324,
    2 ** 53,
    2 ** 53 + 2,
    -(2 ** 63),
    1e300,
    0.1,
  ]) {
    assert.ok(roundTrip(value), `${value}`);
  }
});

test("every integer of 64 bits crosses without loss, as a number within 2^53 and as a bigint beyond", () => {
  const roundTrip = (value: bigint): void =>
    tidy(() => {
      const isSafe = Number.isSafeInteger(Number(value));
      const wanted = isSafe ? Number(value) : value;
      assert.equal(call("aten::item", [scalar(value, "int64")]), wanted);
      if (isSafe) assert.equal(call("aten::item", [scalar(Number(value), "int64")]), wanted);
    });
  fc.assert(fc.property(fc.bigInt({ min: -(1n << 63n), max: (1n << 63n) - 1n }), roundTrip), {
    numRuns: 500,
  });
  fc.assert(fc.property(fc.maxSafeInteger().map(BigInt), roundTrip), { numRuns: 200 });
  const edges = [0n, 1n << 53n, (1n << 53n) - 1n, (1n << 53n) + 1n, 1n << 62n, (1n << 63n) - 1n];
  for (const edge of edges) {
    roundTrip(edge);
    roundTrip(-edge);
  }
  roundTrip(-(1n << 63n));
});

test("integers beyond 64 bits are refused, and numbers beyond 2^53 in an integer's place", () => {
  using x = zeros([2, 2]);
  for (const value of [1n << 63n, -(1n << 63n) - 1n, 1n << 64n]) {
    assert.throws(() => call("aten::add.Tensor", [x, value]), {
      name: "RangeError",
      message: `aten::add.Tensor: expected an integer of 64 bits, got ${value}n.`,
    });
  }
  const SELECT = "aten::select.int(Tensor(a) self, int dim, SymInt index) -> Tensor(a)";
  const shown = { "9007199254740992": "9.00719925474099e+15", "0.5": "0.5", Infinity: "inf", NaN: "nan" };
  for (const [text, got] of Object.entries(shown)) {
    assert.equal(
      thrown(() => call("aten::select.int", [x, 0, Number(text)])).message,
      `${SELECT}: argument 'index': expected an integer, got ${got}; self float32[2, 2] cpu`,
    );
  }
  tidy(() => {
    assert.deepEqual(callTensor<Tensor>("aten::select.int", [x, -0, -0]).shape, [2], "-0 is an index like 0");
    assert.deepEqual(callTensor<Tensor>("aten::roll", [x, 1n << 62n, 0]).shape, [2, 2]);
  });
});

test("numbers in a tensor's place decide no dtype, and integers stay integers", () => {
  tidy(() => {
    const i = tensor([1, 2], { dtype: "int32" });
    const h = ones([2], { dtype: "bfloat16" });
    const dtypeOf = (a: Argument, b: Argument): DType => callTensor<Tensor>("aten::add.Tensor", [a, b]).dtype;
    assert.equal(dtypeOf(i, 2), "int32");
    assert.equal(dtypeOf(i, 2.5), "float32");
    assert.equal(dtypeOf(i, 1n << 60n), "int32");
    assert.equal(dtypeOf(h, 2.5), "bfloat16");
    assert.equal(dtypeOf(zeros([2], { dtype: "bool" }), true), "bool");
    assert.equal(dtypeOf(2, 3), "int64");
    assert.equal(dtypeOf(i, -0), "float32", "-0 is no integer: as a Scalar it keeps its sign");
    assert.ok(Object.is(call("aten::item", [full([], -0)]) as number, -0));
    assert.equal(call("aten::item", [callTensor("aten::mul.Tensor", [i.select(0, 1), true])]), 2);
  });
});

test("booleans, strings and null arrive as what the schema asks for", () => {
  tidy(() => {
    const x = tensor([
      [3, -4],
      [1, 2],
    ]);
    const sum = (...args: Argument[]): unknown =>
      callTensor<Tensor>("aten::sum.dim_IntList", [x, ...args]).toList();
    assert.deepEqual(sum(1, true), [[-1], [3]]);
    assert.deepEqual(sum(1, false), [-1, 3]);
    assert.deepEqual(sum(null), 2, "null is None: all dimensions");
    assert.deepEqual(sum(1, undefined, undefined), [-1, 3], "undefined asks for the default");
    assert.deepEqual(sum([], true), [[2]]);
    const divide = (mode: string | null): unknown =>
      callTensor<Tensor>("aten::div.Tensor_mode", [x, 2], { rounding_mode: mode }).toList();
    assert.deepEqual(divide("floor"), [
      [1, -2],
      [0, 1],
    ]);
    assert.deepEqual(divide(null), [
      [1.5, -2],
      [0.5, 1],
    ]);
    assert.match(
      thrown(() => divide("up")).message,
      /div expected rounding_mode to be one of None, 'trunc', or 'floor' but found 'up'/,
    );
    assert.equal(call("aten::equal", [x, x]), true);
    assert.equal(call("aten::equal", [x, x.neg()]), false);
  });
});

test("any text crosses whole", () => {
  // C++ ends the message of an error at a NUL.
  const texts = fc.string({ unit: "binary" }).filter((text) => !text.includes("\0"));
  fc.assert(
    fc.property(texts, (text) => {
      assert.equal(
        thrown(() => call("aten::relu", [text])).message,
        `${RELU}: argument 'self': expected a Tensor, got "${text}"`,
      );
    }),
    { numRuns: 300 },
  );
});

test("lists of integers arrive in order, the empty one too, and one number fills int[2]", () => {
  fc.assert(
    fc.property(fc.array(fc.integer({ min: 0, max: 3 }), { maxLength: 8 }), (shape) =>
      tidy(() => assert.deepEqual(zeros(shape).shape, shape)),
    ),
  );
  tidy(() => {
    const image = randn([1, 1, 6, 8]);
    const pool = (kernel: Argument): Tensor => callTensor("aten::max_pool2d", [image, kernel]);
    assert.deepEqual(pool(2).shape, [1, 1, 3, 4]);
    assert.ok(pool(2).equal(pool([2, 2])));
    assert.ok(pool(3n).equal(pool([3n, 3])));
    assert.deepEqual(pool([2, 4]).shape, [1, 1, 3, 2]);
    assert.match(
      thrown(() => callTensor("aten::zeros", [[2, [3]] as never])).message,
      /argument 'size': expected a list of integers, got \[3\] at index 1$/,
    );
    assert.match(
      thrown(() => callTensor("aten::zeros", [3])).message,
      /argument 'size': expected a list of integers, got 3$/,
    );
    assert.match(
      thrown(() => callTensor("aten::zeros", [[2, 1.5]])).message,
      /argument 'size': expected a list of integers, got 1\.5 at index 1$/,
    );
  });
});

test("lists of tensors, of tensors or null, of numbers and of booleans", () => {
  noLeak(() =>
    tidy(() => {
      const x = arange(0, 12, 1, { dtype: "float32" }).view(3, 4);
      const rows = tensor([2, 0], { dtype: "int64" });
      assert.deepEqual(callTensor<Tensor>("aten::index.Tensor", [x, [rows]]).toList(), [
        [8, 9, 10, 11],
        [0, 1, 2, 3],
      ]);
      assert.deepEqual(callTensor<Tensor>("aten::index.Tensor", [x, [null, rows]]).toList(), [
        [2, 0],
        [6, 4],
        [10, 8],
      ]);
      assert.deepEqual(callTensor<Tensor>("aten::stack", [[x, x]]).shape, [2, 3, 4]);
      assert.deepEqual(callTensor<Tensor>("aten::cat", [[x, x, x], 1]).shape, [3, 12]);
      const image = randn([1, 1, 4, 4]);
      const scaled = callTensor<Tensor>("aten::upsample_nearest2d.vec", [image, null, [1.5, 2]]);
      assert.deepEqual(scaled.shape, [1, 1, 6, 8]);
      const weight = randn([1, 1, 3, 3]);
      const mask = [true, false, true];
      const backward = call("aten::convolution_backward", [
        randn([1, 1, 2, 2]),
        image,
        weight,
        [1],
        [1, 1],
        [0, 0],
        [1, 1],
        false,
        [0, 0],
        1,
        mask,
      ]) as (Tensor | null)[];
      assert.deepEqual(
        backward.map((each) => each?.shape ?? null),
        [[1, 1, 4, 4], null, [1]],
        "an undefined result is null",
      );
      assert.match(
        thrown(() => call("aten::stack", [[x, null]])).message,
        /argument 'tensors': expected a list of Tensors, got null at index 1; tensors \[float32\[3, 4\] cpu, null\]$/,
      );
      assert.match(thrown(() => call("aten::stack", [[]])).message, /stack expects a non-empty TensorList$/);
    }),
  );
});

test("lists of numbers or null, as oneDNN's fused operators take them", (t) => {
  const FUSED = "mkldnn::_linear_pointwise";
  if (!operatorNames().includes(FUSED)) return t.skip("this LibTorch has no oneDNN");
  tidy(() => {
    const [x, w] = [randn([2, 4]), randn([3, 4])];
    const run = (name: string, numbers: Argument, algorithm: string): Tensor =>
      callTensor(FUSED, [x, w, null, name, numbers, algorithm]);
    const product = x.matmul(w.transpose(0, 1));
    expectClose(run("none", [], ""), product, { atol: 1e-5 });
    expectClose(run("leaky_relu", [0.25], ""), product.leakyRelu(0.25), { atol: 1e-5 });
    expectClose(run("hardtanh", [-0.5, 0.5], ""), product.clamp(-0.5, 0.5), { atol: 1e-5 });
    assert.match(
      thrown(() => run("leaky_relu", ["x"], "")).message,
      /argument 'scalars': expected a list of numbers or nulls, got "x"/,
    );
    assert.throws(() => run("leaky_relu", [null], ""), TorchError);
  });
});

test("a call takes 65,536 values and refuses more, as arguments or as results", () => {
  using x = zeros([1]);
  const many = (count: number): Argument[] => Array.from({ length: count }, () => x);
  noLeak(() => {
    // The list's own slot and `dim` take one each.
    tidy(() => assert.deepEqual(callTensor<Tensor>("aten::cat", [many(65534), 0]).shape, [65534]));
    assert.throws(() => call("aten::cat", [many(65535), 0]), {
      name: "RangeError",
      message: "aten::cat: expected at most 65536 values in one call, got 65537.",
    });
    tidy(() => assert.equal((call("aten::unbind.int", [zeros([65535])]) as Tensor[]).length, 65535));
    tidy(() => {
      const error = thrown(() => call("aten::unbind.int", [zeros([65536])]));
      assert.equal(
        error.message,
        "aten::unbind.int(Tensor(a -> *) self, int dim=0) -> Tensor(a)[]: its result has more than 65536 values, which do not fit; self float32[65536] cpu",
      );
    });
  });
});

test("names of dtypes, devices, layouts and memory formats, and clear text for others", () => {
  tidy(() => {
    for (const dtype of Object.keys(DTYPES) as DType[]) {
      assert.equal(callTensor<Tensor>("aten::zeros", [[2]], { dtype }).dtype, dtype);
    }
    assert.equal(
      callTensor<Tensor>("aten::zeros", [[2]], { layout: "strided", device: "cpu" }).device,
      "cpu",
    );
    assert.equal(callTensor<Tensor>("aten::empty.memory_format", [[2]], { device: "meta" }).device, "meta");
    const x = zeros([1, 2, 3, 4]);
    assert.deepEqual(
      callTensor<Tensor>("aten::clone", [x], { memory_format: "channels_last" }).strides,
      [24, 1, 8, 2],
    );
    const fails = (options: Record<string, Argument>): string =>
      thrown(() => call("aten::zeros", [[2]], options)).message.replace(`${schemaOf("aten::zeros")}: `, "");
    assert.equal(
      fails({ dtype: "float" }),
      `argument 'dtype': expected a dtype such as "float32" or null, got "float"`,
    );
    assert.equal(fails({ dtype: 6 }), `argument 'dtype': expected a dtype such as "float32" or null, got 6`);
    assert.equal(
      fails({ layout: "jagged" }),
      `argument 'layout': expected a layout: "strided" or "sparse_coo" or null, got "jagged"`,
    );
    assert.equal(fails({ device: "gpu" }), `expected a device "cpu", "cuda" or "cuda:0", got "gpu"`);
    assert.equal(
      fails({ device: 0 }),
      `argument 'device': expected a device such as "cpu" or "cuda:0" or null, got 0`,
    );
    assert.equal(fails({ device: "cuda:first" }), "Invalid device string: 'cuda:first'");
    assert.equal(fails({ pin_memory: "no" }), `argument 'pin_memory': expected a boolean or null, got "no"`);
    assert.equal(
      thrown(() => call("aten::clone", [x, "nhwc"])).message,
      `aten::clone(Tensor self, *, MemoryFormat? memory_format=None) -> Tensor: argument 'memory_format': expected a memory format such as "contiguous_format" or null, got "nhwc"; self float32[1, 2, 3, 4] cpu`,
    );
  });
});

test("generators are taken by position and by name, and not in another's place", () => {
  noLeak(() =>
    tidy(() => {
      using generator = new Generator(3);
      const p = full([4], 0.5);
      const first = callTensor<Tensor>("aten::bernoulli", [p, generator]);
      generator.seed(3);
      assert.ok(first.equal(callTensor<Tensor>("aten::bernoulli", [p], { generator })));
      assert.equal(
        thrown(() => call("aten::bernoulli", [p], { generator: 3 })).message,
        "aten::bernoulli(Tensor self, *, Generator? generator=None) -> Tensor: argument 'generator': expected a Generator or null, got 3; self float32[4] cpu",
      );
      assert.match(
        thrown(() => call("aten::relu", [generator])).message,
        /expected a Tensor, got a Generator$/,
      );
      generator.dispose();
      assert.throws(() => call("aten::bernoulli", [p, generator]), {
        name: "Error",
        message: "Generator: expected a live generator, got one that was disposed of.",
      });
    }),
  );
});

test("options go by the schema's names, before or after the star; positions go on past it", () => {
  tidy(() => {
    const [a, b] = [tensor([1, 2]), tensor([10, 20])];
    for (const result of [
      call("aten::add.Tensor", [a, b], { alpha: 2 }),
      call("aten::add.Tensor", [a, b, 2]),
      call("aten::add.Tensor", [a], { alpha: 2, other: b }),
      call("aten::add.Tensor", [], { other: b, self: a, alpha: 2 }),
      call("aten::add.Tensor", [a, b, undefined], { alpha: 2 }),
    ]) {
      assert.deepEqual((result as Tensor).toList(), [21, 42]);
    }
    assert.deepEqual((call("aten::add.Tensor", [a, b], { alpha: undefined }) as Tensor).toList(), [11, 22]);
    const refused = (args: Argument[], options?: Record<string, Argument>): Error => {
      const error = thrown(() => call("aten::add.Tensor", args, options));
      assert.ok(error instanceof TorchError);
      assert.deepEqual([error.name, error.op, error.schema], ["TorchError", "aten::add.Tensor", ADD]);
      return error;
    };
    assert.equal(
      refused([a, b], { alph: 2 }).message,
      `${ADD}: expected an argument of the schema, got alph.`,
    );
    assert.equal(refused([a, b, 2], { alpha: 3 }).message, `${ADD}: expected 'alpha' once, got it twice.`);
    assert.equal(refused([a, b], { self: a }).message, `${ADD}: expected 'self' once, got it twice.`);
    const operands = "self float32[2] cpu";
    assert.equal(refused([a]).message, `${ADD}: expected argument 'other', got none; ${operands}.`);
    assert.equal(refused([]).message, `${ADD}: expected argument 'self', got none.`);
    assert.equal(
      refused([a, b, 1, 2, [3, 4]]).message,
      `${ADD}: expected at most 3 arguments, got 5; ${operands}, other float32[2] cpu`,
    );
    assert.equal(
      refused([a, undefined]).message,
      `${ADD}: expected argument 'other', got none; ${operands}.`,
    );
    assert.equal(refused([a, null, 1]).message.startsWith(`${ADD}: `), true);
  });
});

test("what is no argument at all is refused by type", () => {
  using x = ones([2]);
  for (const [value, shown] of [
    [() => 0, "() => 0"],
    [Symbol("s"), "Symbol(s)"],
    [{ a: 1 }, "Object"],
    [new Float32Array(2), "Float32Array of 8 bytes"],
    [new Map(), "Map"],
  ] as const) {
    const remedy =
      shown === "Object" ? " This argument has its place in the call: give its value, without its name." : "";
    assert.throws(() => call("aten::add.Tensor", [x, value as unknown as Argument]), {
      name: "TypeError",
      message: `aten::add.Tensor: expected tensors, numbers, booleans, strings, null or lists of them, got ${shown}.${remedy}`,
    });
  }
});

test("results: one tensor, several, a list, numbers, booleans and nothing", () => {
  noLeak(() =>
    tidy(() => {
      const x = tensor([
        [3, 1],
        [2, 5],
      ]);
      assert.ok(call("aten::relu", [x]) instanceof Tensor);
      const [values, indices] = call("aten::max.dim", [x, 1]) as [Tensor, Tensor];
      assert.deepEqual([values.toList(), indices.toList(), indices.dtype], [[3, 5], [0, 1], "int64"]);
      const parts = call("aten::split.Tensor", [x, 1, 1]) as Tensor[];
      assert.deepEqual(
        parts.map((part) => part.toList()),
        [
          [[3], [2]],
          [[1], [5]],
        ],
      );
      assert.equal(call("aten::size.int", [x, 1]), 2);
      assert.equal(call("aten::is_floating_point", [x]), true);
      assert.equal(call("aten::item", [x.select(0, 0).select(0, 0)]), 3);
      assert.equal(call("aten::item", [tensor([1]).bool()]), true);
      assert.equal(call("aten::_foreach_add_.Scalar", [[x], 1]), null);
      assert.deepEqual(x.toList(), [
        [4, 2],
        [3, 6],
      ]);
      const nested = call("aten::_histogramdd_bin_edges", [x, [2, 2]]) as Tensor[];
      assert.deepEqual(
        nested.map((edges) => edges.shape),
        [[3], [3]],
      );
    }),
  );
});

test("in-place operators return the object they were given and renew its shape", () => {
  tidy(() => {
    const x = zeros([2, 3]);
    assert.deepEqual(x.shape, [2, 3]);
    assert.equal(call("aten::unsqueeze_", [x, 0]), x);
    assert.deepEqual(x.shape, [1, 2, 3]);
    assert.equal(call("aten::transpose_", [x, 0, 2]), x);
    assert.deepEqual(x.shape, [3, 2, 1]);
    assert.equal(call("aten::squeeze_.dim", [x, 2]), x);
    assert.deepEqual(x.shape, [3, 2]);
    const y = zeros([2]);
    assert.deepEqual(y.shape, [2]);
    assert.equal(call("aten::resize_", [y, [5, 1]]), y);
    assert.deepEqual([y.shape, y.numel, y.ndim], [[5, 1], 5, 2]);
    const before = memory().tensors;
    assert.equal(call("aten::add_.Tensor", [x, 1]), x);
    assert.equal(memory().tensors, before, "no second handle");
    assert.match(
      thrown(() => call("aten::add_.Tensor", [1, 2])).message,
      /argument 'self': expected a Tensor, got 1$/,
      "a number cannot be written into",
    );
  });
});

test("out= overloads return their argument, resized, each of them where there are several", () => {
  tidy(() => {
    const x = tensor([
      [3, 1],
      [2, 5],
    ]);
    const out = zeros([0]);
    assert.deepEqual(out.shape, [0]);
    assert.equal(call("aten::add.out", [x, x], { out }), out);
    assert.deepEqual(
      [out.shape, out.toList()],
      [
        [2, 2],
        [
          [6, 2],
          [4, 10],
        ],
      ],
    );
    const [values, indices] = [zeros([0]), zeros([0], { dtype: "int64" })];
    const result = call("aten::max.dim_max", [x, 1], { max: values, max_values: indices }) as Tensor[];
    assert.equal(result[0], values);
    assert.equal(result[1], indices);
    assert.deepEqual(
      [values.toList(), indices.toList()],
      [
        [3, 5],
        [0, 1],
      ],
    );
  });
});

test("an unknown operator names its overloads where there are any", () => {
  const error = thrown(() => call("aten::bernoulli.Tesnor", []));
  assert.ok(error instanceof TorchError);
  assert.deepEqual([error.op, error.schema], ["aten::bernoulli.Tesnor", ""]);
  const overloads = operatorNames().filter((name) => /^aten::bernoulli(\.|$)/.test(name));
  assert.ok(overloads.includes("aten::bernoulli.p"));
  assert.equal(
    error.message,
    `call: expected a registered operator, got aten::bernoulli.Tesnor. Its overloads are ${overloads.join(", ")}.`,
  );
  assert.equal(
    thrown(() => call("aten::nothing", [])).message,
    "call: expected a registered operator, got aten::nothing. See operatorNames().",
  );
  assert.equal(
    thrown(() => schemaOf("relu")).message,
    "call: expected a registered operator, got relu. See operatorNames().",
  );
});

test("what LibTorch refuses names the schema and the operands, and the stack opens here", () => {
  tidy(() => {
    const [a, b] = [zeros([4, 4]), zeros([3, 3], { dtype: "float64" })];
    const error = thrown(() => a.matmul(b)) as TorchError;
    assert.equal(
      error.message,
      "aten::matmul(Tensor self, Tensor other) -> Tensor: mat1 and mat2 shapes cannot be multiplied (4x4 and 3x3); self float32[4, 4] cpu, other float64[3, 3] cpu",
    );
    assert.equal(error.op, "aten::matmul");
    const [head, first] = (error.stack as string).split("\n");
    assert.equal(head, `TorchError: ${error.message}`);
    assert.match(first as string, /call\.test\.[jt]s/);
    assert.match(inspect(error), /^TorchError: aten::matmul/);
    const list = thrown(() => call("aten::cat", [[a, b.select(0, 0), a, a, a]]));
    assert.match(
      list.message,
      /; tensors \[float32\[4, 4\] cpu, float64\[3\] cpu, float32\[4, 4\] cpu, float32\[4, 4\] cpu, \.\.\. 5 in all\]$/,
    );
    for (const fn of [
      () => call("aten::relu", []),
      () => call("aten::rand", [[-1]]),
      () => call("aten::nothing", []),
    ]) {
      assert.match((thrown(fn).stack as string).split("\n")[1] as string, /call\.test\.[jt]s/);
    }
    assert.equal(
      thrown(() => a.to({ dtype: "no" as DType })).message.includes("; self float32[4, 4] cpu"),
      true,
    );
    assert.equal(
      thrown(() => call("aten::to.dtype", [a, "no"])).message,
      `${TO_DTYPE}: argument 'dtype': expected a dtype such as "float32", got "no"; self float32[4, 4] cpu`,
    );
  });
});

test("a refused call leaves nothing behind, and the next one is whole", () => {
  using x = ones([2, 2]);
  noLeak(() => {
    for (let i = 0; i < 100; i++) {
      assert.throws(() => call("aten::matmul", [x, 3]), TorchError);
      assert.throws(() => call("aten::add.Tensor", [x, x, "one"]), TorchError);
      assert.throws(() => call("aten::stack", [[x, "x"]]), TorchError);
      assert.throws(() => call("aten::add.Tensor", [x, 1n << 70n]), RangeError);
      tidy(() =>
        assert.deepEqual(x.add(x).toList(), [
          [2, 2],
          [2, 2],
        ]),
      );
    }
  });
});

test("complex numbers have no JavaScript value", () => {
  tidy(() => {
    const x = ones([1], { dtype: "complex64" });
    assert.equal(
      thrown(() => call("aten::item", [x])).message,
      "aten::item(Tensor self) -> Scalar: a complex number has no JavaScript value; take real or imag first; self complex64[1] cpu",
    );
    assert.equal(call("aten::item", [callTensor("aten::real", [x])]), 1);
  });
});

test("a freed tensor is refused wherever it is used", () => {
  const x = ones([2]);
  x.dispose();
  const message =
    "Tensor: expected a live tensor, got one that was freed. Return it from tidy, or keep() it.";
  const uses: (() => unknown)[] = [
    () => x.add(1),
    () => call("aten::stack", [[x]]),
    () => x.shape,
    () => x.dtype,
    () => x.device,
    () => x.strides,
    () => x.storageOffset,
    () => x.item(),
    () => x.toArray(),
    () => x.requiresGrad,
    () => x.grad,
    () => x.backward(),
    () => x.isLeaf,
  ];
  for (const use of uses) assert.throws(use, { name: "Error", message });
  assert.equal(String(x), "Tensor (freed)");
  assert.equal(x.isDisposed, true);
});

test("memory that is not there, and sizes that cannot be counted, are sentences of ours", () => {
  tidy(() => {
    const one = ones([1]);
    const cases: [() => unknown, RegExp][] = [
      [
        () => zeros([2 ** 50]),
        /: expected 4503599627370496 bytes of free memory, got less\. Use smaller tensors/,
      ],
      [
        () => one.expand(2 ** 45).clone(),
        /expected \d+ bytes of free memory, got less; self float32\[35184372088832\] cpu\./,
      ],
      [() => zeros([2 ** 40, 2 ** 40]), /: expected a size below 2\^63 bytes, got a larger one\./],
      [
        () => ones([2 ** 30, 2 ** 40], { device: "meta" }),
        /: expected a size below 2\^63 bytes, got a larger one\./,
      ],
    ];
    for (const [use, message] of cases) assert.throws(use, { name: "TorchError", message });
  });
});
