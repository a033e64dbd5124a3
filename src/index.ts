/** The package root: the names of the library, and the tensor and nn floors as namespaces. */
export {
  type Batch,
  BatchReader,
  fromIterable,
  type ImageSource,
  type Loader,
  type LoaderBatch,
  type LoaderImage,
  openSource,
  readImages,
  writePng,
} from "./data/index.js";
export {
  LPIPS,
  type LpipsOptions,
  l1,
  l2,
  msSsim,
  NLayerDiscriminator,
  psnr,
  ssim,
} from "./metrics/index.js";
export * as nn from "./nn/index.js";
export {
  type ArPolicy,
  type Condition,
  type DecodeCache,
  GPT,
  type GptOptions,
  type Guidance,
  IbqAr,
  type IbqArOptions,
  LlamaGen,
  type LlamaGenOptions,
} from "./policies/index.js";
export {
  type ArConfig,
  buildArPolicy,
  buildGptPolicy,
  buildTokenizerFrozen,
  buildToklipTokenizer,
  openDiscriminator,
  openLpips,
  openPolicy,
  openTokenizer,
  type PolicyAndOptimizer,
  type ToklipInitArgs,
} from "./rl_ar_finetune/builder.js";
export { type Checkpoint, type LoadedCheckpoint, loadCheckpoint } from "./rl_ar_finetune/checkpoint.js";
export {
  ConfigError,
  type ConfigSources,
  type ResolvedConfig,
  type RewardFunction,
  resolveConfig,
  type TrainConfig,
  type TrainConfigInput,
} from "./rl_ar_finetune/config.js";
export type { Evaluation } from "./rl_ar_finetune/evaluate.js";
export {
  type GrpoOptions,
  grpoUpdate,
  type Optimizer,
  type PpoOptions,
  ppoUpdate,
  reinforceUpdate,
  rlooUpdate,
  type UpdateBatch,
  type UpdateOptions,
  type UpdateResult,
} from "./rl_ar_finetune/optimize.js";
export { type PresetName, presets } from "./rl_ar_finetune/presets.js";
export { type ReconstructionType, type Rewards, reconstructionReward } from "./rl_ar_finetune/rewards.js";
export { type Rollout, type RolloutContext, sampleRollout } from "./rl_ar_finetune/rollout.js";
export {
  type Sampled,
  type SampleOptions,
  type Sampling,
  sampleCodesWithLogprobs,
} from "./rl_ar_finetune/sampling.js";
export {
  DivergedError,
  type TrainOptions,
  type TrainResult,
  trainRlLoop,
} from "./rl_ar_finetune/train_loop.js";
export { ValueHead } from "./rl_ar_finetune/value_head.js";
export {
  FrozenTokenizer,
  IBQ,
  type IBQArgs,
  type ImageTokenizer,
  type TokenizerConfig,
  VectorQuantizer,
  VQModel,
  type VQModelOptions,
} from "./tokenizers/index.js";
export * as torch from "./torch/index.js";
