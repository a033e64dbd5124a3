/** Public names of `src/policies`. */
export { concatConditions, repeatCondition } from "./condition.js";
export { GPT, type GptOptions } from "./gpt.js";
export { type Guidance, guidanceScale } from "./guidance.js";
export { IbqAr, type IbqArOptions, ibqArPresets } from "./ibq_ar.js";
export { LlamaGen, type LlamaGenOptions, llamaGenPresets } from "./llamagen.js";
export {
  type BuildOptions,
  buildPolicy,
  isPolicy,
  POLICY_NAMES,
  type PolicyDescription,
  type PolicySizes,
  type RecogniseOptions,
  recognisePolicy,
} from "./load.js";
export { addLora, Lora, type LoraOptions, targetedPaths, WithoutAdapters } from "./lora.js";
export type { ArPolicy, Condition, DecodeCache } from "./policy.js";
export { UncachedPolicy } from "./uncached_policy.js";
