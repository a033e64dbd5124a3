/**
 * From names and files to parts: the one place that knows concrete tokenizers and policies. What it builds goes on
 * as interfaces.
 */
import {
  type ClassifierConfig,
  type DiscriminatorOptions,
  FeatureClassifier,
  type FeatureNetwork,
  InceptionV3,
  inceptionClasses,
  LPIPS,
  type LpipsNet,
  NLayerDiscriminator,
  PerceptualDistance,
  recogniseMetricNetwork,
} from "../metrics/index.js";
import { AdamW, init, type Module, type Parameter } from "../nn/index.js";
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
  createTokenizer,
  type FrozenTokenizer,
  IBQ,
  type IBQArgs,
  ibqConfig,
  recogniseTokenizer,
  TOKENIZER_PRESETS,
  type TokenizerConfig,
  type TokenizerDescription,
  type TokenizerModel,
  type TokenizerPreset,
  VQModel,
} from "../tokenizers/index.js";
import {
  arange,
  type Device,
  type DType,
  expected,
  noGrad,
  openWeights,
  requireDevice,
  type Tensor,
  tidy,
  type WeightsFile,
} from "../torch/index.js";
import {
  describeWeights,
  type StatedSizes,
  statedConfig,
  statedSizes,
  wrongKind,
} from "./describe_weights.js";

export { addLora, WithoutAdapters } from "../policies/index.js";
export { type DescribeOptions, describeWeights, type ModelDescription } from "./describe_weights.js";
export { buildTokenizerFrozen };

/** Where a model goes, and which of a file's weights it takes. */
export interface OpenOptions {
  device?: Device;
  /** Key of the state dict in the file, where it holds several. */
  wrapper?: string;
  /** The running average of the weights, or the weights of the last step; the average where there is one. */
  weights?: "raw" | "ema";
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

/** A tokenizer with random weights: a named one, with sizes of its own where `changes` has them. */
export function buildTokenizerModel(
  preset: TokenizerPreset,
  changes: Partial<TokenizerConfig> = {},
): TokenizerModel {
  const base = TOKENIZER_PRESETS[preset];
  // Attention is at the lowest resolution, however many there are.
  const attnLevels = [(changes.chMult ?? base.chMult).length - 1];
  return createTokenizer({ ...base, attnLevels, ...changes });
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

/** A classifier of random weights, to train. */
export function buildClassifier(config: ClassifierConfig): FeatureClassifier {
  return new FeatureClassifier(config);
}

/**
 * A classifier that `rlar classifier` trained, frozen. Its `name` has the path, for the numbers that it gives.
 *
 * @throws RangeError when the file holds none, or a weight is not finite.
 */
export function openClassifier(path: string, options: { device?: Device } = {}): FeatureClassifier {
  const { device = "cpu" } = options;
  requireDevice(device);
  using file = openWeights(path);
  const found = describeWeights(file);
  if (found?.kind !== "classifier") throw wrongKind(path, "a classifier of rlar classifier", found, file);
  const model = init.skipInit(() => new FeatureClassifier(found.config));
  loadFinite(model, file);
  model.name = `classifier of ${found.config.numClasses} classes (${path})`;
  return model.eval().requiresGrad_(false).to({ device });
}

/** Fill a module from a file, all of it. */
function loadFinite(model: Module, file: WeightsFile): void {
  const weights = file.names.map((name) => {
    return [name, { shape: file.info(name).shape, read: () => file.tensor(name) }] as const;
  });
  model.loadStateDict(Object.fromEntries(weights));
  for (const [name, value] of Object.entries(model.stateDict())) {
    if (tidy(() => value.isfinite().all().item()) === 1) continue;
    throw expected(`${file.path}: ${name}`, "finite weights", "some that are not", "Take another checkpoint");
  }
}

/**
 * A network whose features describe images, told by its file: a classifier of `rlar classifier`, or Inception v3 with
 * the weights of published FIDs or torchvision's. Its `name` says which.
 *
 * @throws RangeError when the file holds none, or a weight is not finite.
 */
export function openFeatureNetwork(
  path: string,
  options: { device?: Device } = {},
): FeatureNetwork & Disposable {
  const { device = "cpu" } = options;
  requireDevice(device);
  using file = openWeights(path);
  const found = describeWeights(file);
  if (found?.kind === "classifier") return openClassifier(path, options);
  const numClasses = inceptionClasses(file.shapes);
  if (numClasses === null) {
    throw wrongKind(path, "a classifier of rlar classifier, or Inception v3", found, file);
  }
  const model = init.skipInit(() => new InceptionV3(numClasses));
  loadFinite(model, file);
  return model.to({ device });
}

/** The perceptual distance in the features of a classifier's file; see {@link openClassifier}. */
export function openPerceptual(path: string, options: { device?: Device } = {}): PerceptualDistance {
  return new PerceptualDistance(openClassifier(path, options));
}

/** A network that says how far apart images look, told by its file: LPIPS, or the distance of a classifier. */
export function openDistance(
  path: string,
  options: { device?: Device } = {},
): { name: "lpips" | "perceptual"; network: LPIPS | PerceptualDistance } {
  using file = openWeights(path);
  if (describeWeights(file)?.kind !== "classifier") {
    return { name: "lpips", network: openLpips(path, options) };
  }
  // Batches of a data set are in range, however bright.
  const network = new PerceptualDistance(openClassifier(path, options), { checkRange: false });
  return { name: "perceptual", network };
}

/** PatchGAN's discriminator with random weights, to train. */
export function buildDiscriminator(options: DiscriminatorOptions): NLayerDiscriminator {
  return new NLayerDiscriminator(options);
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
 * What a policy needs to start from a tokenizer's codebook: its rows as the decoder reads them, float32 `[V, C]`.
 *
 * @throws RangeError for a tokenizer of the user's own, whose codebook is not known here.
 */
export function codebookOf(tokenizer: FrozenTokenizer): { codebook: Tensor; nCodebookEmbd: number } {
  const { vq, codebookSize } = tokenizer;
  if (!(vq instanceof IBQ || vq instanceof VQModel)) {
    const remedy = "Leave usePretrainedCodebook out";
    throw expected("ar.extra.usePretrainedCodebook", "an IBQ or VQ tokenizer", vq, remedy);
  }
  const codebook = noGrad(() =>
    tidy(() => {
      const device = vq.parameters()[0]?.device as Device;
      const codes = arange(0, codebookSize, 1, { device }).unsqueeze(0);
      return vq.quantize
        .getCodebookEntry(codes, [1, codebookSize])
        .flatten(2)
        .select(0, 0)
        .transpose(0, 1)
        .float();
    }),
  );
  return { codebook, nCodebookEmbd: codebook.size(1) };
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
