/**
 * Layers with a second copy of their weights, for rollouts and frozen networks: linear layers in oneDNN's own memory layout,
 * which is faster for few rows if the default library is slow at those, and convolutions with channels last, in a narrower
 * dtype if asked for. They have no gradient: where one is needed, a layer uses its original weights.
 */
import {
  call,
  callTensor,
  type DType,
  expected,
  functional as F,
  keep,
  noGrad,
  ones,
  readOptions,
  type Tensor,
  TorchError,
  tidy,
} from "../torch/index.js";
import { Conv2d, Linear, type PackedLayer } from "./layers.js";
import type { Module } from "./module.js";

/** Options of {@link packLinears}. */
export interface PackOptions {
  /** Type of the product and of its result, as under autocast; default the weight's own. */
  dtype?: DType;
}

/** Options of {@link packConvs}. */
export interface PackConvsOptions extends PackOptions {
  /** Convolutions that keep their own weights alone. */
  except?: readonly Conv2d[];
}

const REORDER = "mkldnn::_reorder_linear_weight";
const LINEAR = "mkldnn::_linear_pointwise";

/** Dtypes that oneDNN computes, and the operator that says whether this processor does so in hardware. */
const HARDWARE: Partial<Record<DType, string | null>> = {
  float32: null,
  bfloat16: "mkldnn::_is_mkldnn_bf16_supported",
  float16: "mkldnn::_is_mkldnn_fp16_supported",
};
const served = new Map<DType, boolean>();

/** Whether oneDNN serves this dtype here: a build may lack the operators, or have them and refuse. */
function canReorder(dtype: DType, device: string): boolean {
  const check = HARDWARE[dtype];
  if (device !== "cpu" || check === undefined) return false;
  let isServed = served.get(dtype);
  if (isServed === undefined) {
    isServed = (check === null || succeeds(() => call(check, []))) && succeeds(() => tryOut(dtype));
    served.set(dtype, isServed);
  }
  return isServed;
}

/** Whether it gives true; an operator that is missing or refuses gives false. */
function succeeds(ask: () => unknown): boolean {
  try {
    return ask() === true;
  } catch (error) {
    if (error instanceof TorchError) return false;
    throw error;
  }
}

function tryOut(dtype: DType): boolean {
  return noGrad(() =>
    tidy(() => {
      const weight = ones([1, 1], { dtype });
      const packed = callTensor<Tensor>(REORDER, [weight]);
      return callTensor<Tensor>(LINEAR, [weight, packed, null, "none", [], ""]).item() === 1;
    }),
  );
}

/** @internal One layer's weights in another layout, made anew when the layer's own have changed. */
class PackedWeights implements PackedLayer {
  readonly #layer: Linear | Conv2d;
  readonly #options: PackOptions;
  #weight: Tensor | null = null;
  #bias: Tensor | null = null;
  #isReordered = false;
  #dtype: DType = "float32";
  #sourceDtype: DType = "float32";
  #sourceDevice = "";
  #version = -1;

  constructor(layer: Linear | Conv2d, options: PackOptions) {
    this.#layer = layer;
    this.#options = options;
    this.#refresh();
  }

  /** What the layer gives for x converted to the packed dtype, in that dtype. Outside any graph. */
  forward(x: Tensor): Tensor {
    return noGrad(() => {
      this.#refresh();
      const isReady = x.dtype === this.#dtype;
      const input = isReady ? x : x.to({ dtype: this.#dtype });
      const y = this.#compute(input, this.#weight as Tensor);
      if (!isReady) input.dispose();
      return y;
    });
  }

  #compute(x: Tensor, weight: Tensor): Tensor {
    if (this.#layer instanceof Conv2d) return F.conv2d(x, weight, this.#bias, this.#layer.options);
    if (!this.#isReordered) return F.linear(x, weight, this.#bias);
    return callTensor<Tensor>(LINEAR, [x, weight, this.#bias, "none", [], ""]);
  }

  /** Operators count what they write into a tensor; a move to another dtype or device does not count. */
  #refresh(): void {
    const { weight, bias } = this.#layer;
    const version = versionOf(weight) + (bias === null ? 0 : versionOf(bias));
    const { dtype: sourceDtype, device: sourceDevice } = weight;
    const isSame = sourceDtype === this.#sourceDtype && sourceDevice === this.#sourceDevice;
    if (isSame && version === this.#version) return;
    this.dispose();
    const { dtype = sourceDtype } = this.#options;
    const isConv = this.#layer instanceof Conv2d;
    const isReordered = !isConv && canReorder(dtype, sourceDevice);
    const [packedWeight, packedBias] = noGrad(() =>
      tidy(() => {
        const plain = weight.detach().to({ dtype });
        const ownBias = bias === null ? null : bias.detach().to({ dtype });
        if (isConv) return [plain.contiguous("channels_last"), ownBias];
        return [isReordered ? callTensor<Tensor>(REORDER, [plain]) : plain, ownBias];
      }),
    );
    this.#weight = keep(packedWeight as Tensor);
    this.#bias = packedBias === null ? null : keep(packedBias as Tensor);
    this.#isReordered = isReordered;
    this.#dtype = dtype;
    this.#sourceDtype = sourceDtype;
    this.#sourceDevice = sourceDevice;
    this.#version = version;
  }

  dispose(): void {
    this.#weight?.dispose();
    this.#bias?.dispose();
    this.#weight = this.#bias = null;
    this.#version = -1;
  }
}

const versionOf = (tensor: Tensor): number => call("aten::_version", [tensor]) as number;

/** A layer and its packed weights. */
type Packed = readonly [layer: Linear | Conv2d, weights: PackedLayer];

/** Layers that run packed until this is disposed of. */
export class PackedLayers {
  readonly #layers: readonly Packed[];

  /** @internal */
  constructor(layers: readonly Packed[]) {
    this.#layers = layers;
  }

  /** How many layers there are. */
  get count(): number {
    return this.#layers.length;
  }

  /** Let the layers use their own weights from now on, but inside {@link within}; the packed copies are kept. */
  rest(): this {
    for (const [layer] of this.#layers) layer.packed = null;
    return this;
  }

  /** Run `fn` with the packed weights. */
  within<T>(fn: () => T): T {
    return this.#with(true, fn);
  }

  /** Run `fn` with the layers' own weights. */
  without<T>(fn: () => T): T {
    return this.#with(false, fn);
  }

  #with<T>(isPacked: boolean, fn: () => T): T {
    const before = this.#layers.map(([layer]) => layer.packed);
    for (const [layer, weights] of this.#layers) layer.packed = isPacked ? weights : null;
    try {
      return fn();
    } finally {
      for (const [i, [layer]] of this.#layers.entries()) layer.packed = before[i] ?? null;
    }
  }

  /** Free the packed copies; the layers use their original weights again. */
  dispose(): void {
    for (const [layer, weights] of this.#layers) {
      weights.dispose();
      layer.packed = null;
    }
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/**
 * Let every {@link Linear} of a network run on packed weights where no gradient is asked for:
 * `using packed = packLinears(policy, { dtype: "bfloat16" })` around a rollout.
 *
 * Takes a second copy of the weights until it is disposed of. Weights that an operator has written since are
 * packed again at their next use. On a GPU, or where oneDNN lacks the dtype, weights are only converted.
 *
 * @throws Error when a layer is packed already.
 */
export function packLinears(module: Module, options: PackOptions = {}): PackedLayers {
  const read = readOptions<PackOptions>("packLinears", [options], { names: { dtype: true } });
  return pack("packLinears", module, (layer) => layer instanceof Linear, read);
}

/**
 * Let the convolutions of a network run where no gradient is asked for on a copy of their weights with channels last,
 * converted to `dtype`: their results have that layout and that dtype too. The rest is {@link packLinears}.
 *
 * @throws Error when a layer is packed already.
 */
export function packConvs(module: Module, options: PackConvsOptions = {}): PackedLayers {
  const { except = [], ...read } = readOptions<PackConvsOptions>("packConvs", [options], {
    names: { dtype: true, except: true },
  });
  return pack("packConvs", module, (layer) => layer instanceof Conv2d && !except.includes(layer), read);
}

function pack(
  where: string,
  module: Module,
  isWanted: (layer: Module) => boolean,
  options: PackOptions,
): PackedLayers {
  const layers: Packed[] = [];
  const packed = new PackedLayers(layers);
  try {
    for (const [name, found] of module.namedModules()) {
      if (!isWanted(found)) continue;
      const layer = found as Linear | Conv2d;
      if (layer.packed !== null) {
        const remedy = "Dispose of the other pack first";
        throw expected(where, "layers that are not packed", name === "" ? "one that is" : name, remedy);
      }
      layer.packed = new PackedWeights(layer, options);
      layers.push([layer, layer.packed]);
    }
  } catch (error) {
    packed.dispose();
    throw error;
  }
  return packed;
}
