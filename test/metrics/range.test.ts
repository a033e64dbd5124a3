import assert from "node:assert/strict";
import { test } from "node:test";

import { RangeGuard } from "../../src/metrics/index.js";
import { full, type Tensor, tensor } from "../../src/torch/index.js";
import { noLeak } from "../support/leak.js";

const pale = (count: number): Tensor => full([count, 3, 2, 2], 0.5);
const spread = (low: number, high: number): Tensor => tensor([low, high]).reshape(1, 2);

function refused(fn: () => void, message: string): void {
  assert.throws(fn, { name: "RangeError", message });
}

test("images in [-1, 1] and a little beyond pass", () => {
  const guard = new RangeGuard("LPIPS");
  guard.checkImages(spread(-1, 1));
  guard.checkImages(spread(-1.5, 1.5));
  const images = pale(4);
  noLeak(() => guard.checkImages(images));
  noLeak(() => guard.checkSamples(images));
});

test("images beyond 1.5 are refused", () => {
  const remedy = "Map bytes to it by x / 127.5 - 1, and [0, 1] by 2 x - 1.";
  const guard = new RangeGuard("LPIPS");
  refused(
    () => guard.checkImages(spread(0, 255)),
    `LPIPS: expected images in [-1, 1], got values from 0 to 255. ${remedy}`,
  );
  refused(
    () => guard.checkImages(spread(-2, 0)),
    `LPIPS: expected images in [-1, 1], got values from -2 to 0. ${remedy}`,
  );
  refused(
    () => guard.checkImages(spread(0, 1.75)),
    `LPIPS: expected images in [-1, 1], got values from 0 to 1.75. ${remedy}`,
  );
  refused(
    () => guard.checkImages(spread(Number.NaN, 0)),
    `LPIPS: expected images in [-1, 1], got values from NaN to NaN. ${remedy}`,
  );
});

test("64 images without a negative value are refused, in one batch or over several", () => {
  const message = (seen: number): string =>
    `LPIPS: expected images in [-1, 1], got ${seen} images with no value below 0. ` +
    "If they are in [0, 1], map them by 2 x - 1; if they are that bright, switch the range check off.";
  refused(() => new RangeGuard("LPIPS").checkImages(pale(64)), message(64));
  const guard = new RangeGuard("LPIPS");
  guard.checkImages(pale(30));
  guard.checkImages(pale(33));
  refused(() => guard.checkImages(pale(2)), message(65));
});

test("one negative value clears the suspicion for good", () => {
  const guard = new RangeGuard("LPIPS");
  guard.checkImages(pale(63));
  guard.checkImages(spread(-0.01, 1));
  guard.checkImages(pale(500));
});

test("samples may overshoot, and may be NaN, but are no bytes", () => {
  const guard = new RangeGuard("LPIPS");
  guard.checkSamples(spread(-10, 10));
  guard.checkSamples(spread(Number.NaN, 0));
  guard.checkSamples(pale(500));
  const remedy = "Map bytes to it by x / 127.5 - 1; clamp what a decoder overshoots.";
  refused(
    () => guard.checkSamples(spread(0, 255)),
    `LPIPS: expected samples about [-1, 1], got values from 0 to 255. ${remedy}`,
  );
  refused(
    () => guard.checkSamples(spread(-11, 0)),
    `LPIPS: expected samples about [-1, 1], got values from -11 to 0. ${remedy}`,
  );
  refused(
    () => guard.checkSamples(spread(-1, Infinity)),
    `LPIPS: expected samples about [-1, 1], got values from -1 to Infinity. ${remedy}`,
  );
});
