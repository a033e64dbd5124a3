/** Reading configurations: precedence, spellings, and the whole text of every message. */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";

import {
  batchNumbers,
  ConfigError,
  type ConfigSources,
  resolveConfig,
  type TrainConfig,
} from "../../src/config/resolve.js";

const folder = mkdtempSync(join(tmpdir(), "rlar-config-"));
after(() => rmSync(folder, { recursive: true }));

/** What a configuration needs to be complete. */
const PARTS = ["data.source=images", "tokenizer.path=vq.pt", "ar.path=ar.pt"];

const resolved = (sources: ConfigSources): TrainConfig =>
  resolveConfig({ isComplete: false, ...sources }).config;
const set = (...overrides: string[]): TrainConfig => resolved({ overrides });

/** Every problem of sources that are refused. */
function problems(sources: ConfigSources): readonly string[] {
  try {
    resolveConfig({ isComplete: false, ...sources });
  } catch (error) {
    assert.ok(error instanceof ConfigError, String(error));
    return error.problems;
  }
  assert.fail("nothing was refused");
}

const refused = (...overrides: string[]): readonly string[] => problems({ overrides });

test("the defaults", () => {
  const config = resolved({});
  assert.equal(config.preset, null);
  assert.equal(config.algorithm, "grpo");
  assert.equal(config.update.auxCe, 0.1);
  assert.equal(config.rollout.numGenerations, 8);
  assert.deepEqual([config.grpo.clipLow, config.grpo.clipHigh, config.grpo.advantageClip], [0.2, 0.28, 5]);
  assert.deepEqual([config.ppo.epochs, config.ppo.targetKl, config.ppo.lambda], [4, 0.02, 0.95]);
  assert.deepEqual(config.optimizer.betas, [0.9, 0.95]);
  assert.deepEqual(config.reward.l2, { weight: 1 });
  assert.deepEqual(config.ar.extra, {});
});

test("a configuration is frozen, a program's own objects are not", () => {
  const loader = { *[Symbol.iterator]() {}, items: [1] };
  const config = resolved({ values: { dataloader: loader, optimizer: { betas: [0.5, 0.5] } } });
  assert.equal(config.dataloader, loader);
  assert.ok(
    Object.isFrozen(config) &&
      Object.isFrozen(config.rollout.context) &&
      Object.isFrozen(config.optimizer.betas),
  );
  assert.ok(!Object.isFrozen(loader) && !Object.isFrozen(loader.items));
});

test("the command line wins over the program, that over the file, that over the preset, that over the defaults", () => {
  const file = join(folder, "precedence.yaml");
  writeFileSync(file, "preset: vapi\noptimizer:\n  lr: 0.3\n  eps: 0.3\nseed: 3\ntrain: {iters: 3}\n");
  const values = { optimizer: { lr: 0.4 }, train: { iters: 4 } };
  const config = resolved({ file, values, overrides: ["train.iters=5", "reward.lpips.path=vgg.pth"] });
  assert.equal(config.train.iters, 5);
  assert.equal(config.optimizer.lr, 0.4);
  assert.equal(config.optimizer.eps, 0.3);
  assert.deepEqual(config.optimizer.betas, [0.9, 0.999]); // vapi's
  assert.equal(config.optimizer.finalLr, 0.1); // the default
  assert.equal(config.preset, "vapi");
  assert.equal(resolved({ file, overrides: ["preset=completion"] }).update.auxCe, 0.3);
  assert.equal(resolved({ file, overrides: ["preset=null"] }).rollout.images, 16);
  assert.equal(resolved({ preset: "completion" }).preset, "completion");
});

test("values of a command line are YAML: numbers, lists, null, text, and keys with values", () => {
  const config = set(
    "optimizer.lr=2e-4",
    "optimizer.betas=[0.8, 0.9]",
    "grpo.advantageClip=null",
    "data.source=a=b c",
    "data.flip=true",
    "rollout={temperature: 0.5, context: {type: prefix, length: 3}}",
    "ar.extra.rope=true",
    'data.label="12"',
  );
  assert.equal(config.optimizer.lr, 2e-4);
  assert.deepEqual(config.optimizer.betas, [0.8, 0.9]);
  assert.equal(config.grpo.advantageClip, null);
  assert.equal(config.data.source, "a=b c");
  assert.equal(config.data.flip, true);
  assert.equal(config.rollout.temperature, 0.5);
  assert.deepEqual(config.rollout.context, { type: "prefix", length: 3, noise: 0.5, ramp: 0 });
  assert.deepEqual(config.ar.extra, { rope: true });
  assert.equal(config.data.label, "12");
});

test("snake_case and kebab-case are taken everywhere", () => {
  const text =
    "rollout:\n  num_generations: 2\n  guidance: {scale: 2}\nreward:\n  ms_ssim: {weight: 0.5}\nblock-size: 64\n";
  const config = resolved({ text, overrides: ["update.micro_batch=4", "grpo.clip_high=0.5"] });
  assert.equal(config.rollout.numGenerations, 2);
  assert.equal(config.reward.msSsim.weight, 0.5);
  assert.equal(config.blockSize, 64);
  assert.equal(config.update.microBatch, 4);
  assert.equal(config.grpo.clipHigh, 0.5);
});

test("the configuration of the original description works as it is", () => {
  class MyLlamaGen {}
  const tokenizer = { encode() {}, decodeCode() {} };
  const loader: unknown[] = [];
  const cfg = {
    vq_model: tokenizer,
    ar: {
      type: "llammagen",
      cls: MyLlamaGen,
      n_layer: 24,
      n_head: 16,
      n_embd: 1024,
      lr: 2e-4,
      extra: { rope: true },
    },
    block_size: 1024,
    dataloader: loader,
    rollout: { max_len: 1024, temperature: 1.0 },
    reward: { type: "l2", normalize: true },
    grpo: { enabled: true, num_generations: 4, clip_range: 0.2 },
    train: { iters: 10000, device: "cuda", log_every: 50, save_every: 1000, ckpt_path: "./grpo.pt" },
  };
  const { config } = resolveConfig({ values: cfg });
  assert.equal(config.tokenizer.model, tokenizer);
  assert.equal(config.dataloader, loader);
  assert.equal(config.ar.cls, MyLlamaGen);
  const { type, nLayer, nHead, nEmbd, extra } = config.ar;
  assert.deepEqual(
    { type, nLayer, nHead, nEmbd, extra },
    { type: "llamagen", nLayer: 24, nHead: 16, nEmbd: 1024, extra: { rope: true } },
  );
  assert.equal(config.optimizer.lr, 2e-4);
  assert.deepEqual([config.blockSize, config.rollout.maxLen, config.rollout.temperature], [1024, 1024, 1]);
  assert.equal(config.reward.normalize, "batch");
  assert.equal(config.reward.l2.weight, 1);
  assert.equal(config.algorithm, "grpo");
  assert.deepEqual([config.rollout.numGenerations, config.grpo.clipLow, config.grpo.clipHigh], [4, 0.2, 0.2]);
  assert.deepEqual([config.train.iters, config.train.device, config.log.every], [10000, "cuda", 50]);
  assert.deepEqual([config.save.every, config.save.ckptPath], [1000, "./grpo.pt"]);
  assert.equal(config.rollout.context.type, "free");
});

test("other names", () => {
  assert.equal(set("grpo.enabled=false").algorithm, "reinforce");
  assert.equal(set("rollout.context=teacher_forced").rollout.context.type, "teacher_forced");
  assert.equal(set("rollout.guidance=3").rollout.guidance.scale, 3);
  const { reward } = resolved({ preset: "vapi", overrides: ["reward.type=ssim"] });
  assert.deepEqual([reward.ssim.weight, reward.l2.weight, reward.lpips.weight], [1, 0, 0]);
  const mixed = set("reward.psnr.weight=2", "reward.type=l1", "reward.ssim.weight=3").reward;
  assert.deepEqual([mixed.l1.weight, mixed.l2.weight, mixed.psnr.weight, mixed.ssim.weight], [1, 0, 2, 3]);
  assert.deepEqual(set("ar.class_num=10", "ar.extra={a: 1}").ar.extra, { a: 1, classNum: 10 });
  assert.equal(set("precision.policy=bf16").precision.policy, "bfloat16");
  class Tokenizer {
    encode() {}
    decodeCode() {}
  }
  const tokenizer = new Tokenizer();
  assert.equal(resolved({ values: { tokenizer } }).tokenizer.model, tokenizer);
});

test("an unknown key has its place and the nearest name", () => {
  assert.deepEqual(refused("train.iter=3"), [
    'command line: train.iter: unknown key. Did you mean "train.iters"?',
  ]);
  assert.deepEqual(refused("rolout.temprature=1"), [
    'command line: rolout.temprature: unknown key. Did you mean "rollout.temprature"?',
  ]);
  assert.deepEqual(refused("reward.lpip.weight=1"), [
    'command line: reward.lpip.weight: unknown key. Did you mean "reward.lpips.weight"?',
  ]);
  assert.deepEqual(refused("temperature=1"), [
    'command line: temperature: unknown key. Did you mean "rollout.temperature"?',
  ]);
  assert.deepEqual(refused("ar.widgets=1"), [
    "command line: ar.widgets: unknown key. An option of the policy's own class goes into ar.extra.",
  ]);
  assert.deepEqual(refused("ema.wobbly=1"), [
    "command line: ema.wobbly: unknown key. Keys of ema are decay, warmup.",
  ]);
  assert.deepEqual(problems({ values: { reward: { typ: "l2" } } }), [
    'config.reward.typ: unknown key. Did you mean "reward.type"?',
  ]);
  assert.deepEqual(problems({ values: { kl: { ceof: 1 } } }), [
    'config.kl.ceof: unknown key. Did you mean "kl.coef"?',
  ]);
  assert.deepEqual(refused("data.source={path: x}"), [
    "command line: data.source.path: unknown key. data.source takes text, or null, and no keys.",
  ]);
  assert.match(
    refused("qqqqqq=1")[0] as string,
    /^command line: qqqqqq: unknown key\. Keys are preset, seed, run, /,
  );
});

test("all problems are told at once, each with what was expected and what was given", () => {
  const sources = {
    text: "rollout:\n  temperature: hot\n  num-generations: 2.5\ndata:\n  source: 12\n",
    values: { optimizer: { betas: [0.9] }, ar: { cls: "GPT" } },
    overrides: ["rollout.topP=1.5", "algorithm=sac", "data.flip=yes", "train.device=tpu"],
  };
  assert.deepEqual(problems(sources), [
    "configuration:5:3: data.source: expected text, or null, got 12.",
    "command line: data.flip: expected true or false, got yes.",
    "config.ar.cls: expected a class of policies, or null, got GPT.",
    "configuration:3:3: rollout.num-generations: expected an integer of at least 1 (sequences), got 2.5.",
    "configuration:2:3: rollout.temperature: expected a number above 0, got hot.",
    "command line: rollout.topP: expected a number in (0, 1], got 1.5.",
    "command line: algorithm: expected reinforce, rloo, grpo, ppo or ste, got sac.",
    "config.optimizer.betas: expected a list of 2 numbers in [0, 1), got [0.9].",
    "command line: train.device: expected auto, cpu, cuda or cuda:N, got tpu.",
  ]);
  assert.throws(() => resolveConfig({ overrides: ["train.iter=1", "seed=-1", ...PARTS] }), {
    name: "ConfigError",
    message:
      "2 problems in the configuration:\n" +
      '- command line: train.iter: unknown key. Did you mean "train.iters"?\n' +
      "- command line: seed: expected an integer of at least 0, got -1.",
  });
  assert.throws(() => resolveConfig({ overrides: ["seed=-1", ...PARTS] }), {
    name: "ConfigError",
    message: "command line: seed: expected an integer of at least 0, got -1.",
  });
});

test("what a command line gets wrong", () => {
  assert.deepEqual(refused("foo"), [
    "command line: expected key=value, got foo. rlar config explain lists the keys.",
  ]);
  assert.deepEqual(refused("=3"), [
    "command line: expected key=value, got =3. rlar config explain lists the keys.",
  ]);
  assert.deepEqual(refused("train.iters="), [
    'command line: train.iters: expected a value after "=", got nothing. Write null to unset a key.',
  ]);
  assert.deepEqual(refused("optimizer.betas=[1,"), [
    "command line: optimizer.betas: expected YAML, got a mistake. Flow sequence must end with a ].",
  ]);
  assert.deepEqual(refused("train.iters=1", "train.iters=2"), [
    "command line: train.iters: expected train.iters once, got it twice. It is given as command line: train.iters too.",
  ]);
  assert.deepEqual(refused("rollout=3"), ["command line: rollout: expected keys with values, got 3."]);
  assert.deepEqual(refused("rollout=null"), ["command line: rollout: expected keys with values, got null."]);
  assert.deepEqual(refused("reward.type=fid"), [
    "command line: reward.type: expected one of l1, l2, psnr, ssim, msSsim, lpips, perceptual, latentCosine, patchGan, got fid.",
  ]);
  assert.deepEqual(refused("grpo.enabled=1"), ["command line: grpo.enabled: expected true or false, got 1."]);
  assert.deepEqual(refused("preset=vapy"), [
    "command line: preset: expected seed, vapi, completion or null, got vapy.",
  ]);
  assert.deepEqual(set("train.iters=7", "train.iters=7").train.iters, 7);
});

test("what a file gets wrong has its line and column", () => {
  assert.deepEqual(problems({ text: "train:\n  iters: 5\n  iters: 6\n" }), [
    "configuration:3:3: expected each key once, got iters again.",
  ]);
  assert.deepEqual(problems({ text: "train:\n  iters: 5\n bad\n" }), [
    "configuration:3:1: expected YAML, got a mistake. All mapping items must start at the same column.",
  ]);
  assert.deepEqual(problems({ text: "rollout:\n  max_len: 4\n  maxLen: 5\n" }), [
    "configuration:3:3: rollout.maxLen: expected rollout.maxLen once, got it twice. It is given as configuration:2:3: " +
      "rollout.max_len too.",
  ]);
  assert.deepEqual(problems({ text: "log: {every: 1}\ntrain: {log_every: 2}\n" }), [
    "configuration:2:9: train.log_every: expected log.every once, got it twice. It is given as configuration:1:7: log.every too.",
  ]);
  assert.deepEqual(problems({ text: "- 1\n" }), [
    "configuration:1:1: expected keys with values, got a list.",
  ]);
  assert.deepEqual(problems({ text: "42" }), ["configuration:1:1: expected keys with values, got 42."]);
  assert.deepEqual(problems({ text: "rollout:\n" }), [
    "configuration:1:1: rollout: expected keys with values, got null.",
  ]);
  assert.deepEqual(problems({ text: "train: {iters: !steps 3}\n" }), [
    "configuration:1:16: expected YAML, got a mistake. Unresolved tag: !steps.",
  ]);
  const missing = join(folder, "missing.yaml");
  assert.deepEqual(problems({ file: missing }), [
    `${missing}: expected a configuration that can be read, got ENOENT: no such file or directory, open '${missing}'.`,
  ]);
  const file = join(folder, "bad.yaml");
  writeFileSync(file, "seed: x\n");
  assert.deepEqual(problems({ file }), [`${file}:1:1: seed: expected an integer of at least 0, got x.`]);
  assert.equal(resolved({ text: "# nothing\n" }).seed, 0);
  assert.equal(resolved({ text: "" }).seed, 0);
  assert.equal(resolved({ text: '{"seed": 3}' }).seed, 3);
  const shared = resolved({ text: "optimizer: {lr: &rate 0.5}\nppo: {valueLr: *rate}\n" });
  assert.equal(shared.ppo.valueLr, 0.5);
});

test("a program's objects cannot stand in a file, and are checked", () => {
  assert.deepEqual(problems({ text: "dataloader: my_loader\n" }), [
    "configuration:1:1: dataloader: expected nothing, got my_loader. Only a program can pass an iterable of images or " +
      "batches, or a function that makes one.",
  ]);
  assert.equal(resolved({ text: "dataloader: null\n" }).dataloader, null);
  assert.deepEqual(
    problems({ values: { vqModel: new Map(), dataloader: 3, ar: { policy: { hidden: 1 } } } }),
    [
      "config.dataloader: expected an iterable of images or batches, or a function that makes one, or null, got 3.",
      "config.vqModel: expected a tokenizer with encode and decodeCode, or null, got an object of class Map.",
      'config.ar.policy: expected a policy with hidden and logits, or null, got {"hidden":1}.',
    ],
  );
  assert.deepEqual(problems({ values: { rollout: new Map() } }), [
    "config.rollout: expected keys with values, got an object of class Map.",
  ]);
});

test("what is missing is named, unless only a part is wanted", () => {
  assert.throws(() => resolveConfig(), {
    message:
      "3 problems in the configuration:\n" +
      "- data.source: expected images to train on, got nothing.\n" +
      "- tokenizer.path: expected a file with a tokenizer, got nothing.\n" +
      "- ar.path: expected a file with a policy, or ar.type for a new one, got nothing.",
  });
  assert.throws(() => resolveConfig({ overrides: [...PARTS, "data.evalPart=0"] }), {
    message:
      "data.evalSource: expected images to evaluate on (or data.evalPart above 0, or eval.every: 0), got nothing.",
  });
  assert.equal(
    resolveConfig({ overrides: [...PARTS, "data.evalPart=0", "eval.every=0"] }).config.eval.every,
    0,
  );
});

test("sizes of batches must fit into each other", () => {
  assert.deepEqual(refused("rollout.images=16", "update.miniBatch=6"), [
    "command line: update.miniBatch: expected a divisor of rollout.images 16, got 6. Set one of 1, 2, 4, 8, 16, or " +
      "another rollout.images.",
  ]);
  assert.deepEqual(
    refused("rollout.images=4", "rollout.numGenerations=3", "update.miniBatch=2", "update.microBatch=4"),
    [
      "command line: update.microBatch: expected a divisor of a mini-batch's 6 rows (2 images x 3 sequences), got 4. Set " +
        "one of 1, 2, 3, 6, or null.",
    ],
  );
  assert.deepEqual(refused("rollout.images=4", "rollout.context=teacher_forced", "update.microBatch=3"), [
    "command line: update.microBatch: expected a divisor of a mini-batch's 4 rows, got 3. Set one of 1, 2, 4, or null.",
  ]);
  const free = set(
    "rollout.images=4",
    "rollout.numGenerations=3",
    "update.miniBatch=2",
    "update.microBatch=3",
    "ppo.epochs=5",
    "algorithm=ppo",
  );
  assert.deepEqual(batchNumbers(free), {
    sequences: 12,
    rowsAnImage: 3,
    rows: 12,
    miniBatch: 2,
    miniBatches: 2,
    steps: 10,
    microBatch: 3,
    microBatchesAStep: 2,
  });
  const shared = batchNumbers(
    set("rollout.images=4", "rollout.context=noisy_teacher_forced", "update.microBatch=2"),
  );
  assert.deepEqual([shared.rows, shared.sequences, shared.steps, shared.microBatchesAStep], [4, 32, 1, 2]);
});

test("keys that do not go together", () => {
  assert.deepEqual(refused("rollout.numGenerations=1"), [
    "command line: rollout.numGenerations: expected at least 2 for grpo, got 1. One sequence alone has nothing to be " +
      "compared with: raise it, or set algorithm reinforce or ppo.",
  ]);
  assert.equal(set("rollout.numGenerations=1", "algorithm=ppo").rollout.numGenerations, 1);
  assert.deepEqual(refused("rollout.numGenerations=1", "rollout.images=1", "algorithm=reinforce"), [
    "command line: rollout.images: expected at least 2 sequences a rollout for reinforce, got 1. Raise it.",
  ]);
  assert.deepEqual(refused("kl.estimator=k1"), [
    "command line: kl.estimator: expected k2, k3, k3_own or exact in the loss, got k1. The gradient of k1 is 0 on average, " +
      "so it adds noise and no pull: set kl.placement: reward, or estimator k2, k3 or exact.",
  ]);
  assert.equal(set("kl.estimator=k1", "kl.placement=reward").kl.estimator, "k1");
  assert.equal(set("kl.estimator=k1", "algorithm=ppo").kl.estimator, "k1");
  assert.deepEqual(refused("kl.estimator=k3_own", "kl.placement=reward"), [
    "command line: kl.estimator: expected k1, k2, k3 or exact in the reward, got k3_own. A reward has no gradient to choose.",
  ]);
  assert.deepEqual(refused("grpo.objective=cispo", "grpo.level=sequence"), [
    "command line: grpo.level: expected token with grpo.objective cispo, got sequence. CISPO weighs each token by its own ratio.",
  ]);
  assert.deepEqual(refused("rollout.keepGraph=true", "update.miniBatch=8", "update.microBatch=8"), [
    "command line: rollout.keepGraph: expected a teacher-forced context with it, got free. Set rollout.keepGraph: false: " +
      "codes drawn one by one have no graph.",
    "command line: rollout.keepGraph: expected one optimizer step a rollout with it, got 2. Set rollout.keepGraph: false: a " +
      "graph serves one step.",
    "command line: update.microBatch: expected null with rollout.keepGraph, got 8. Set rollout.keepGraph: false, or leave " +
      "the micro-batch out.",
  ]);
  assert.deepEqual(refused("blockSize=64", "rollout.maxLen=65"), [
    "command line: rollout.maxLen: expected at most blockSize 64, got 65. Lower it or raise blockSize.",
  ]);
  assert.deepEqual(refused("blockSize=64", "rollout.context={type: prefix, length: 64}"), [
    "command line: rollout.context.length: expected at most 63, one code fewer than a sequence has, got 64. Lower it.",
  ]);
  assert.deepEqual(refused("rollout.guidance.interval=[5, 5]"), [
    "command line: rollout.guidance.interval: expected two places, the first before the second, got [5,5]. Swap them.",
  ]);
  assert.deepEqual(refused("reward.l2.weight=0"), [
    "command line: reward.l2.weight: expected at least one term with a weight, got none. Set reward.l2.weight=1.",
  ]);
  assert.deepEqual(refused("reward.lpips.weight=1", "reward.patchGan.weight=0.1"), [
    "reward.lpips.path: expected the network's weights with reward.lpips.weight 1, got null. Give the file, or set " +
      "reward.lpips.weight=0.",
    "reward.patchGan.path: expected the network's weights with reward.patchGan.weight 0.1, got null. Give the file, or set " +
      "reward.patchGan.weight=0.",
  ]);
  assert.deepEqual(refused("reward.msSsim.weight=1", "data.size=128"), [
    "command line: data.size: expected at least 176 for reward.msSsim, got 128. Leave msSsim out.",
  ]);
  assert.deepEqual(refused("data.group=("), [
    "command line: data.group: expected a regular expression, got (. Such as ^[^/]+/(.*) for the name without its first folder.",
  ]);
});

test("credit by place wants a value at each place, adapters a rank, a target something to start from", () => {
  assert.deepEqual(refused("reward.credit=place", "reward.psnr.weight=1", "reward.latentCosine.weight=1"), [
    "command line: reward.credit: expected sequence with terms that have one value a sample, got place. Leave psnr and " +
      "latentCosine out, or set reward.credit: sequence.",
  ]);
  assert.equal(set("reward={credit: place, ssim: {weight: 1}}", "data.size=64").reward.credit, "place");
  assert.deepEqual(refused("reward.credit=place", "grpo.level=sequence"), [
    "command line: grpo.level: expected token with reward.credit place, got sequence. One ratio a sequence has no use for a " +
      "reward a code: set one of them otherwise.",
  ]);
  assert.deepEqual(refused("kl.target=0.1"), [
    "kl.coef: expected a coefficient above 0 with kl.target, to start from, got 0. Set kl.coef=0.01.",
  ]);
  assert.deepEqual(notes("kl={stop: 1, path: base.pt, placement: loss}"), [
    "kl.placement: not read while kl.coef is 0.",
  ]);
  assert.deepEqual(notes("kl={coef: 1, horizon: 5}"), ["kl.horizon: not read without kl.target."]);
  assert.deepEqual(notes("ar.lora.alpha=4"), ["ar.lora.alpha: not read without ar.lora.rank."]);
  assert.deepEqual(notes("ar.lora={alpha: 4, rank: 2}"), []);
  assert.deepEqual(notes("reward.creditDecay=0.5"), [
    "reward.creditDecay: not read while reward.credit is sequence.",
  ]);
  const byPpo = notes("reward={credit: place, creditDecay: 0.5}", "algorithm=ppo");
  assert.deepEqual(byPpo, ["reward.creditDecay: not read by ppo, which has ppo.lambda."]);
});

test("the straight-through baseline draws from plain distributions in given contexts", () => {
  const ste = ["algorithm=ste", "rollout.context.type=teacher_forced"];
  assert.equal(set(...ste).algorithm, "ste");
  assert.equal(set(...ste, "rollout.numGenerations=1").rollout.numGenerations, 1);
  assert.deepEqual(
    batchNumbers(set(...ste, "rollout.images=4", "update.miniBatch=2", "ppo.epochs=9")).steps,
    2,
  );
  const wrong = [
    "rollout={temperature: 0.9, topK: 5, topP: 0.9, keepGraph: true}",
    "rollout.guidance=2",
    "reward={normalize: batch, credit: place, latentCosine: {weight: 1}}",
    "kl={coef: 0.1, target: 0.02, stop: 1}",
  ];
  const end = "Set it, or take another algorithm.";
  const told = refused("algorithm=ste", ...wrong).filter((problem) => problem.endsWith(end));
  const line = (path: string, what: string, got: string): string =>
    `command line: ${path}: expected ${what} for ste, got ${got}. ${end}`;
  assert.deepEqual(told, [
    `rollout.context.type: expected a teacher-forced context for ste, got free. ${end}`,
    line("rollout.temperature", "1", "0.9"),
    line("rollout.topK", "0", "5"),
    line("rollout.topP", "1", "0.9"),
    line("rollout.guidance", "1", "2"),
    line("rollout.keepGraph", "false", "true"),
    line("reward.normalize", "none", "batch"),
    line("reward.credit", "sequence", "place"),
    line("reward.latentCosine.weight", "0", "1"),
    line("kl.coef", "0", "0.1"),
    line("kl.target", "null", "0.02"),
    line("kl.stop", "null", "1"),
  ]);
  // Not sent to a coefficient that ste refuses as well.
  assert.deepEqual(refused(...ste, "kl.target=0.02"), [line("kl.target", "null", "0.02")]);
  const idle = resolveConfig({ overrides: [...PARTS, ...ste, "update.tokenDropout=0.1", "grpo.epochs=2"] });
  assert.deepEqual(idle.notes, [
    "update.tokenDropout: not read while algorithm is ste.",
    "grpo.epochs: not read while algorithm is ste.",
  ]);
});

/** Notes that a configuration gets beside those of `PARTS` alone. */
function notes(...overrides: string[]): readonly string[] {
  return resolveConfig({
    overrides: [...PARTS, "rollout.context=prefix", "update.miniBatch=8", ...overrides],
  }).notes;
}

test("a reward of pixels without the cross-entropy is told to wreck a generator", () => {
  assert.deepEqual(notes(), []);
  const told = (terms: string, type: string): string =>
    `update.auxCe is 0 with a reward of ${terms} in ${type} contexts: such a reward alone wrecks a generator, since it pays ` +
    "for blur and nothing keeps the codes likely (VA-pi's FID goes from 14 to 39, with LPIPS too). Set update.auxCe=0.1.";
  const shared = "rollout.context.type=teacher_forced";
  const only = (...overrides: string[]): readonly string[] =>
    resolveConfig({ overrides: [...PARTS, "update.miniBatch=8", ...overrides] }).notes;
  assert.deepEqual(only(shared, "update.auxCe=0"), [told("l2", "teacher_forced")]);
  const lpips = ["reward.lpips.weight=1", "reward.lpips.path=vgg.pth"];
  const noisy = ["rollout.context.type=noisy_teacher_forced", "rollout.context.noise=0.1"];
  assert.deepEqual(only(...noisy, ...lpips, "update.auxCe=0"), [
    told("l2 and lpips", "noisy_teacher_forced"),
  ]);
  assert.deepEqual(only(shared, "update.auxCe=0.01"), []);
  assert.deepEqual(notes("update.auxCe=0"), []); // a prefix context says which image is meant
  const gan = ["reward.patchGan.weight=1", "reward.patchGan.path=d.pt"];
  assert.deepEqual(only(shared, "update.auxCe=0", ...gan), []);
});

test("other notes", () => {
  assert.deepEqual(notes("rollout.topK=5"), [
    "rollout.topK and rollout.topP cut codes from what is learnt about: the policy keeps their old probabilities.",
  ]);
  assert.deepEqual(notes("kl.path=base.pt", "kl.estimator=exact"), [
    "kl.estimator, kl.path: not read while kl.coef is 0.",
  ]);
  assert.deepEqual(notes("ppo.epochs=2", "rloo.minStd=0"), [
    "rloo.minStd: not read while algorithm is grpo.",
    "ppo.epochs: not read while algorithm is grpo.",
  ]);
  assert.deepEqual(notes("rollout.context.noise=0.1"), [
    "rollout.context.noise: not read in prefix contexts.",
  ]);
  assert.deepEqual(notes("algorithm=rloo"), [
    "2 optimizer steps a rollout: rloo corrects for none but the first. Set algorithm=grpo, which clips the ratio, or one " +
      "epoch and update.miniBatch=null.",
  ]);
  assert.deepEqual(resolveConfig({ overrides: [...PARTS] }).notes, [
    "rollout.context is free: a policy that starts from a class alone cannot know which image it is compared with, so the " +
      "reward draws it towards the class's average. rollout.context=prefix tells it.",
    "One optimizer step a rollout: the ratio is 1, nothing is clipped, and loss/policy stays near 0. Watch reward/mean and " +
      "optim/grad_norm.",
  ]);
  const noisy = ["rollout.context=noisy_teacher_forced", "update.miniBatch=8", ...PARTS];
  assert.deepEqual(resolveConfig({ overrides: noisy }).notes, [
    "rollout.context.noise 0.5 from the first iteration ruins a policy that was pre-trained without noise. Set " +
      "rollout.context.ramp, or less noise, unless this one was.",
  ]);
  assert.deepEqual(resolveConfig({ overrides: [...noisy, "rollout.context.ramp=10"] }).notes, []);
  const loader = {
    values: { dataloader: [] },
    overrides: ["update.miniBatch=8", "rollout.context=prefix", ...PARTS.slice(1)],
  };
  assert.deepEqual(resolveConfig(loader).notes, [
    "No images can be set apart from a dataloader, so nothing is evaluated. Give data.evalSource for that.",
  ]);
});
