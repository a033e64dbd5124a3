/** Checkpoints of torch.save: real files of both formats, other files by mistake, and files that lie. */
import assert from "node:assert/strict";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import { loadCheckpoint, openCheckpoint } from "../../src/torch/checkpoint.js";
import { Tensor } from "../../src/torch/index.js";
import { LazyTensor } from "../../src/torch/lazy_tensor.js";
import { lookup, Opaque, PyGlobal, type PyValue } from "../../src/torch/python_values.js";
import { loadSafetensors } from "../../src/torch/safetensors.js";
import { elementBytes } from "../support/bytes.js";
import { noLeak } from "../support/leak.js";
import {
  bytes,
  global,
  int,
  int64,
  num,
  patched,
  pickle,
  reduce,
  str,
  tensorOps,
  type ZipPart,
  zipOf,
} from "../support/pickled.js";

const golden = (name: string): string =>
  fileURLToPath(new URL(`../../../test/golden/checkpoints/${name}`, import.meta.url));

const folder = mkdtempSync(join(tmpdir(), "rlar-checkpoint-"));
after(() => rmSync(folder, { recursive: true }));
const path = join(folder, "x.pt");

const written = (...parts: (string | number | Uint8Array)[]): string => {
  writeFileSync(path, bytes(...parts));
  return path;
};

/** A file as torch.save writes it, of a pickle's opcodes and storages. */
const zipped = (ops: Uint8Array, storages: Record<string, Uint8Array> = {}, others: ZipPart[] = []): string =>
  written(
    zipOf([
      { name: "x/data.pkl", data: pickle(ops) },
      ...Object.entries(storages).map(([key, data]) => ({ name: `x/data/${key}`, data })),
      ...others,
    ]),
  );

const LEGACY_HEAD = bytes(
  0x80,
  2,
  0x8a,
  10,
  Buffer.from("6cfc9c46f9206aa85019", "hex"),
  ".",
  pickle("M", int(1001, 2)),
  pickle("}"),
);

/** A legacy file: the object, its storage keys, and each storage with its count. */
const legacy = (ops: Uint8Array, keys: string[], ...data: Uint8Array[]): string =>
  written(LEGACY_HEAD, pickle(ops), pickle("](", ...keys.map(str), "e"), ...data);

const floats = (...values: number[]): Buffer => Buffer.from(new Float32Array(values).buffer);

const dispose = (...tensors: Iterable<unknown>[]): void => {
  for (const list of tensors) for (const item of list) if (item instanceof Tensor) item.dispose();
};

const FILES = [
  "tensors.p2.pt",
  "tensors.p3.pt",
  "tensors.p4.pt",
  "tensors.p5.pt",
  "legacy.p2.pt",
  "legacy.p4.pt",
  "deflated.pt",
];

for (const name of FILES) {
  test(`tensors of ${name} are those that Python saved`, () => {
    const { tensors: want } = loadSafetensors(golden("values.safetensors"));
    const tree = loadCheckpoint(golden(name));
    assert.ok(tree instanceof Map);
    assert.deepEqual([...tree.keys()].sort(), Object.keys(want).sort());
    for (const [key, value] of tree as Map<string, unknown>) {
      const wanted = want[key] as Tensor;
      assert.ok(value instanceof Tensor, key);
      const isPair = value.dtype === "complex128";
      assert.equal(value.dtype, isPair ? "complex128" : wanted.dtype, key);
      assert.deepEqual([...value.shape, ...(isPair ? [2] : [])], wanted.shape, key);
      assert.deepEqual(elementBytes(value), elementBytes(wanted), key);
      assert.equal(value.requiresGrad, false, key);
    }
    const at = (key: string): Tensor => tree.get(key) as Tensor;
    assert.deepEqual(at("transposed").strides, [1, 6]);
    assert.deepEqual(at("strided").strides, [12, 2]);
    assert.deepEqual(at("expanded").strides, [0, 0]);
    assert.deepEqual(at("channels_last").strides, [24, 1, 8, 2]);
    // One storage in the file is one storage in memory.
    at("row").fill_(9);
    assert.deepEqual(at("base").select(0, 1).toList(), [9, 9, 9, 9, 9, 9]);
    assert.deepEqual(at("transposed").select(1, 1).toList(), [9, 9, 9, 9, 9, 9]);
    assert.equal(at("column").toList().toString().split(",")[1], "9");
    assert.deepEqual(at("parameter").select(0, 1).toList(), [9, 9, 9, 9, 9, 9]);
  });
}

test("an open checkpoint describes tensors, and reads one alone", () => {
  for (const name of ["tensors.p2.pt", "legacy.p2.pt"]) {
    using file = openCheckpoint(golden(name));
    assert.equal(file.format, name.startsWith("legacy") ? "legacy" : "zip");
    const lazy = lookup(file.tree, "transposed");
    assert.ok(lazy instanceof LazyTensor);
    assert.deepEqual(
      [lazy.dtype, lazy.shape, lazy.strides, lazy.requiresGrad],
      ["float32", [6, 4], [1, 6], false],
    );
    assert.equal((lookup(file.tree, "parameter") as LazyTensor).requiresGrad, true);
    assert.equal((lookup(file.tree, "frozen") as LazyTensor).requiresGrad, false);
    const { tensors } = loadSafetensors(golden("values.safetensors"));
    const read = lazy.read();
    assert.ok(read.equal(tensors.transposed as Tensor));
    const conjugate = lookup(file.tree, "conjugate") as LazyTensor;
    assert.deepEqual(elementBytes(conjugate.read()), elementBytes(tensors.conjugate as Tensor));
    read.fill_(0);
    assert.ok(lazy.read().equal(tensors.transposed as Tensor), "each reading has memory of its own");
    file.close();
    assert.throws(() => lazy.read(), /: expected an open file, got a closed one\. Read before closing it\.$/);
  }
});

test("a Lightning checkpoint: weights, EMA, optimizer, and objects of classes that are not here", () => {
  using file = openCheckpoint(golden("lightning.ckpt"));
  const { tree } = file;
  assert.equal(lookup(tree, "epoch"), 3);
  assert.equal(lookup(tree, "pytorch-lightning_version"), "1.9.5");
  assert.equal(lookup(tree, "loops", "fit_loop", "epoch_progress", "total", "ready"), 4);
  assert.deepEqual(
    [...(lookup(tree, "state_dict") as Map<string, unknown>).keys()],
    [
      "encoder.0.weight",
      "encoder.0.bias",
      "encoder.1.weight",
      "encoder.1.bias",
      "model_ema.encoder0weight",
      "model_ema.encoder0bias",
      "model_ema.encoder1weight",
      "model_ema.encoder1bias",
      "model_ema.decay",
      "model_ema.num_updates",
      "loss.mask",
    ],
  );
  assert.equal(lookup(tree, "hyper_parameters", "args", "image_size"), 256);
  assert.equal(lookup(tree, "hyper_parameters", "ddconfig", "_content", "z_channels"), 256);
  const callbacks = lookup(tree, "callbacks") as Map<unknown, PyValue>;
  const [callback] = callbacks.keys();
  assert.deepEqual(callback, new PyGlobal("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"));
  assert.equal(lookup(callbacks.get(callback) as PyValue, "best_model_path"), "/runs/a.ckpt");
  const object = lookup(tree, "callbacks", "object");
  assert.ok(object instanceof Opaque && object.name === "ModelCheckpoint");
  assert.ok(lookup(tree, "callbacks", "object", "best_model_score") instanceof LazyTensor);
});

test("only what is asked for is read, and everything read is the caller's to free", () => {
  const paths: string[] = [];
  noLeak(() => {
    const only = (name: string): boolean => paths.push(name) > 0 && name.startsWith("state_dict.encoder.");
    const tree = loadCheckpoint(golden("lightning.ckpt"), { only });
    const weights = lookup(tree, "state_dict") as Map<string, unknown>;
    const read = [...weights].filter(([, value]) => value instanceof Tensor);
    assert.deepEqual(
      read.map(([name]) => name),
      ["encoder.0.weight", "encoder.0.bias", "encoder.1.weight", "encoder.1.bias"],
    );
    assert.deepEqual((weights.get("encoder.0.weight") as Tensor).toArray(), new Float32Array(108).fill(0.5));
    assert.ok(weights.get("loss.mask") instanceof LazyTensor);
    assert.throws(() => (weights.get("loss.mask") as LazyTensor).read(), /got a closed one/);
    dispose(weights.values());
  });
  assert.ok(paths.includes("optimizer_states.0.state.3.exp_avg"), paths.join(" "));
  assert.ok(paths.includes("callbacks.object.best_model_score"), paths.join(" "));
});

test("loading leaves an open file's own tree unread", () => {
  using file = openCheckpoint(golden("lightning.ckpt"));
  const loaded = file.load();
  assert.ok(lookup(loaded, "callbacks", "object", "best_model_score") instanceof Tensor);
  assert.ok(lookup(loaded, "optimizer_states", 0, "state", 2, "exp_avg") instanceof Tensor);
  assert.ok(lookup(file.tree, "callbacks", "object", "best_model_score") instanceof LazyTensor);
  assert.equal(lookup(loaded, "hyper_parameters", "args", "image_size"), 256);
});

test("a module saved whole", () => {
  for (const name of ["module.pt", "module_legacy.pt"]) {
    const tree = loadCheckpoint(golden(name));
    assert.ok(tree instanceof Opaque);
    assert.equal(`${tree.callee}`, "a_package.model.Net");
    assert.deepEqual((lookup(tree, "_parameters", "weight") as Tensor).toList(), [[2, 3]]);
  }
});

test("tensors of kinds that are not here: described, or records of the call", () => {
  using file = openCheckpoint(golden("odd.pt"));
  const at = (...keys: (string | number)[]): PyValue<LazyTensor> | undefined => lookup(file.tree, ...keys);
  assert.equal(`${at("uint16")}`, "LazyTensor uint16[2]");
  assert.equal(`${at("float8")}`, "LazyTensor float8_e4m3fn[1]");
  assert.equal(`${at("sparse")}`, "torch._utils._rebuild_sparse_tensor(...)");
  assert.equal(`${at("quantized")}`, "torch._utils._rebuild_qtensor(...)");
  assert.equal(`${at("meta")}`, "torch._utils._rebuild_meta_tensor_no_storage(...)");
  assert.equal(`${at("storage")}`, "LazyTensor uint8[8]");
  noLeak(() =>
    assert.throws(() => file.load(), {
      message: `${file.path}: uint16: expected a dtype among uint8, int8, int16, int32, int64, float16, float32, float64, complex64, complex128, bool, bfloat16, got LazyTensor uint16[2]. Convert it in Python, or omit it.`,
    }),
  );
  const loaded = file.load({ only: (name) => name === "plain" });
  assert.deepEqual((lookup(loaded, "plain") as Tensor).toList(), [9]);
});

test("a file that would run a command loads as a record of it", () => {
  const tree = loadCheckpoint(golden("malicious.pt"));
  const exploit = lookup(tree, "exploit");
  assert.ok(exploit instanceof Opaque);
  assert.match(`${exploit}`, /^(posix|nt)\.system\(/);
  assert.deepEqual(exploit.args, ["touch pickle_was_run"]);
  assert.deepEqual((lookup(tree, "weights") as Tensor).toList(), [1]);
  assert.ok(!existsSync("pickle_was_run"));
});

test("a root that is a tensor, shared containers, rings and shared tensors", () => {
  const one = tensorOps({ type: "FloatStorage", key: "0", count: 2 }, 0, [2], [1]);
  const alone = loadCheckpoint(zipped(one, { 0: floats(1, 2) }));
  assert.deepEqual((alone as Tensor).toList(), [1, 2]);
  // A list that holds a tensor twice, a list twice, and itself.
  const ops = bytes("]q\x09(", one, "q\x01h\x01]q\x02h\x01ah\x02h\x09e");
  const list = loadCheckpoint(zipped(ops, { 0: floats(1, 2) })) as unknown[];
  assert.equal(list[0], list[1]);
  assert.equal(list[2], list[3]);
  assert.equal((list[2] as unknown[])[0], list[0]);
  assert.equal(list[4], list);
});

test("files that are something else are named", () => {
  const refused = (name: string, got: string): void =>
    assert.throws(() => openCheckpoint(name), {
      name: "RangeError",
      message: `${name}: expected a checkpoint of torch.save, got ${got}`,
    });
  const remedy =
    "PyTorch 0.1.9 and older saved so; in Python: torch.save(torch.load(path, weights_only=False), new).";
  refused(written(), "an empty file. Fetch it again.");
  refused(
    written("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    "a git-lfs pointer. Fetch the file itself: git lfs pull.",
  );
  refused(
    written("\n<!DOCTYPE html><html>"),
    "a web page. The download was refused or redirected; fetch it again.",
  );
  refused(golden("values.safetensors"), "a safetensors file. Read it with loadSafetensors.");
  refused(
    golden("values.p4.pkl"),
    "a bare pickle. In Python: torch.save(pickle.load(open(path, 'rb')), new).",
  );
  refused(written(Buffer.alloc(257), "ustar  \0", Buffer.alloc(300)), `a tar archive. ${remedy}`);
  refused(written("\x93NUMPY\x01\x00"), "a NumPy array.");
  refused(written("GGUF\x03"), "a GGUF file.");
  refused(written("\x89HDF\r\n"), "an HDF5 file.");
  refused(written("\x1f\x8b\x08"), "a gzip file. Unpack it with gunzip.");
  refused(written("hello"), 'text that begins with "hello".');
  refused(
    written("# A configuration.\nseed: 1\n"),
    'text that begins with "# A configuration.\\nseed: 1\\n".',
  );
  refused(written("hello\x00\x01"), "a file that begins with bytes 68656c6c6f0001.");
  const script = [
    { name: "x/constants.pkl", data: pickle(")") },
    { name: "x/code/a.py", data: Buffer.from("") },
  ];
  refused(
    zipped(bytes("N"), {}, script),
    "a TorchScript archive, which holds a program. In Python: torch.save(torch.jit.load(path).state_dict(), new).",
  );
  refused(
    written(zipOf([{ name: "arr_0.npy", data: Buffer.from("x") }])),
    "a zip archive of 1 files (arr_0.npy, ...) without data.pkl.",
  );
});

test("containers that cannot be read are refused", () => {
  const part = (name: string, text: string): ZipPart[] => [{ name, data: Buffer.from(text) }];
  assert.throws(() => openCheckpoint(zipped(bytes("N"), {}, part("x/byteorder", "big"))), {
    message: `${path}: expected little-endian data, got big-endian. Load and save it with torch on a common machine.`,
  });
  assert.throws(() => openCheckpoint(zipped(bytes("N"), {}, part("x/version", "11\n"))), {
    message: `${path}: expected a container version up to 10, got 11.`,
  });
  assert.throws(() => openCheckpoint(zipped(bytes("N"), {}, part("y/data.pkl", "N."))), {
    message: `${path}: expected one data.pkl, got [x/data.pkl, y/data.pkl].`,
  });
  assert.throws(() => openCheckpoint(zipped(bytes("K"))), {
    message: `${path}: data.pkl, byte 4, opcode: expected 1 bytes, got 0 before the end. The file is damaged or hostile.`,
  });
});

test("zip files whose storages lie are refused", () => {
  const ops = (count: number | Uint8Array, size: number): Buffer =>
    tensorOps({ type: "FloatStorage", key: "0", count }, 0, [size], [1]);
  const refused = (file: string, message: RegExp): void =>
    noLeak(() => assert.throws(() => loadCheckpoint(file), message));
  refused(
    zipped(ops(2, 2)),
    /data\.pkl, byte \d+, BINPERSID: expected an entry data\/0, got none\. The file is damaged\.$/,
  );
  refused(
    zipped(ops(3, 2), { 0: floats(1, 2) }),
    /BINPERSID: expected 12 bytes in data\/0, got 8\. The file is damaged\.$/,
  );
  refused(
    zipped(ops(1, 1), { 0: floats(1, 2) }),
    /expected 4 bytes in data\/0, got 8\. The file is damaged\.$/,
  );
  refused(
    zipped(ops(2, 3), { 0: floats(1, 2) }),
    /REDUCE: expected a tensor inside its storage of 8 bytes, got float32 \[3\]/,
  );
  refused(zipped(ops(-2, 2), { 0: floats(1, 2) }), /BINPERSID: expected a number of elements, got -2/);
  const huge = bytes(0x8a, 9, int64(0n), 1);
  refused(
    zipped(ops(huge, 2), { 0: floats(1, 2) }),
    /BINPERSID: expected a number of elements, got a long int/,
  );
  const wrong = reduce(global("torch._utils", "_rebuild_tensor_v2"), num(1), num(0), bytes(")"), bytes(")"));
  refused(zipped(wrong), /REDUCE: expected a storage, got 1/);
});

test("legacy files whose storages lie are refused", () => {
  const ops = tensorOps({ type: "FloatStorage", key: "a", count: 2 }, 0, [2], [1]);
  const count = (n: number): Buffer => int64(BigInt(n));
  const loaded = loadCheckpoint(legacy(ops, ["a"], count(2), floats(1, 2)));
  assert.deepEqual((loaded as Tensor).toList(), [1, 2]);
  (loaded as Tensor).dispose();
  const refused = (file: string, message: RegExp): void =>
    noLeak(() => assert.throws(() => loadCheckpoint(file), message));
  refused(legacy(ops, [], floats(1, 2)), /expected the data of storage a, got none/);
  refused(legacy(ops, ["b"], count(2), floats(1, 2)), /expected a storage that the object uses, got "b"/);
  refused(legacy(ops, ["a"], count(3), floats(1, 2, 3)), /storage a: expected 2 elements, got 3n/);
  refused(legacy(ops, ["a"], count(-2), floats(1, 2)), /storage a: expected 2 elements, got -2n/);
  refused(
    legacy(ops, ["a"], count(2), floats(1)),
    /storage a: expected 8 bytes, got 4\. The file was cut short\.$/,
  );
  refused(
    legacy(ops, ["a"], Buffer.alloc(3)),
    /storage a: expected 8 bytes at byte \d+, got the end of the file/,
  );
  const two = bytes(ops, tensorOps({ type: "FloatStorage", key: "a", count: 9 }, 0, [2], [1]), 0x86);
  refused(legacy(two, ["a"], count(2), floats(1, 2)), /expected 8 bytes of storage a, as before, got 36/);
  const protocol = LEGACY_HEAD.indexOf(int(1001, 2));
  const old = patched(LEGACY_HEAD, protocol, int(1000, 2));
  assert.throws(() => openCheckpoint(written(old, pickle(ops))), {
    message: `${path}: expected legacy protocol 1001, got 1000.`,
  });
  refused(written(LEGACY_HEAD, pickle(ops), pickle("N")), /expected a list of storage keys, got None/);
});

test("no change of bytes does more than be refused", () => {
  const files = ["tensors.p2.pt", "legacy.p2.pt", "legacy.p4.pt", "odd.pt", "deflated.pt"].map((name) =>
    readFileSync(golden(name)),
  );
  const tryLoad = (data: Uint8Array): void => {
    writeFileSync(path, data);
    try {
      using file = openCheckpoint(path);
      const open: unknown[] = [file.load({ only: (name) => !/uint16|float8/.test(name) })];
      for (const seen = new Set<unknown>(open); open.length > 0; ) {
        const value = open.pop();
        if (value instanceof Tensor) value.dispose();
        const inside =
          value instanceof Opaque ? [value.args, value.state, value.items, value.entries] : value;
        if (!(Array.isArray(inside) || inside instanceof Map || inside instanceof Set)) continue;
        for (const child of inside.values()) {
          if (typeof child === "object" && !seen.has(child)) open.push(child);
          seen.add(child);
        }
      }
    } catch (error) {
      assert.match(String(error), /^RangeError: [\s\S]*: expected [\s\S]+, got [\s\S]+\.$/);
    }
  };
  for (const file of files) for (let n = 0; n < file.length; n += 101) tryLoad(file.subarray(0, n));
  const changes = fc.array(fc.tuple(fc.nat(), fc.nat(255)), { minLength: 1, maxLength: 6 });
  fc.assert(
    fc.property(fc.constantFrom(...files), changes, (file, list) => {
      const data = Buffer.from(file);
      for (const [at, value] of list) data[at % data.length] = value;
      tryLoad(data);
    }),
    { numRuns: 600 },
  );
});
