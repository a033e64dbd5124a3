/** The policies' public names. */
export { concatConditions, repeatCondition } from "./condition.js";
export { GPT, type GptFeatures, type GptOptions } from "./gpt.js";
export {
  combineGuidance,
  type Guidance,
  guidanceScale,
  guidedCondition,
  guidedDecode,
  guidedLogits,
  guidedPrefill,
} from "./guidance.js";
export { IbqAr, type IbqArOptions, ibqArPresets } from "./ibq_ar.js";
export { LlamaGen, type LlamaGenOptions, llamaGenPresets } from "./llamagen.js";
export {
  type BuildOptions,
  buildPolicy,
  loadPolicy,
  type PolicyDescription,
  type PolicyFamily,
  type RecogniseOptions,
  recognisePolicy,
  type Shapes,
} from "./load.js";
export { addLora, LORA_TARGETS, Lora, type LoraOptions, targetedPaths, WithoutAdapters } from "./lora.js";
export type { ArPolicy, Condition, DecodeCache } from "./policy.js";
