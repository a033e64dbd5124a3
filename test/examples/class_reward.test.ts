/** The example of a reward as a module gives the classifier's log-probabilities. */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { test } from "node:test";
import { pathToFileURL } from "node:url";
import type { RewardContext, RewardFunction } from "../../src/config/train.js";
import { FeatureClassifier } from "../../src/metrics/index.js";
import { cat, manualSeed, rand, saveSafetensors, tidy, zeros } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";

test("examples/class_reward.mjs: log p(class | sample), each sample by the class of its image", async (t) => {
  const folder = mkdtempSync(join(tmpdir(), "class-reward-"));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  manualSeed(0);
  using classifier = new FeatureClassifier({ numClasses: 3, widths: [8, 8] });
  process.env.CLASSIFIER = join(folder, "classifier.safetensors");
  t.after(() => delete process.env.CLASSIFIER);
  const config = JSON.stringify(classifier.config);
  saveSafetensors(process.env.CLASSIFIER, classifier.stateDict(), { config });
  const url = pathToFileURL(resolve("examples/class_reward.mjs")).href;
  const { default: reward } = (await import(url)) as { default: RewardFunction };
  tidy(() => {
    const samples = rand([4, 3, 16, 16]).mul(2).sub(1);
    const context = { classIds: [2, 0], numGenerations: 2 } as unknown as RewardContext;
    const logs = classifier.logits(samples).logSoftmax(1);
    const wanted = cat([logs.narrow(0, 0, 2).select(1, 2), logs.narrow(0, 2, 2).select(1, 0)]);
    const images = zeros([2, 3, 16, 16]);
    expectClose(reward(images, samples, context) as typeof samples, wanted, { rtol: 1e-5 });
    assert.throws(
      () => reward(images, samples, { ...context, classIds: null }),
      /expected data with classes/,
    );
  });
});
