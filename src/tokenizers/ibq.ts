/**
 * The IBQ tokenizer of SEED-Voken, whose codebook rows all get a gradient in every training step.
 *
 * @see Shi et al. 2024, "Taming Scalable Visual Tokenizer for Autoregressive Image Generation".
 */
import { expected, type OptionNames, readOptions, requireObject } from "../torch/index.js";
import { type TokenizerConfig, TokenizerModel } from "./model.js";

/** Encoder and decoder under their published names, each with the default that all released IBQ models have. */
export interface DdConfig {
  /** Default false; true is refused, because it belongs to a VAE without a codebook. */
  doubleZ?: boolean;
  /** 256. */
  zChannels?: number;
  /** Size of the training images, 256; used only to find the levels of `attnResolutions`. */
  resolution?: number;
  /** 3. */
  inChannels?: number;
  /** 3. */
  outCh?: number;
  /** 128. */
  ch?: number;
  /** Factors of `ch`, one per level: [1, 1, 2, 2, 4]. A code covers 2 ** (levels - 1) pixels per side. */
  chMult?: readonly number[];
  /** Residual blocks per level in the encoder, 4. */
  numResBlocks?: number;
  /** Resolutions with attention, for images of `resolution`: [16]. */
  attnResolutions?: readonly number[];
  /** 0. */
  dropout?: number;
}

/** Arguments that the published class uses for training. They are accepted and do not affect the model. */
const TRAINER_ARG_NAMES = {
  lossconfig: "nullable",
  ignoreKeys: "nullable",
  imageKey: "nullable",
  colorizeNlabels: "nullable",
  monitor: "nullable",
  remap: "nullable",
  saneIndexShape: "nullable",
  learningRate: "nullable",
  warmupEpochs: "nullable",
  schedulerType: "nullable",
  minLearningRate: "nullable",
  gradientClipVal: "nullable",
  resumeLr: "nullable",
  wp: "nullable",
  wp0: "nullable",
  wpe: "nullable",
  maxIter: "nullable",
  scheType: "nullable",
  wpIter: "nullable",
  useSharedEpoch: "nullable",
  lrDropIter: "nullable",
  lrDropRate: "nullable",
} as const;

type TrainerArgs = { [Name in keyof typeof TRAINER_ARG_NAMES]?: unknown };

/** Arguments of {@link IBQ} under their published names, and the published arguments for training. */
export interface IBQArgs extends TrainerArgs {
  ddconfig?: DdConfig;
  /** V; models with 1024, 8192, 16384 and 262144 codes were released. */
  nEmbed: number;
  /** 256. */
  embedDim?: number;
  /** false: IBQ compares by dot product. */
  l2Normalize?: boolean;
  /** true: the entropy term is one of the losses. */
  useEntropyLoss?: boolean;
  /** 0.01. */
  entropyTemperature?: number;
  /** 1. */
  sampleMinimizationWeight?: number;
  /** 1. */
  batchMaximizationWeight?: number;
  /** Weight of the codebook's term, 0.25. */
  beta?: number;
  /** Whether to use the EMA or the raw weights of a checkpoint. `buildToklipTokenizer` reads it. */
  useEma?: boolean;
  /** Checkpoint of the weights. `buildToklipTokenizer` reads it. */
  ckptPath?: string;
  /** Ignored. In the published code: whether a checkpoint is used to train the tokenizer or the transformer. */
  stage?: "transformer" | null;
  /** Maximum number of groups of a GroupNorm, 32; see {@link TokenizerConfig.normGroups}. */
  normGroups?: number;
}

/** Names of all arguments of {@link IBQ}. */
export const IBQ_ARG_NAMES: OptionNames<IBQArgs> = {
  ...TRAINER_ARG_NAMES,
  ddconfig: true,
  nEmbed: "number",
  embedDim: "number",
  l2Normalize: "boolean",
  useEntropyLoss: "boolean",
  entropyTemperature: "number",
  sampleMinimizationWeight: "number",
  batchMaximizationWeight: "number",
  beta: "number",
  useEma: "boolean",
  ckptPath: true,
  stage: "nullable",
  normGroups: "number",
};

const DDCONFIG_NAMES: OptionNames<DdConfig> = {
  doubleZ: "boolean",
  zChannels: "number",
  resolution: "number",
  inChannels: "number",
  outCh: "number",
  ch: "number",
  chMult: true,
  numResBlocks: "number",
  attnResolutions: true,
  dropout: "number",
};

/** `new IBQ({ nEmbed: 16384 })` is the published 16384, 110.98 M parameters. */
export class IBQ extends TokenizerModel {
  /** @throws RangeError for an unknown argument, and for a configuration that is not an IBQ model. */
  constructor(args: IBQArgs | TokenizerConfig) {
    requireObject("IBQ", args);
    super("naming" in args ? args : { ...IBQ_DEFAULTS, ...(ibqConfig(args) as { codebookSize: number }) });
  }
}

/** The configuration that all released IBQ models share. */
export const IBQ_DEFAULTS: Omit<TokenizerConfig, "codebookSize"> = {
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
  embedDim: 256,
  lookup: "dot",
  beta: 0.25,
  entropyTemperature: 0.01,
  sampleEntropyWeight: 1,
  batchEntropyWeight: 1,
  hasUsageRecord: false,
};

/**
 * The part of the configuration that the given arguments determine.
 *
 * @throws RangeError for an argument that IBQ does not support.
 */
export function ibqConfig(given: Partial<IBQArgs>): Partial<TokenizerConfig> {
  const args = readOptions<Partial<IBQArgs>>("IBQ", [given], { names: IBQ_ARG_NAMES });
  const { useEntropyLoss } = args;
  const ddconfig = readOptions<DdConfig>("IBQ: ddconfig", [args.ddconfig], { names: DDCONFIG_NAMES });
  if (ddconfig.doubleZ)
    throw expected("IBQ", "ddconfig.doubleZ false", true, "A codebook takes no mean and variance");
  if (args.l2Normalize) {
    throw expected("IBQ", "l2Normalize false", true, "IBQ compares by dot product; VQModel normalises");
  }
  const { resolution, attnResolutions, chMult } = ddconfig;
  const isPlaced = resolution !== undefined || attnResolutions !== undefined || chMult !== undefined;
  const weightless = useEntropyLoss === false ? 0 : undefined;
  const said: { [Key in keyof TokenizerConfig]?: TokenizerConfig[Key] | undefined } = {
    inChannels: ddconfig.inChannels,
    outChannels: ddconfig.outCh,
    ch: ddconfig.ch,
    chMult,
    numResBlocks: ddconfig.numResBlocks,
    attnLevels: isPlaced ? attnLevels(ddconfig) : undefined,
    zChannels: ddconfig.zChannels,
    dropout: ddconfig.dropout,
    normGroups: args.normGroups,
    codebookSize: args.nEmbed,
    embedDim: args.embedDim,
    beta: args.beta,
    entropyTemperature: args.entropyTemperature,
    sampleEntropyWeight: weightless ?? args.sampleMinimizationWeight,
    batchEntropyWeight: weightless ?? args.batchMaximizationWeight,
  };
  return Object.fromEntries(Object.entries(said).filter(([, value]) => value !== undefined));
}

/** Levels that have attention, from the resolutions with attention. */
function attnLevels(ddconfig: DdConfig): number[] {
  const { resolution = 256, attnResolutions = [16], chMult = IBQ_DEFAULTS.chMult } = ddconfig;
  return [...chMult.keys()].filter((level) => attnResolutions.includes(Math.floor(resolution / 2 ** level)));
}
