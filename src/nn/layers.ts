/**
 * Layers with weights, with PyTorch's names and initial values. Functions without weights are methods of Tensor or in
 * `torch.functional`.
 */
import {
  expected,
  functional as F,
  isGradEnabled,
  ones,
  readOptions,
  type Tensor,
  tensor,
  tidy,
  withDefaults,
  zeros,
} from "../torch/index.js";
import * as init from "./init.js";
import { Buffer, Module, Parameter } from "./module.js";

/** The handle of the initial values closes here, so that disposing of the module frees the memory at once. */
const parameter = (data: () => Tensor): Parameter => tidy(() => new Parameter(data()));
const buffer = (data: () => Tensor): Buffer => tidy(() => new Buffer(data()));

/** @internal Another layout of a layer's weights, without a graph; see packed.ts. */
export interface PackedLayer {
  forward(x: Tensor): Tensor;
  dispose(): void;
}

/** `x @ weight.T + bias`: x `[..., in]` to `[..., out]`; weight `[out, in]`, bias `[out]`. */
export class Linear extends Module {
  readonly weight: Parameter;
  readonly bias: Parameter | null;
  /** @internal Set by `packLinears`, used where no gradient is asked for. */
  packed: PackedLayer | null = null;

  constructor(inFeatures: number, outFeatures: number, options: { bias?: boolean } = {}) {
    super();
    const { bias } = withDefaults("Linear", options, { bias: true });
    const shape = [outFeatures, inFeatures];
    const bound = inFeatures > 0 ? 1 / Math.sqrt(inFeatures) : 0;
    this.weight = parameter(() => init.kaimingUniform(shape));
    this.bias = bias ? parameter(() => init.uniform([outFeatures], -bound, bound)) : null;
  }

  forward(x: Tensor): Tensor {
    if (this.packed !== null && !needsGraph(this, x)) return this.packed.forward(x);
    return F.linear(x, this.weight, this.bias);
  }
}

function needsGraph({ weight, bias }: Linear | Conv2d, x: Tensor): boolean {
  return isGradEnabled() && (x.requiresGrad || weight.requiresGrad || bias?.requiresGrad === true);
}

/** Rows of weight `[V, D]` at int64 indices `[...]` in `[0, V)`, giving `[..., D]`. */
export class Embedding extends Module {
  readonly weight: Parameter;

  constructor(numEmbeddings: number, embeddingDim: number) {
    super();
    this.weight = parameter(() => init.normal([numEmbeddings, embeddingDim]));
  }

  forward(index: Tensor): Tensor {
    return F.embedding(index, this.weight);
  }
}

/**
 * `(x - mean) / sqrt(var + eps) * weight + bias` over the last dimension, of size `features`.
 *
 * @see Ba et al. 2016, "Layer Normalization".
 */
export class LayerNorm extends Module {
  readonly weight: Parameter | null;
  readonly bias: Parameter | null;
  readonly eps: number;
  readonly #features: number;

  constructor(features: number, options: { eps?: number; bias?: boolean; elementwiseAffine?: boolean } = {}) {
    super();
    const { eps, elementwiseAffine, bias } = withDefaults("LayerNorm", options, {
      eps: 1e-5,
      bias: true,
      elementwiseAffine: true,
    });
    this.#features = features;
    this.eps = eps;
    this.weight = elementwiseAffine ? parameter(() => init.ones([features])) : null;
    this.bias = elementwiseAffine && bias ? parameter(() => init.zeros([features])) : null;
  }

  forward(x: Tensor): Tensor {
    return F.layerNorm(x, [this.#features], this.weight, this.bias, this.eps);
  }
}

/**
 * `x / sqrt(mean(x^2) + eps) * weight` over the last dimension, of size `features`.
 *
 * @see Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", eq. 4.
 */
export class RMSNorm extends Module {
  readonly weight: Parameter;
  readonly eps: number;
  readonly #features: number;

  constructor(features: number, options: { eps?: number } = {}) {
    super();
    const { eps } = withDefaults("RMSNorm", options, { eps: 1e-5 });
    this.#features = features;
    this.eps = eps;
    this.weight = parameter(() => init.ones([features]));
  }

  forward(x: Tensor): Tensor {
    return F.rmsNorm(x, [this.#features], this.weight, this.eps);
  }
}

/**
 * Normalise each of `numGroups` groups of the channels of x `[B, C, ...]`; weight and bias `[C]`.
 *
 * @see Wu and He 2018, "Group Normalization".
 */
export class GroupNorm extends Module {
  readonly weight: Parameter;
  readonly bias: Parameter;
  readonly eps: number;
  readonly #numGroups: number;

  constructor(numGroups: number, numChannels: number, options: { eps?: number } = {}) {
    super();
    const { eps } = withDefaults("GroupNorm", options, { eps: 1e-5 });
    this.#numGroups = numGroups;
    this.eps = eps;
    this.weight = parameter(() => init.ones([numChannels]));
    this.bias = parameter(() => init.zeros([numChannels]));
  }

  /** Computed in float32 for x of a narrower dtype: a CPU's kernel does so, a GPU's takes one dtype alone. */
  forward(x: Tensor): Tensor {
    if (x.dtype === this.weight.dtype || x.device === "cpu")
      return F.groupNorm(x, this.#numGroups, this.weight, this.bias, this.eps);
    return tidy(() => {
      const wide = x.to({ dtype: this.weight.dtype });
      return F.groupNorm(wide, this.#numGroups, this.weight, this.bias, this.eps);
    });
  }
}

/**
 * Normalise the channels of x `[B, C, h, w]` by the batch in training, else by running statistics.
 *
 * @see Ioffe and Szegedy 2015, "Batch Normalization".
 */
export class BatchNorm2d extends Module {
  readonly weight: Parameter;
  readonly bias: Parameter;
  readonly running_mean: Buffer;
  readonly running_var: Buffer;
  readonly num_batches_tracked: Buffer;
  readonly eps: number;
  /** Weight of the batch in the running statistics. */
  readonly momentum: number;

  constructor(numFeatures: number, options: { eps?: number; momentum?: number } = {}) {
    super();
    const { eps, momentum } = withDefaults("BatchNorm2d", options, { eps: 1e-5, momentum: 0.1 });
    this.eps = eps;
    this.momentum = momentum;
    this.weight = parameter(() => init.ones([numFeatures]));
    this.bias = parameter(() => init.zeros([numFeatures]));
    this.running_mean = buffer(() => zeros([numFeatures]));
    this.running_var = buffer(() => ones([numFeatures]));
    this.num_batches_tracked = buffer(() => tensor(0, { dtype: "int64" }));
  }

  forward(x: Tensor): Tensor {
    if (this.training) this.num_batches_tracked.add_(1);
    const running = { mean: this.running_mean, var: this.running_var };
    const { training, momentum, eps } = this;
    return F.batchNorm(x, running, this.weight, this.bias, { training, momentum, eps });
  }
}

/** Cross-correlation of x `[B, in, h, w]`; weight `[out, in / groups, kh, kw]`, bias `[out]`. */
export class Conv2d extends Module {
  readonly weight: Parameter;
  readonly bias: Parameter | null;
  readonly options: F.Conv2dOptions;
  /** @internal Set by `packConvs`, used where no gradient is asked for. */
  packed: PackedLayer | null = null;

  constructor(
    inChannels: number,
    outChannels: number,
    kernelSize: F.Pair,
    options: F.Conv2dOptions & { bias?: boolean } = {},
  ) {
    super();
    const { bias = true, ...conv } = readOptions<typeof options>("Conv2d", [options], {
      names: { stride: true, padding: true, dilation: true, groups: "number", bias: "boolean" },
    });
    const { groups = 1 } = conv;
    if (inChannels % groups !== 0 || outChannels % groups !== 0) {
      const what = `inChannels and outChannels that ${groups} groups divide`;
      throw expected("Conv2d", what, `${inChannels} and ${outChannels}`);
    }
    const kernel = typeof kernelSize === "number" ? [kernelSize, kernelSize] : kernelSize;
    const shape = [outChannels, inChannels / groups, ...kernel];
    const bound = 1 / Math.sqrt(init.fanIn(shape));
    this.options = conv;
    this.weight = parameter(() => init.kaimingUniform(shape));
    this.bias = bias ? parameter(() => init.uniform([outChannels], -bound, bound)) : null;
  }

  forward(x: Tensor): Tensor {
    if (this.packed !== null && !needsGraph(this, x)) return this.packed.forward(x);
    return F.conv2d(x, this.weight, this.bias, this.options);
  }
}

/** Zero each element with probability `p` and scale the rest by 1 / (1 - p), in training only. */
export class Dropout extends Module {
  readonly p: number;

  constructor(p = 0.5) {
    super();
    this.p = p;
  }

  forward(x: Tensor): Tensor {
    return F.dropout(x, this.p, this.training);
  }
}
