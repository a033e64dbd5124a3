/** Models out of arguments and files: what is asked for takes effect or is refused, and what was taken is said. */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { backboneShapes } from "../../src/metrics/backbones.js";
import { FeatureClassifier, NLayerDiscriminator } from "../../src/metrics/index.js";
import type { Module } from "../../src/nn/index.js";
import { type ArPolicy, GPT, LlamaGen } from "../../src/policies/index.js";
import {
  buildArPolicy,
  buildGptPolicy,
  buildTokenizerFrozen,
  buildToklipTokenizer,
  codebookOf,
  openClassifier,
  openDiscriminator,
  openLpips,
  openModel,
  openPolicy,
  openTokenizer,
  policyMetadata,
  weightsOf,
} from "../../src/rl_ar_finetune/builder.js";
import { IBQ, type TokenizerModel, VQModel } from "../../src/tokenizers/index.js";
import {
  manualSeed,
  memory,
  noGrad,
  rand,
  saveSafetensors,
  saveTorch,
  setNumThreads,
  type Tensor,
  tidy,
} from "../../src/torch/index.js";

setNumThreads(1);
manualSeed(0);
const folder = mkdtempSync(join(tmpdir(), "rlar-builder-"));
const at = (name: string): string => join(folder, name);
after(() => rmSync(folder, { recursive: true }));

const ddconfig = {
  z_channels: 8,
  resolution: 16,
  ch: 8,
  ch_mult: [1, 1],
  num_res_blocks: 1,
  attn_resolutions: [8],
};
const ARGS = { ddconfig, n_embed: 12, embed_dim: 4 };
const CONFIG = { normGroups: 32 };

const ibq = new IBQ({
  nEmbed: 12,
  embedDim: 4,
  ddconfig: { zChannels: 8, resolution: 16, ch: 8, chMult: [1, 1], numResBlocks: 1, attnResolutions: [8] },
});
const raw = ibq.stateDict();
const plusOne = (state: Record<string, Tensor>): Record<string, Tensor> =>
  Object.fromEntries(Object.entries(state).map(([key, value]) => [key, value.detach().add(1)]));
const average = plusOne(raw);
const averageNames = Object.fromEntries(
  Object.entries(average).map(([key, value]) => [`model_ema.${key.replaceAll(".", "")}`, value]),
);
saveTorch(at("raw.ckpt"), { state_dict: raw });
saveTorch(at("lightning.ckpt"), { state_dict: { ...raw, ...averageNames } });
saveTorch(at("trainer.pt"), { model: raw, ema: average, steps: 7 });

const first = (model: unknown): number =>
  tidy(() => (model as TokenizerModel).encoder.conv_in.bias?.flatten().narrow(0, 0, 1).item() ?? Number.NaN);
const RAW = first(ibq);
const near = (value: number, wanted: number): void => assert.ok(Math.abs(value - wanted) < 1e-6, `${value}`);

test("a checkpoint is taken in every spelling and place, and nothing else is built", () => {
  const path = at("raw.ckpt");
  for (const tokenizer of [
    buildToklipTokenizer(ARGS, { ckptPath: path }),
    buildToklipTokenizer(ARGS, { ckpt_path: path } as never),
    buildToklipTokenizer(ARGS, path),
    buildToklipTokenizer(ARGS, path, "cpu"),
    buildToklipTokenizer(ARGS, path, { device: "cpu" } as never),
    buildToklipTokenizer({ ...ARGS, ckpt_path: path }),
  ]) {
    near(first(tokenizer.vq), RAW);
    tokenizer.dispose();
  }
  assert.throws(
    () => buildToklipTokenizer(ARGS, { ckpt: path } as never),
    /RangeError: buildToklip.*"ckptPath"/,
  );
  assert.throws(
    () => buildToklipTokenizer(ARGS, ...([path, "cpu", 3] as unknown as [string])),
    /RangeError: buildToklip.*ckptPath, device/,
  );
  assert.throws(() => buildToklipTokenizer({ ...ARGS, ckpt_path: path }, path), /ckptPath once/);
});

test("useEma decides which weights of a checkpoint are taken", () => {
  for (const file of ["lightning.ckpt", "trainer.pt"]) {
    const taken = (more: object): number => {
      using tokenizer = buildToklipTokenizer({ ...ARGS, ...more }, at(file));
      return first(tokenizer.vq);
    };
    near(taken({ use_ema: false }), RAW);
    near(taken({ useEma: true }), RAW + 1);
    near(taken({}), RAW + 1);
  }
  assert.throws(
    () => buildToklipTokenizer({ ...ARGS, use_ema: true }, at("raw.ckpt")),
    /raw.ckpt: expected.*EMA/,
  );
});

test("l2Normalize keeps the sizes of ddconfig", () => {
  using tokenizer = buildToklipTokenizer({ ...ARGS, l2_normalize: true });
  assert.ok(tokenizer.vq instanceof VQModel);
  const { config } = tokenizer.vq;
  assert.deepEqual(
    [config.ch, config.chMult, config.zChannels, config.numResBlocks, config.attnLevels, config.embedDim],
    [8, [1, 1], 8, 1, [1], 4],
  );
  assert.deepEqual([config.lookup, config.codebookSize], ["cosine", 12]);
  using loaded = buildToklipTokenizer({ ...ARGS, l2_normalize: true }, at("raw.ckpt"));
  assert.equal((loaded.vq as TokenizerModel).config.lookup, "cosine");
  const other = { ...ARGS, l2_normalize: true, ddconfig: { ...ddconfig, z_channels: 16 } };
  assert.throws(
    () => buildToklipTokenizer(other, at("raw.ckpt")),
    /raw.ckpt: expected zChannels 16 as asked, got 8/,
  );
});

test("arguments of a tokenizer that mean nothing are refused, with the nearest name and the file", () => {
  assert.throws(() => buildToklipTokenizer({ ...ARGS, embed_dims: 4 }), /RangeError: .*"embedDim"/);
  assert.throws(() => buildToklipTokenizer({ ...ARGS, toString: 3 } as never), /RangeError: .*toString/);
  assert.throws(
    () => buildToklipTokenizer({ ...ARGS, ddconfig: { zchanels: 8 } }),
    /RangeError: .*"zChannels"/,
  );
  assert.throws(
    () => buildToklipTokenizer({ ...ARGS, n_embed: 13 }, at("raw.ckpt")),
    /raw.ckpt: .*13.*got 12/,
  );
  // A published configuration, trainer's keys included, is taken whole.
  const published = { lossconfig: { target: "x" }, learning_rate: 1e-4, stage: null, use_entropy_loss: true };
  buildToklipTokenizer({ ...ARGS, ...published }).dispose();
  assert.throws(() => new VQModel({ codebook_sizes: 3 } as never), /RangeError: VQModel.*"codebookSize"/);
  assert.throws(() => new VQModel({ ...new VQModel({ ch: 32 }).config, chs: 3 } as never), /VQModel.*chs/);
  assert.throws(() => openTokenizer(at("raw.ckpt"), { weigths: "raw" } as never), /openTokenizer.*"weights"/);
  assert.throws(
    () => openTokenizer(at("raw.ckpt"), "cpu" as never),
    /openTokenizer: expected an object of options/,
  );
});

const SIZE = { nLayer: 1, nHead: 2, nEmbd: 8 };

test("options of a new policy take effect or are refused, with the nearest name", () => {
  const build = (cfg: object): ArPolicy => {
    const { policy, optimizer } = buildArPolicy(12, 4, { type: "gpt", ...SIZE, ...cfg });
    optimizer.dispose();
    return policy;
  };
  assert.equal((build({ extra: { class_num: 3 } }).options as { classNum: number }).classNum, 3);
  assert.equal((build({ n_layer: 2, nLayer: undefined }).options as { nLayer: number }).nLayer, 2);
  assert.throws(
    () => build({ n_layers: 7 }),
    /RangeError: GPT: expected a known option, got nLayers.*"nLayer"/,
  );
  assert.throws(() => build({ extra: { clasNum: 3 } }), /RangeError: GPT: .*"classNum"/);
  for (const name of ["toString", "constructor", "__proto__", "rope"]) {
    const extra = JSON.parse(`{${JSON.stringify(name)}: 3}`) as object;
    assert.throws(
      () => build({ extra }),
      new RegExp(`RangeError: GPT: expected a known option, got ${name}`),
      name,
    );
  }
  const llama = { type: "llammagen", nEmbd: 16, extra: { rope: true, num_classes: 3 } };
  assert.equal(build(llama).constructor, LlamaGen);
  assert.throws(() => build({ ...llama, extra: { rope: false } }), /rope true/);
  assert.throws(() => build({ ...llama, extra: { ropeBases: 1 } }), /LlamaGen: .*"ropeBase"/);
  assert.throws(() => build({ type: "gtp" }), /buildArPolicy: expected ar.type/);
  for (const bad of [
    { nLayer: 0 },
    { nHead: 1.5 },
    { extra: { tokenDrop: 1 } },
    { extra: { classNum: -1 } },
  ]) {
    assert.throws(() => build(bad), RangeError, JSON.stringify(bad));
  }
});

test("the codebook starts a policy, or its absence is an error", () => {
  const cfg = { ...SIZE, classNum: 3, usePretrainedCodebook: true };
  assert.throws(
    () => buildGptPolicy(cfg, 12, 4),
    /RangeError: buildGptPolicy: expected a codebook.*got none/,
  );
  const { usePretrainedCodebook: _, ...rest } = cfg;
  const snake = { type: "gpt", ...rest, extra: { use_pretrained_codebook: true } } as const;
  assert.throws(() => buildArPolicy(12, 4, snake), /RangeError: buildArPolicy: expected a codebook/);
  const tokenizer = buildTokenizerFrozen(ibq);
  const { codebook, nCodebookEmbd } = codebookOf(tokenizer);
  assert.equal(nCodebookEmbd, 4);
  const { policy } = buildGptPolicy({ ...cfg, codebook }, 12, 4);
  assert.ok((policy as GPT).tok_emb.weight.equal(codebook));
  // What a run writes is enough to build the policy again.
  saveSafetensors(at("codebook.safetensors"), policy.stateDict(), policyMetadata(policy));
  const { policy: again, description } = openPolicy(at("codebook.safetensors"));
  assert.deepEqual(again.options, policy.options);
  assert.deepEqual([description.missing, description.notes], [[], []]);
});

test("a policy's file states all that rebuilds it", () => {
  const options = { vocabSize: 12, dim: 16, nLayer: 1, nHead: 4, nKvHead: 2, blockSize: 9, numClasses: 3 };
  using llama = new LlamaGen({ ...options, ropeBase: 500, normEps: 1e-3, ffnDim: 20, tokenDropoutP: 0.3 });
  noGrad(() => tidy(() => llama.output.weight.copy_(rand([12, 16]))));
  saveSafetensors(at("llama.safetensors"), llama.stateDict(), policyMetadata(llama));
  using again = openPolicy(at("llama.safetensors")).policy;
  assert.deepEqual(again.options, llama.options);
  const tokens = tidy(() => rand([2, 5]).mul(12).long());
  assert.ok(again.eval().forward(tokens, {}).equal(llama.eval().forward(tokens, {})));
  // As `save.ckptPath: run.pt` writes it, for PyTorch users.
  saveTorch(at("run.pt"), {
    model: llama.stateDict(),
    config: JSON.parse(policyMetadata(llama).config as string),
  });
  using torch = openPolicy(at("run.pt")).policy;
  assert.deepEqual(torch.options, llama.options);
  const bare = at("bare.safetensors");
  saveSafetensors(bare, llama.stateDict());
  assert.throws(() => openPolicy(bare), /bare.safetensors: expected (nHead|blockSize).*--(heads|codes)/);
  assert.throws(() => openPolicy(bare, { n_head: 4 } as never), /blockSize/);
  using asked = openPolicy(bare, { nHead: 4, blockSize: 9 }).policy;
  assert.deepEqual([asked.blockSize, (asked.options as { nHead: number }).nHead], [9, 4]);
  const assumed = openPolicy(bare, { nHead: 4, assume: { blockSize: 9 } });
  assert.match(assumed.description.notes.join(), /blockSize 9 is assumed/);
});

/** A policy's first bias, and which weights its description says were taken. */
function taken(file: string, options: object): [number, string, string] {
  const { policy, description } = openPolicy(file, { nHead: 2, ...options });
  using own = policy as GPT;
  using opened = openModel(file, { nHead: 2, ...options });
  return [tidy(() => own.ln_f.bias?.sum().item() ?? Number.NaN), description.weights, opened.file.wrapper];
}

test("raw weights and averages mean the same for policies and tokenizers", () => {
  using gpt = new GPT({ vocabSize: 12, blockSize: 4, ...SIZE, classNum: 3 });
  const state = gpt.stateDict();
  saveTorch(at("policy.pt"), { model: state, ema: plusOne(state), args: { lr: 1 } });
  const policy = at("policy.pt");
  saveTorch(at("step.pt"), { step: tidy(() => rand([1])), model: state, ema: plusOne(state) });
  assert.deepEqual(taken(at("step.pt"), {}), [0, "raw", "model"]);
  assert.deepEqual(taken(at("step.pt"), { weights: "ema" }), [8, "ema", "ema"]);
  // LlamaGen's and VA-pi's samplers read `model`.
  assert.deepEqual(taken(policy, {}), [0, "raw", "model"]);
  assert.deepEqual(taken(policy, { weights: "raw" }), [0, "raw", "model"]);
  assert.deepEqual(taken(policy, { weights: "ema" }), [8, "ema", "ema"]);
  assert.deepEqual(taken(policy, { wrapper: "ema" }), [8, "ema", "ema"]);
  assert.throws(() => taken(policy, { wrapper: "ema", weights: "raw" }), /policy.pt: expected raw weights/);
  assert.throws(() => taken(policy, { wrapper: "model", weights: "ema" }), /policy.pt: expected .*EMA/);

  const tokenizer = at("trainer.pt");
  const of = (options: object): [number, string] => {
    const opened = openTokenizer(tokenizer, { config: CONFIG, ...options });
    using own = opened.tokenizer;
    return [Math.round(first(own.vq) - RAW), opened.description.weights];
  };
  // LlamaGen's and IBQ's published reconstructions are of the average.
  assert.deepEqual(of({}), [1, "ema"]);
  assert.match(openTokenizer(tokenizer, { config: CONFIG }).notes.join(), /EMA.*tokenizer.*raw/);
  assert.deepEqual(openTokenizer(tokenizer, { config: CONFIG, weights: "ema" }).notes, []);
  assert.match(openPolicy(policy, { nHead: 2 }).notes.join(), /raw weights of the policy.*ema/);
  assert.deepEqual(of({ weights: "raw" }), [0, "raw"]);
  assert.deepEqual(of({ weights: "ema" }), [1, "ema"]);
  assert.deepEqual(of({ wrapper: "model" }), [0, "raw"]);
  assert.throws(() => of({ wrapper: "model", weights: "ema" }), /trainer.pt: expected EMA weights/);
  assert.throws(() => of({ wrapper: "ema", weights: "raw" }), /trainer.pt: expected raw weights/);

  // A file that holds an average alone says so, whatever it is called.
  saveSafetensors(at("average.safetensors"), plusOne(state), { weights: "ema" });
  assert.equal(taken(at("average.safetensors"), {})[1], "ema");
  assert.throws(() => taken(at("average.safetensors"), { weights: "raw" }), /expected raw weights/);
});

test("names of compiled and distributed modules come off for networks as for policies", () => {
  using classifier = new FeatureClassifier({ numClasses: 2, widths: [8, 16] });
  using discriminator = new NLayerDiscriminator({ ndf: 8, nLayers: 1 });
  const backbone = Object.fromEntries(
    Object.entries(backboneShapes("squeeze")).map(([key, shape]) => [key, tidy(() => rand(shape).mul(0.05))]),
  );
  const renamed = (state: Record<string, Tensor>, rename: (key: string) => string): Record<string, Tensor> =>
    Object.fromEntries(Object.entries(state).map(([key, value]) => [rename(key), value]));
  const names: ((key: string) => string)[] = [
    (key) => key,
    (key) => `_orig_mod.${key}`,
    (key) => `module._orig_mod.${key}`,
    (key) => `_orig_mod.module.net.${key}`,
    (key) => key.replace(/^(\w+)\./, "$1._orig_mod."),
  ];
  for (const [i, rename] of names.entries()) {
    saveTorch(at(`c${i}.pt`), { whatever: renamed(classifier.stateDict(), rename) });
    saveTorch(at(`s${i}.pt`), { state_dict: renamed(classifier.stateDict(), rename) });
    assert.equal(openClassifier(at(`s${i}.pt`)).numClasses, 2);
    saveTorch(at(`d${i}.pt`), { model: renamed(discriminator.stateDict(), rename) });
    using opened = openDiscriminator(at(`d${i}.pt`));
    assert.ok(opened.main.parameters()[0]?.equal(discriminator.main.parameters()[0] as Tensor));
    saveTorch(at(`l${i}.pt`), { model: renamed(backbone, rename) });
    using lpips = openLpips(at(`l${i}.pt`));
    assert.equal(lpips.net, "squeeze");
    saveTorch(at(`t${i}.pt`), { model: renamed(raw, rename) });
    using tokenizer = openTokenizer(at(`t${i}.pt`)).tokenizer;
    near(first(tokenizer.vq), RAW);
  }
  // Networks of a tokenizer's training file, beside the tokenizer.
  const whole = {
    ...raw,
    ...renamed(discriminator.stateDict(), (key) => `loss.discriminator.${key}`),
    ...renamed(backbone, (key) => `loss.perceptual_loss.${key}`),
  };
  saveTorch(at("whole.ckpt"), { state_dict: whole });
  openDiscriminator(at("whole.ckpt")).dispose();
  assert.equal(openLpips(at("whole.ckpt")).net, "squeeze");
  using found = openModel(at("whole.ckpt"));
  assert.equal(found.found?.kind, "tokenizer");
});

test("weights that give no finite results are found when a file is opened", () => {
  const spoilt = (state: Record<string, Tensor>, key: string, value: number): Record<string, Tensor> => ({
    ...state,
    [key]: tidy(() => (state[key] as Tensor).detach().mul(0).add(value)),
  });
  using classifier = new FeatureClassifier({ numClasses: 2, widths: [8, 16] });
  using discriminator = new NLayerDiscriminator({ ndf: 8, nLayers: 1 });
  const backbone = Object.fromEntries(
    Object.entries(backboneShapes("squeeze")).map(([key, shape]) => [key, tidy(() => rand(shape).mul(0.05))]),
  );
  const cases: [string, (path: string) => Module | Disposable, Record<string, Tensor>, string][] = [
    ["tokenizer", (path) => openTokenizer(path).tokenizer, raw, "decoder.conv_out.weight"],
    ["tokenizer", (path) => openTokenizer(path).tokenizer, raw, "encoder.conv_out.weight"],
    ["tokenizer", (path) => openTokenizer(path).tokenizer, raw, "quantize.embedding.weight"],
    ["classifier", (path) => openClassifier(path), classifier.stateDict(), "head.weight"],
    ["discriminator", (path) => openDiscriminator(path), discriminator.stateDict(), "main.0.weight"],
    ["lpips", (path) => openLpips(path), backbone, "features.0.weight"],
  ];
  for (const [name, open, state, key] of cases) {
    open(saved(name, state)).valueOf();
    for (const value of [Number.NaN, Number.POSITIVE_INFINITY, 3e38]) {
      const path = saved(name, spoilt(state, key, value));
      const before = memory().tensors;
      assert.throws(
        () => open(path),
        new RegExp(`^RangeError: .*${name}.safetensors.*finite`),
        `${name} ${key} ${value}`,
      );
      assert.equal(memory().tensors, before, name);
    }
    const wide = saved(name, { ...state, [key]: tidy(() => (state[key] as Tensor).double().add(1e300)) });
    assert.throws(() => open(wide), new RegExp(`RangeError: .*${name}.safetensors: ${key}.*finite`));
    const whole = saved(name, { ...state, [key]: tidy(() => (state[key] as Tensor).long()) });
    assert.throws(() => open(whole), new RegExp(`RangeError: .*${name}.safetensors: ${key}.*floating-point`));
  }
});

function saved(name: string, state: Record<string, Tensor>): string {
  const path = at(`${name}.safetensors`);
  rmSync(path, { force: true });
  saveSafetensors(path, state);
  return path;
}

test("opening a network does not settle which range its images are in", () => {
  const backbone = Object.fromEntries(
    Object.entries(backboneShapes("squeeze")).map(([key, shape]) => [key, tidy(() => rand(shape).mul(0.05))]),
  );
  using lpips = openLpips(saved("range", backbone));
  const bright = tidy(() => rand([64, 3, 32, 32]));
  assert.throws(() => lpips.forward(bright, bright), /expected images in \[-1, 1\]/);
});

test("a description says which weights a network's file holds", () => {
  using classifier = new FeatureClassifier({ numClasses: 2, widths: [8, 16] });
  saveTorch(at("both.pt"), { model: classifier.stateDict(), ema: plusOne(classifier.stateDict()) });
  using found = openModel(at("both.pt"));
  assert.ok(found.found !== null);
  assert.equal(weightsOf(found.found), "ema");
  using own = openModel(at("both.pt"), { weights: "raw" });
  assert.ok(own.found !== null);
  assert.equal(weightsOf(own.found), "raw");
});
