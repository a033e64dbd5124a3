import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { checkFeatures, featuresOfNpy, readNpy, toFloat32, toInt64 } from "../../src/data/npy.js";
import { goldenData, npyOf } from "../support/data_files.js";

const file = (name: string): Buffer => readFileSync(goldenData(`npy/${name}.npy`));
const counted = Array.from({ length: 12 }, (_, i) => BigInt(i));

test("whole numbers that NumPy wrote come back, of every width and header version", () => {
  for (const name of ["int64", "version2"]) {
    const raw = readNpy(file(name), name);
    assert.deepEqual(raw.shape, [1, 3, 4]);
    assert.deepEqual([...toInt64(raw, name)], counted);
  }
  const ints = (name: string): number[] => [...toInt64(readNpy(file(name), name), name)].map(Number);
  assert.deepEqual(
    ints("uint16"),
    counted.map((i) => Number(i) + 65000),
  );
  assert.deepEqual(
    ints("int8"),
    counted.map((i) => Number(i) - 6),
  );
  assert.deepEqual(readNpy(file("scalar"), "scalar").shape, []);
  assert.deepEqual(ints("scalar"), [7]);
});

test("floats that NumPy wrote come back as float32, halves with their smallest and largest", () => {
  const floats = (name: string): number[] => [...toFloat32(readNpy(file(name), name), name)];
  assert.deepEqual(floats("float32"), [1.5, -3.25]);
  assert.deepEqual(floats("float64"), [Math.fround(0.1), Infinity]);
  const halves = floats("float16");
  assert.deepEqual(halves.slice(0, 3), [0.5, -2, 65504]);
  // 6e-8 is nearest to 2^-24, the smallest half; 1e-3 to 1049 * 2^-20.
  assert.deepEqual(halves.slice(3, 5), [2 ** -24, 1049 * 2 ** -20]);
  assert.ok(Object.is(halves[5], -0));
  const special = Uint8Array.from([0x00, 0x7c, 0x00, 0xfc, 0x01, 0x7e]);
  assert.deepEqual(
    [...toFloat32({ type: "f2", shape: [3], bytes: special }, "")],
    [Infinity, -Infinity, NaN],
  );
  const bfloats = Uint8Array.from([0xc0, 0x3f, 0x20, 0xc1]);
  assert.deepEqual([...toFloat32({ type: "bf2", shape: [2], bytes: bfloats }, "")], [1.5, -10]);
});

test("an array that does not begin on a multiple of its width is read all the same", () => {
  const whole = Buffer.concat([Buffer.from([1]), npyOf(Float32Array.of(0.5, 2), [2])]);
  assert.deepEqual([...toFloat32(readNpy(whole.subarray(1), ""), "")], [0.5, 2]);
});

test("what cannot be read is refused in a sentence", () => {
  const refuse = (bytes: Uint8Array, message: string): void => {
    assert.throws(() => readNpy(bytes, "a.npy"), { name: "RangeError", message });
  };
  refuse(Buffer.from("no array"), "a.npy: expected a .npy array, got 8 bytes of something else.");
  refuse(Buffer.alloc(99), "a.npy: expected a .npy array, got 99 bytes of something else.");
  refuse(
    file("fortran"),
    "a.npy: expected rows after one another, got fortran_order: True. Save numpy.ascontiguousarray of it.",
  );
  const numbers = "a.npy: expected little-endian whole numbers or floats";
  refuse(file("big_endian"), `${numbers}, got >i8. Convert the array with astype.`);
  refuse(file("objects"), `${numbers}, got |O. Convert the array with astype.`);
  const cut = file("int64").subarray(0, -8);
  refuse(cut, "a.npy: expected 96 bytes for <i8 [1, 3, 4], got 88. The file was cut short or is damaged.");
  assert.throws(
    () => readNpy(file("int64").subarray(0, 60), "a.npy"),
    /^RangeError: a\.npy: expected a \.npy header/,
  );
  const ints = readNpy(file("int64"), "");
  assert.throws(() => toFloat32(ints, "a.npy"), {
    message: "a.npy: expected floats, got i8. Convert the array with astype.",
  });
  const floats = readNpy(file("float32"), "");
  assert.throws(() => toInt64(floats, "a.npy"), {
    message: "a.npy: expected whole numbers, got f4. Convert the array with astype.",
  });
});

test("text features are [S, C] or [1, S, C] and finite", () => {
  const features = featuresOfNpy(npyOf(Float32Array.of(1, 2, 3, 4, 5, 6), [1, 3, 2]), "text");
  assert.deepEqual(features.shape, [3, 2]);
  assert.deepEqual([...features.data], [1, 2, 3, 4, 5, 6]);
  assert.throws(() => checkFeatures(Float32Array.of(1, 2, NaN, 4), [2, 2], "text of x"), {
    message: "text of x: expected finite numbers, got NaN at [1, 0]. Extract the features again, in float32.",
  });
  assert.throws(() => checkFeatures(new Float32Array(8), [2, 2, 2], "text of x"), {
    message: "text of x: expected text features of shape [S, C] or [1, S, C], got [2, 2, 2].",
  });
});
