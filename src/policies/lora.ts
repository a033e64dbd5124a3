/**
 * LoRA: low-rank adapters on the linear layers of any module. The layers are frozen and keep their keys; the adapters are a
 * separate module, which is trained and saved.
 *
 * Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models".
 */
import { Linear, Module, type Parameter, requireModule, type StateDict } from "../nn/index.js";
import {
  expected,
  functional as F,
  keep,
  noGrad,
  readOptions,
  requireObject,
  type Tensor,
  tidy,
} from "../torch/index.js";
import { placeOf, zeroLinear } from "./layers.js";
import type { ArPolicy, Condition, DecodeCache } from "./policy.js";

/** Names of the projections inside the blocks of all policies here. */
export const LORA_TARGETS: readonly string[] = [
  "wqkv",
  "wo",
  "w1",
  "w2",
  "w3",
  "query",
  "key",
  "value",
  "proj",
  "mlp.0",
  "mlp.2",
];

/** Options of LoRA. */
export interface LoraOptions {
  /** r: width of the bottleneck. */
  rank: number;
  /** The adapter's output is multiplied by alpha / r; alpha is r by default. */
  alpha?: number;
  /**
   * Ends of the paths of layers, such as `wqkv` or `layers.0.attention.wo`, or a function that chooses by path. Default
   * {@link LORA_TARGETS}.
   */
  targets?: readonly string[] | ((path: string, layer: Linear) => boolean);
  /** Dropout of the adapter's input, while the layer is in training. */
  dropout?: number;
}

/** `B(A(x))`, zero before training: A `[r, in]`, B `[out, r]`. */
class Adapter extends Module {
  readonly lora_A: Linear;
  readonly lora_B: Linear;

  constructor(inFeatures: number, outFeatures: number, rank: number) {
    super();
    this.lora_A = new Linear(inFeatures, rank, { bias: false });
    this.lora_B = zeroLinear(rank, outFeatures);
  }

  forward(x: Tensor): Tensor {
    return this.lora_B.forward(this.lora_A.forward(x));
  }
}

/** A layer with an adapter. */
interface Adapted {
  /** Path of the layer in its module. */
  readonly path: string;
  readonly layer: Linear;
  readonly adapter: Adapter;
  /** The layer's own weight, while the adapter is merged into it. */
  original: Tensor | null;
}

/**
 * Adapters of a module's layers. Its parameters are those of the adapters, and so is its state dict: for each layer,
 * `<path>.lora_A.weight` `[r, in]` and `<path>.lora_B.weight` `[out, r]`. The adapted module's own keys do not change.
 *
 * Adapters are float32 and on the device that their layers had. If you move one of the two modules, move the other too.
 */
export class Lora extends Module {
  readonly #adapted: readonly Adapted[];
  readonly #scale: number;
  readonly #dropout: number;
  readonly #wasTrained: readonly Parameter[];
  #isOff = false;
  #isMerged = false;

  /** @internal Use {@link addLora}. */
  constructor(module: Module, layers: readonly (readonly [string, Linear])[], options: LoraOptions) {
    super();
    requireModule("Lora", module);
    requireObject("Lora", options);
    const { rank, alpha = rank, dropout = 0 } = options;
    this.#scale = alpha / rank;
    this.#dropout = dropout;
    this.#wasTrained = module.parameters().filter((parameter) => parameter.requiresGrad);
    module.requiresGrad_(false);
    this.#adapted = layers.map(([path, layer]) => {
      const [outFeatures, inFeatures] = layer.weight.dims(2);
      const adapter = new Adapter(inFeatures, outFeatures, rank);
      adapter.to({ device: placeOf(layer.weight).device });
      Object.defineProperty(this, path, { value: adapter, enumerable: true });
      const plain = layer.forward.bind(layer);
      layer.forward = (x) => this.#apply(layer, adapter, x, plain(x));
      return { path, layer, adapter, original: null };
    });
  }

  /** Whether the adapters are merged into the layers' weights. */
  get isMerged(): boolean {
    return this.#isMerged;
  }

  #apply(layer: Linear, adapter: Adapter, x: Tensor, y: Tensor): Tensor {
    if (this.#isOff || this.#isMerged) return y;
    return tidy(() => {
      const wide = x.to({ dtype: adapter.lora_A.weight.dtype });
      const input = layer.training && this.#dropout > 0 ? F.dropout(wide, this.#dropout, true) : wide;
      return y.add(adapter.forward(input).to({ dtype: y.dtype }), this.#scale);
    });
  }

  /**
   * Run `fn` without the adapters, which gives the model before fine-tuning, for use as a reference. Autograd is off:
   * with gradient checkpointing, a backward pass would recompute activations after `fn`, with the adapters on.
   *
   * @throws RangeError while the adapters are merged.
   */
  withAdaptersOff<T>(fn: () => T): T {
    if (this.#isMerged)
      throw expected("Lora.withAdaptersOff", "adapters that are apart", "merged ones", "Call unmerge()");
    const before = this.#isOff;
    this.#isOff = true;
    try {
      return noGrad(fn);
    } finally {
      this.#isOff = before;
    }
  }

  /**
   * Merge the adapters into the layers' weights, so that they take no time in forward passes. Keeps a copy of the
   * weights.
   */
  merge(): void {
    if (this.#isMerged)
      throw expected("Lora.merge", "adapters that are apart", "merged ones", "Call unmerge()");
    for (const adapted of this.#adapted) {
      const { weight } = adapted.layer;
      noGrad(() =>
        tidy(() => {
          adapted.original = keep(weight.clone());
          weight.copy_(this.#sum(adapted));
        }),
      );
    }
    this.#isMerged = true;
  }

  /** A layer's weight and its adapter's, in the adapter's dtype. */
  #sum({ layer, adapter: { lora_A, lora_B } }: Adapted): Tensor {
    const wide = layer.weight.to({ dtype: lora_A.weight.dtype });
    return wide.add(lora_B.weight.matmul(lora_A.weight), this.#scale);
  }

  /**
   * The adapted layers' weights with the adapters in them, as new tensors under the keys of the adapted module:
   * `{ ...policy.stateDict(), ...lora.mergedWeights() }` is a policy without adapters. The layers stay as they are.
   *
   * They are float32 even if the layers are bfloat16, in which a small adapter would be lost by rounding.
   */
  mergedWeights(): StateDict {
    if (this.#isMerged) return {};
    const entries = this.#adapted.map((adapted) => {
      return [`${adapted.path}.weight`, noGrad(() => tidy(() => this.#sum(adapted)))] as const;
    });
    return Object.fromEntries(entries);
  }

  /** Restore the layers' weights bit for bit. */
  unmerge(): void {
    if (!this.#isMerged)
      throw expected("Lora.unmerge", "merged adapters", "adapters that are apart", "Call merge()");
    for (const adapted of this.#adapted) {
      const { original } = adapted;
      if (original !== null) noGrad(() => adapted.layer.weight.copy_(original));
    }
    this.#forgetOriginals();
  }

  #forgetOriginals(): void {
    for (const adapted of this.#adapted) {
      adapted.original?.dispose();
      adapted.original = null;
    }
    this.#isMerged = false;
  }

  /**
   * Remove and free the adapters. The layers keep their current weights, merged or not, and the module's parameters are
   * trainable again.
   */
  override dispose(): void {
    this.#forgetOriginals();
    // Deleting the instance's forward brings back that of its class.
    for (const { layer } of this.#adapted) delete (layer as { forward?: unknown }).forward;
    for (const parameter of this.#wasTrained) if (!parameter.isDisposed) parameter.requiresGrad_(true);
    super.dispose();
  }
}

/**
 * Paths of the linear layers that match the targets.
 *
 * @param where - who asks, for the message.
 * @param targets - null for {@link LORA_TARGETS}; a model need not have all of these.
 * @throws RangeError if a target, or all of them together, match no layer.
 */
export function targetedPaths(
  where: string,
  paths: readonly string[],
  targets: readonly string[] | null,
): string[] {
  const ends = (path: string, name: string): boolean => path === name || path.endsWith(`.${name}`);
  const named = paths.filter((path) => (targets ?? LORA_TARGETS).some((name) => ends(path, name)));
  const idle = (targets ?? []).filter((name) => !named.some((path) => ends(path, name)));
  if (named.length === 0 || idle.length > 0) throw noTarget(where, paths, idle);
  return named;
}

function noTarget(where: string, paths: readonly string[], idle: readonly string[]): RangeError {
  const kinds = [...new Set(paths.map((path) => path.replace(/\d+/g, "N")))].join(", ");
  return expected(where, `ends of ${kinds}`, idle.length > 0 ? idle : "none that matches");
}

/**
 * Freeze a module and add adapters to its linear layers: train `lora.parameters()`, save `lora.stateDict()`.
 *
 * @param where - who asks, for messages; `addLora` by default.
 * @throws RangeError if the targets match no layer, if one of them matches none, if a number is out of range, or if a
 *   layer already has an adapter.
 */
export function addLora(module: Module, given: LoraOptions, where = "addLora"): Lora {
  const options = readOptions<LoraOptions>(where, [given], {
    names: { rank: "number", alpha: "number", targets: true, dropout: "number" },
  });
  requireModule(where, module);
  const { rank, alpha = rank, targets = null, dropout = 0 } = options;
  if (!Number.isInteger(rank) || rank < 1) {
    throw expected(`${where}.rank`, "an integer of at least 1", rank);
  }
  if (!(alpha > 0 && alpha < Infinity)) {
    throw expected(`${where}.alpha`, "a finite number above 0", alpha, "Leave it out for alpha = rank");
  }
  if (!(dropout >= 0 && dropout < 1)) throw expected(`${where}.dropout`, "a number in [0, 1)", dropout);
  const all = [...module.namedModules()].filter(
    (named): named is [string, Linear] => named[1] instanceof Linear,
  );
  const paths = all.map(([path]) => path);
  const chosen = new Set(
    typeof targets === "function"
      ? all.flatMap(([path, layer]) => (targets(path, layer) ? [path] : []))
      : targetedPaths(`${where}.targets`, paths, targets),
  );
  if (chosen.size === 0) throw noTarget(`${where}.targets`, paths, []);
  const layers = all.filter(([path]) => chosen.has(path));
  for (const [path, layer] of layers) {
    if (Object.hasOwn(layer, "forward")) {
      throw expected(where, "layers without adapters", path, "Dispose of the other adapters first");
    }
  }
  return new Lora(module, layers, options);
}

/**
 * The policy without its adapters, sharing its weights: every call runs with the adapters off. It is the reference of a
 * KL divergence without a second copy of the weights. It returns no gradients, has no parameters, and cannot be used
 * after the adapters are removed.
 */
export class WithoutAdapters extends Module implements ArPolicy {
  readonly #policy: ArPolicy;
  readonly #lora: Lora;

  constructor(policy: ArPolicy, lora: Lora) {
    super();
    this.#policy = policy;
    this.#lora = lora;
  }

  get vocabSize(): number {
    return this.#policy.vocabSize;
  }

  get blockSize(): number {
    return this.#policy.blockSize;
  }

  get hiddenSize(): number {
    return this.#policy.hiddenSize;
  }

  get options(): object {
    return this.#policy.options;
  }

  get gradientCheckpointing(): boolean {
    return this.#policy.gradientCheckpointing;
  }

  /** Also switches the policy, so that `train` and `eval` reach its dropout. */
  override modules(): Module[] {
    return [this, ...this.#policy.modules()];
  }

  hidden(tokens: Tensor, condition: Condition): Tensor {
    return this.#lora.withAdaptersOff(() => this.#policy.hidden(tokens, condition));
  }

  logits(hidden: Tensor): Tensor {
    return this.#lora.withAdaptersOff(() => this.#policy.logits(hidden));
  }

  forward(tokens: Tensor, condition: Condition): Tensor {
    return this.#lora.withAdaptersOff(() => this.#policy.forward(tokens, condition));
  }

  nullCondition(condition: Condition): Condition {
    return this.#lora.withAdaptersOff(() => this.#policy.nullCondition(condition));
  }

  openCache(batch: number, options?: { maxLen?: number }): DecodeCache {
    return this.#policy.openCache(batch, options);
  }

  prefill(cache: DecodeCache, tokens: Tensor, condition: Condition): Tensor {
    return this.#lora.withAdaptersOff(() => this.#policy.prefill(cache, tokens, condition));
  }

  decode(cache: DecodeCache, token: Tensor): Tensor {
    return this.#lora.withAdaptersOff(() => this.#policy.decode(cache, token));
  }

  repeatCache(cache: DecodeCache, times: number, into?: DecodeCache): DecodeCache {
    return this.#policy.repeatCache(cache, times, into);
  }
}
