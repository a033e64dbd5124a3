/** The package root: the tensor and nn floors as namespaces. Models, rewards and the training loop join as they land. */
export * as nn from "./nn/index.js";
export * as torch from "./torch/index.js";
