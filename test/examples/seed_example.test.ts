/** The example of the original description, transcribed, runs as it stands. */
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

import { runSeedExample } from "../../examples/seed_example.js";
import * as root from "../../src/index.js";
import { checkpointsOf, metricsOf, Shown } from "../support/train_run.js";

root.torch.setNumThreads(1);

for (const ar of ["gpt", "llammagen"] as const) {
  test(`the seed's configuration trains a policy: ${ar}`, async (t) => {
    const folder = mkdtempSync(join(tmpdir(), "seed-example-"));
    t.after(() => rmSync(folder, { recursive: true, force: true }));
    const { dir, step, end } = await runSeedExample(folder, ar, { screen: new Shown() });
    assert.deepEqual([dir, step, end], [folder, 10, "done"]);
    assert.deepEqual(checkpointsOf(folder), ["step_000005", "step_000010"]);
    const metrics = metricsOf(folder);
    assert.equal(metrics.length, 10);
    for (const line of metrics) assert.ok(Number.isFinite(line["reward/l2/mean"]), JSON.stringify(line));

    const { policy, description } = root.openPolicy(join(folder, "grpo.safetensors"), { codebookSize: 64 });
    assert.equal(policy.constructor, ar === "gpt" ? root.GPT : root.LlamaGen);
    assert.deepEqual(
      [policy.vocabSize, policy.blockSize, policy.hiddenSize],
      [64, 16, 32],
      JSON.stringify(description),
    );
    policy.dispose();

    const config = readFileSync(join(folder, "config.yaml"), "utf8");
    for (const wanted of [
      /^algorithm: grpo$/m,
      /numGenerations: 4$/m,
      /clipHigh: 0\.2$/m,
      /normalize: batch$/m,
    ]) {
      assert.match(config, wanted);
    }
  });
}

test("the package root has every name of the description", () => {
  const named =
    "buildToklipTokenizer buildTokenizerFrozen buildArPolicy buildGptPolicy sampleCodesWithLogprobs reconstructionReward " +
    "reinforceUpdate ppoUpdate grpoUpdate rlooUpdate trainRlLoop GPT LlamaGen IbqAr IBQ VQModel LPIPS NLayerDiscriminator";
  for (const name of named.split(" "))
    assert.equal(typeof (root as Record<string, unknown>)[name], "function", name);
  assert.equal(typeof root.torch.tensor, "function");
  assert.equal(typeof root.nn.Linear, "function");
});
