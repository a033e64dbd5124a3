/** Tensors as a checkpoint describes them: what is accepted, and what lies and is refused. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { MemoryBytes } from "../../src/torch/files.js";
import { LazyTensor, persistentTensor, type Storage, tensorCall } from "../../src/torch/lazy_tensor.js";
import { Opaque, PyGlobal } from "../../src/torch/python_values.js";
import { noLeak } from "../support/leak.js";

const data = new Uint8Array(new Float32Array([0, 1, 2, 3, 4, 5]).buffer);
const storage: Storage = { bytes: 24, locate: () => ({ source: new MemoryBytes(data), offset: 0 }) };

const torchClass = (name: string): PyGlobal => new PyGlobal("torch", name);
const rebuild = (name: string): PyGlobal => new PyGlobal("torch._utils", name);

const persistent = (...id: unknown[]): unknown => persistentTensor(id, "w", () => storage);
const floats = persistent("storage", torchClass("FloatStorage"), "0", "cpu", 6) as LazyTensor;

const v2 = (...args: unknown[]): LazyTensor =>
  tensorCall(rebuild("_rebuild_tensor_v2"), [floats, ...args], "w") as LazyTensor;

const refused = (fn: () => unknown, message: string): void =>
  assert.throws(fn, { name: "RangeError", message });
const END = "The file is damaged or hostile.";

test("a storage is a flat tensor, and calls make views of it", () => {
  assert.equal(`${floats}`, "LazyTensor float32[6]");
  const view = v2(1, [2, 2], [1, 2], true, new Map());
  assert.deepEqual([view.shape, view.strides, view.storageOffset, view.numel], [[2, 2], [1, 2], 1, 4]);
  assert.equal(view.requiresGrad, true);
  noLeak(() => {
    const read = view.read();
    assert.deepEqual(read.toList(), [
      [1, 3],
      [2, 4],
    ]);
    assert.deepEqual(read.strides, [1, 2]);
    assert.equal(read.requiresGrad, false);
    read.dispose();
  });
  const old = tensorCall(rebuild("_rebuild_tensor"), [floats, 0, [6], [1]], "w");
  assert.deepEqual(old?.shape, [6]);
});

test("reading one tensor reads only what it spans", () => {
  const asked: [number, number][] = [];
  const source = {
    size: 24,
    read: () => assert.fail("read"),
    readInto: (offset: number, target: Uint8Array) => void asked.push([offset, target.length]),
  };
  const found: Storage = { bytes: 24, locate: () => ({ source, offset: 100 }) };
  const id = ["storage", torchClass("FloatStorage"), "0", "cpu", 6];
  const flat = persistentTensor(id, "w", () => found);
  tensorCall(rebuild("_rebuild_tensor"), [flat, 2, [2], [3]], "w")
    ?.read()
    .dispose();
  assert.deepEqual(asked, [[108, 16]]);
});

test("every storage class has its dtype, and sizes are counted in it", () => {
  const dtypes: [string, string, number][] = [
    ["DoubleStorage", "float64", 8],
    ["FloatStorage", "float32", 4],
    ["HalfStorage", "float16", 2],
    ["BFloat16Storage", "bfloat16", 2],
    ["LongStorage", "int64", 8],
    ["IntStorage", "int32", 4],
    ["ShortStorage", "int16", 2],
    ["CharStorage", "int8", 1],
    ["ByteStorage", "uint8", 1],
    ["BoolStorage", "bool", 1],
    ["ComplexFloatStorage", "complex64", 8],
    ["ComplexDoubleStorage", "complex128", 16],
    ["UntypedStorage", "uint8", 1],
    ["QInt32Storage", "qint32", 4],
  ];
  for (const [name, dtype, size] of dtypes) {
    let seen: unknown[] = [];
    const id = ["storage", torchClass(name), "key", "cuda:0", 3];
    const flat = persistentTensor(id, "w", (...args) => {
      seen = args;
      return { ...storage, bytes: 3 * size };
    });
    assert.ok(flat instanceof LazyTensor);
    assert.deepEqual([flat.dtype, flat.shape], [dtype, [3]]);
    assert.deepEqual(seen, ["key", 3 * size, size, "w"]);
  }
});

test("the oldest files name parts of storages and classes of modules", () => {
  const part = persistent("storage", torchClass("FloatStorage"), "0", "cpu", 6, ["1", 2, 3]) as LazyTensor;
  assert.deepEqual([part.shape, part.storageOffset], [[3], 2]);
  const inPart = tensorCall(rebuild("_rebuild_tensor"), [part, 1, [2], [1]], "w");
  assert.equal(inPart?.storageOffset, 3);
  const cls = new PyGlobal("m", "Net");
  assert.equal(persistent("module", cls, "file", "source"), cls);
});

test("persistent ids that lie are refused", () => {
  const float = torchClass("FloatStorage");
  refused(() => persistent(), `w: expected a persistent id of "storage", got a list or tuple. ${END}`);
  refused(
    () => persistent("tensor", float),
    `w: expected a persistent id of "storage", got "tensor". ${END}`,
  );
  refused(
    () => persistent("storage", torchClass("save"), "0", "cpu", 6),
    "w: expected a storage class of PyTorch, got torch.save.",
  );
  refused(
    () => persistent("storage", torchClass("Float"), "0", "cpu", 6),
    "w: expected a storage class of PyTorch, got torch.Float.",
  );
  refused(() => persistent("storage", float, 3, "cpu", 6), `w: expected a storage key, got 3. ${END}`);
  for (const count of [-1, 0.5, 2 ** 53]) {
    refused(
      () => persistent("storage", float, "0", "cpu", count),
      `w: expected a number of elements, got ${count}. ${END}`,
    );
  }
  refused(
    () => persistent("storage", float, "0", "cpu", 10n ** 20n),
    `w: expected a number of elements, got a long int. ${END}`,
  );
  refused(
    () => persistent("storage", float, "0", "cpu", 6, ["1", 4, 3]),
    `w: expected a tensor inside its storage of 24 bytes, got float32 [3], strides [1], offset 4. ${END}`,
  );
});

test("tensors outside their storage are refused", () => {
  const outside = (offset: number, size: number[], stride: number[]): void =>
    refused(
      () => v2(offset, size, stride),
      `w: expected a tensor inside its storage of 24 bytes, got float32 [${size.join(", ")}], strides [${stride.join(", ")}], offset ${offset}. ${END}`,
    );
  outside(0, [7], [1]);
  outside(1, [6], [1]);
  outside(0, [2, 3], [4, 1]);
  outside(0, [2], [6]);
  outside(6, [], []);
  outside(0, [2], [2 ** 53 - 1]);
  assert.equal(v2(5, [], []).numel, 1);
  assert.equal(v2(0, [2, 3], [3, 1]).numel, 6);
  assert.equal(v2(0, [1000, 1000], [0, 0]).numel, 1e6, "an expanded tensor");
  assert.equal(v2(999, [0, 3], [3, 1]).numel, 0, "an empty tensor lies nowhere");
});

test("shapes that are none are refused", () => {
  const many = Array<number>(65).fill(1);
  refused(() => v2(0, [-1], [1]), `w: expected a shape of at most 64 whole numbers, got [-1]. ${END}`);
  refused(() => v2(0, [1.5], [1]), `w: expected a shape of at most 64 whole numbers, got [1.5]. ${END}`);
  refused(() => v2(0, ["2"], [1]), `w: expected a shape of at most 64 whole numbers, got ["2"]. ${END}`);
  refused(
    () => v2(0, many, many),
    `w: expected a shape of at most 64 whole numbers, got [1, 1, 1, 1, 1, 1, 1, 1, ... 65 in all]. ${END}`,
  );
  refused(() => v2(0, null, []), `w: expected a shape of at most 64 whole numbers, got None. ${END}`);
  refused(() => v2(0, [2], []), `w: expected 1 strides that are whole numbers, got []. ${END}`);
  refused(() => v2(0, [2], [-1]), `w: expected 1 strides that are whole numbers, got [-1]. ${END}`);
  refused(() => v2(-1, [2], [1]), `w: expected an offset in the storage, got -1. ${END}`);
  refused(
    () => v2(0, [2 ** 30, 2 ** 30], [0, 0]),
    `w: expected a shape of less than 2^53 bytes, got [1073741824, 1073741824]. ${END}`,
  );
  refused(
    () => v2(0, [2 ** 40, 2 ** 40, 0], [0, 0, 0]),
    `w: expected a shape of less than 2^53 bytes, got [1099511627776, 1099511627776, 0]. ${END}`,
  );
  const ring: unknown[] = [];
  ring.push(ring);
  refused(
    () => v2(0, ring, [1]),
    `w: expected a shape of at most 64 whole numbers, got [a list or tuple]. ${END}`,
  );
  refused(
    () => tensorCall(rebuild("_rebuild_tensor_v2"), [null, 0, [1], [1]], "w"),
    `w: expected a storage, got None. ${END}`,
  );
});

test("parameters, subclasses and tensors of other devices are plain tensors", () => {
  const plain = v2(0, [6], [1], false);
  const parameter = tensorCall(rebuild("_rebuild_parameter"), [plain, true, new Map()], "w");
  assert.deepEqual([parameter?.requiresGrad, parameter?.shape], [true, [6]]);
  const args = [floats, 0, [6], [1], true];
  const subclass = [rebuild("_rebuild_tensor_v2"), new PyGlobal("m", "Ema"), args, new Map()];
  const made = tensorCall(new PyGlobal("torch._tensor", "_rebuild_from_type_v2"), subclass, "w");
  assert.equal(made?.requiresGrad, true);
  const moved = rebuild("_rebuild_device_tensor_from_cpu_tensor");
  assert.equal(tensorCall(moved, [plain, torchClass("float32"), "xla:0", false], "w"), plain);
  assert.equal(tensorCall(moved, [plain, torchClass("float16"), "xla:0", false], "w"), undefined);
  const record = new Opaque<never>(null, []);
  assert.equal(tensorCall(rebuild("_rebuild_parameter"), [record, true], "w"), undefined);
  assert.equal(tensorCall(rebuild("_rebuild_sparse_tensor"), [], "w"), undefined);
  const nested = new PyGlobal("torch._tensor", "_rebuild_from_type_v2");
  assert.equal(tensorCall(nested, [nested, null, []], "w"), undefined, "no recursion for a file to use");
});

test("a dtype that no tensor here can have is described and not read", () => {
  const id = ["storage", torchClass("UntypedStorage"), "0", "cpu", 24];
  const untyped = persistentTensor(id, "w", () => storage);
  const v3 = (dtype: unknown): LazyTensor =>
    tensorCall(rebuild("_rebuild_tensor_v3"), [untyped, 0, [6], [1], false, null, dtype], "w") as LazyTensor;
  assert.equal(v3(torchClass("float32")).read().numel, 6);
  const known =
    "uint8, int8, int16, int32, int64, float16, float32, float64, complex64, complex128, bool, bfloat16";
  const message = `LazyTensor.read: expected a dtype among ${known}, got LazyTensor uint32[6]. Convert it in Python, or omit it.`;
  noLeak(() => refused(() => v3(torchClass("uint32")).read(), message));
  assert.equal(v3(torchClass("a_dtype_to_come")).dtype, "a_dtype_to_come");
  refused(
    () => v3(torchClass("float64")),
    `w: expected a tensor inside its storage of 24 bytes, got float64 [6], strides [1], offset 0. ${END}`,
  );
  refused(() => v3("float32"), `w: expected a dtype of torch, got "float32". ${END}`);
});
