/** What saveTorch writes is what loadCheckpoint reads; that PyTorch reads it was checked with scripts/golden/saved.py. */
import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import * as zlib from "node:zlib";
import fc from "fast-check";
import { loadCheckpoint } from "../../src/torch/checkpoint.js";
import { FileBytes } from "../../src/torch/files.js";
import {
  DTYPES,
  type DType,
  ones,
  openWeights,
  type Savable,
  saveTorch,
  Tensor,
  tensor,
  tidy,
  zeros,
} from "../../src/torch/index.js";
import { ZipArchive } from "../../src/torch/zip.js";
import { elementBytes, fromBytes } from "../support/bytes.js";
import { noLeak } from "../support/leak.js";

const folder = mkdtempSync(join(tmpdir(), "rlar-save-torch-"));
after(() => rmSync(folder, { recursive: true }));
const path = join(folder, "model.pt");

const saved = (value: Savable): unknown => {
  saveTorch(path, value);
  return loadCheckpoint(path);
};

test("every dtype comes back bit for bit, with its shape", () => {
  noLeak(() =>
    tidy(() => {
      for (const [dtype, { size }] of Object.entries(DTYPES)) {
        for (const shape of [[], [3], [0, 2], [2, 3, 4]]) {
          const count = shape.reduce((product, n) => product * n, size);
          const bytes = Uint8Array.from({ length: count }, (_, i) =>
            dtype === "bool" ? i & 1 : (i * 37) & 255,
          );
          const made = fromBytes(bytes, shape, dtype as DType);
          const tree = saved({ made }) as Map<string, Tensor>;
          const read = tree.get("made") as Tensor;
          assert.deepEqual([read.dtype, read.shape], [dtype, shape]);
          assert.deepEqual(elementBytes(read), bytes, dtype);
          read.dispose();
        }
      }
    }),
  );
});

test("views are written as what they show, one tensor under two names stays one", () => {
  tidy(() => {
    const x = tensor([
      [1, 2, 3],
      [4, 5, 6],
    ]).requiresGrad_();
    const tree = saved({ turned: x.transpose(0, 1), part: x.narrow(1, 1, 2), x, again: x }) as Map<
      string,
      Tensor
    >;
    const get = (name: string): Tensor => tree.get(name) as Tensor;
    assert.deepEqual(get("turned").toList(), [
      [1, 4],
      [2, 5],
      [3, 6],
    ]);
    assert.deepEqual(get("part").toList(), [
      [2, 3],
      [5, 6],
    ]);
    assert.equal(get("x").requiresGrad, false);
    get("x").fill_(0);
    assert.deepEqual(get("again").toList(), [
      [0, 0, 0],
      [0, 0, 0],
    ]);
    for (const each of tree.values()) each.dispose();
  });
});

test("plain data comes back as Python would have it", () => {
  const value: Savable = {
    none: null,
    flags: [true, false],
    numbers: [
      0,
      -1,
      255,
      65536,
      2 ** 31 - 1,
      -(2 ** 31),
      2 ** 31,
      2 ** 53 - 1,
      -(2 ** 40),
      0.5,
      1e300,
      -0,
      NaN,
      Infinity,
    ],
    large: [2n ** 63n, -(2n ** 63n), 2n ** 200n, 7n, -129n, -128n],
    text: ["", "ä🎨", "a\nb", "\u0000"],
    nested: [
      [],
      {},
      new Map<string | number, Savable>([
        [1, "one"],
        ["two", [2]],
      ]),
    ],
    __proto__: null,
  };
  const tree = saved(value) as Map<string, unknown>;
  const want = new Map<string, unknown>(Object.entries(value));
  want.set("large", [2n ** 63n, -(2n ** 63n), 2n ** 200n, 7, -129, -128]);
  want.set("nested", [
    [],
    new Map(),
    new Map<unknown, unknown>([
      [1, "one"],
      ["two", [2]],
    ]),
  ]);
  assert.deepEqual(tree, want);
  const shared = [1];
  assert.deepEqual(saved([shared, shared]), [[1], [1]]);
});

test("any data of numbers, text, lists and dicts comes back", () => {
  const { tree } = fc.letrec<{ tree: unknown }>((tie) => ({
    tree: fc.oneof(
      { maxDepth: 4 },
      fc.constant(null),
      fc.boolean(),
      fc.double(),
      fc.integer(),
      fc.string({ unit: "grapheme" }),
      fc.array(tie("tree"), { maxLength: 4 }),
      fc.dictionary(fc.string(), tie("tree"), { maxKeys: 4 }).map((each) => new Map(Object.entries(each))),
    ),
  }));
  fc.assert(
    fc.property(tree, (value) => assert.deepEqual(saved(value as Savable), value)),
    { numRuns: 200 },
  );
});

test("data begins on multiples of 64 bytes, checksums are right, and names are PyTorch's", () => {
  tidy(() => saveTorch(path, { a: ones([3]), b: ones([1000]), c: zeros([1], { dtype: "bool" }) }));
  const file = new FileBytes(path);
  const zip = new ZipArchive(file, path);
  assert.deepEqual(
    [...zip.entries.keys()],
    ["data.pkl", "byteorder", "data/0", "data/1", "data/2", "version"].map((name) => `archive/${name}`),
  );
  for (const entry of zip.entries.values()) assert.equal(zip.dataOffset(entry) % 64, 0, entry.name);
  const { crc32 } = zlib as { crc32?: (data: Uint8Array) => number };
  const all = readFileSync(path);
  if (crc32 !== undefined) {
    for (const entry of zip.entries.values()) {
      assert.equal(all.readUInt32LE(entry.headerOffset + 14), crc32(zip.read(entry)), entry.name);
    }
  }
  file.close();
  const before = all.toString("latin1");
  tidy(() => saveTorch(path, { a: ones([3]), b: ones([1000]), c: zeros([1], { dtype: "bool" }) }));
  assert.equal(readFileSync(path, "latin1"), before, "the same content makes the same file");
});

test("weights are found in it as in any checkpoint", () => {
  tidy(() => saveTorch(path, { model: { "a.weight": ones([2, 3]) }, step: 7 }));
  using file = openWeights(path);
  assert.deepEqual([file.format, file.wrapper, file.names], ["zip", "model", ["a.weight"]]);
});

test("what cannot be saved is named, and what stood at the path stays", () => {
  writeFileSync(path, "old");
  const ring: Savable[] = [];
  ring.push([ring]);
  let deep: Savable = [];
  for (let i = 0; i < 600; i++) deep = [deep];
  const freed = ones([1]);
  freed.dispose();
  const refused: [unknown, RegExp][] = [
    [{ model: { f: () => 1 } }, /^saveTorch: model\.f: expected .*, got a function/],
    [{ a: [1, undefined] }, /^saveTorch: a\.1: expected .*, got undefined/],
    [{ a: new Date(0) }, /^saveTorch: a: expected /],
    [Symbol("x"), /^saveTorch: expected /],
    [new Map([[{}, 1]]), /^saveTorch: expected keys/],
    [{ a: new Uint8Array(2) }, /^saveTorch: a: expected .*Uint8Array/],
    [ring, /^saveTorch: 0\.0: expected data that ends/],
    [deep, /^saveTorch: expected at most 500 containers/],
    [{ freed }, /freed/],
    [{ m: zeros([2], { device: "meta" }) }, /^saveTorch: m: expected a tensor with values/],
  ];
  for (const [value, message] of refused) assert.throws(() => saveTorch(path, value as Savable), { message });
  assert.equal(readFileSync(path, "utf8"), "old");
  assert.deepEqual(readdirSync(folder), ["model.pt"]);
  assert.throws(
    () => saveTorch(join(folder, "none", "x.pt"), { a: 1 }),
    /expected a path that can be written/,
  );
  assert.ok(Tensor);
});
