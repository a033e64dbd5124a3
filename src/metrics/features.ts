/**
 * Interface of networks for measures of sets of images: one feature vector and one row of class probabilities per image. The
 * statistics over them are in distribution.ts and neighbours.ts.
 */
import type { Tensor } from "../torch/index.js";

/** A frozen network whose features and class probabilities describe images. */
export interface FeatureNetwork {
  /** Printed with every number, since numbers of different networks cannot be compared: "Inception v3 (FID)". */
  readonly name: string;
  /** Width of a feature vector, D. */
  readonly featureSize: number;
  /** Classes, K; 0 for a network without, of which there are no scores and accuracies. */
  readonly numClasses: number;
  /**
   * Features and class probabilities of images; no gradient.
   * @param images float [N, 3, H, W] in [-1, 1]
   * @returns features float32 [N, D], pooled, those before the last layer; probabilities float32 [N, K]
   */
  describe(images: Tensor): { features: Tensor; probabilities: Tensor };
}
