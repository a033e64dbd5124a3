/**
 * From names and files to parts: the one place that knows concrete tokenizers and policies. What it builds goes on
 * as interfaces.
 */
import { LPIPS, type LpipsNet, NLayerDiscriminator, recogniseMetricNetwork } from "../metrics/index.js";
import { AdamW, init, type Parameter } from "../nn/index.js";
import {
  type ArPolicy,
  buildPolicy,
  GPT,
  type GptOptions,
  LlamaGen,
  type LlamaGenOptions,
  type PolicyDescription,
  recognisePolicy,
} from "../policies/index.js";
import {
  buildTokenizer,
  buildTokenizerFrozen,
  type FrozenTokenizer,
  IBQ,
  type IBQArgs,
  ibqConfig,
  recogniseTokenizer,
  type TokenizerConfig,
  type TokenizerDescription,
  VQModel,
} from "../tokenizers/index.js";
import {
  type Device,
  type DType,
  expected,
  openWeights,
  requireDevice,
  type Tensor,
  type WeightsFile,
} from "../torch/index.js";

export { buildTokenizerFrozen };

/** Where a model goes, and which of a file's weights it takes. */
export interface OpenOptions {
  device?: Device;
  /** Key of the state dict in the file, where it holds several. */
  wrapper?: string;
  /** The running average of the weights, or the weights of the last step; the average where there is one. */
  weights?: "raw" | "ema";
}

/** What a file of weights was found to be. */
export type ModelDescription =
  | { readonly kind: "tokenizer"; readonly tokenizer: TokenizerDescription }
  | { readonly kind: "policy"; readonly policy: PolicyDescription }
  | { readonly kind: "metric"; readonly network: string };

/** Sizes that a file of ours states because shapes do not tell them. */
interface StatedSizes {
  nHead?: number;
  blockSize?: number;
  numClasses?: number;
}

/** What {@link describeWeights} may be told in place of finding it out. */
export interface DescribeOptions extends StatedSizes {
  weights?: "raw" | "ema";
  /** What the caller knows of a tokenizer; see {@link recogniseTokenizer}. */
  tokenizerConfig?: Partial<TokenizerConfig>;
}

/**
 * Say which model a file of weights holds, from its header alone.
 *
 * @returns null when it is none that is known here.
 * @throws RangeError when it is a known one that is not whole.
 */
export function describeWeights(file: WeightsFile, options: DescribeOptions = {}): ModelDescription | null {
  const { shapes } = file;
  const { weights, tokenizerConfig, ...sizes } = options;
  const stated = statedConfig(file);
  const network = recogniseMetricNetwork(shapes);
  if (network !== null) return { kind: "metric", network };
  // A transformer's file may hold its tokenizer as well, which then is the lesser part.
  const policy = recognisePolicy(shapes, { where: file.path, ...statedSizes(stated), ...sizes });
  if (policy !== null) return { kind: "policy", policy };
  const config = { ...(stated as Partial<TokenizerConfig>), ...tokenizerConfig };
  const tokenizer = recogniseTokenizer(shapes, { config, ...(weights && { weights }) });
  return tokenizer === null ? null : { kind: "tokenizer", tokenizer };
}

/** The configuration that `rlar convert` and the trainers write beside the weights. */
function statedConfig(file: WeightsFile): Record<string, unknown> {
  const text = file.metadata.config;
  if (text === undefined) return {};
  try {
    return JSON.parse(text) as Record<string, unknown>;
  } catch {
    throw expected(`${file.path}: metadata.config`, "JSON", text.slice(0, 40), "Convert the file again");
  }
}

function statedSizes(config: Record<string, unknown>): StatedSizes {
  const sizes: StatedSizes = {};
  const numClasses = config.numClasses ?? config.classNum;
  if (typeof config.nHead === "number") sizes.nHead = config.nHead;
  if (typeof config.blockSize === "number") sizes.blockSize = config.blockSize;
  if (typeof numClasses === "number") sizes.numClasses = numClasses;
  return sizes;
}

function wrongKind(
  path: string,
  wanted: string,
  found: ModelDescription | null,
  file: WeightsFile,
): RangeError {
  const names = file.names.slice(0, 3).join(", ");
  const got =
    found === null
      ? `${file.names.length} tensors of an unknown model (${names}, ...)`
      : found.kind === "metric"
        ? found.network
        : found.kind === "policy"
          ? `a policy (${found.policy.family})`
          : `a tokenizer (${found.tokenizer.name})`;
  return expected(path, wanted, got, "rlar inspect FILE shows what is in it");
}

/** A loaded tokenizer and what its file was found to be. */
export interface OpenedTokenizer {
  readonly tokenizer: FrozenTokenizer;
  readonly description: TokenizerDescription;
}

/**
 * Load a tokenizer from any file that holds one: IBQ, VQ-16, VQ-8, TokLIP, a trainer's file or safetensors.
 *
 * @throws RangeError when the file holds none, holds another than `options.config` says, or has non-finite weights.
 */
export function openTokenizer(
  path: string,
  options: OpenOptions & { config?: Partial<TokenizerConfig> } = {},
): OpenedTokenizer {
  const { device = "cpu", weights, config, wrapper } = options;
  requireDevice(device);
  using file = openWeights(path, wrapper === undefined ? {} : { wrapper });
  const stated = { ...(statedConfig(file) as Partial<TokenizerConfig>), ...config };
  const description = recogniseTokenizer(file.shapes, { config: stated, ...(weights && { weights }) });
  if (description === null) throw wrongKind(path, "a tokenizer", describeWeights(file), file);
  const model = buildTokenizer(description, (key) => file.tensor(key));
  return { tokenizer: buildTokenizerFrozen(model.to({ device })), description };
}

/** A loaded policy and what its file was found to be. */
export interface OpenedPolicy {
  readonly policy: ArPolicy;
  readonly description: PolicyDescription;
}

/**
 * Load a policy from any file that holds one, in training mode and with its parameters trainable.
 *
 * @param options.codebookSize - codes of the tokenizer it is to serve.
 * @throws RangeError when the file holds none, its vocabulary is another, or a weight is not finite.
 */
export function openPolicy(
  path: string,
  options: OpenOptions & StatedSizes & { codebookSize?: number; dtype?: DType } = {},
): OpenedPolicy {
  const { device = "cpu", wrapper, weights: _, codebookSize, dtype, ...sizes } = options;
  requireDevice(device);
  using file = openWeights(path, wrapper === undefined ? {} : { wrapper });
  const description = recognisePolicy(file.shapes, {
    where: path,
    ...statedSizes(statedConfig(file)),
    ...sizes,
  });
  if (description === null) throw wrongKind(path, "a policy", describeWeights(file), file);
  const policy = buildPolicy(description, (name) => file.tensor(name), {
    device,
    ...(codebookSize !== undefined && { codebookSize }),
    ...(dtype !== undefined && { dtype }),
  });
  return { policy, description };
}

/** `snake_case` keys of plain objects in camelCase, all the way down. */
function camelKeys(value: unknown): unknown {
  if (value === null || typeof value !== "object" || Array.isArray(value)) return value;
  if (Object.getPrototypeOf(value) !== Object.prototype) return value;
  const entries = Object.entries(value).map(([key, item]) => {
    return [key.replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase()), camelKeys(item)];
  });
  return Object.fromEntries(entries);
}

/** Arguments of {@link buildToklipTokenizer}, in camelCase or as published in snake_case. */
export type ToklipInitArgs = IBQArgs | { n_embed: number; [key: string]: unknown };

/**
 * Build a tokenizer from its published arguments and freeze it.
 *
 * With a checkpoint the architecture is read from the file and must agree with the arguments; the file may hold
 * IBQ, LlamaGen's VQ or TokLIP, and the average of its weights is taken where there is one, as for the published
 * reconstructions. Without a checkpoint the weights are random.
 *
 * @throws RangeError when the file is not what the arguments say.
 */
export function buildToklipTokenizer(
  initArgs: ToklipInitArgs,
  options: { ckptPath?: string; device?: Device } = {},
): FrozenTokenizer {
  const { ckptPath, device = "cpu" } = options;
  const args = camelKeys(initArgs) as IBQArgs;
  const { nEmbed, embedDim, l2Normalize = false } = args;
  if (!Number.isInteger(nEmbed)) throw expected("buildToklipTokenizer", "nEmbed, an integer", nEmbed);
  const asked: Partial<TokenizerConfig> = l2Normalize
    ? { lookup: "cosine", ...(embedDim !== undefined && { embedDim }) }
    : ibqArgsOfAny(args);
  if (ckptPath !== undefined) {
    return openTokenizer(ckptPath, { device, config: { codebookSize: nEmbed, ...asked } }).tokenizer;
  }
  requireDevice(device);
  const model = l2Normalize
    ? new VQModel({ codebookSize: nEmbed, ...(embedDim !== undefined && { codebookEmbedDim: embedDim }) })
    : new IBQ(args);
  return buildTokenizerFrozen(model.to({ device }));
}

function ibqArgsOfAny(args: IBQArgs): Partial<TokenizerConfig> {
  const { lookup: _, ...config } = ibqConfig(args);
  return config;
}

/** A policy to train and the optimizer of its parameters. */
export interface PolicyAndOptimizer<P extends ArPolicy = ArPolicy> {
  readonly policy: P;
  readonly optimizer: AdamW;
}

/** Constructor of a policy of the user's own. */
export type PolicyClass = new (options: never) => ArPolicy;

/** Which policy, how large, and how fast it learns. */
export interface ArConfig {
  /** `"llammagen"` is accepted for `"llamagen"`. */
  type: "gpt" | "llamagen" | "llammagen";
  /** A class of the user's own in place of the named one; it is given all options, `vocabSize` and `blockSize`. */
  cls?: PolicyClass;
  nLayer?: number;
  nHead?: number;
  nEmbd?: number;
  /** 2e-4. */
  lr?: number;
  weightDecay?: number;
  betas?: readonly [number, number];
  /** Further options of the class. */
  extra?: Record<string, unknown>;
  [option: string]: unknown;
}

/**
 * Build a policy with random weights, and AdamW for it.
 *
 * @param vocabSize - V, the tokenizer's codebook.
 * @param blockSize - most codes in a sequence.
 */
export function buildArPolicy(vocabSize: number, blockSize: number, arCfg: ArConfig): PolicyAndOptimizer {
  const cfg = camelKeys(arCfg) as ArConfig;
  const { type, cls, lr, weightDecay, betas, extra = {}, ...sizes } = cfg;
  const options = { ...sizes, ...extra, vocabSize, blockSize };
  let policy: ArPolicy;
  if (cls === LlamaGen) policy = new LlamaGen(llamaGenOptions(options));
  else if (cls !== undefined) policy = new cls(options as never);
  else if (type === "gpt") policy = new GPT(options as GptOptions);
  else if (type === "llamagen" || type === "llammagen") policy = new LlamaGen(llamaGenOptions(options));
  else throw expected("buildArPolicy", 'ar.type "gpt" or "llamagen"', type);
  return { policy, optimizer: optimizerOf(policy.parameters(), { lr, weightDecay, betas }) };
}

/** LlamaGen calls its width `dim`; `rope` is what it always has. */
function llamaGenOptions(options: Record<string, unknown>): LlamaGenOptions {
  const { nEmbd, rope, ...rest } = options;
  if (rope === false)
    throw expected("buildArPolicy", "extra.rope true for llamagen", false, 'Use type "gpt"');
  return { ...(nEmbd === undefined ? {} : { dim: nEmbd }), ...rest } as LlamaGenOptions;
}

function optimizerOf(
  params: Parameter[],
  options: {
    lr: number | undefined;
    weightDecay: number | undefined;
    betas: readonly [number, number] | undefined;
  },
): AdamW {
  const { lr = 2e-4, weightDecay, betas } = options;
  return new AdamW(params, {
    lr,
    ...(weightDecay !== undefined && { weightDecay }),
    ...(betas !== undefined && { betas }),
  });
}

/**
 * Build a minGPT-style policy, its code embeddings taken from the tokenizer's codebook when asked.
 *
 * @param cfg.usePretrainedCodebook - start from `cfg.codebook`, float32 `[V, C]`, with a projection to the width.
 */
export function buildGptPolicy(
  cfg: Omit<ArConfig, "type"> & { usePretrainedCodebook?: boolean; codebook?: Tensor },
  vocabSize: number,
  blockSize: number,
): PolicyAndOptimizer {
  return buildArPolicy(vocabSize, blockSize, { ...cfg, type: "gpt" });
}

/** Which LPIPS a recognised network is the backbone of. */
const LPIPS_NETS: Readonly<Record<string, LpipsNet>> = {
  "torchvision vgg16": "vgg",
  "torchvision alexnet": "alex",
  "torchvision squeezenet1_1": "squeeze",
  "LPIPS vgg": "vgg",
  "LPIPS alex": "alex",
  "LPIPS squeeze": "squeeze",
};

/**
 * LPIPS on a backbone of the user's: torchvision's VGG16, AlexNet or SqueezeNet 1.1, told by its shapes, with the
 * published heads unless the file has heads of its own.
 *
 * @throws RangeError when the file holds none of them.
 */
export function openLpips(path: string, options: { device?: Device } = {}): LPIPS {
  const { device = "cpu" } = options;
  requireDevice(device);
  using file = openWeights(path);
  const found = describeWeights(file);
  const net = found?.kind === "metric" ? LPIPS_NETS[found.network] : undefined;
  if (net === undefined) {
    throw wrongKind(path, "torchvision's VGG16, AlexNet or SqueezeNet 1.1", found, file);
  }
  const backbone = Object.fromEntries(
    file.names.map((name) => [name, { shape: file.info(name).shape, read: () => file.tensor(name) }]),
  );
  return new LPIPS({ net, backbone }).to({ device });
}

/**
 * PatchGAN's discriminator from a file of its own or from a tokenizer's training, under any of the usual prefixes.
 *
 * @throws RangeError when the file holds none: a score of random weights would say nothing.
 */
export function openDiscriminator(path: string, options: { device?: Device } = {}): NLayerDiscriminator {
  const { device = "cpu" } = options;
  requireDevice(device);
  for (const wrapper of [undefined, "discriminator"]) {
    using file = tryOpen(path, wrapper);
    if (file === null) continue;
    for (const prefix of ["", "discriminator.", "loss.discriminator."]) {
      const own = file.names
        .filter((name) => name.startsWith(prefix))
        .map((name) => name.slice(prefix.length));
      const shapes = Object.fromEntries(own.map((name) => [name, file.info(prefix + name).shape]));
      if (recogniseMetricNetwork(shapes) !== "PatchGAN discriminator") continue;
      const ndf = shapes["main.0.weight"]?.[0] ?? 0;
      const nLayers = own.filter((name) => name.endsWith(".running_mean")).length;
      const discriminator = new NLayerDiscriminator({ ndf, nLayers });
      const weights = own.map((name) => {
        return [name, { shape: shapes[name] ?? [], read: () => file.tensor(prefix + name) }] as const;
      });
      discriminator.loadStateDict(Object.fromEntries(weights));
      return discriminator.eval().requiresGrad_(false).to({ device });
    }
  }
  throw expected(
    path,
    "a PatchGAN discriminator (main.0.weight, ...)",
    "none",
    "rlar inspect FILE shows what is in it",
  );
}

function tryOpen(path: string, wrapper: string | undefined): WeightsFile | null {
  if (wrapper === undefined) return openWeights(path);
  try {
    return openWeights(path, { wrapper });
  } catch {
    return null; // the file has no such part: the caller says what was looked for
  }
}

/** A policy of the same kind with a copy of the weights of its own. */
export function clonePolicy(policy: ArPolicy): ArPolicy {
  const Policy = policy.constructor as PolicyClass;
  const copy = init.skipInit(() => new Policy(policy.options as never));
  copy.loadStateDict(policy.stateDict());
  const [first] = policy.parameters();
  return first === undefined ? copy : copy.to({ dtype: first.dtype, device: first.device as Device });
}

/**
 * Latents of images before quantisation, and the codebook's vectors of samples: what VA-pi's embedding reward compares.
 *
 * @param codes - int64 `[N, T]`.
 * @throws RangeError for a tokenizer of the user's own, whose latents are not known here.
 */
export function latentsOf(
  tokenizer: FrozenTokenizer,
  images: Tensor,
  codes: Tensor,
  grid: readonly [number, number],
): { images: Tensor; samples: Tensor } {
  const { vq } = tokenizer;
  if (!(vq instanceof IBQ || vq instanceof VQModel)) {
    throw expected("reward.latentCosine", "an IBQ or VQ tokenizer", vq, "Leave the term out");
  }
  return { images: vq.encodeLatent(images), samples: vq.quantize.getCodebookEntry(codes, grid) };
}
