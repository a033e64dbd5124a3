/** Prepared images against the processors of transformers and open_clip, which work with Pillow. */
import assert from "node:assert/strict";
import { test } from "node:test";

import { type ImagePreprocessing, prepareImages } from "../../src/encoders/index.js";
import { loadSafetensors, type Tensor, tidy, zeros } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";

const OPENAI = {
  mean: [0.48145466, 0.4578275, 0.40821073],
  std: [0.26862954, 0.26130258, 0.27577711],
};
const HALVES = { mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5] };

/** Largest difference in levels of 255, and the share of values that differ. */
function levels(actual: Tensor, wanted: Tensor, std: readonly number[]): { worst: number; share: number } {
  return tidy(() => {
    const perLevel = Math.min(...std) * 255;
    const off = actual.sub(wanted).abs().mul(perLevel).div(1);
    return { worst: off.amax().item(), share: off.gt(0.5).float().mean().item() };
  });
}

test("images agree with Pillow's to a level of 255, most of them exactly", () => {
  const { tensors } = loadSafetensors("test/golden/encoders/preprocessing/golden.safetensors");
  const images = tidy(() => (tensors.images as Tensor).float().div(127.5).sub(1));
  for (const size of [32, 80]) {
    const cases: [string, ImagePreprocessing][] = [
      [`clip_${size}`, { size, resize: "shortest", interpolation: "bicubic", ...OPENAI }],
      [`siglip_${size}`, { size, resize: "squash", interpolation: "bicubic", ...HALVES }],
      // As the golden file has it: the library's own defaults.
      [`open_clip_${size}`, { size, resize: "shortest", interpolation: "bicubic", ...OPENAI }],
    ];
    for (const [name, spec] of cases) {
      const made = noLeak(() =>
        tidy(() => levels(prepareImages(images, spec), tensors[name] as Tensor, spec.std)),
      );
      assert.ok(made.worst < 1.1, `${name}: ${made.worst} levels`);
      assert.ok(made.share < 0.005, `${name}: ${made.share} of the values differ`);
    }
  }
  images.dispose();
  for (const tensor of Object.values(tensors)) tensor.dispose();
});

test("images of the right size are only rounded to 8 bits, clamped and normalised; gradients pass", () => {
  tidy(() => {
    const images = zeros([1, 3, 2, 2]).requiresGrad_();
    const spec: ImagePreprocessing = { size: 2, resize: "shortest", interpolation: "bicubic", ...HALVES };
    const prepared = prepareImages(images, spec);
    expectClose(prepared, zeros([1, 3, 2, 2]).add((128 - 127.5) / 127.5), {
      atol: 1e-6,
      where: "127.5 rounds to 128",
    });
    prepared.sum().backward();
    expectClose(images.grad as Tensor, zeros([1, 3, 2, 2]).add(1), { rtol: 1e-6, where: "gradient" });
    expectClose(prepareImages(zeros([1, 3, 2, 2]).add(7), spec), zeros([1, 3, 2, 2]).add(1), {
      where: "clamped",
    });
  });
});
