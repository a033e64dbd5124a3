import assert from "node:assert/strict";
import { test } from "node:test";

import { tokenizerCosts } from "../../src/plan/costs.js";
import { createTokenizer, TOKENIZER_PRESETS, type TokenizerConfig } from "../../src/tokenizers/index.js";
import { memory, rand, setNumThreads, tidy } from "../../src/torch/index.js";
import { countFlops } from "../support/flops.js";

setNumThreads(1);

const SMALL = { ch: 16, zChannels: 24, embedDim: 8, codebookSize: 64, normGroups: 8 };
const CONFIGS: readonly Partial<TokenizerConfig>[] = [
  { ...TOKENIZER_PRESETS["VQ-16"], ...SMALL },
  { ...TOKENIZER_PRESETS["VQ-8"], ...SMALL, numResBlocks: 3, attnLevels: [] },
  { ...TOKENIZER_PRESETS["VQ-4-small"], ...SMALL, chMult: [1, 3], attnLevels: [0, 1] },
];

test("operations of encoding and decoding are those of the layers, attention's products and the search", () => {
  for (const config of CONFIGS as TokenizerConfig[]) {
    const side = 32;
    using model = createTokenizer(config);
    const last = config.chMult.length - 1;
    const t = (side / model.downsample) ** 2;
    const deepest = (config.chMult[last] as number) * config.ch;
    /** Two products of T x T positions for each attention. */
    const products = (count: number): number =>
      config.chMult.reduce(
        (sum, factor, level) => {
          const positions = side ** 2 / 4 ** level;
          return config.attnLevels.includes(level)
            ? sum + count * 4 * factor * config.ch * positions ** 2
            : sum;
        },
        4 * deepest * t ** 2,
      );
    const costs = tokenizerCosts(config, side ** 2);
    const encode = countFlops([model], () => model.encodeLatent(rand([1, 3, side, side])));
    assert.equal(
      costs.encodeFlops,
      encode + products(config.numResBlocks) + 2 * config.codebookSize * config.embedDim * t,
    );
    const places = side / model.downsample;
    using again = createTokenizer(config);
    const decode = countFlops([again], () => again.decode(rand([1, config.embedDim, places, places])));
    assert.equal(costs.decodeFlops, decode + products(config.numResBlocks + 1));
  }
});

test("the published VQ-16 costs what it is known to", () => {
  const { encodeFlops, decodeFlops } = tokenizerCosts(TOKENIZER_PRESETS["VQ-16"], 256 ** 2);
  assert.equal((encodeFlops / 1e9).toFixed(0), "138");
  assert.equal((decodeFlops / 1e9).toFixed(0), "253");
});

test("the graph of decoding is what a pass keeps, within a twentieth", () => {
  for (const config of CONFIGS as TokenizerConfig[]) {
    using model = createTokenizer(config).requiresGrad_(false);
    const places = 64 / model.downsample;
    const kept = tidy(() => {
      const features = rand([1, config.embedDim, places, places]).requiresGrad_(true);
      const before = memory().bytes;
      model.decode(features);
      return memory().bytes - before;
    });
    const ratio = tokenizerCosts(config, 64 ** 2).decodeGraphBytes / kept;
    assert.ok(ratio > 0.95 && ratio < 1.05, `${ratio}`);
  }
});

test("activations are what passes take, within a third", () => {
  for (const config of CONFIGS.slice(0, 2) as TokenizerConfig[]) {
    using model = createTokenizer(config).eval();
    const peakOf = (run: () => void): number => {
      const before = memory({ resetPeak: true }).bytes;
      tidy(run);
      return memory().peakBytes - before;
    };
    const images = rand([4, 3, 64, 64]);
    const encode = peakOf(() => model.encode(images));
    const codes = tidy(() => model.encode(images));
    const decode = peakOf(() => model.decodeCode(codes));
    for (const tensor of [images, codes]) tensor.dispose();
    const { activationBytes, partBytes } = tokenizerCosts(config, 64 ** 2);
    for (const peak of [encode, decode]) {
      const ratio = (4 * activationBytes) / peak;
      assert.ok(ratio > 0.75 && ratio < 1.34, `${ratio}`);
    }
    assert.ok(partBytes >= activationBytes);
  }
});
