import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { nameOf } from "../../src/cli/inspect.js";
import { rlarCommand } from "../../src/config/command.js";
import { InceptionV3, inceptionClasses, recogniseMetricNetwork } from "../../src/metrics/index.js";
import { init } from "../../src/nn/index.js";
import { openFeatureNetwork } from "../../src/rl_ar_finetune/builder.js";
import { describeWeights } from "../../src/rl_ar_finetune/describe_weights.js";
import {
  full,
  manualSeed,
  noGrad,
  openWeights,
  rand,
  randn,
  saveSafetensors,
  type Tensor,
  tidy,
  zeros,
} from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";
import { goldens } from "./golden.js";

const golden = goldens("inception");

/** The very weights that scripts/golden/inception.py draws, in the order of the names. */
function draw(numClasses: number): InceptionV3 {
  const network = init.skipInit(() => new InceptionV3(numClasses));
  manualSeed(0);
  const names = Object.entries(network.stateDict()).sort(([a], [b]) => (a < b ? -1 : 1));
  noGrad(() => {
    for (const [name, value] of names) {
      tidy(() => {
        const { shape } = value;
        if (name.endsWith("num_batches_tracked")) value.zero_();
        else if (/bn\.weight$|running_var$/.test(name)) value.copy_(rand(shape).add(0.5));
        else if (/bias$|running_mean$/.test(name)) value.copy_(randn(shape).mul(0.1));
        else value.copy_(randn(shape).mul(Math.sqrt(2 / init.fanIn(shape))));
      });
    }
  });
  return network;
}

const network = draw(1008);
const folder = mkdtempSync(join(tmpdir(), "rlar-inception-"));
after(() => {
  network.dispose();
  rmSync(folder, { recursive: true });
});

const signed = (bytes: Tensor): Tensor => tidy(() => bytes.float().div(127.5).sub(1));
const images = signed(golden("images"));
const shapesOf = (state: Record<string, { shape: readonly number[] }>): Record<string, readonly number[]> =>
  Object.fromEntries(Object.entries(state).map(([name, { shape }]) => [name, shape]));

test("features and logits are those of pytorch-fid, for images that are enlarged or made smaller", () => {
  const large = images.narrow(0, 0, 1).repeat(1, 1, 8, 8);
  for (const [name, x] of [
    ["small", images],
    ["large", large],
  ] as const) {
    const features = noGrad(() => network.features(x));
    assert.equal(features.requiresGrad, false);
    expectClose(features, golden(`fid.${name}.features`), { rtol: 1e-5, atol: 2e-5 });
    expectClose(network.logits(features, { bias: true }), golden(`fid.${name}.logits`), {
      rtol: 1e-5,
      atol: 2e-4,
    });
    const plain = golden(`fid.${name}.logits_without_bias`);
    expectClose(network.logits(features), plain, { rtol: 1e-5, atol: 2e-4 });
  }
});

test("describe gives the features, and probabilities without the bias", () => {
  const { features, probabilities } = network.describe(images);
  expectClose(features, golden("fid.small.features"), { rtol: 1e-5, atol: 2e-5 });
  const wanted = golden("fid.small.logits_without_bias").softmax(1);
  expectClose(probabilities, wanted, { rtol: 1e-3, atol: 1e-8 });
  assert.equal(network.name, "Inception v3 (FID)");
  assert.equal(network.featureSize, 2048);
  assert.equal(network.numClasses, 1008);
});

test("with another number of classes it is torchvision's, border and bias included", () => {
  using other = draw(1000);
  assert.equal(other.name, "Inception v3 (torchvision; not comparable with published FID or IS)");
  const features = noGrad(() => other.features(images));
  expectClose(features, golden("torchvision.features"), { rtol: 1e-5, atol: 2e-5 });
  expectClose(other.logits(features), golden("torchvision.logits"), { rtol: 1e-5, atol: 2e-4 });
});

test("any number of images goes through in portions, in their order", () => {
  const sizes: number[] = [];
  class Counting extends InceptionV3 {
    override features(x: Tensor): Tensor {
      sizes.push(x.size(0));
      return x.select(1, 0).flatten(1).narrow(1, 0, 1).expand(x.size(0), 2048);
    }
  }
  using counting = init.skipInit(() => new Counting(1008));
  counting.fc.weight.zero_();
  const values = rand([37, 3, 2, 2]);
  const { features, probabilities } = counting.describe(values);
  assert.deepEqual(sizes, [16, 16, 5]);
  expectClose(features.select(1, 7), values.select(1, 0).select(1, 0).select(1, 0), { rtol: 0, atol: 0 });
  assert.deepEqual(probabilities.shape, [37, 1008]);
});

test("files are recognised by their keys and shapes, auxiliary classifier and counters or not", () => {
  const shapes = shapesOf(network.stateDict());
  assert.equal(Object.keys(shapes).length, 94 * 6 + 2);
  assert.equal(recogniseMetricNetwork(shapes), "Inception v3 (FID)");
  const old = Object.fromEntries(Object.entries(shapes).filter(([name]) => !name.endsWith("tracked")));
  assert.equal(recogniseMetricNetwork({ ...old, "AuxLogits.fc.weight": [1000, 768] }), "Inception v3 (FID)");
  const plain = { ...shapes, "fc.weight": [1000, 2048], "fc.bias": [1000] };
  assert.equal(recogniseMetricNetwork(plain), "Inception v3 (torchvision)");
  assert.equal(inceptionClasses({ ...shapes, "fc.weight": [7, 2048], "fc.bias": [7] }), 7);
  assert.equal(recogniseMetricNetwork({ ...shapes, extra: [1] }), null);
  assert.equal(recogniseMetricNetwork({ ...shapes, "Mixed_6b.branch7x7_2.conv.weight": [1, 1, 7, 1] }), null);
  const { "Mixed_7c.branch_pool.bn.bias": _, ...less } = shapes;
  assert.equal(recogniseMetricNetwork(less), null);
});

test("a file opens as what it is, one of an old version too", () => {
  const path = join(folder, "inception.safetensors");
  const state = Object.entries(network.stateDict()).filter(([name]) => !name.endsWith("tracked"));
  saveSafetensors(path, Object.fromEntries(state));
  using file = openWeights(path);
  assert.equal(nameOf(describeWeights(file)), "Inception v3 (FID)");
  using opened = openFeatureNetwork(path);
  assert.equal(opened.name, "Inception v3 (FID)");
  const { features } = opened.describe(images.narrow(0, 0, 1));
  expectClose(features, golden("fid.small.features").narrow(0, 0, 1), { rtol: 1e-5, atol: 2e-5 });
});

test("what it cannot take is refused", () => {
  const other = join(folder, "other.safetensors");
  saveSafetensors(other, { weight: zeros([2]) });
  assert.throws(() => openFeatureNetwork(other), {
    name: "RangeError",
    message:
      `${other}: expected a classifier of rlar classifier, or Inception v3, got 1 tensors of an unknown model ` +
      `(weight, ...). ${rlarCommand(["inspect", other])} shows what is in it.`,
  });
  assert.throws(() => network.describe(full([1, 3, 8, 8], 255)), {
    message:
      "InceptionV3: expected images in [-1, 1], got values from 255 to 255. Map bytes to it by x / 127.5 - 1, and " +
      "[0, 1] by 2 x - 1.",
  });
  assert.throws(() => network.describe(zeros([1, 1, 8, 8])), /describe: expected images \[B, 3, H, W\]/);
  assert.throws(
    () => network.loadStateDict({ "fc.bias": zeros([3]) }),
    /^Error: InceptionV3.loadStateDict: another shape fc.bias/,
  );
});

test("nothing is left in memory", () => {
  using one = images.narrow(0, 0, 1);
  noLeak(() => {
    for (const made of Object.values(network.describe(one))) made.dispose();
  });
});
