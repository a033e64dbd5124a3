import assert from "node:assert/strict";
import { after, test } from "node:test";

import { classifierShapes } from "../../src/metrics/classifier.js";
import { type ClassifierConfig, FeatureClassifier } from "../../src/metrics/index.js";
import { functional as F, memory, rand, type Tensor, tidy, zeros } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";
import { goldenClassifier, goldens } from "./golden.js";

const golden = goldens("classifier");
const network = goldenClassifier();
after(() => network.dispose());

const gradientOf = (name: string): Tensor => {
  const [, parameter] = network.namedParameters().find(([own]) => own === name) ?? [];
  assert.ok(parameter?.grad, name);
  return parameter.grad;
};

test("stages, logits, features and probabilities are those of PyTorch", () => {
  const images = golden("images");
  const stages = network.stages(images);
  assert.equal(stages.length, 3);
  for (const [k, stage] of stages.entries()) {
    expectClose(stage, golden(`stages.${k}`), { rtol: 1e-5, atol: 1e-5, where: `stage ${k}` });
  }
  expectClose(network.logits(images), golden("logits"), { rtol: 1e-5, atol: 1e-5 });
  const { features, probabilities } = network.describe(images);
  expectClose(features, golden("features"), { rtol: 1e-5, atol: 1e-6 });
  expectClose(probabilities, golden("probabilities"), { rtol: 1e-5, atol: 1e-6 });
  assert.equal(network.featureSize, 8);
  assert.equal(network.numClasses, 5);
});

test("gradients of the weights are those of PyTorch", () => {
  tidy(() => {
    network.zeroGrad();
    F.crossEntropy(network.logits(golden("images")), golden("labels")).backward();
  });
  for (const name of ["stem.weight", "blocks.0.0.shortcut.weight", "blocks.1.1.norm2.bias", "head.weight"]) {
    const wanted = golden(`grad.${name}`);
    const largest = wanted.abs().amax().item();
    expectClose(gradientOf(name), wanted, { rtol: 1e-4, atol: 1e-5 * largest, where: name });
  }
});

test("describing a set goes portion by portion, keeps no graph and leaves nothing behind", () => {
  const images = rand([9, 3, 128, 128]).mul(2).sub(1); // four at a time
  const whole = network.describe(images);
  const alone = network.describe(images.narrow(0, 8, 1));
  expectClose(whole.features.narrow(0, 8, 1), alone.features, { rtol: 1e-5, atol: 1e-6 });
  expectClose(whole.probabilities.sum(1), Array(9).fill(1), { rtol: 1e-6 });
  assert.equal(whole.features.requiresGrad, false);
  assert.deepEqual([whole.features.dtype, whole.features.shape], ["float32", [9, 8]]);
  noLeak(() => {
    const { features, probabilities } = network.describe(images);
    features.dispose();
    probabilities.dispose();
  });
  noLeak(() => {
    for (const stage of network.stages(images)) stage.dispose();
  });
});

test("images of any size from 8 px on are seen, each by itself", () => {
  using usual = new FeatureClassifier({ numClasses: 3 });
  const parameters = usual.parameters().reduce((sum, parameter) => sum + parameter.numel, 0);
  // 928 of the stem, 36,288 + 129,408 + 270,848 of the blocks, 387 of the head
  assert.equal(parameters, 437_859);
  for (const [height, width] of [
    [8, 8],
    [28, 28],
    [33, 47],
    [64, 64],
  ] as const) {
    const images = rand([2, 3, height, width]).mul(2).sub(1);
    const sizes = usual.stages(images).map((stage) => stage.shape.slice(2));
    const halved = (by: number): number[] => [Math.ceil(height / by), Math.ceil(width / by)];
    assert.deepEqual(sizes, [1, 2, 4, 8].map(halved));
    const alone = usual.logits(images.narrow(0, 1, 1));
    expectClose(usual.logits(images).narrow(0, 1, 1), alone, { rtol: 1e-5, atol: 1e-6 });
  }
  assert.throws(() => usual.logits(zeros([1, 3, 8, 7])), {
    name: "RangeError",
    message: "FeatureClassifier.stages: expected images of at least 8 x 8, got 8 x 7. Enlarge them.",
  });
  assert.throws(() => usual.describe(zeros([1, 1, 32, 32])), {
    message:
      "FeatureClassifier.describe: expected images [B, 3, H, W], got Tensor float32[1, 1, 32, 32] cpu.",
  });
});

test("shapes follow from the configuration", () => {
  for (const config of [{}, { depth: 3 }, { widths: [8, 8], depth: 2 }, { widths: [16, 24, 32, 40, 48] }]) {
    using built = new FeatureClassifier({ numClasses: 7, ...config });
    const shapes = Object.fromEntries(
      Object.entries(built.stateDict()).map(([name, { shape }]) => [name, shape]),
    );
    assert.deepEqual(classifierShapes(built.config), shapes);
  }
});

test("a configuration that makes no classifier is refused", () => {
  const before = memory().tensors;
  const refused = (config: ClassifierConfig, message: string): void => {
    assert.throws(() => new FeatureClassifier(config), { name: "RangeError", message });
  };
  refused(
    { numClasses: 1 },
    "FeatureClassifier: numClasses: expected at least 2 classes, got 1. With one class alone there is nothing to tell apart.",
  );
  refused(
    { numClasses: 3, classNames: ["a", "b"] },
    "FeatureClassifier: classNames: expected 3 names, got 2.",
  );
  refused({ numClasses: 3, depth: 0 }, "FeatureClassifier: depth: expected an integer of at least 1, got 0.");
  refused(
    { numClasses: 3, widths: [32, 36] },
    "FeatureClassifier: widths: expected two or more multiples of 8, got [32, 36].",
  );
  refused(
    { numClasses: 3, widths: [32] },
    "FeatureClassifier: widths: expected two or more multiples of 8, got [32].",
  );
  assert.equal(memory().tensors, before);
});
