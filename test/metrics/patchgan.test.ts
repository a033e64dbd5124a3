import assert from "node:assert/strict";
import { after, test } from "node:test";

import { NLayerDiscriminator } from "../../src/metrics/index.js";
import { autocast, manualSeed, noGrad, type Tensor, tidy, zeros } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";
import { goldenImages, goldens, gradientOf, thinned } from "./golden.js";

const golden = goldens("patchgan");
const { samples } = goldenImages();

// One training step of PyTorch's network from the same seed stands before all that follows.
manualSeed(0);
const network = new NLayerDiscriminator();
const trained = network.forward(samples);
trained.mean().backward();
network.eval();
after(() => network.dispose());

test("weights start as PyTorch's do from the same seed", () => {
  assert.equal(
    network.parameters().reduce((sum, { numel }) => sum + numel, 0),
    golden("parameters").item(),
  );
  assert.deepEqual(Object.keys(network.stateDict()).slice(0, 9), [
    ...["main.0.weight", "main.0.bias", "main.2.weight"],
    ...["weight", "bias", "running_mean", "running_var", "num_batches_tracked"].map(
      (name) => `main.3.${name}`,
    ),
    "main.5.weight",
  ]);
});

test("training uses and gathers the batch's statistics, and reaches the weights", () => {
  expectClose(trained, golden("train.logits"), { rtol: 1e-5, atol: 1e-6 });
  const state = network.stateDict();
  for (const name of ["main.3.running_mean", "main.9.running_var", "main.9.num_batches_tracked"]) {
    expectClose(state[name] as Tensor, golden(name), { rtol: 1e-5, atol: 1e-7 });
  }
  for (const name of ["main.0.bias", "main.3.weight", "main.11.bias"]) {
    const gradient = (state[name] as Tensor).grad;
    assert.ok(gradient, name);
    expectClose(gradient, golden(`train.grad.${name}`), { rtol: 1e-4, atol: 1e-6, where: name });
  }
});

test("a frozen network gives PyTorch's logits, score and gradient", () => {
  expectClose(network.forward(samples), golden("eval.logits"), { rtol: 1e-5, atol: 1e-7 });
  expectClose(network.score(samples), golden("eval.score"), { rtol: 1e-5, atol: 1e-7 });
  const small = samples.narrow(2, 0, 32).narrow(3, 0, 32);
  expectClose(network.forward(small), golden("eval.32px"), { rtol: 1e-5, atol: 1e-7 });
  const gradient = gradientOf((x) => network.score(x), samples);
  expectClose(thinned(gradient), golden("eval.grad"), { rtol: 1e-5, atol: 1e-8 });
});

test("256 px make 30 x 30 patches and 24 px make one", () => {
  using thin = new NLayerDiscriminator({ ndf: 2 });
  thin.eval();
  noGrad(() => {
    assert.deepEqual(thin.forward(zeros([1, 3, 256, 256])).shape, [1, 1, 30, 30]);
    assert.deepEqual(thin.forward(zeros([1, 3, 384, 384])).shape, [1, 1, 46, 46]);
    assert.deepEqual(thin.forward(zeros([1, 3, 24, 24])).shape, [1, 1, 1, 1]);
    using shallow = new NLayerDiscriminator({ ndf: 2, nLayers: 1 });
    assert.deepEqual(shallow.forward(zeros([2, 3, 6, 6])).shape, [2, 1, 1, 1]);
  });
});

test("portions change no score, and are not made in training", () => {
  const whole = network.score(samples);
  for (const chunk of [1, 3])
    expectClose(network.score(samples, { chunk }), whole, { rtol: 1e-5, atol: 1e-7 });
  using other = new NLayerDiscriminator({ ndf: 4 });
  const batch = noGrad(() => other.score(samples));
  expectClose(
    noGrad(() => other.score(samples, { chunk: 1 })),
    batch,
    { rtol: 1e-6 },
  );
});

test("scores are float32 under autocast", () => {
  const score = autocast({ device: "cpu", dtype: "bfloat16" }, () => network.score(samples));
  assert.equal(score.dtype, "float32");
  assert.ok(!score.equal(network.score(samples)), "autocast did nothing");
  expectClose(score, golden("eval.score"), { rtol: 1e-2, atol: 5e-3 });
});

test("a state dict goes in and out, and another network's does not", () => {
  using copy = new NLayerDiscriminator();
  copy.eval().loadStateDict(network.stateDict());
  assert.ok(copy.score(samples).equal(network.score(samples)));
  const renamed = Object.fromEntries(
    Object.entries(copy.stateDict()).map(([name, value]) => [`d.${name}`, value]),
  );
  assert.throws(
    () => copy.loadStateDict(renamed, { strict: false }),
    /^Error: NLayerDiscriminator.loadStateDict: missing main\.0/,
  );
});

test("what does not fit is refused", () => {
  const refused = (fn: () => unknown, message: string): void =>
    assert.throws(fn, { name: "RangeError", message });
  refused(
    () => network.score(zeros([1, 3, 23, 64])),
    "NLayerDiscriminator: expected images of at least 24 x 24, got 23 x 64. Enlarge the images, or use fewer layers.",
  );
  refused(
    () => network.score(zeros([1, 1, 32, 32])),
    "NLayerDiscriminator.score: expected images [B, 3, H, W], got Tensor float32[1, 1, 32, 32] cpu.",
  );
  refused(
    () => new NLayerDiscriminator({ ndf: 0 }),
    "NLayerDiscriminator: ndf: expected an integer of at least 1, got 0.",
  );
  refused(
    () => new NLayerDiscriminator({ nLayers: 1.5 }),
    "NLayerDiscriminator: nLayers: expected an integer of at least 1, got 1.5.",
  );
});

test("nothing is left behind", () => {
  noLeak(() => network.score(samples, { chunk: 3 }).dispose());
  noLeak(() => network.forward(samples).dispose());
  noLeak(() => tidy(() => void gradientOf((x) => network.score(x), samples)));
  noLeak(() => new NLayerDiscriminator({ ndf: 2 }).dispose());
});
