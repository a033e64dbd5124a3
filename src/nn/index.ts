/** Public names of `src/nn`. */
export { type Averaged, type AverageOptions, averageWeights } from "./average.js";
export { Ema, type EmaOptions, type EmaState } from "./ema.js";
export * as init from "./init.js";
export { BatchNorm2d, Conv2d, Dropout, Embedding, GroupNorm, LayerNorm, Linear, RMSNorm } from "./layers.js";
export {
  Buffer,
  type LoadReport,
  Module,
  Parameter,
  type Readable,
  requireModule,
  Sequential,
  type StateDict,
  type Step,
} from "./module.js";
export {
  AdamW,
  type AdamWGroup,
  type AdamWOptions,
  type AdamWState,
  clipGradNorm,
  type ParameterGroup,
  type Trained,
} from "./optim.js";
export { type PackConvsOptions, PackedLayers, type PackOptions, packConvs, packLinears } from "./packed.js";
export * as schedules from "./schedules.js";
export { countParts, requireShapes, type Shapes, shapesOf, shapesText } from "./state_dict.js";
