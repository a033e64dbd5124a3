import assert from "node:assert/strict";
import { test } from "node:test";

import type { ChunkOptions } from "../../src/metrics/index.js";
import { l1, l1Map, l2, l2Map, msSsim, psnr, ssim, ssimMap } from "../../src/metrics/index.js";
import { autocast, full, memory, noGrad, type Tensor, tensor, tidy, zeros } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";
import { differences, G, goldenImages, goldens, gradientOf, thinned } from "./golden.js";

type Metric = (images: Tensor, samples: Tensor, options?: ChunkOptions) => Tensor;

const golden = goldens("pixel");
const { images, samples } = goldenImages();
const tiled = (x: Tensor): Tensor => tidy(() => x.repeat(1, 1, 4, 5).narrow(2, 0, 176).narrow(3, 0, 184));
const large = { images: tiled(images), samples: tiled(samples) };

const METRICS: Readonly<Record<string, Metric>> = { l1, l2, psnr, ssim, msSsim, l1Map, l2Map, ssimMap };
const inputsOf = (name: string): { images: Tensor; samples: Tensor } =>
  name === "msSsim" ? large : { images, samples };

test("l1 and l2 are means of absolute and squared differences, a sample or a position at a time", () => {
  const x = tensor([0, 0.5, -1, 1, 0, 0]).reshape(1, 3, 2, 1);
  const y = tensor([1, 0.5, -1, -1, 0, 0.25, 0, 0, 0, 0, 0, 0]).reshape(2, 3, 2, 1);
  expectClose(l1(x, y), [3.25 / 6, 2.5 / 6]);
  expectClose(l2(x, y), [5.0625 / 6, 2.25 / 6]);
  // Positions are rows here: colours are the pairs (0, -1, 0) and (0.5, 1, 0).
  expectClose(l1Map(x, y), [
    [[1 / 3], [2.25 / 3]],
    [[1 / 3], [1.5 / 3]],
  ]);
  expectClose(l2Map(x, y), [
    [[1 / 3], [4.0625 / 3]],
    [[1 / 3], [1.25 / 3]],
  ]);
});

test("psnr is TorchMetrics' and has its closed form", () => {
  expectClose(psnr(images, samples), golden("psnr"), { rtol: 1e-6 });
  const gradient = gradientOf((y) => psnr(images, y), samples);
  expectClose(thinned(gradient), golden("psnr.grad"), { rtol: 1e-5, atol: 1e-8 });
  // 10 log10(4 / 0.2^2)
  expectClose(psnr(zeros([1, 3, 4, 4]), full([1, 3, 4, 4], 0.2)), [20], { rtol: 1e-6 });
});

test("psnr of identical images is 100 dB, and of nearly identical ones no more", () => {
  expectClose(psnr(images, images), [100, 100], { rtol: 1e-6 });
  expectClose(psnr(images, images.add(1e-6)), [100, 100], { rtol: 1e-6 });
  expectClose(
    gradientOf((y) => psnr(images, y), images),
    images.mul(0),
  );
});

test("ssim and its map are TorchMetrics'", () => {
  expectClose(ssim(images, samples), golden("ssim"), { rtol: 1e-5, atol: 0 });
  expectClose(ssimMap(images, samples), golden("ssim.map"), { rtol: 1e-5, atol: 1e-6 });
  const largest = golden("ssim.grad").abs().amax().item();
  expectClose(
    gradientOf((y) => ssim(images, y), samples),
    golden("ssim.grad"),
    { atol: 1e-5 * largest },
  );
  expectClose(
    gradientOf((x) => ssim(x, samples), images),
    golden("ssim.grad_images"),
    { atol: 1e-5 * largest },
  );
});

test("ssim away from the borders is scikit-image's", () => {
  const map = ssimMap(images.double(), samples.double()).narrow(1, 5, 38).narrow(2, 5, 30);
  // Its gaussian filter works in float64 too, but only its inputs were rounded to float32.
  expectClose(map, golden("ssim.map_inside"), { rtol: 1e-6, atol: 1e-8 });
});

test("ssim of flat images is their likeness of luminance", () => {
  const [a, b, c1] = [0.5, -0.25, 0.02 ** 2];
  const value = (2 * a * b + c1) / (a * a + b * b + c1);
  const [x, y] = [
    full([1, 3, 16, 16], a, { dtype: "float64" }),
    full([1, 3, 16, 16], b, { dtype: "float64" }),
  ];
  expectClose(ssim(x, y), [value], { rtol: 1e-9 });
});

test("msSsim is TorchMetrics'", () => {
  expectClose(msSsim(large.images, large.samples), golden("ms_ssim"), { rtol: 1e-5, atol: 0 });
  const gradient = gradientOf((y) => msSsim(large.images, y), large.samples);
  const thin = gradient.slice(2, null, null, 11).slice(3, null, null, 11);
  const largest = golden("ms_ssim.grad").abs().amax().item();
  expectClose(thin, golden("ms_ssim.grad"), { rtol: 1e-5, atol: 1e-5 * largest });
});

test("msSsim of an image and its negative is 0, with a gradient of 0", () => {
  expectClose(msSsim(large.images, large.images.neg()), [0, 0]);
  expectClose(
    gradientOf((y) => msSsim(large.images, y), large.images.neg()),
    large.images.mul(0),
  );
});

test("identical images are alike, and order does not matter", () => {
  expectClose(l1(images, images), [0, 0]);
  expectClose(l2(images, images), [0, 0]);
  expectClose(ssim(images, images), [1, 1], { rtol: 1e-6 });
  expectClose(msSsim(large.images, large.images), [1, 1], { rtol: 1e-6 });
  for (const [name, metric] of Object.entries(METRICS)) {
    const { images: x, samples: y } = inputsOf(name);
    const repeated = x.repeatInterleave(G, 0);
    assert.ok(metric(y, repeated).equal(metric(repeated, y)), name);
  }
});

test("a group of samples shares its image's work and gets what separate pairs get, bit for bit", () => {
  for (const [name, metric] of Object.entries(METRICS)) {
    const { images: x, samples: y } = inputsOf(name);
    const shared = metric(x, y);
    assert.equal(shared.shape[0], 4, name);
    assert.ok(shared.equal(metric(x.repeatInterleave(G, 0), y)), name);
  }
});

test("portions change nothing", () => {
  for (const [name, metric] of Object.entries(METRICS)) {
    const { images: x, samples: y } = inputsOf(name);
    const whole = metric(x, y);
    for (const chunk of [1, 2, 3, 100]) {
      expectClose(metric(x, y, { chunk }), whole, {
        rtol: 1e-6,
        atol: 1e-7,
        where: `${name}, chunk ${chunk}`,
      });
    }
    const gradientIn = (options: ChunkOptions): Tensor =>
      gradientOf((z) => metric(x, z, options).reshape(4, -1).mean(1), y);
    const gradient = gradientIn({});
    const inPortions = gradientIn({ chunk: 1 });
    expectClose(inPortions, gradient, { rtol: 1e-5, atol: 1e-8, where: name });
  }
});

test("portions bound the memory", () => {
  const x = zeros([4, 3, 64, 64]);
  const y = zeros([32, 3, 64, 64]);
  for (const [name, metric] of Object.entries({ l2, ssim })) {
    const peak = (chunk: number): number => {
      const { bytes } = memory({ resetPeak: true });
      noGrad(() => tidy(() => void metric(x, y, { chunk })));
      return memory().peakBytes - bytes;
    };
    const whole = peak(32);
    const small = peak(4);
    assert.ok(small < whole / 5, `${name}: ${small} against ${whole} bytes`);
  }
});

test("gradients are those of finite differences", () => {
  const x = images.double().narrow(2, 0, 14).narrow(3, 0, 12).contiguous();
  const y = samples.double().narrow(2, 0, 14).narrow(3, 0, 12).contiguous();
  for (const [name, metric] of Object.entries({ l1, l2, psnr, ssim })) {
    const ofSamples = differences((z) => metric(x, z), y, 24);
    expectClose(ofSamples.analytic, ofSamples.numeric, {
      rtol: 1e-5,
      atol: 1e-8,
      where: `${name} of samples`,
    });
    const ofImages = differences((z) => metric(z, y), x, 24);
    expectClose(ofImages.analytic, ofImages.numeric, { rtol: 1e-5, atol: 1e-8, where: `${name} of images` });
  }
  const one = {
    x: large.images.narrow(0, 0, 1).double(),
    y: large.samples.narrow(0, 1, 1).double().contiguous(),
  };
  const multi = differences((z) => msSsim(one.x, z), one.y, 6);
  expectClose(multi.analytic, multi.numeric, { rtol: 1e-4, atol: 1e-9, where: "msSsim" });
});

test("results are float32 under autocast and for narrow images, float64 for float64", () => {
  for (const [name, metric] of Object.entries(METRICS)) {
    const { images: x, samples: y } = inputsOf(name);
    const plain = metric(x, y);
    assert.equal(plain.dtype, "float32", name);
    const cast = autocast({ device: "cpu", dtype: "bfloat16" }, () => metric(x, y));
    assert.equal(cast.dtype, "float32", name);
    assert.ok(cast.equal(plain), `${name} changes under autocast`);
    const [narrowX, narrowY] = [x.bfloat16(), y.bfloat16()];
    const narrow = metric(narrowX, narrowY);
    assert.equal(narrow.dtype, "float32", name);
    assert.ok(narrow.equal(metric(narrowX.float(), narrowY.float())), name);
    assert.equal(metric(x.double(), y.double()).dtype, "float64", name);
  }
});

test("no metric leaves a tensor behind", () => {
  for (const [name, metric] of Object.entries(METRICS)) {
    const { images: x, samples: y } = inputsOf(name);
    noLeak(() => metric(x, y, { chunk: 3 }).dispose());
  }
});

test("what does not fit is refused", () => {
  const refused = (fn: () => unknown, name: string, message: string): void =>
    assert.throws(fn, { name, message });
  const at = (...shape: number[]): Tensor => zeros(shape);
  refused(
    () => l1(at(2, 3, 8, 8), at(3, 3, 8, 8)),
    "RangeError",
    "l1: expected samples [2 * G, 3, 8, 8], got Tensor float32[3, 3, 8, 8] cpu.",
  );
  refused(
    () => ssim(at(2, 3, 10, 64), at(2, 3, 10, 64)),
    "RangeError",
    "ssim: expected images of at least 11 x 11, got 10 x 64. Compare larger images, or use l2.",
  );
  refused(
    () => ssim(at(8), at(8)),
    "RangeError",
    "ssim: expected images [B, 3, H, W], got Tensor float32[8] cpu.",
  );
  refused(
    () => ssimMap(at(1, 3, 64, 10), at(1, 3, 64, 10)),
    "RangeError",
    "ssimMap: expected images of at least 11 x 11, got 64 x 10. Compare larger images, or use l2Map.",
  );
  refused(
    () => msSsim(at(1, 3, 175, 200), at(1, 3, 175, 200)),
    "RangeError",
    "msSsim: expected images of at least 176 x 176, got 175 x 200. Use ssim for smaller ones.",
  );
});
