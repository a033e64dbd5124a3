import assert from "node:assert/strict";
import { test } from "node:test";
import { init } from "../../src/nn/index.js";
import { VQ_MODELS, VQModel, vqConfig } from "../../src/tokenizers/index.js";
import { manualSeed, rand } from "../../src/torch/index.js";
import { publishedKeys } from "./golden.js";

for (const name of ["VQ-16", "VQ-8"] as const) {
  test(`${name} has the published state dict: keys in order, shapes, dtypes`, () => {
    using model = init.skipInit(() => new VQModel(VQ_MODELS[name]));
    const own = Object.entries(model.stateDict()).map(([key, { shape, dtype }]) => ({ key, shape, dtype }));
    assert.deepEqual(own, publishedKeys(`llamagen_${name}`));
  });
}

test("VQ-16 and VQ-8 have as many parameters as published", () => {
  const count = (name: keyof typeof VQ_MODELS): number => {
    using model = init.skipInit(() => new VQModel(VQ_MODELS[name]));
    return model.parameters().reduce((sum, parameter) => sum + parameter.numel, 0);
  };
  assert.equal(count("VQ-16"), 71_883_403);
  assert.equal(count("VQ-8"), 70_109_835);
});

test("the options stand for the published configuration", () => {
  const published = {
    naming: "llamagen",
    inChannels: 3,
    outChannels: 3,
    ch: 128,
    chMult: [1, 1, 2, 2, 4],
    numResBlocks: 2,
    attnLevels: [4],
    zChannels: 256,
    dropout: 0,
    normGroups: 32,
    codebookSize: 16_384,
    embedDim: 8,
    lookup: "cosine",
    beta: 0.25,
    entropyTemperature: 0.01,
    sampleEntropyWeight: 0,
    batchEntropyWeight: 0,
    hasUsageRecord: true,
  };
  assert.deepEqual(vqConfig(), published);
  const options = {
    codebookSize: 7,
    codebookEmbedDim: 5,
    codebookL2Norm: false,
    codebookShowUsage: false,
    commitLossBeta: 0.5,
    entropyLossRatio: 0.3,
    chMult: [1, 2],
    ch: 16,
    numResBlocks: 1,
    zChannels: 6,
    dropoutP: 0.1,
    normGroups: 8,
  };
  const want = {
    ...published,
    ch: 16,
    chMult: [1, 2],
    numResBlocks: 1,
    attnLevels: [1],
    zChannels: 6,
    dropout: 0.1,
  };
  const codebook = {
    normGroups: 8,
    codebookSize: 7,
    embedDim: 5,
    lookup: "l2",
    beta: 0.5,
    hasUsageRecord: false,
  };
  const entropy = { sampleEntropyWeight: 0.3, batchEntropyWeight: 0.3 };
  assert.deepEqual(vqConfig(options), { ...want, ...codebook, ...entropy });
});

test("the small model gives 64 codes of 512 for an image of 32 x 32", () => {
  manualSeed(0);
  using model = new VQModel(VQ_MODELS["VQ-4-small"]);
  assert.equal(model.codebookSize, 512);
  assert.equal(model.downsample, 4);
  const codes = model.encode(rand([2, 3, 32, 32]).mul(2).sub(1));
  assert.deepEqual(codes.shape, [2, 64]);
  assert.deepEqual(model.decodeCode(codes).shape, [2, 3, 32, 32]);
  const parameters = model.parameters().reduce((sum, parameter) => sum + parameter.numel, 0);
  assert.equal(parameters, 1_444_075);
});

test("a model builds again from its own configuration", () => {
  using model = init.skipInit(() => new VQModel({ ...VQ_MODELS["VQ-4-small"], codebookL2Norm: false }));
  const config = JSON.parse(JSON.stringify(model.config)) as typeof model.config;
  using again = init.skipInit(() => new VQModel(config));
  assert.deepEqual(again.config, model.config);
  const shapes = (of: VQModel): unknown =>
    Object.entries(of.stateDict()).map(([key, { shape }]) => [key, shape]);
  assert.deepEqual(shapes(again), shapes(model));
});
