import assert from "node:assert/strict";
import { test } from "node:test";

import { FeatureClassifier, LPIPS, l1, PerceptualDistance } from "../../src/metrics/index.js";
import { customTerm } from "../../src/rl_ar_finetune/own_rewards.js";
import {
  judge,
  judgeByPlace,
  latentCosineTerm,
  type ReconstructionType,
  reconstructionReward,
  reconstructionTerm,
  type Term,
  UNREWARDED,
  unrewardedTerm,
} from "../../src/rl_ar_finetune/rewards.js";
import { Generator, manualSeed, memory, rand, Tensor, tensor, tidy, zeros } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";

/** B = 2 images of 16 x 16 and G = 3 samples each, in [-1, 1]. */
function batch(): { images: Tensor; samples: Tensor } {
  using generator = new Generator(3);
  return tidy(() => {
    const images = rand([2, 3, 16, 16], { generator }).mul(2).sub(1);
    const noise = rand([1, 3, 16, 16], { generator }).sub(0.5);
    const samples = images
      .repeatInterleave(3, 0)
      .add(noise.mul(tensor([0, 0.1, 0.2, 0.3, 0.4, 0.5]).view(6, 1, 1, 1)));
    return { images, samples };
  });
}

test("the l2 reward is minus the mean squared difference, by hand; normalised it has mean 0 and deviation 1", () =>
  tidy(() => {
    const images = zeros([1, 3, 1, 1]);
    const samples = tensor([0, 0, 0, 1, 1, 1, 0, 0, 3]).view(3, 3, 1, 1);
    const raw = reconstructionReward(images, samples, { type: "l2", normalize: false });
    expectClose(raw, tensor([0, -1, -3], { dtype: "float64" }));
    // mean -4/3, deviations 4/3, 1/3, -5/3; sum of squares 42/9, over n - 1 = 2
    const std = Math.sqrt(42 / 18);
    const wanted = [4 / 3 / std, 1 / 3 / std, -5 / 3 / std];
    expectClose(reconstructionReward(images, samples), tensor(wanted, { dtype: "float64" }));
    expectClose(
      reconstructionReward(images, samples, { type: "l1", normalize: false }),
      tensor([0, -1, -1], { dtype: "float64" }),
    );
  }));

test("every type ranks the untouched sample first and further noise lower", () =>
  tidy(() => {
    const { images, samples } = batch();
    const small = { images: images.repeat(1, 1, 11, 11), samples: samples.repeat(1, 1, 11, 11) }; // ms_ssim needs 176 px
    for (const type of ["l1", "l2", "psnr", "ssim", "ms_ssim"] as ReconstructionType[]) {
      const { total } = judge([reconstructionTerm(type)], small);
      assert.deepEqual(total.shape, [2, 3]);
      const [first, second] = total.toList() as [number[], number[]];
      assert.ok(
        (first[0] as number) > (first[1] as number) && (first[1] as number) > (first[2] as number),
        type,
      );
      assert.ok(
        (second[0] as number) > (second[1] as number) && (second[1] as number) > (second[2] as number),
        type,
      );
    }
  }));

test("terms are weighted and added, and logged in their own units", () =>
  tidy(() => {
    const judged = batch();
    const terms = [
      reconstructionTerm("l2", { weight: 2 }),
      reconstructionTerm("ssim", { weight: 0.5 }),
      customTerm("brightness", (_, samples) => samples.mean([1, 2, 3]), { weight: 3 }),
    ];
    const { total, terms: values } = judge(terms, judged);
    const { l2, ssim, brightness } = values as Record<"l2" | "ssim" | "brightness", Tensor>;
    expectClose(total, l2.mul(-2).add(ssim.mul(0.5)).add(brightness.mul(3)), { rtol: 1e-12 });
    expectClose(
      l2.flatten(),
      judged.samples.sub(judged.images.repeatInterleave(3, 0)).square().mean([1, 2, 3]).double(),
      { rtol: 1e-5 },
    );
  }));

test("normalised terms weigh the same whatever their units; a term without spread adds nothing", () =>
  tidy(() => {
    const judged = batch();
    const plain = judge([reconstructionTerm("l2")], judged, { normalize: "batch" }).total;
    const asMeasured = judge([reconstructionTerm("l2")], judged, { normalize: "batch" }).plain;
    expectClose(asMeasured, judge([reconstructionTerm("l2")], judged).total, { rtol: 0, atol: 0 });
    const thousandfold = customTerm("l2k", (x, y) =>
      y.sub(x.repeatInterleave(3, 0)).square().mean([1, 2, 3]).mul(-1000),
    );
    expectClose(judge([thousandfold], judged, { normalize: "batch" }).total, plain, { rtol: 1e-5 });
    expectClose(plain.mean(), tensor(0, { dtype: "float64" }), { atol: 1e-12 });
    expectClose(plain.flatten().std(0), tensor(1, { dtype: "float64" }), { rtol: 1e-12 });
    const group = judge([reconstructionTerm("l2")], judged, { normalize: "group" }).total;
    expectClose(group.mean(1), zeros([2], { dtype: "float64" }), { atol: 1e-12 });
    expectClose(group.std(1), tensor([1, 1], { dtype: "float64" }), { rtol: 1e-12 });
    const flat = customTerm("flat", (_, y) => y.mean([1, 2, 3]).mul(0).add(0.3));
    expectClose(judge([flat], judged, { normalize: "group" }).total, zeros([2, 3], { dtype: "float64" }));
  }));

test("rewards by place average to the reward of the whole", () =>
  tidy(() => {
    const judged = batch();
    const terms = [
      reconstructionTerm("l1", { weight: 0.3 }),
      reconstructionTerm("l2"),
      reconstructionTerm("ssim"),
    ];
    const { places, ...rest } = judgeByPlace(terms, judged, [4, 2]);
    assert.deepEqual(places.shape, [2, 3, 8]);
    const whole = judge(terms, judged);
    expectClose(places.mean(2), whole.total, { rtol: 1e-5 });
    expectClose(rest.plain, whole.plain, { rtol: 1e-5 });
    assert.deepEqual(Object.keys(rest.terms), Object.keys(whole.terms));
    for (const [name, values] of Object.entries(whole.terms))
      expectClose(rest.terms[name] as Tensor, values, { rtol: 1e-5, atol: 1e-8, where: name });
    for (const normalize of ["batch", "group"] as const) {
      const scaled = judgeByPlace([terms[0] as Term], judged, [4, 2], { normalize });
      const values = judgeByPlace([terms[0] as Term], judged, [4, 2]).places;
      const over = normalize === "batch" ? [0, 1, 2] : [1, 2];
      const centred = values.sub(values.mean(over, { keepdim: true }));
      const count = normalize === "batch" ? 47 : 23;
      const std = centred.square().sum(over, { keepdim: true }).div(count).sqrt();
      const { weight } = terms[0] as Term;
      expectClose(scaled.places, centred.div(std).mul(weight), { rtol: 1e-9, atol: 1e-12 });
      expectClose(scaled.plain, values.mean(2), { rtol: 1e-9 });
    }
    // One changed pixel changes the place it lies in, by 1 / 64 of its square, and no other.
    const images = zeros([1, 3, 16, 16]);
    const samples = zeros([1, 3, 16, 16]);
    samples.select(2, 5).select(2, 9).fill_(0.8);
    const one = judgeByPlace([reconstructionTerm("l2")], { images, samples }, [2, 2]);
    expectClose(one.places, tensor([[[0, -0.64 / 64, 0, 0]]], { dtype: "float64" }), { rtol: 1e-6 });
    // A term with one value per sample has it at every place; standardized, it is what `judge` makes of it.
    const mixed = [reconstructionTerm("l2"), reconstructionTerm("psnr", { weight: 0.1 })];
    for (const normalize of ["none", "batch", "group"] as const) {
      const [l2, psnr] = mixed.map((term) => judgeByPlace([term], judged, [4, 2], { normalize }).places);
      const { total, plain } = judge([mixed[1] as Term], judged, { normalize });
      expectClose(psnr as Tensor, total.unsqueeze(2).expand(-1, -1, 8), { rtol: 0, atol: 0 });
      const both = judgeByPlace(mixed, judged, [4, 2], { normalize });
      expectClose(both.places, (l2 as Tensor).add(psnr as Tensor), { rtol: 1e-12 });
      expectClose(both.terms.psnr as Tensor, plain.div(0.1), { rtol: 1e-12 });
    }
  }));

test("lpips takes the images' features once a batch, with the same result as the plain way", () =>
  tidy(() => {
    const { images, samples } = batch();
    const big = { images: images.repeat(1, 1, 4, 4), samples: samples.repeat(1, 1, 4, 4) };
    using generator = new Generator(5);
    const shapes: [string, number[]][] = [
      ["features.0", [64, 3, 11, 11]],
      ["features.3", [192, 64, 5, 5]],
      ["features.6", [384, 192, 3, 3]],
      ["features.8", [256, 384, 3, 3]],
      ["features.10", [256, 256, 3, 3]],
    ];
    const backbone = Object.fromEntries(
      shapes.flatMap(([name, shape]) => [
        [`${name}.weight`, rand(shape, { generator }).sub(0.5).mul(0.1)],
        [`${name}.bias`, rand([shape[0] as number], { generator })],
      ]),
    );
    using lpips = new LPIPS({ net: "alex", backbone });
    let calls = 0;
    const reference = lpips.reference.bind(lpips);
    lpips.reference = (...args) => {
      calls++;
      return reference(...args);
    };
    const term = reconstructionTerm("lpips", { lpips });
    const { terms } = judge([term], big);
    judge([term], { images: big.images, samples: big.images });
    assert.equal(calls, 1);
    expectClose((terms.lpips as Tensor).flatten(), lpips.forward(big.images, big.samples).double(), {
      rtol: 1e-5,
      atol: 1e-7,
    });
  }));

test("perceptual is the classifier's distance counted negatively, once a batch, and has values by place", () =>
  tidy(() => {
    const judged = batch();
    manualSeed(2);
    using network = new FeatureClassifier({ numClasses: 2, widths: [8, 16] });
    const perceptual = new PerceptualDistance(network.requiresGrad_(false));
    let calls = 0;
    const reference = perceptual.reference.bind(perceptual);
    perceptual.reference = (...args) => {
      calls++;
      return reference(...args);
    };
    const term = reconstructionTerm("perceptual", { perceptual, weight: 2 });
    const { total, terms } = judge([term], judged);
    const wanted = perceptual.forward(judged.images, judged.samples).double().view(2, 3);
    expectClose(terms.perceptual as Tensor, wanted, { rtol: 1e-5, atol: 1e-7 });
    expectClose(total, wanted.mul(-2), { rtol: 1e-5, atol: 1e-7 });
    // The first sample of the first image is untouched, and noise grows from sample to sample.
    const [first, second] = total.toList() as [[number, number, number], [number, number, number]];
    assert.ok(Math.abs(first[0]) < 1e-9 && first[0] > first[1] && first[1] > first[2]);
    assert.ok(second[0] > second[1] && second[1] > second[2]);
    const { places } = judgeByPlace([term], judged, [4, 4]);
    assert.deepEqual(places.shape, [2, 3, 16]);
    expectClose(places.mean(2), total, { rtol: 1e-2, atol: 1e-3 });
    assert.equal(calls, 1);

    const watch = unrewardedTerm(perceptual);
    assert.deepEqual([watch.name, watch.sign, watch.weight], [UNREWARDED, -1, 1]);
    expectClose(judge([watch, term], judged).terms[UNREWARDED] as Tensor, wanted, { rtol: 1e-5, atol: 1e-7 });
  }));

test("reconstructionReward takes the seed's arguments, by place or by name, and refuses others", () =>
  tidy(() => {
    const { images, samples } = batch();
    const reward = (...given: readonly unknown[]): Tensor =>
      (reconstructionReward as (...all: readonly unknown[]) => Tensor)(images, samples, ...given);
    const plain = reward({ type: "l1", normalize: false });
    expectClose(reward("l1", false), plain, { rtol: 0 });
    expectClose(reward("l1", { normalize: false }), plain, { rtol: 0 });
    expectClose(plain, l1(images, samples).double().neg(), { rtol: 1e-6 });
    expectClose(reward(), reward("l2", true), { rtol: 0 });
    expectClose(reward("l1"), reward({ type: "l1" }), { rtol: 0 });
    assert.ok(reward("l1").sub(reward("l2")).abs().amax().item() > 1e-3);
    const refused = (message: RegExp, ...given: readonly unknown[]): void =>
      assert.throws(() => reward(...given), { message });
    refused(/^reconstructionReward: .*typ.*"type"/, { typ: "l1" });
    refused(/^reward\.type: .*l1, l2.*l3/, "l3");
    refused(/type once/, "l1", { type: "l2" });
    refused(/normalize: .*yes/, "l1", "yes");
    refused(/at most 2 values/, "l1", true, 3);
    assert.throws(() => reconstructionReward(images.narrow(0, 0, 1).repeat(4, 1, 1, 1), samples), {
      message: /decodedImages: .*multiple of the 4/,
    });
    assert.throws(() => reconstructionReward([] as unknown as Tensor, samples), { name: "TypeError" });
  }));

test("what cannot be judged is refused", () =>
  tidy(() => {
    const judged = batch();
    assert.throws(() => reconstructionTerm("lpips"), {
      message: /^reward\.lpips: .*network.*VGG16.*reward\.lpips\.path.*openLpips/,
    });
    assert.throws(() => reconstructionTerm("perceptual"), {
      message: /^reward\.perceptual: .*network.*rlar classifier.*reward\.perceptual\.path.*openPerceptual/,
    });
    assert.throws(() => judge([], judged), {
      message: "reward: expected at least one term, got none. Give a weight to one, such as l2.",
    });
    assert.throws(() => judge([reconstructionTerm("l2"), reconstructionTerm("l2")], judged), {
      message: "reward: expected terms of different names, got l2 twice.",
    });
    const results: readonly [unknown, RegExp][] = [
      [undefined, /undefined/],
      [0.5, /0\.5/],
      [[1, 2, 3, 4, 5, 6], /1, 2, 3/],
      [Promise.resolve(1), /promise/],
      [judged.samples.mean(), /\[\]/],
      [judged.samples.mean([2, 3]), /\[6, 3\]/],
      [judged.samples.narrow(0, 0, 5).mean([1, 2, 3]), /\[5\]/],
    ];
    for (const [result, got] of results) {
      const name = result instanceof Tensor ? "RangeError" : "TypeError";
      const term = customTerm("mine", () => result as Tensor);
      for (const message of [/^reward\.custom\.mine: .*one value per sample, \[6\]/, got])
        assert.throws(() => judge([term], judged), { name, message });
    }
    const flatMap = {
      ...customTerm("mine", (_, y) => y.mean([1, 2, 3])),
      map: () => judged.samples.mean([1, 2, 3]),
    };
    assert.throws(() => judgeByPlace([flatMap], judged, [4, 4]), {
      message: /^reward\.custom\.mine: .*one value per pixel, \[6, 16, 16\].*\[6\]/,
    });
    assert.throws(() => judge([latentCosineTerm()], judged), {
      message: "reward.latent_cosine: expected latents of images and samples, got none.",
    });
  }));

test("judging leaves nothing behind", () => {
  const { images, samples } = batch();
  const before = memory().tensors;
  for (let i = 0; i < 3; i++) {
    const { total, terms } = judge([reconstructionTerm("l2"), reconstructionTerm("ssim")], {
      images,
      samples,
    });
    for (const tensor of [total, ...Object.values(terms)]) tensor.dispose();
  }
  assert.equal(memory().tensors, before);
  images.dispose();
  samples.dispose();
});
