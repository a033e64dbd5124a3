/** Safetensors: files of the reference implementation, our own, and headers that lie. */
import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import { MemoryBytes } from "../../src/torch/files.js";
import {
  arange,
  call,
  DTYPES,
  type DType,
  isCudaAvailable,
  ones,
  type Tensor,
  tensor,
  tidy,
  zeros,
} from "../../src/torch/index.js";
import {
  loadSafetensors,
  openSafetensors,
  readSafetensorsHeader,
  saveSafetensors,
} from "../../src/torch/safetensors.js";
import { elementBytes, fromBytes } from "../support/bytes.js";
import { noLeak } from "../support/leak.js";
import { bytes, int64 } from "../support/pickled.js";

const golden = (name: string): string =>
  fileURLToPath(new URL(`../../../test/golden/checkpoints/${name}`, import.meta.url));

const folder = mkdtempSync(join(tmpdir(), "rlar-safetensors-"));
after(() => rmSync(folder, { recursive: true }));
const path = join(folder, "x.safetensors");

const fileOf = (header: string | Uint8Array, data: Uint8Array | string = ""): Buffer => {
  const text = Buffer.from(header);
  return bytes(int64(BigInt(text.length)), text, data);
};

const ALL = [
  "uint64",
  "int64",
  "float64",
  "complex64",
  "__proto__",
  'a/漢 "quoted"\n.weight',
  "empty",
  "float32",
  "scalar",
  "\uffee",
  "\u{1f600}",
  "uint32",
  "int32",
  "bfloat16",
  "float16",
  "uint16",
  "int16",
  "float8_e4m3fn",
  "float8_e5m2",
  "int8",
  "uint8",
  "bool",
];

test("a file of the reference implementation", () => {
  using file = openSafetensors(golden("all_dtypes.safetensors"));
  assert.deepEqual(file.keys, ALL);
  assert.deepEqual({ ...file.metadata }, { format: "pt" });
  assert.deepEqual(file.info("bfloat16"), { dtype: "bfloat16", shape: [3], bytes: 6 });
  assert.deepEqual(file.info("float8_e4m3fn"), { dtype: "F8_E4M3", shape: [3], bytes: 3 });
  assert.deepEqual(file.info("empty"), { dtype: "float32", shape: [2, 0], bytes: 0 });
  assert.ok(file.has("__proto__") && !file.has("toString"));
  const dtypes: DType[] = [
    "uint8",
    "int8",
    "int16",
    "int32",
    "int64",
    "float16",
    "bfloat16",
    "float32",
    "float64",
    "bool",
  ];
  for (const name of dtypes) {
    const read = file.tensor(name);
    assert.equal(read.dtype, name);
    assert.deepEqual(read.toList(), name === "bool" ? [0, 1, 1] : [0, 1, 3]);
  }
  const complex = new Float32Array([0, 0, 1, 0, 3, 0]);
  assert.deepEqual(elementBytes(file.tensor("complex64")), new Uint8Array(complex.buffer));
  assert.equal(file.tensor("scalar").item(), 1.5);
  assert.deepEqual(file.tensor("empty").shape, [2, 0]);
  assert.deepEqual(file.tensor('a/漢 "quoted"\n.weight').toList(), [[1, 2]]);
  assert.deepEqual(file.tensor("__proto__").toList(), [8]);
});

test("a dtype that no tensor here can have is an error only when that tensor is asked for", () => {
  using file = openSafetensors(golden("all_dtypes.safetensors"));
  const known = "bool, uint8, int8, int16, int32, int64, float16, bfloat16, float32, float64, complex64";
  for (const [name, dtype] of [
    ["float8_e5m2", "F8_E5M2"],
    ["uint16", "U16"],
  ] as const) {
    assert.throws(() => file.tensor(name), {
      name: "RangeError",
      message: `${file.path}: ${name}: expected a dtype among ${known}, got ${dtype}. Convert it where it was written.`,
    });
  }
  assert.throws(() => file.tensor("absent"), {
    message: `${file.path}: absent: expected a tensor of the file, got none of that name. keys lists them.`,
  });
  noLeak(() => assert.throws(() => loadSafetensors(file.path), /uint64: expected a dtype among/));
});

test("a closed file reads no more", () => {
  const file = openSafetensors(golden("supported.safetensors"));
  file.close();
  noLeak(() => assert.throws(() => file.tensor("int64"), /expected an open file, got a closed one/));
});

test("what is written is what the reference implementation writes, byte for byte", () => {
  const { tensors, metadata } = loadSafetensors(golden("supported.safetensors"));
  assert.equal(Object.getPrototypeOf(tensors), null);
  saveSafetensors(path, tensors, metadata);
  assert.deepEqual(readFileSync(path), readFileSync(golden("supported.safetensors")));
});

test("a small file by hand", () => {
  saveSafetensors(path, { b: tensor([1, 2]), a: tensor([[7n]].flat()) }, { step: "3" });
  const header = `{"__metadata__":{"step":"3"},"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}`;
  const padded = header.padEnd(Math.ceil(header.length / 8) * 8);
  const data = bytes(int64(7n), Buffer.from(new Float32Array([1, 2]).buffer));
  assert.deepEqual(readFileSync(path), fileOf(padded, data));
  saveSafetensors(path, {});
  assert.deepEqual(readFileSync(path), fileOf("{}      "));
  assert.deepEqual({ ...loadSafetensors(path).tensors }, {});
});

test("views are written as what they show", () => {
  const base = arange(0, 12, 1, { dtype: "float32" }).view(3, 4);
  const views: Record<string, Tensor> = {
    base,
    transposed: base.transpose(0, 1),
    column: base.select(1, 1),
    row: base.select(0, 2),
    expanded: tensor([5]).expand(2, 3),
    leaf: ones([2], { requiresGrad: true }),
    scalar: base.select(0, 1).select(0, 1),
    none: zeros([0, 3]),
  };
  noLeak(() => saveSafetensors(path, views));
  const { tensors } = loadSafetensors(path);
  for (const [name, view] of Object.entries(views)) {
    const read = tensors[name] as Tensor;
    assert.ok(read.isContiguous() && read.equal(view), name);
    assert.deepEqual(read.shape, view.shape);
    assert.equal(read.requiresGrad, false);
  }
});

test("a complex view that is conjugated or negated by a flag is written as what it shows", () => {
  const made = fromBytes(new Uint8Array(new Float32Array([1, 2, 3, -4]).buffer), [2], "complex64");
  const conjugate = call("aten::conj", [made]) as Tensor;
  const negative = call("aten::imag", [conjugate]) as Tensor;
  saveSafetensors(path, { conjugate, negative });
  const { tensors } = loadSafetensors(path);
  const want = new Float32Array([1, -2, 3, 4]);
  assert.deepEqual(elementBytes(tensors.conjugate as Tensor), new Uint8Array(want.buffer));
  assert.deepEqual(tensors.negative?.toList(), [-2, 4]);
});

test("tensors of a GPU are written and come back on the CPU", {
  skip: !isCudaAvailable() && "no CUDA device",
}, () => {
  saveSafetensors(path, { a: tensor([1, 2], { device: "cuda" }) });
  const { tensors } = loadSafetensors(path);
  assert.equal(tensors.a?.device, "cpu");
  assert.deepEqual(tensors.a?.toList(), [1, 2]);
});

test("random tensors come back as they were", () => {
  const dtypes = fc.constantFrom<DType>(
    "uint8",
    "int16",
    "int64",
    "float16",
    "bfloat16",
    "float32",
    "float64",
    "bool",
    "complex64",
  );
  const entry = fc.record({ dtype: dtypes, shape: fc.array(fc.nat(4), { maxLength: 4 }), seed: fc.nat(255) });
  fc.assert(
    fc.property(fc.dictionary(fc.string({ unit: "grapheme" }), entry, { maxKeys: 6 }), (entries) =>
      tidy(() => {
        const written = Object.fromEntries(
          Object.entries(entries)
            .filter(([name]) => name !== "__metadata__")
            .map(([name, { dtype, shape, seed }]): [string, Tensor] => {
              const size = shape.reduce((product, n) => product * n, DTYPES[dtype].size);
              const bytes = Uint8Array.from({ length: size }, (_, i) =>
                dtype === "bool" ? (seed + i) & 1 : (seed * 31 + i * 7) & 255,
              );
              return [name, fromBytes(bytes, shape, dtype)];
            }),
        );
        saveSafetensors(path, written);
        const { tensors } = loadSafetensors(path);
        assert.deepEqual(Object.keys(tensors).sort(), Object.keys(written).sort());
        for (const [name, want] of Object.entries(written)) {
          const got = tensors[name] as Tensor;
          assert.equal(got.dtype, want.dtype);
          assert.deepEqual(got.shape, want.shape);
          assert.deepEqual(elementBytes(got), elementBytes(want));
        }
      }),
    ),
    { numRuns: 60 },
  );
});

test("what the format cannot hold is refused before a file is touched", () => {
  saveSafetensors(path, { a: ones([1]) });
  const before = readFileSync(path);
  const complex = zeros([1], { dtype: "complex128" });
  assert.throws(() => saveSafetensors(path, { w: complex }), {
    name: "RangeError",
    message: "saveSafetensors: w: expected a dtype of the format, got complex128. Save real and imag apart.",
  });
  assert.throws(() => saveSafetensors(path, { w: [1] as unknown as Tensor }), {
    name: "TypeError",
    message: "saveSafetensors: w: expected a Tensor, got [1].",
  });
  assert.throws(() => saveSafetensors(path, { __metadata__: ones([1]) }), {
    message: "saveSafetensors: expected another tensor name, got __metadata__. The format reserves it.",
  });
  assert.throws(() => saveSafetensors(path, {}, { step: 3 as unknown as string }), {
    message: "saveSafetensors: metadata.step: expected a string, got 3.",
  });
  const freed = ones([1]);
  freed.dispose();
  assert.throws(() => saveSafetensors(path, { freed }), /expected a live tensor, got one that was freed/);
  assert.deepEqual(readFileSync(path), before);
  assert.deepEqual(readdirSync(folder), ["x.safetensors"]);
});

test("headers that lie are refused", () => {
  const end = "The file is damaged, was cut short or is not safetensors.";
  const entry = (dtype: string, shape: string, from: number, to: number): string =>
    `{"dtype":"${dtype}","shape":${shape},"data_offsets":[${from},${to}]}`;
  const one = entry("F32", "[1]", 0, 4);
  const all =
    "BOOL F4 F6_E2M3 F6_E3M2 U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ I16 U16 F16 BF16 I32 U32 F32 C64 F64 I64 U64";
  const cases: [Uint8Array, string][] = [
    [Buffer.alloc(0), "f: expected a header length of 8 bytes, got a file of 0."],
    [Buffer.alloc(7), "f: expected a header length of 8 bytes, got a file of 7."],
    [bytes(int64(3n), "{}"), "f: expected a header of at most 2 bytes, got 3."],
    [bytes(int64(-1n), "{}"), "f: expected a header of at most 2 bytes, got 18446744073709552000."],
    [fileOf('{"a":'), "f: expected a header of JSON, got Unexpected end of JSON input."],
    [
      fileOf(Buffer.from([0x22, 0xff, 0x22])),
      "f: expected a header of JSON, got The encoded data was not valid for encoding utf-8.",
    ],
    [fileOf("[]"), "f: expected a header that is a JSON object, got []."],
    [fileOf("null"), "f: expected a header that is a JSON object, got null."],
    [fileOf(`{"a":${one},"a":${one}}`, "1234"), 'f: expected each key once, got "a" twice.'],
    [fileOf(`{"a":${one},"\\u0061":${one}}`, "1234"), 'f: expected each key once, got "a" twice.'],
    [
      fileOf(`{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}`, "1234"),
      'f: expected each key once, got "dtype" twice.',
    ],
    [fileOf(`{"__metadata__":{"k":1}}`), "f: metadata.k: expected a string, got 1."],
    [fileOf(`{"__metadata__":["k"]}`), "f: expected metadata that is a JSON object, got k."],
    [fileOf(`{"a":3}`), "f: a: expected dtype, shape and data_offsets, got 3."],
    [
      fileOf(`{"a":${entry("F32", "[-1]", 0, 4)}}`, "1234"),
      "f: a: expected a shape of at most 64 whole numbers, got [-1].",
    ],
    [
      fileOf(`{"a":${entry("F32", "[0.5]", 0, 4)}}`, "1234"),
      "f: a: expected a shape of at most 64 whole numbers, got [0.5].",
    ],
    [
      fileOf(`{"a":${entry("F32", '["1"]', 0, 4)}}`, "1234"),
      'f: a: expected a shape of at most 64 whole numbers, got ["1"].',
    ],
    [
      fileOf(`{"a":${entry("F32", "[9007199254740993]", 0, 4)}}`, "1234"),
      "f: a: expected a shape of at most 64 whole numbers, got [9007199254740992].",
    ],
    [
      fileOf(`{"a":${entry("F32", "[4294967296,4294967296,0]", 0, 0)}}`),
      "f: a: expected a shape whose product is below 2^53 bits, got [4294967296,4294967296,0].",
    ],
    [
      fileOf(`{"a":${entry("F32", "[2147483648,2147483648,4]", 0, 0)}}`),
      "f: a: expected a shape whose product is below 2^53 bits, got [2147483648,2147483648,4].",
    ],
    [fileOf(`{"a":${entry("F32", "[2]", 0, 4)}}`, "1234"), "f: a: expected 8 bytes for F32 [2], got 4."],
    [fileOf(`{"a":${entry("F4", "[1]", 0, 1)}}`, "1"), "f: a: expected 0.5 bytes for F4 [1], got 1."],
    [fileOf(`{"a":${entry("F32", "[1]", 4, 0)}}`, "1234"), "f: a: expected 4 bytes for F32 [1], got -4."],
    [
      fileOf(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}}`, "1234"),
      "f: a: expected data_offsets that are two whole numbers, got [0].",
    ],
    [
      fileOf(`{"a":${one},"b":${one}}`, "1234"),
      "f: b: expected data at byte 4, behind the tensor before it, got 0.",
    ],
    [
      fileOf(`{"a":${one},"b":${entry("F32", "[1]", 2, 6)}}`, "123456"),
      "f: b: expected data at byte 4, behind the tensor before it, got 2.",
    ],
    [
      fileOf(`{"a":${one},"b":${entry("F32", "[1]", 8, 12)}}`, "123456789012"),
      "f: b: expected data at byte 4, behind the tensor before it, got 8.",
    ],
    [
      fileOf(`{"a":${entry("F32", "[1]", 4, 8)}}`, "12345678"),
      "f: a: expected data at byte 0, behind the tensor before it, got 4.",
    ],
    [fileOf(`{"a":${one}}`, "123"), "f: expected 4 bytes of tensors, got 3."],
    [fileOf(`{"a":${one}}`, "12345"), "f: expected 4 bytes of tensors, got 5."],
  ];
  for (const [data, message] of cases) {
    assert.throws(() => readSafetensorsHeader(new MemoryBytes(data), "f"), {
      name: "RangeError",
      message: `${message} ${end}`,
    });
  }
  const unknown = fileOf(`{"a":${entry("F99", "[1]", 0, 4)}}`, "1234");
  assert.throws(() => readSafetensorsHeader(new MemoryBytes(unknown), "f"), {
    message: `f: a: expected a dtype among ${all}, got "F99".`,
  });
  const sparse = {
    size: 2 ** 40,
    read: () => Buffer.from(int64(100_000_001n)),
    readInto: () => assert.fail("read"),
  };
  assert.throws(
    () => readSafetensorsHeader(sparse, "f"),
    /expected a header of at most 100000000 bytes, got 100000001/,
  );
});

test("headers that are odd and honest are read", () => {
  const entry = `{"dtype":"F32","shape":[1],"data_offsets":[0,4],"note":"ignored"}`;
  const { entries, metadata } = readSafetensorsHeader(
    new MemoryBytes(fileOf(` {"a":${entry},"__metadata__":null} \n`, "1234")),
    "f",
  );
  assert.deepEqual([...entries.keys()], ["a"]);
  assert.deepEqual({ ...metadata }, {});
  const long = "k".repeat(3_000_000);
  const named = fileOf(`{"${long}\\"{:}":${entry}}`, "1234");
  assert.deepEqual([...readSafetensorsHeader(new MemoryBytes(named), "f").entries.keys()], [`${long}"{:}`]);
});

test("no change of bytes does more than be refused", () => {
  const original = readFileSync(golden("all_dtypes.safetensors"));
  const changes = fc.array(fc.tuple(fc.nat(1500), fc.nat(255)), { minLength: 1, maxLength: 4 });
  const changed = join(folder, "changed.safetensors");
  const tryRead = (data: Uint8Array): void => {
    writeFileSync(changed, data);
    try {
      using file = openSafetensors(changed);
      for (const name of file.keys) if (!/[FUC]\d/.test(file.info(name).dtype)) file.tensor(name).dispose();
    } catch (error) {
      assert.match(String(error), /^RangeError: [\s\S]*: expected [\s\S]+, got [\s\S]+\.$/);
    }
  };
  noLeak(() => {
    for (let n = 0; n < original.length; n += 13) tryRead(original.subarray(0, n));
    fc.assert(
      fc.property(changes, (list) => {
        const data = Buffer.from(original);
        for (const [at, value] of list) data[at % data.length] = value;
        tryRead(data);
      }),
      { numRuns: 500 },
    );
  });
});

test("a header that nests deeply is refused, not followed", () => {
  const deep = `${"[".repeat(200_000)}${"]".repeat(200_000)}`;
  for (const json of [
    `{"a":${deep}}`,
    `{"__metadata__":{"k":${deep}}}`,
    deep,
    `{"a":${'{"b":'.repeat(99_999)}1${"}".repeat(100_000)}`,
  ]) {
    const head = Buffer.from(json);
    const file = Buffer.concat([int64(BigInt(head.length)), head]);
    assert.throws(() => readSafetensorsHeader(new MemoryBytes(file), "deep"), {
      name: "RangeError",
      message: /^deep: expected a header of JSON, at most 64 lists and objects deep, got a deeper one\./,
    });
  }
});
