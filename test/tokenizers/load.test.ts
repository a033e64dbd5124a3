import assert from "node:assert/strict";
import { test } from "node:test";
import { init, type Shapes } from "../../src/nn/index.js";
import {
  buildTokenizer,
  IBQ,
  recogniseTokenizer,
  type TokenizerDescription,
  type TokenizerModel,
  VQ_MODELS,
  VQModel,
} from "../../src/tokenizers/index.js";
import { full, memory, rand, type Tensor, tensor, tidy, zeros } from "../../src/torch/index.js";
import { publishedShapes } from "./golden.js";

const VQ16 = publishedShapes("llamagen_VQ-16");
const VQ8 = publishedShapes("llamagen_VQ-8");
const IBQ_RAW = publishedShapes("ibq_16384_weights");
const IBQ_EMA = publishedShapes("ibq_16384_ema");
const LOSS = {
  "loss.discriminator.main.0.weight": [64, 3, 4, 4],
  "loss.perceptual_loss.lin0.model.1.weight": [1, 64, 1, 1],
};

const prefixed = (prefix: string, shapes: Shapes): Shapes =>
  Object.fromEntries(Object.entries(shapes).map(([key, shape]) => [prefix + key, shape]));

const without = (shapes: Shapes, ...keys: string[]): Shapes =>
  Object.fromEntries(Object.entries(shapes).filter(([key]) => !keys.includes(key)));

/** The tokenizer of a state dict. */
function loadTokenizer(
  state: Readonly<Record<string, Tensor>>,
  options: Parameters<typeof recogniseTokenizer>[1] = {},
): { model: IBQ | VQModel; description: TokenizerDescription } {
  const shapes = Object.fromEntries(Object.entries(state).map(([key, tensor]) => [key, tensor.shape]));
  const description = recognised(shapes, options);
  return { model: buildTokenizer(description, (key) => state[key] as Tensor), description };
}

function recognised(
  shapes: Shapes,
  options?: Parameters<typeof recogniseTokenizer>[1],
): TokenizerDescription {
  const description = recogniseTokenizer(shapes, options);
  assert.ok(description !== null);
  return description;
}

const counts = ({ ignored }: TokenizerDescription): Record<string, number> =>
  Object.fromEntries(ignored.map(({ reason, keys }) => [reason, keys.length]));

const refuses = (fn: () => unknown, message: string): void =>
  assert.throws(fn, (error: Error) => {
    assert.ok(error instanceof RangeError);
    assert.equal(error.message, message);
    return true;
  });

// First, before another test has raised the process's highest mark.
test("a published model is described without the memory of its weights", () => {
  const { maxRSS: before } = process.resourceUsage();
  const live = memory().tensors;
  recognised(VQ8);
  const kilobytes = process.resourceUsage().maxRSS - before;
  assert.ok(kilobytes < 100_000, `${kilobytes} kB; the weights take ${(70_109_835 * 4) / 1000}`);
  assert.equal(memory().tensors, live);
});

test("the published VQ models are told by their shapes", () => {
  for (const [shapes, name] of [
    [VQ16, "VQ-16"],
    [VQ8, "VQ-8"],
  ] as const) {
    const description = recognised(shapes);
    using model = init.skipInit(() => new VQModel(VQ_MODELS[name]));
    assert.deepEqual(description.config, model.config);
    assert.equal(description.name, `${name} (LlamaGen)`);
    assert.equal(description.family, "vq");
    assert.equal(description.weights, "raw");
    assert.deepEqual(description.used, Object.fromEntries(Object.keys(shapes).map((key) => [key, key])));
    assert.deepEqual(description.ignored, []);
  }
});

test("the published IBQ is told by its shapes, and losses are not its own", () => {
  const description = recognised({ ...IBQ_RAW, ...LOSS });
  using model = init.skipInit(() => new IBQ({ nEmbed: 16_384 }));
  assert.deepEqual(description.config, model.config);
  assert.equal(description.name, "IBQ-16384");
  assert.equal(description.family, "ibq");
  assert.deepEqual(description.ignored, [
    { reason: "networks of the training losses", keys: Object.keys(LOSS) },
  ]);
});

test("the EMA is preferred, and raw weights are taken when asked for", () => {
  const file = { ...IBQ_RAW, ...IBQ_EMA, ...LOSS, "model_ema.lossdiscriminatormain0weight": [64, 3, 4, 4] };
  const ema = recognised(file);
  assert.equal(ema.weights, "ema");
  assert.equal(ema.name, "IBQ-16384, EMA");
  // Every weight of the published average, in the order of the raw ones.
  assert.deepEqual(Object.values(ema.used), Object.keys(IBQ_EMA).slice(2));
  assert.equal(ema.used["decoder.up.4.attn.2.proj_out.weight"], "model_ema.decoderup4attn2proj_outweight");
  const bookkeeping = "bookkeeping of the EMA";
  const losses = "networks of the training losses";
  assert.deepEqual(counts(ema), { "raw weights beside their EMA": 543, [losses]: 3, [bookkeeping]: 2 });

  const raw = recognised(file, { weights: "raw" });
  assert.equal(raw.weights, "raw");
  assert.deepEqual(Object.values(raw.used), Object.keys(IBQ_RAW));
  assert.deepEqual(counts(raw), { [bookkeeping]: 2, "averages of the raw weights": 543, [losses]: 3 });

  assert.deepEqual(recognised(IBQ_EMA).used, ema.used); // without raw weights beside it
  refuses(
    () => recogniseTokenizer(IBQ_RAW, { weights: "ema" }),
    "recogniseTokenizer: expected EMA weights, got raw ones alone. Ask for raw.",
  );
  refuses(
    () => recogniseTokenizer(IBQ_EMA, { weights: "raw" }),
    "recogniseTokenizer: expected raw weights, got EMA ones alone. Ask for ema.",
  );
});

test("TokLIP's tokenizer is found under either tower, wrapped or not, with its grid", () => {
  const rest = { "visual.trunk.pos_embed": [1, 576, 1152], "text.token_embedding.weight": [256_000, 1152] };
  for (const wrapper of ["", "module."]) {
    const file = prefixed(wrapper, { ...prefixed("visual.trunk.vq.", VQ16), ...rest });
    const description = recognised(file);
    assert.equal(description.name, "VQ-16 (LlamaGen) inside TokLIP");
    assert.deepEqual(description.grid, [24, 24]);
    assert.equal(description.used["quant_conv.bias"], `${wrapper}visual.trunk.vq.quant_conv.bias`);
    assert.equal(Object.keys(description.used).length, 344);
    assert.deepEqual(counts(description), { "not the tokenizer's": 2 });
    const second = { ...prefixed("visual.vq.", VQ16), "visual.positional_embedding": [257, 1024] };
    assert.deepEqual(recognised(prefixed(wrapper, second)).grid, [16, 16]);
    const native = recognised(prefixed(wrapper, prefixed("visual.vq.", VQ16)));
    assert.equal(native.used["quant_conv.bias"], `${wrapper}visual.vq.quant_conv.bias`);
    assert.equal(native.grid, undefined);
  }
});

test("what compiling and distributing put into names comes off, in any order and at any depth", () => {
  for (const name of [
    (key: string) => `_orig_mod.${key}`,
    (key: string) => `module._orig_mod.${key}`,
    (key: string) => `_orig_mod.module.tokenizer.${key}`,
    (key: string) => key.replace("encoder.", "encoder._orig_mod."),
    (key: string) => `_fsdp_wrapped_module.${key.replace("decoder.", "decoder._checkpoint_wrapped_module.")}`,
  ]) {
    const file = Object.fromEntries(Object.entries(VQ8).map(([key, shape]) => [name(key), shape]));
    const wanted = Object.fromEntries(Object.keys(VQ8).map((key) => [key, name(key)]));
    assert.deepEqual(recognised(file).used, wanted);
    assert.deepEqual(recognised(file).ignored, []);
  }
  // Lightning's average of a compiled model, whose names have no dots.
  const compiled = Object.fromEntries(
    Object.entries(IBQ_EMA).map(([key, shape]) => [key.replace("model_ema.", "model_ema._orig_mod"), shape]),
  );
  assert.equal(recognised(compiled).used["quant_conv.bias"], "model_ema._orig_modquant_convbias");
  refuses(
    () => recogniseTokenizer({ ...prefixed("a.", VQ8), ...prefixed("b.", VQ8) }),
    'recogniseTokenizer: expected one tokenizer, got one under "a.", one under "b.". Pass the tensors of one of them.',
  );
});

test("tensors that are an average already are taken as they are, and said to be one", () => {
  const found = recognised(VQ8, { isAverage: true });
  assert.equal(found.weights, "ema");
  assert.match(found.name, /EMA/);
  assert.deepEqual(found.used, recognised(VQ8).used);
});

test("sizes too large for any memory are refused without building anything", () => {
  const huge = { ...VQ8, "encoder.conv_in.weight": [2 ** 52, 3, 3, 3], "encoder.conv_in.bias": [2 ** 52] };
  assert.throws(() => recogniseTokenizer(huge, { where: "a.pt" }), /^RangeError: a.pt: expected/);
  const many = { ...VQ8, "encoder.conv_blocks.999999999.res.0.conv1.weight": [1, 1, 3, 3] };
  assert.throws(() => recogniseTokenizer(many, { where: "a.pt" }), /unknown encoder.conv_blocks.999999999/);
});

test("an IBQ inside SEED-Voken's transformer is found", () => {
  const file = { ...prefixed("first_stage_model.", IBQ_RAW), "transformer.tok_emb.weight": [16_384, 1024] };
  const description = recognised(file);
  assert.equal(description.used["quant_conv.bias"], "first_stage_model.quant_conv.bias");
  assert.deepEqual(description.ignored, [
    { reason: "not the tokenizer's", keys: ["transformer.tok_emb.weight"] },
  ]);
});

test("what shapes cannot tell is taken from the caller", () => {
  const config = { lookup: "l2", normGroups: 8, dropout: 0.1, beta: 1, sampleEntropyWeight: 0.5 } as const;
  const description = recognised(IBQ_RAW, { config });
  assert.equal(description.name, "VQ-16 (taming)");
  assert.equal(description.family, "vq");
  assert.deepEqual({ ...description.config, ...config }, description.config);
  assert.equal(description.config.batchEntropyWeight, 0);
});

test("small and odd architectures are told by their shapes", () => {
  const odd = {
    ch: 16,
    chMult: [1, 3, 2],
    zChannels: 6,
    normGroups: 8,
    codebookShowUsage: false,
    codebookEmbedDim: 5,
  };
  const placed = {
    resolution: 32,
    attnResolutions: [32, 8],
    chMult: [1, 2, 1],
    ch: 8,
    numResBlocks: 1,
    inChannels: 1,
  };
  const vq = new VQModel({ ...odd, numResBlocks: 3, codebookSize: 40 });
  const ibq = new IBQ({
    nEmbed: 12,
    embedDim: 7,
    normGroups: 8,
    ddconfig: { ...placed, outCh: 2, zChannels: 9 },
  });
  for (const model of [vq, ibq]) {
    const shapes = Object.fromEntries(
      Object.entries(model.stateDict()).map(([key, { shape }]) => [key, shape]),
    );
    assert.deepEqual(recognised(shapes, { config: { normGroups: 8 } }).config, model.config);
  }
});

test("keys of something else are no tokenizer", () => {
  assert.equal(recogniseTokenizer({}), null);
  assert.equal(recogniseTokenizer({ "tok_embeddings.weight": [16_384, 768], "norm.weight": [768] }), null);
  // An autoencoder without a codebook.
  assert.equal(recogniseTokenizer(without(VQ16, "quantize.embedding.weight")), null);
});

test("a tokenizer that is not as asked for is refused", () => {
  refuses(
    () => recogniseTokenizer(VQ16, { config: { codebookSize: 8192, embedDim: 8 } }),
    "recogniseTokenizer: expected codebookSize 8192 as asked, got 16384 in the weights.",
  );
  refuses(
    () => recogniseTokenizer(VQ16, { config: { naming: "ibq" } }),
    "recogniseTokenizer: expected naming ibq as asked, got llamagen in the weights.",
  );
  refuses(
    () => recogniseTokenizer(VQ16, { config: { chMult: [1, 2, 2, 4] } }),
    "recogniseTokenizer: expected chMult [1, 2, 2, 4] as asked, got [1, 1, 2, 2, 4] in the weights.",
  );
  assert.ok(recogniseTokenizer(VQ16, { config: { chMult: [1, 1, 2, 2, 4], codebookSize: 16_384 } }));
});

test("a tokenizer that is not whole is refused, with what is wrong", () => {
  refuses(
    () => recogniseTokenizer(without(VQ16, "decoder.mid.1.q.bias", "quant_conv.bias")),
    "recogniseTokenizer: expected the 344 tensors of VQ-16 (LlamaGen), got missing decoder.mid.1.q.bias, quant_conv.bias.",
  );
  refuses(
    () => recogniseTokenizer({ ...VQ16, "quant_conv.weight": [8, 256, 3, 3], "encoder.extra": [1] }),
    "recogniseTokenizer: expected the 344 tensors of VQ-16 (LlamaGen), got unknown encoder.extra; " +
      "quant_conv.weight [8, 256, 3, 3] instead of [8, 256, 1, 1].",
  );
  const { "model_ema.quant_convbias": _, ...partial } = IBQ_EMA;
  refuses(
    () => recogniseTokenizer({ ...IBQ_RAW, ...partial }),
    "recogniseTokenizer: expected the 543 tensors of IBQ-16384, got missing model_ema.quant_convbias.",
  );
  refuses(
    () => recogniseTokenizer(without(VQ16, "decoder.conv_out.weight")),
    "recogniseTokenizer: expected decoder.conv_out.weight with 1 dimensions or more, got none.",
  );
});

const SMALL = { ...VQ_MODELS["VQ-4-small"], ch: 8, zChannels: 8, normGroups: 8 };

function stateOf(model: TokenizerModel, prefix = ""): Record<string, Tensor> {
  return Object.fromEntries(Object.entries(model.stateDict()).map(([key, value]) => [prefix + key, value]));
}

test("weights arrive, as float32, and the model gives the same codes and images", () => {
  const source = new VQModel(SMALL).eval();
  const state = stateOf(source, "module.visual.vq.");
  const { model, description } = loadTokenizer(state, { config: { normGroups: 8 } });
  assert.ok(model instanceof VQModel);
  assert.equal(description.name, "VQ-4 (LlamaGen) inside TokLIP");
  for (const [key, value] of Object.entries(source.stateDict())) {
    assert.ok((model.stateDict()[key] as Tensor).equal(value), key);
  }
  const images = rand([1, 3, 8, 8]);
  assert.ok(model.encode(images).equal(source.encode(images)));

  const half = Object.fromEntries(Object.entries(state).map(([key, value]) => [key, value.detach().half()]));
  const narrow = loadTokenizer(half, { config: { normGroups: 8 } }).model;
  assert.equal(narrow.decoder.conv_out.weight.dtype, "float32");
  assert.ok(narrow.decoder.conv_out.weight.equal(source.decoder.conv_out.weight.half().float()));
});

test("the average's values are loaded, or the raw ones", () => {
  const source = new IBQ({
    nEmbed: 6,
    embedDim: 4,
    normGroups: 8,
    ddconfig: { ch: 8, chMult: [1, 1], zChannels: 4, numResBlocks: 1 },
  });
  const state = stateOf(source);
  for (const [key, value] of Object.entries(state)) {
    state[`model_ema.${key.replaceAll(".", "")}`] = value.detach().add(1);
  }
  state["model_ema.decay"] = tensor(0.999);
  const config = { normGroups: 8 };
  const ema = loadTokenizer(state, { config }).model;
  const raw = loadTokenizer(state, { config, weights: "raw" }).model;
  assert.ok(ema instanceof IBQ);
  for (const [key, value] of Object.entries(source.stateDict())) {
    assert.ok((ema.stateDict()[key] as Tensor).equal(value.detach().add(1)), key);
    assert.ok((raw.stateDict()[key] as Tensor).equal(value), key);
  }
});

test("tensors are read one at a time and freed, and those of the caller stay", () => {
  const source = new VQModel(SMALL);
  const state = stateOf(source);
  const shapes = Object.fromEntries(Object.entries(state).map(([key, { shape }]) => [key, shape]));
  const description = recognised(shapes, { config: { normGroups: 8 } });
  const asked: string[] = [];
  const before = memory().tensors;
  const model = buildTokenizer(description, (key) => {
    asked.push(key);
    assert.ok(memory().tensors <= before + Object.keys(state).length + 1);
    return (state[key] as Tensor).detach().clone();
  });
  assert.deepEqual(asked, Object.keys(state));
  assert.equal(memory().tensors, before + Object.keys(state).length);
  model.dispose();
  tidy(() => buildTokenizer(description, (key) => state[key] as Tensor).dispose());
  assert.ok(Object.values(state).every((value) => !value.isDisposed));
});

test("weights that are no finite floats are refused, and nothing is left behind", () => {
  const source = new VQModel(SMALL);
  const config = { normGroups: 8 };
  const state = stateOf(source);
  const bad = full([8], 1);
  bad.narrow(0, 2, 1).fill_(Number.NaN);
  bad.narrow(0, 5, 1).fill_(Number.NEGATIVE_INFINITY);
  const load = (value: Tensor) => (): unknown =>
    loadTokenizer({ ...state, "quant_conv.bias": value }, { config });
  refuses(
    load(bad),
    "buildTokenizer: quant_conv.bias: expected finite weights, got 2 of 8 that are not. " +
      "The file is damaged, or its training diverged.",
  );
  refuses(
    load(zeros([8], { dtype: "int64" })),
    "buildTokenizer: quant_conv.bias: expected a floating-point tensor, got Tensor int64[8] cpu.",
  );
  const description = recognised(
    Object.fromEntries(Object.entries(state).map(([key, { shape }]) => [key, shape])),
    { config },
  );
  refuses(
    () =>
      buildTokenizer(description, (key) => (key === "quant_conv.bias" ? zeros([1]) : (state[key] as Tensor))),
    "buildTokenizer: quant_conv.bias: expected shape [8], got Tensor float32[1] cpu.",
  );
  const before = memory().tensors;
  assert.throws(load(bad));
  assert.equal(memory().tensors, before);
});
