/**
 * LlamaGen's VQ tokenizer, which TokLIP also uses, and small tokenizers of the same architecture.
 *
 * @see Sun et al. 2024, "Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation".
 */
import { type OptionNames, readOptions, requireObject } from "../torch/index.js";
import { type TokenizerConfig, TokenizerModel } from "./model.js";

/** Arguments of {@link VQModel} under their published names, each with the published default (VQ-16). */
export interface VQModelOptions {
  /** V, 16384. */
  codebookSize?: number;
  /** 8. */
  codebookEmbedDim?: number;
  /**
   * Default true: rows and features are normalized and compared by cosine; false: they are compared by Euclidean
   * distance.
   */
  codebookL2Norm?: boolean;
  /** true: record the last 65,536 codes of training. */
  codebookShowUsage?: boolean;
  /** Weight of the commitment term, 0.25. */
  commitLossBeta?: number;
  /** Weight of the entropy loss, 0 (off). */
  entropyLossRatio?: number;
  /** Factors of `ch`, one per level: [1, 1, 2, 2, 4]. A code covers 2 ** (levels - 1) pixels per side. */
  chMult?: readonly number[];
  /** 128. */
  ch?: number;
  /** Residual blocks per level in the encoder, 2. */
  numResBlocks?: number;
  /** 256. */
  zChannels?: number;
  /** Dropout in the residual blocks, 0. */
  dropoutP?: number;
  /** Maximum number of groups of a GroupNorm, 32; see {@link TokenizerConfig.normGroups}. */
  normGroups?: number;
}

const VQ_OPTION_NAMES: OptionNames<VQModelOptions> = {
  codebookSize: "number",
  codebookEmbedDim: "number",
  codebookL2Norm: "boolean",
  codebookShowUsage: "boolean",
  commitLossBeta: "number",
  entropyLossRatio: "number",
  chMult: true,
  ch: "number",
  numResBlocks: "number",
  zChannels: "number",
  dropoutP: "number",
  normGroups: "number",
};

/** The published models, and one to train on a CPU: 64 codes of 512 for an image of 32 x 32, 1.4 M parameters. */
export const VQ_MODELS: Readonly<Record<"VQ-16" | "VQ-8" | "VQ-4-small", VQModelOptions>> = {
  "VQ-16": { chMult: [1, 1, 2, 2, 4] },
  "VQ-8": { chMult: [1, 2, 2, 4] },
  "VQ-4-small": { chMult: [1, 2, 2], ch: 32, zChannels: 64, codebookSize: 512, normGroups: 8 },
};

/** `new VQModel()` is VQ-16, 71,883,403 parameters; `new VQModel(VQ_MODELS["VQ-8"])` is VQ-8. */
export class VQModel extends TokenizerModel {
  /** @throws RangeError for an unknown option, and for a configuration that is not a VQ model. */
  constructor(options: VQModelOptions | TokenizerConfig = {}) {
    requireObject("VQModel", options);
    super("naming" in options ? options : vqConfig(options));
  }
}

/** The whole configuration of the given options. */
export function vqConfig(given: VQModelOptions = {}): TokenizerConfig {
  const options = readOptions<VQModelOptions>("VQModel", [given], { names: VQ_OPTION_NAMES });
  const { chMult = [1, 1, 2, 2, 4], entropyLossRatio = 0 } = options;
  return {
    naming: "llamagen",
    inChannels: 3,
    outChannels: 3,
    ch: options.ch ?? 128,
    chMult,
    numResBlocks: options.numResBlocks ?? 2,
    attnLevels: [chMult.length - 1],
    zChannels: options.zChannels ?? 256,
    dropout: options.dropoutP ?? 0,
    normGroups: options.normGroups ?? 32,
    codebookSize: options.codebookSize ?? 16_384,
    embedDim: options.codebookEmbedDim ?? 8,
    lookup: (options.codebookL2Norm ?? true) ? "cosine" : "l2",
    beta: options.commitLossBeta ?? 0.25,
    entropyTemperature: 0.01,
    sampleEntropyWeight: entropyLossRatio,
    batchEntropyWeight: entropyLossRatio,
    hasUsageRecord: options.codebookShowUsage ?? true,
  };
}
