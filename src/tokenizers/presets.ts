/**
 * Architectures of new tokenizers by name: the published ones, and two small ones for a CPU. `src/trainers` trains them.
 */
import { IBQ_DEFAULTS } from "./ibq.js";
import type { TokenizerConfig } from "./model.js";
import { VQ_MODELS, vqConfig } from "./vq_model.js";

/** The number in a name is the width in pixels of the square that one code stands for. */
export type TokenizerPreset = "VQ-4-small" | "VQ-8" | "VQ-16" | "IBQ-4-small" | "IBQ-16";

const small = vqConfig(VQ_MODELS["VQ-4-small"]);

/** `IBQ-16` has 16,384 codes, one of the released sizes. */
export const TOKENIZER_PRESETS: Readonly<Record<TokenizerPreset, TokenizerConfig>> = {
  "VQ-4-small": small,
  "VQ-8": vqConfig(VQ_MODELS["VQ-8"]),
  "VQ-16": vqConfig(VQ_MODELS["VQ-16"]),
  "IBQ-4-small": {
    ...IBQ_DEFAULTS,
    ch: small.ch,
    chMult: small.chMult,
    numResBlocks: small.numResBlocks,
    attnLevels: small.attnLevels,
    zChannels: small.zChannels,
    normGroups: small.normGroups,
    codebookSize: small.codebookSize,
    embedDim: 64,
  },
  "IBQ-16": { ...IBQ_DEFAULTS, codebookSize: 16_384 },
};
