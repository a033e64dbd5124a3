/** The metrics floor's public names. */
export type { LpipsNet } from "./backbones.js";
export { latentCosine } from "./latent.js";
export { LPIPS, type LpipsOptions, type LpipsReference } from "./lpips.js";
export type { ChunkOptions } from "./pairs.js";
export { type DiscriminatorOptions, NLayerDiscriminator } from "./patchgan.js";
export { l1, l1Map, l2, l2Map, msSsim, psnr, ssim, ssimMap } from "./pixel.js";
export { RangeGuard } from "./range.js";
export { type MetricNetwork, recogniseMetricNetwork } from "./recognise.js";
