/** Public names of `src/metrics`. */
export type { LpipsNet } from "./backbones.js";
export { type ClassifierConfig, FeatureClassifier } from "./classifier.js";
export {
  bootstrap,
  classAccuracy,
  frechetDistance,
  frechetInterval,
  type Interval,
  inceptionScore,
  kernelDistance,
  kernelDistanceOfSubsets,
  type Moments,
  MomentsAccumulator,
  moments,
} from "./distribution.js";
export { DISTS } from "./dists.js";
export type { FeatureNetwork } from "./features.js";
export { InceptionV3, inceptionClasses } from "./inception.js";
export { latentCosine } from "./latent.js";
export { LPIPS, type LpipsOptions } from "./lpips.js";
export {
  densityCoverage,
  meanPairwiseDistance,
  nearestNeighbours,
  precisionRecall,
} from "./neighbours.js";
export type { ChunkOptions } from "./pairs.js";
export { type DiscriminatorOptions, NLayerDiscriminator } from "./patchgan.js";
export { PerceptualDistance } from "./perceptual.js";
export { l1, l1Map, l2, l2Map, msSsim, psnr, ssim, ssimMap } from "./pixel.js";
export { RangeGuard } from "./range.js";
export { type MetricNetwork, recogniseClassifier, recogniseMetricNetwork } from "./recognise.js";
export type { UnitFeatures } from "./unit_features.js";
