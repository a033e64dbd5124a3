import assert from "node:assert/strict";
import { test } from "node:test";

import {
  centerCrop,
  cropTo,
  type Filter,
  type Pixels,
  resize,
  smallestSideCrop,
} from "../../src/data/resample.js";
import { loadSafetensors } from "../../src/torch/safetensors.js";
import { goldenData } from "../support/data_files.js";

const { tensors } = loadSafetensors(goldenData("resample.safetensors"));
const SIZES = [16, 16, 24, 16, 32];

function golden(name: string): Pixels {
  const tensor = tensors[name];
  assert.ok(tensor, name);
  const [height, width, channels] = tensor.dims(3);
  return { width, height, channels, data: tensor.toArray() as Uint8Array };
}

/** Same size, and bytes that differ by at most `levels`; deepEqual would print thousands of lines. */
function expectPixels(made: Pixels, wanted: Pixels, where: string, levels = 0): void {
  assert.deepEqual(
    [made.width, made.height, made.channels],
    [wanted.width, wanted.height, wanted.channels],
    where,
  );
  assert.equal(made.data.length, wanted.data.length, where);
  const worst = made.data.reduce(
    (most, byte, i) => Math.max(most, Math.abs(byte - (wanted.data[i] as number))),
    0,
  );
  assert.ok(worst <= levels, `${where}: ${worst} levels apart`);
}

test("resize gives Pillow's bytes with every filter, up and down", () => {
  for (const i of SIZES.keys()) {
    for (const filter of ["box", "bilinear", "bicubic", "lanczos"] as Filter[]) {
      expectPixels(resize(golden(`${i}.source`), 20, 11, filter), golden(`${i}.${filter}`), `${i} ${filter}`);
    }
  }
});

test("centerCrop gives ADM's bytes: box halvings, bicubic, centre", () => {
  for (const [i, size] of SIZES.entries()) {
    expectPixels(centerCrop(golden(`${i}.source`), size), golden(`${i}.center`), `${i}`);
  }
});

test("smallestSideCrop is bilinear without smoothing, cut from the middle", () => {
  for (const [i, size] of SIZES.entries()) {
    // A sum that is exactly a half may round either way.
    expectPixels(smallestSideCrop(golden(`${i}.source`), size), golden(`${i}.smallest_side`), `${i}`, 1);
  }
});

test("impossible sizes and windows are refused", () => {
  const image = { width: 2, height: 2, channels: 3, data: new Uint8Array(12) };
  assert.throws(() => resize(image, 0, 4, "box"), {
    name: "RangeError",
    message: "resize: expected a size of at least 1 x 1, got 0 x 4.",
  });
  assert.throws(() => cropTo(image, 1, 0, 2, 2), {
    name: "RangeError",
    message: "cropTo: expected a window inside 2 x 2, got 2 x 2 at (1, 0).",
  });
});
