/**
 * Linear layers with weights in oneDNN's own memory layout, for rollouts and frozen networks. They are faster for few rows if
 * the default library is slow at those. They have no gradient: where one is needed, a layer uses its original weights.
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
import { Linear, type PackedLayer } from "./layers.js";
import type { Module } from "./module.js";

/** Options of {@link packLinears}. */
export interface PackOptions {
  /** Type of the product and of its result, as under autocast; default the weight's own. */
  dtype?: DType;
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
  readonly #layer: Linear;
  readonly #options: PackOptions;
  #weight: Tensor | null = null;
  #bias: Tensor | null = null;
  #isReordered = false;
  #dtype: DType = "float32";
  #sourceDtype: DType = "float32";
  #sourceDevice = "";
  #version = -1;

  constructor(layer: Linear, options: PackOptions) {
    this.#layer = layer;
    this.#options = options;
    this.#refresh();
  }

  /** x `[..., in]`, converted to the packed dtype, to `[..., out]` of that dtype. Outside any graph. */
  forward(x: Tensor): Tensor {
    return noGrad(() => {
      this.#refresh();
      const isReady = x.dtype === this.#dtype;
      const input = isReady ? x : x.to({ dtype: this.#dtype });
      const y = this.#isReordered
        ? callTensor<Tensor>(LINEAR, [input, this.#weight, this.#bias, "none", [], ""])
        : F.linear(input, this.#weight as Tensor, this.#bias);
      if (!isReady) input.dispose();
      return y;
    });
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
    const isReordered = canReorder(dtype, sourceDevice);
    const [packedWeight, packedBias] = noGrad(() =>
      tidy(() => {
        const plain = weight.detach().to({ dtype });
        const ownBias = bias === null ? null : bias.detach().to({ dtype });
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

/** Linear layers that run packed until this is disposed of. */
export class PackedLinears {
  readonly #layers: readonly Linear[];

  /** @internal */
  constructor(layers: readonly Linear[]) {
    this.#layers = layers;
  }

  /** How many layers there are. */
  get count(): number {
    return this.#layers.length;
  }

  /** Free the packed copies; the layers use their original weights again. */
  dispose(): void {
    for (const layer of this.#layers) {
      layer.packed?.dispose();
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
export function packLinears(module: Module, options: PackOptions = {}): PackedLinears {
  options = readOptions<PackOptions>("packLinears", [options], { names: { dtype: true } });
  const layers: Linear[] = [];
  const packed = new PackedLinears(layers);
  try {
    for (const [name, layer] of module.namedModules()) {
      if (!(layer instanceof Linear)) continue;
      if (layer.packed !== null) {
        const remedy = "Dispose of the other pack first";
        throw expected(
          "packLinears",
          "layers that are not packed",
          name === "" ? "one that is" : name,
          remedy,
        );
      }
      layer.packed = new PackedWeights(layer, options);
      layers.push(layer);
    }
  } catch (error) {
    packed.dispose();
    throw error;
  }
  return packed;
}
