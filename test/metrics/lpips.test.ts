import assert from "node:assert/strict";
import { after, test } from "node:test";

import { buildFeatures } from "../../src/metrics/backbones.js";
import { LPIPS, type LpipsNet, type LpipsOptions } from "../../src/metrics/index.js";
import { type Conv2d, Module, type Readable, type StateDict } from "../../src/nn/index.js";
import {
  autocast,
  enableGrad,
  full,
  loadSafetensors,
  manualSeed,
  memory,
  noGrad,
  rand,
  type Tensor,
  tidy,
  zeros,
} from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";
import { differences, G, goldenImages, goldens, gradientOf, thinned } from "./golden.js";

const NETS: readonly LpipsNet[] = ["vgg", "alex", "squeeze"];
const golden = goldens("lpips");
const { images, samples } = goldenImages();

class Backbone extends Module {
  readonly features: ReturnType<typeof buildFeatures>;
  constructor(net: LpipsNet) {
    super();
    this.features = buildFeatures(net);
  }
}

/** The very weights that PyTorch draws from this seed, with the variance of He et al. */
function randomBackbone(net: LpipsNet): StateDict {
  manualSeed(0);
  const state = new Backbone(net).stateDict();
  noGrad(() => {
    for (const [name, value] of Object.entries(state)) if (name.endsWith("weight")) value.mul_(6 ** 0.5);
  });
  return state;
}

const backbones = Object.fromEntries(NETS.map((net) => [net, randomBackbone(net)])) as Record<
  LpipsNet,
  StateDict
>;
const metrics = Object.fromEntries(
  NETS.map((net) => [net, new LPIPS({ net, backbone: backbones[net] })]),
) as Record<LpipsNet, LPIPS>;
after(() => {
  for (const net of NETS) {
    metrics[net].dispose();
    for (const value of Object.values(backbones[net])) value.dispose();
  }
});

/** A metric of its own, so that what one test does to it does not reach another. */
function build(options: Partial<LpipsOptions> = {}): LPIPS {
  return new LPIPS({ net: "alex", backbone: backbones[options.net ?? "alex"], ...options });
}

function publishedHeads(net: LpipsNet): StateDict {
  const { tensors } = loadSafetensors("src/metrics/weights/lpips_heads.safetensors");
  return Object.fromEntries(
    Object.entries(tensors).flatMap(([name, value]) =>
      name.startsWith(`${net}.`) ? [[name.slice(net.length + 1), value]] : [],
    ),
  );
}

const renamed = (state: StateDict, rename: (name: string) => string): StateDict =>
  Object.fromEntries(Object.entries(state).map(([name, value]) => [rename(name), value]));

for (const net of NETS) {
  test(`${net}: distance, map and gradient are those of PyTorch, with the published heads`, () => {
    const lpips = metrics[net];
    expectClose(lpips.forward(images, samples), golden(`${net}.distance`), { rtol: 1e-5, atol: 0 });
    const map = lpips.distanceMap(lpips.reference(images), samples);
    expectClose(map, golden(`${net}.map`), { rtol: 1e-5, atol: 1e-7 });
    const gradient = thinned(gradientOf((y) => lpips.forward(images, y), samples));
    const largest = golden(`${net}.grad`).abs().amax().item();
    expectClose(gradient, golden(`${net}.grad`), { rtol: 1e-4, atol: 1e-5 * largest });
  });

  test(`${net}: identical images are at distance 0, others above it, and order does not matter`, () => {
    const lpips = metrics[net];
    const repeated = images.repeatInterleave(G, 0);
    expectClose(lpips.forward(images, images), [0, 0], { atol: 0 });
    const [there, back] = [lpips.forward(repeated, samples), lpips.forward(samples, repeated)];
    assert.ok(there.equal(back));
    assert.ok(there.amin().item() > 0);
  });

  test(`${net}: features of the images, once computed, serve all their samples`, () => {
    const lpips = metrics[net];
    const plain = lpips.forward(images.repeatInterleave(G, 0), samples);
    expectClose(lpips.forward(images, samples), plain, { rtol: 1e-6 });
    const reference = lpips.reference(images);
    assert.deepEqual(reference.size, [48, 40]);
    for (let round = 0; round < 2; round++) {
      expectClose(lpips.distance(reference, samples), plain, { rtol: 1e-6 });
    }
    const lengths = reference.features.map((tap) => tap.norm(2, 1).amax().item());
    expectClose(
      lengths,
      lengths.map(() => 1),
      { rtol: 1e-5 },
    );
  });

  test(`${net}: portions change nothing`, () => {
    const lpips = metrics[net];
    const whole = lpips.forward(images, samples);
    const gradient = gradientOf((y) => lpips.forward(images, y), samples);
    for (const chunk of [1, 2, 3]) {
      const where = `chunk ${chunk}`;
      expectClose(lpips.forward(images, samples, { chunk }), whole, { rtol: 1e-5, where });
      const reference = lpips.reference(images, { chunk });
      expectClose(lpips.distance(reference, samples, { chunk }), whole, { rtol: 1e-5, where });
    }
    const inPortions = gradientOf((y) => lpips.forward(images, y, { chunk: 3 }), samples);
    expectClose(inPortions, gradient, { rtol: 1e-3, atol: 1e-7 });
    const reference = lpips.reference(images);
    const map = lpips.distanceMap(reference, samples);
    expectClose(lpips.distanceMap(reference, samples, { chunk: 1 }), map, { rtol: 1e-5, atol: 1e-8 });
  });
}

test("each image passes through the network once", () => {
  using lpips = build();
  const first = lpips.features[0] as Conv2d;
  const forward = first.forward.bind(first);
  const passed: number[] = [];
  first.forward = (x) => {
    passed.push(x.size(0));
    return forward(x);
  };
  const batches = (work: () => unknown): number[] => {
    passed.length = 0;
    work();
    return [...passed];
  };
  assert.deepEqual(
    batches(() => lpips.forward(images, samples)),
    [2, 4],
  );
  assert.deepEqual(
    batches(() => lpips.forward(images, samples, { chunk: 3 })),
    [1, 2, 1, 2],
  );
  assert.deepEqual(
    batches(() => lpips.forward(images, samples, { chunk: 1 })),
    [1, 1, 1, 1, 1, 1],
  );
  const reference = lpips.reference(images);
  assert.deepEqual(
    batches(() => [lpips.distance(reference, samples), lpips.distance(reference, images)]),
    [4, 2],
  );
});

test("weights are taken under every published name", () => {
  const wanted = metrics.alex.forward(images, samples);
  const own = publishedHeads("alex");
  const withoutDropout = renamed(own, (name) => name.replace("model.1", "model.0"));
  const listed = renamed(own, (name) => name.replace("lin", "lins."));
  for (const heads of [own, withoutDropout, listed, { ...own, ...listed }]) {
    using lpips = build({ heads });
    assert.ok(lpips.forward(images, samples).equal(wanted), Object.keys(heads).join());
  }
  const sliced = renamed(backbones.alex, (name) => name.replace(/^features\.(\d+)/, "net.slice1.$1"));
  const extras = { "classifier.1.weight": zeros([2, 2]), "scaling_layer.shift": zeros([1, 3, 1, 1]) };
  for (const backbone of [sliced, { ...backbones.alex, ...extras }, { ...sliced, ...extras, ...own }]) {
    using lpips = build({ backbone });
    assert.ok(lpips.forward(images, samples).equal(wanted));
  }
});

test("heads that are given win over those of a whole LPIPS, and those over the published", () => {
  const own = publishedHeads("alex");
  const doubled = Object.fromEntries(Object.entries(own).map(([name, value]) => [name, value.mul(2)]));
  const wanted = metrics.alex.forward(images, samples).mul(2);
  using whole = build({ backbone: { ...backbones.alex, ...doubled } });
  expectClose(whole.forward(images, samples), wanted, { rtol: 1e-6 });
  using given = build({ backbone: { ...backbones.alex, ...own }, heads: doubled });
  expectClose(given.forward(images, samples), wanted, { rtol: 1e-6 });
});

test("the state dict is torchvision's and LPIPS's keys, and goes back in", () => {
  using lpips = build();
  const state = lpips.stateDict();
  const keys = Object.keys(state);
  assert.deepEqual(keys.slice(0, 2), ["features.0.weight", "features.0.bias"]);
  assert.deepEqual(
    keys.slice(-5),
    [0, 1, 2, 3, 4].map((k) => `lin${k}.model.1.weight`),
  );
  assert.equal(keys.length, 15);
  using copy = build({ backbone: state });
  assert.deepEqual(copy.loadStateDict(state), { missing: [], unexpected: [] });
  assert.ok(copy.forward(images, samples).equal(metrics.alex.forward(images, samples)));
});

test("negative heads are refused, at the start and later", () => {
  const heads = publishedHeads("alex");
  heads["lin2.model.1.weight"] = (heads["lin2.model.1.weight"] as Tensor).sub(0.125);
  const message =
    "LPIPS.loadStateDict: lin2.model.1.weight: expected no weight below 0, got -0.125. " +
    "These are no heads of LPIPS, or were trained without its clamp; use the published ones.";
  assert.throws(() => build({ heads }), { name: "RangeError", message });
  using lpips = build();
  assert.throws(() => lpips.loadStateDict(heads, { strict: false }), { name: "RangeError", message });
  assert.ok(lpips.forward(images, samples).equal(metrics.alex.forward(images, samples)));
  heads["lin2.model.1.weight"].fill_(Number.NaN);
  assert.throws(() => build({ heads }), { name: "RangeError", message: message.replace("-0.125", "NaN") });
});

test("another network's weights are refused, and nothing is left of the attempt", () => {
  const before = memory();
  assert.throws(
    () => build({ backbone: backbones.squeeze }),
    /^Error: LPIPS\.loadStateDict: another shape features\.0\.weight \(\[64, 3, 11, 11\] here, \[64, 3, 3, 3\] there\); missing features\.3\.weight/,
  );
  assert.throws(() => build({ backbone: {} }), {
    message:
      "LPIPS.loadStateDict: missing features.0.weight, features.0.bias, features.3.weight, features.3.bias, " +
      "features.6.weight (+5 more).",
  });
  assert.throws(() => build({ net: "vgg19" as LpipsNet, backbone: {} }), {
    name: "RangeError",
    message: "LPIPS: net: expected one of vgg, alex, squeeze, got vgg19.",
  });
  const now = memory();
  assert.equal(now.tensors, before.tensors);
  assert.ok(now.bytes - before.bytes < 2 ** 20, `${now.bytes - before.bytes} bytes more`);
});

test("images out of range are refused", () => {
  const bytes = images.add(1).mul(127.5);
  const remedy = "Map bytes to it by x / 127.5 - 1";
  using lpips = build();
  const isRefused = (fn: () => unknown, start: string): void =>
    assert.throws(
      fn,
      (error: Error) =>
        error.name === "RangeError" && error.message.startsWith(start) && error.message.includes(remedy),
    );
  isRefused(() => lpips.forward(bytes, samples), "LPIPS: expected images in [-1, 1], got values from ");
  isRefused(() => lpips.forward(images, bytes), "LPIPS: expected samples about [-1, 1], got values from ");
  isRefused(() => lpips.reference(bytes), "LPIPS: expected images in [-1, 1], got values from ");
  const reference = lpips.reference(images);
  isRefused(
    () => lpips.distance(reference, bytes),
    "LPIPS: expected samples about [-1, 1], got values from ",
  );
  isRefused(
    () => lpips.distanceMap(reference, bytes),
    "LPIPS: expected samples about [-1, 1], got values from ",
  );
});

test("images in [0, 1] are refused once 64 have been seen, unless the check is off", () => {
  const bright = rand([32, 3, 32, 32]);
  using lpips = build();
  noGrad(() => {
    lpips.forward(bright, bright);
    assert.throws(() => lpips.forward(bright, bright), {
      name: "RangeError",
      message:
        "LPIPS: expected images in [-1, 1], got 64 images with no value below 0. " +
        "If they are in [0, 1], map them by 2 x - 1; if they are that bright, switch the range check off.",
    });
    using unchecked = build({ checkRange: false });
    for (let i = 0; i < 3; i++) unchecked.forward(bright, bright.mul(100));
  });
});

test("images that do not fit are refused", () => {
  const refused = (fn: () => unknown, message: string): void =>
    assert.throws(fn, { name: "RangeError", message });
  for (const [net, size] of [
    ["vgg", 16],
    ["alex", 31],
    ["squeeze", 17],
  ] as const) {
    const lpips = metrics[net];
    assert.deepEqual(lpips.forward(zeros([1, 3, size, size]), zeros([2, 3, size, size])).shape, [2]);
    const small = zeros([1, 3, size - 1, 64]);
    const tail = `images of at least ${size} x ${size} for ${net}, got ${size - 1} x 64. Enlarge the images, or use another net.`;
    refused(() => lpips.forward(small, small), `LPIPS: expected ${tail}`);
    refused(() => lpips.reference(small), `LPIPS.reference: expected ${tail}`);
  }
  const reference = metrics.alex.reference(images);
  refused(
    () => metrics.alex.distance(reference, zeros([3, 3, 48, 40])),
    "LPIPS.distance: expected samples [2 * G, 3, 48, 40], got Tensor float32[3, 3, 48, 40] cpu.",
  );
  refused(
    () => metrics.alex.distanceMap(reference, zeros([2, 3, 40, 48])),
    "LPIPS.distanceMap: expected samples [2 * G, 3, 48, 40], got Tensor float32[2, 3, 40, 48] cpu.",
  );
  refused(
    () => metrics.alex.forward(images, samples, { chunk: 0 }),
    "LPIPS: chunk: expected an integer of at least 1, got 0.",
  );
});

test("gradients are those of finite differences, to samples and to images", () => {
  using lpips = build().to({ dtype: "float64" });
  const x = images.double().narrow(2, 0, 32).narrow(3, 0, 32).contiguous();
  const y = samples.double().narrow(2, 0, 32).narrow(3, 0, 32).contiguous();
  assert.equal(lpips.forward(x, y).dtype, "float64");
  for (const { analytic, numeric } of [
    differences((z) => lpips.forward(x, z), y, 12),
    differences((z) => lpips.forward(z, y), x, 12),
  ]) {
    expectClose(analytic, numeric, { rtol: 1e-4, atol: 1e-8 });
  }
});

test("positions without any feature are at distance 0, with gradient 0", () => {
  const dead = Object.fromEntries(
    Object.entries(backbones.alex).map(([name, value]) => [name, value.detach().mul(0)]),
  );
  using lpips = build({ backbone: dead });
  expectClose(lpips.forward(images, samples), [0, 0, 0, 0], { atol: 0 });
  expectClose(
    gradientOf((y) => lpips.forward(images, y), samples),
    samples.mul(0),
    { atol: 0 },
  );
});

test("weights are frozen, and training mode changes nothing", () => {
  using lpips = build();
  assert.ok(lpips.parameters().every((parameter) => !parameter.requiresGrad));
  assert.equal(lpips.training, false);
  const wanted = lpips.forward(images, samples);
  assert.equal(wanted.requiresGrad, false);
  assert.ok(lpips.train().forward(images, samples).equal(wanted));
});

test("distances are float32 under autocast and with bfloat16 weights", () => {
  using narrow = build().to({ dtype: "bfloat16" });
  for (const lpips of [metrics.alex, narrow]) {
    const run = <T>(fn: () => T): T =>
      lpips === narrow ? fn() : autocast({ device: "cpu", dtype: "bfloat16" }, fn);
    const distance = run(() => lpips.forward(images, samples));
    assert.equal(distance.dtype, "float32");
    assert.ok(!distance.equal(metrics.alex.forward(images, samples)), "computed in float32");
    expectClose(distance, golden("alex.distance"), { rtol: 1e-2, atol: 1e-3 });
    // Features are divided by their lengths in float32: in bfloat16 these would be off by 0.4 %.
    for (const tap of run(() => lpips.reference(images)).features) {
      assert.equal(tap.dtype, "float32");
      const length = tap.norm(2, 1);
      expectClose(length, length.mul(0).add(1), { rtol: 1e-5 });
    }
  }
});

test("NaN in a sample makes its distance NaN and no other", () => {
  const spoilt = samples.clone();
  spoilt.select(0, 2).fill_(Number.NaN);
  const distance = metrics.alex.forward(images, spoilt);
  assert.deepEqual(distance.isnan().toList(), [0, 0, 1, 0]);
});

test("without gradients only the layer at work is in memory, and portions bound it", () => {
  const [x, y] = [full([1, 3, 64, 64], -0.5), full([8, 3, 64, 64], 0.5)];
  const peak = (chunk: number, mode: <T>(fn: () => T) => T): number => {
    const { bytes } = memory({ resetPeak: true });
    tidy(() => {
      const leaf = y.clone().requiresGrad_();
      mode(() => metrics.vgg.forward(x, leaf, { chunk }));
    });
    return memory().peakBytes - bytes;
  };
  const [kept, lean, small] = [peak(8, enableGrad), peak(8, noGrad), peak(1, noGrad)];
  assert.ok(lean < kept / 2, `${lean} against ${kept} bytes with a graph`);
  assert.ok(small < lean / 3, `${small} against ${lean} bytes whole`);
});

test("nothing is left behind", () => {
  noLeak(() => metrics.alex.forward(images, samples, { chunk: 3 }).dispose());
  noLeak(() => tidy(() => void metrics.alex.distanceMap(metrics.alex.reference(images), samples)));
  noLeak(() => gradientOf((y) => metrics.squeeze.forward(images, y), samples).dispose());
  noLeak(() => build().dispose());
  noLeak(() => {
    for (const tap of metrics.alex.reference(images, { chunk: 1 }).features) tap.dispose();
  });
  // A reference that leaves a tidy keeps its features.
  const reference = tidy(() => metrics.alex.reference(images));
  expectClose(metrics.alex.distance(reference, samples), golden("alex.distance"), { rtol: 1e-5 });
});

test("weights that are still in a file are read one by one", () => {
  const lazily = (state: StateDict): Record<string, Readable> =>
    Object.fromEntries(
      Object.entries(state).map(([name, value]) => [
        name,
        { shape: value.shape, read: () => value.detach().clone() },
      ]),
    );
  const heads = lazily(publishedHeads("alex"));
  noLeak(() => {
    using lpips = build({ backbone: lazily(backbones.alex), heads });
    tidy(() => assert.ok(lpips.forward(images, samples).equal(metrics.alex.forward(images, samples))));
  });
});
