import assert from "node:assert/strict";
import { test } from "node:test";
import { checkCodes, checkImages, checkRange, gridOf } from "../../src/tokenizers/checks.js";
import { tensor, zeros } from "../../src/torch/index.js";
import { noLeak } from "../support/leak.js";

// The messages are compared in model.test.ts and frozen.test.ts.

test("images and codes that fit pass, and leave nothing behind", () => {
  const images = tensor([[[[-1, 1]]]]);
  const codes = zeros([2, 6], { dtype: "int64" });
  noLeak(() => {
    checkImages("here", images, { channels: 1, downsample: 1 });
    checkRange("here", images);
    checkCodes("here", codes, { codebookSize: 1 });
    assert.deepEqual(gridOf("here", codes, [2, 3]), [2, 3]);
  });
  assert.deepEqual(gridOf("here", zeros([1, 9], { dtype: "int64" }), undefined), [3, 3]);
});

test("no side of an image may be empty, and no grid may be negative", () => {
  const options = { channels: 3, downsample: 4 };
  assert.throws(() => checkImages("here", zeros([1, 3, 0, 4]), options), {
    message: "here: expected sides that are multiples of 4, got 0 x 4. Resize or crop the images.",
  });
  assert.throws(() => gridOf("here", zeros([1, 6], { dtype: "int64" }), [-2, -3]), {
    message: "here: expected a grid of the 6 codes of an image, got -2 x -3.",
  });
  assert.throws(() => gridOf("here", zeros([2, 0], { dtype: "int64" }), undefined), {
    message: "here: expected codes [B, T], got Tensor int64[2, 0] cpu.",
  });
});
