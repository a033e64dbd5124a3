/** Public names of the package; `torch` and `nn` are namespaces. */

export { type PresetName, presets } from "./config/presets.js";
export { type PretrainConfig, type PretrainConfigInput, pretrainKind } from "./config/pretrain.js";
export {
  ConfigError,
  type ConfigKind,
  type ConfigSources,
  type ResolvedConfig,
  type RewardContext,
  type RewardFunction,
  type RewardScores,
  resolveConfig,
  type TrainConfig,
  type TrainConfigInput,
} from "./config/resolve.js";
export {
  type TokenizerTrainConfig,
  type TokenizerTrainConfigInput,
  tokenizerKind,
} from "./config/tokenizer.js";
export {
  type Batch,
  BatchReader,
  type Cursor,
  fromIterable,
  type ImageSource,
  type Loader,
  type LoaderBatch,
  type LoaderImage,
  openSource,
  readImages,
  writePng,
} from "./data/index.js";
export { evaluateModels, type ModelEvaluation } from "./evaluation/judge_models.js";
export type {
  EvalRow,
  Judge,
  Measures,
  ModelEvalOptions,
} from "./evaluation/options.js";
export { evaluationText } from "./evaluation/verdict.js";
export {
  FeatureClassifier,
  LPIPS,
  type LpipsOptions,
  l1,
  l2,
  msSsim,
  NLayerDiscriminator,
  PerceptualDistance,
  psnr,
  ssim,
} from "./metrics/index.js";
export { MEASURES, type Measure } from "./metrics/measures.js";
export * as nn from "./nn/index.js";
export {
  type ArPolicy,
  addLora,
  type Condition,
  type DecodeCache,
  GPT,
  type GptOptions,
  type Guidance,
  IbqAr,
  type IbqArOptions,
  LlamaGen,
  type LlamaGenOptions,
  Lora,
  type LoraOptions,
  UncachedPolicy,
} from "./policies/index.js";
export {
  type ArConfig,
  buildArPolicy,
  buildGptPolicy,
  buildTokenizerFrozen,
  buildToklipTokenizer,
  openClassifier,
  openDiscriminator,
  openLpips,
  openPerceptual,
  openPolicy,
  openTokenizer,
  type PolicyAndOptimizer,
  type ToklipInitArgs,
} from "./rl_ar_finetune/builder.js";
export { CodeVectors } from "./rl_ar_finetune/code_distance.js";
export { CodeFrequency } from "./rl_ar_finetune/code_frequency.js";
export type { Evaluation } from "./rl_ar_finetune/evaluate.js";
export {
  type CodeDistance,
  type CodeFrequencyLoss,
  type GrpoOptions,
  grpoUpdate,
  type KlOptions,
  type Optimizer,
  type PpoOptions,
  ppoUpdate,
  type ReinforceOptions,
  type RlooOptions,
  reinforceUpdate,
  rlooUpdate,
  type UpdateArguments,
  type UpdateBatch,
  type UpdateOptions,
  type UpdateResult,
  ValueHead,
} from "./rl_ar_finetune/optimize.js";
export {
  type ReconstructionOptions,
  type ReconstructionType,
  type Rewards,
  reconstructionReward,
} from "./rl_ar_finetune/rewards.js";
export {
  type Rollout,
  type RolloutContext,
  type RolloutOptions,
  sampleRollout,
} from "./rl_ar_finetune/rollout.js";
export {
  type Sampled,
  type SampleOptions,
  type Sampling,
  sampleCodesWithLogprobs,
} from "./rl_ar_finetune/sampling.js";
export { type Drawn, type ScoreOptions, type Scores, scoreCodes } from "./rl_ar_finetune/scoring.js";
export { type SteBatch, type SteOptions, steUpdate } from "./rl_ar_finetune/ste.js";
export {
  DivergedError,
  type TrainOptions,
  type TrainResult,
} from "./rl_ar_finetune/train_loop.js";
export {
  type Checkpoint,
  type LoadedCheckpoint,
  readCheckpoint as loadCheckpoint,
} from "./run/checkpoint.js";
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
export { pretrainPolicy, trainRlLoop, trainTokenizer } from "./train.js";
export {
  type FitConfig,
  type FitResult,
  type FitState,
  type FitStep,
  type FitTask,
  fitLoop,
} from "./trainers/loop.js";
export { FitNetwork, type FitNetworkOptions } from "./trainers/network.js";
