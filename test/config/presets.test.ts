/** Presets: complete, and with the numbers of their sources. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { type PresetName, presets } from "../../src/config/presets.js";
import { batchNumbers, resolveConfig, type TrainConfigInput } from "../../src/config/resolve.js";

const PARTS = ["data.source=images", "tokenizer.path=vq.pt", "ar.path=ar.pt"];

test("each resolves, given its files", () => {
  for (const preset of Object.keys(presets) as PresetName[]) {
    const overrides = [...PARTS, ...(preset === "vapi" ? ["reward.lpips.path=vgg.pth"] : [])];
    const { config } = resolveConfig({ preset, overrides });
    assert.equal(config.preset, preset);
    assert.ok(presets[preset].about.endsWith("."));
  }
});

test("seed is the configuration of the original description", () => {
  const cfg: TrainConfigInput = {
    ar: { type: "gpt", n_layer: 12, n_head: 12, n_embd: 768, lr: 2e-4 },
    block_size: 1024,
    rollout: { max_len: 1024, temperature: 1.0 },
    reward: { type: "l2", normalize: true },
    grpo: { enabled: true, num_generations: 4, clip_range: 0.2 },
    train: { iters: 10000, device: "cuda", log_every: 50, save_every: 1000, ckpt_path: "./grpo.pt" },
  };
  // The preset fits images of any size and machines without a GPU.
  const { blockSize, rollout, train } = resolveConfig({ preset: "seed", isComplete: false }).config;
  assert.deepEqual([blockSize, rollout.maxLen, train.device], [null, null, "auto"]);
  // With its lengths and device, the description pasted over the preset changes nothing.
  const overrides = ["blockSize=1024", "rollout.maxLen=1024", "train.device=cuda"];
  const { config } = resolveConfig({ preset: "seed", overrides, isComplete: false });
  assert.deepEqual(resolveConfig({ preset: "seed", values: cfg, isComplete: false }).config, config);
  assert.equal(config.rollout.context.type, "free");
  assert.deepEqual([config.update.auxCe, config.kl.coef, config.update.entropyCoef], [0, 0, 0]);
});

test("vapi has the numbers of VA-pi's released script, and the paper's noise", () => {
  const { config } = resolveConfig({
    preset: "vapi",
    overrides: ["reward.lpips.path=vgg.pth"],
    isComplete: false,
  });
  const { rollout, reward, grpo, update, optimizer } = config;
  assert.deepEqual(
    [rollout.context.type, rollout.context.noise, rollout.numGenerations],
    ["noisy_teacher_forced", 0.5, 8],
  );
  assert.deepEqual([rollout.temperature, rollout.topK, rollout.topP], [1, 0, 1]);
  assert.deepEqual([reward.l2.weight, reward.lpips.weight, reward.normalize], [1, 1, "none"]);
  assert.deepEqual([grpo.clipLow, grpo.clipHigh, grpo.advantageClip, grpo.epsilon], [0.2, 0.2, 5, 1e-8]);
  assert.deepEqual([update.auxCe, config.kl.coef], [0.1, 0]);
  assert.deepEqual([optimizer.lr, optimizer.weightDecay, optimizer.maxGradNorm], [1e-6, 1e-4, 1]);
  assert.deepEqual([optimizer.betas, optimizer.schedule], [[0.9, 0.999], "constant"]);
  const { sequences, steps, microBatchesAStep } = batchNumbers(config);
  assert.deepEqual([sequences, steps, microBatchesAStep], [1024, 1, 16]);
  const script = resolveConfig({
    preset: "vapi",
    overrides: ["reward.lpips.path=vgg.pth", "rollout.context.type=teacher_forced"],
    isComplete: false,
  });
  assert.equal(script.config.rollout.context.type, "teacher_forced");
});

test("completion has the numbers that its description tells", () => {
  const { config } = resolveConfig({ preset: "completion", isComplete: false });
  const { rollout, reward, update, optimizer } = config;
  assert.deepEqual([rollout.context.type, rollout.context.length], ["prefix", null]);
  assert.deepEqual([rollout.images, rollout.numGenerations, rollout.temperature], [32, 4, 0.8]);
  assert.deepEqual([reward.l2.weight, reward.credit, reward.creditDecay], [1, "place", 0.8]);
  assert.deepEqual([update.auxCe, optimizer.lr], [0.3, 2e-5]);
});
