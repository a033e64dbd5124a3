import assert from "node:assert/strict";
import { test } from "node:test";
import { init, type Module } from "../../src/nn/index.js";
import { IBQ, ibqConfig } from "../../src/tokenizers/index.js";
import { publishedKeys } from "./golden.js";

const parametersOf = (module: Module): number =>
  module.parameters().reduce((sum, parameter) => sum + parameter.numel, 0);

test("IBQ 16384 has the published state dict: keys in order, shapes, dtypes, and as many parameters", () => {
  using model = init.skipInit(() => new IBQ({ nEmbed: 16_384 }));
  const own = Object.entries(model.stateDict()).map(([key, { shape, dtype }]) => ({ key, shape, dtype }));
  assert.deepEqual(own, publishedKeys("ibq_16384_weights"));
  assert.equal(parametersOf(model.encoder), 46_752_256);
  assert.equal(parametersOf(model.decoder), 59_903_875);
  assert.equal((parametersOf(model) / 1e6).toFixed(2), "110.98");
  assert.equal(model.downsample, 16);
  assert.equal(model.codebookSize, 16_384);
});

test("the arguments stand for the published configuration", () => {
  // As the released configuration files say, the seed's own arguments included.
  const ddconfig = {
    doubleZ: false,
    zChannels: 256,
    resolution: 256,
    inChannels: 3,
    outCh: 3,
    ch: 128,
    chMult: [1, 1, 2, 2, 4],
    numResBlocks: 4,
    attnResolutions: [16],
    dropout: 0,
  };
  const args = {
    ddconfig,
    lossconfig: {},
    nEmbed: 8192,
    embedDim: 256,
    l2Normalize: false,
    useEma: false,
    stage: null,
  };
  const published = { useEntropyLoss: true, entropyTemperature: 0.01, beta: 0.25 };
  const weights = { sampleMinimizationWeight: 1, batchMaximizationWeight: 1 };
  using whole = init.skipInit(() => new IBQ({ ...args, ...published, ...weights }));
  using bare = init.skipInit(() => new IBQ({ nEmbed: 8192 }));
  assert.deepEqual(whole.config, bare.config);
  assert.deepEqual(bare.config, {
    naming: "ibq",
    inChannels: 3,
    outChannels: 3,
    ch: 128,
    chMult: [1, 1, 2, 2, 4],
    numResBlocks: 4,
    attnLevels: [4],
    zChannels: 256,
    dropout: 0,
    normGroups: 32,
    codebookSize: 8192,
    embedDim: 256,
    lookup: "dot",
    beta: 0.25,
    entropyTemperature: 0.01,
    sampleEntropyWeight: 1,
    batchEntropyWeight: 1,
    hasUsageRecord: false,
  });
});

test("every argument arrives, and what is left out says nothing", () => {
  assert.deepEqual(ibqConfig({}), {});
  assert.deepEqual(ibqConfig({ nEmbed: 5, useEntropyLoss: false, sampleMinimizationWeight: 2 }), {
    codebookSize: 5,
    sampleEntropyWeight: 0,
    batchEntropyWeight: 0,
  });
  const ddconfig = {
    zChannels: 6,
    resolution: 64,
    inChannels: 1,
    outCh: 2,
    ch: 16,
    chMult: [1, 2, 3],
    numResBlocks: 1,
    attnResolutions: [64, 16],
    dropout: 0.1,
  };
  const args = { ddconfig, nEmbed: 9, embedDim: 4, beta: 0.5, entropyTemperature: 1, normGroups: 8 };
  assert.deepEqual(ibqConfig({ ...args, sampleMinimizationWeight: 2, batchMaximizationWeight: 3 }), {
    inChannels: 1,
    outChannels: 2,
    ch: 16,
    chMult: [1, 2, 3],
    numResBlocks: 1,
    attnLevels: [0, 2],
    zChannels: 6,
    dropout: 0.1,
    normGroups: 8,
    codebookSize: 9,
    embedDim: 4,
    beta: 0.5,
    entropyTemperature: 1,
    sampleEntropyWeight: 2,
    batchEntropyWeight: 3,
  });
});

test("arguments that ask for what IBQ is not are refused", () => {
  assert.throws(() => new IBQ({ nEmbed: 4, l2Normalize: true }), {
    name: "RangeError",
    message: "IBQ: expected l2Normalize false, got true. IBQ compares by dot product; VQModel normalises.",
  });
  assert.throws(() => new IBQ({ nEmbed: 4, ddconfig: { doubleZ: true } }), {
    name: "RangeError",
    message: "IBQ: expected ddconfig.doubleZ false, got true. A codebook takes no mean and variance.",
  });
});
