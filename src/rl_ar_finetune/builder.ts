/**
 * Builds tokenizers, policies and networks from names and files. Only this file names concrete tokenizers and policies; it returns
 * interfaces.
 */
import { rlarCommand } from "../config/command.js";
import {
  type ClassifierConfig,
  type DiscriminatorOptions,
  FeatureClassifier,
  type FeatureNetwork,
  InceptionV3,
  LPIPS,
  type LpipsNet,
  NLayerDiscriminator,
  PerceptualDistance,
} from "../metrics/index.js";
import { AdamW, init, type Module, type Readable } from "../nn/index.js";
import {
  type ArPolicy,
  buildPolicy,
  GPT,
  type GptOptions,
  LlamaGen,
  type LlamaGenOptions,
  type PolicyDescription,
  type PolicySizes,
} from "../policies/index.js";
import {
  buildTokenizer,
  buildTokenizerFrozen,
  createTokenizer,
  type FrozenTokenizer,
  IBQ,
  IBQ_ARG_NAMES,
  type IBQArgs,
  ibqConfig,
  TOKENIZER_PRESETS,
  type TokenizerConfig,
  type TokenizerDescription,
  type TokenizerModel,
  type TokenizerPreset,
  VQModel,
  vqConfig,
} from "../tokenizers/index.js";
import {
  arange,
  camelCase,
  type Device,
  type DType,
  expected,
  linspace,
  noGrad,
  openWeights,
  readOptions,
  requireDevice,
  requireObject,
  type Tensor,
  tidy,
  type WeightsFile,
} from "../torch/index.js";
import {
  type NetworkPart,
  networksIn,
  type OpenedModel,
  openModel,
  requireWeights,
  type WeightsChoice,
  wrongKind,
} from "./describe_weights.js";

export { addLora, WithoutAdapters } from "../policies/index.js";
export {
  type DescribeOptions,
  describeWeights,
  type ModelDescription,
  type OpenedModel,
  openModel,
  policyMetadata,
  usedBy,
  usedNames,
  type WeightsChoice,
  weightsOf,
} from "./describe_weights.js";
export { buildTokenizerFrozen };

/** The device of a model, and which weights of a file it uses. */
export interface OpenOptions extends WeightsChoice {
  device?: Device;
}

/** A loaded tokenizer and the description of its file. */
export interface OpenedTokenizer {
  readonly tokenizer: FrozenTokenizer;
  readonly description: TokenizerDescription;
  /** Which weights were used, if the file has several. */
  readonly notes: readonly string[];
}

/** Options of {@link openTokenizer}. */
export interface OpenTokenizerOptions extends OpenOptions {
  /** Values that shapes do not show, such as `lookup: "l2"` for taming's VQGAN. Values that shapes show must agree with them. */
  config?: Partial<TokenizerConfig>;
}

/**
 * Load a tokenizer from any file that holds one: IBQ, VQ-16, VQ-8, TokLIP, a trainer's file or safetensors.
 *
 * @param given - {@link OpenTokenizerOptions}.
 * @throws RangeError when the file holds none, holds another than `config` says, or has weights that are not finite or
 *   so large that its results are not.
 */
export function openTokenizer(path: string, ...given: [options?: OpenTokenizerOptions]): OpenedTokenizer {
  const {
    device = "cpu",
    config,
    ...choice
  } = readOptions<OpenTokenizerOptions>("openTokenizer", given, {
    names: { device: true, wrapper: true, weights: true, config: true },
  });
  requireDevice(device);
  using opened = openModel(path, { ...choice, ...(config && { tokenizerConfig: config }) });
  const { file, found } = opened;
  if (found?.kind !== "tokenizer") throw wrongKind("a tokenizer", found, file);
  const { tokenizer: description } = found;
  const model = buildTokenizer(description, (name) => file.tensor(name), path);
  const tokenizer = orFreed(buildTokenizerFrozen(model), () => {
    model.to({ device });
    requireUsable(path, () => {
      const image = testImage(2 * model.downsample, device, model.config.inChannels);
      const latents = model.encodeLatent(image);
      const images = model.decodeCode(model.quantize.codesOf(latents), [2, 2]);
      // Codes are compared by sums of squares and products.
      return [latents.square().sum(), model.quantize.table().square().sum(), images];
    });
  });
  return { tokenizer, description, notes: opened.notes };
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

/** A loaded policy and the description of its file. */
export interface OpenedPolicy {
  readonly policy: ArPolicy;
  readonly description: PolicyDescription;
  /** Assumptions, and which weights were used if the file has several. */
  readonly notes: readonly string[];
}

/** Options of {@link openPolicy}. The sizes are needed if the file does not state them. */
export interface OpenPolicyOptions extends OpenOptions, PolicySizes {
  /** Codes of the tokenizer that the policy is to serve. */
  codebookSize?: number;
  /** float32 where omitted. */
  dtype?: DType;
  /** Sizes to assume where neither the caller nor the file tells; a note in the description says so. */
  assume?: PolicySizes;
}

/**
 * Load a policy from any file that holds one, in training mode and with its parameters trainable.
 *
 * @param given - {@link OpenPolicyOptions}.
 * @throws RangeError when the file holds none, when its vocabulary is another, when nothing tells the number of heads or
 *   codes, or when a weight is not finite.
 */
export function openPolicy(path: string, ...given: [options?: OpenPolicyOptions]): OpenedPolicy {
  const options = readOptions<OpenPolicyOptions>("openPolicy", given, {
    names: {
      device: true,
      wrapper: true,
      weights: true,
      codebookSize: "number",
      dtype: true,
      assume: true,
      nHead: "number",
      blockSize: "number",
      numClasses: "number",
    },
  });
  const { device = "cpu", codebookSize, dtype, ...choice } = options;
  requireDevice(device);
  using opened = openModel(path, choice);
  const { file, found } = opened;
  if (found?.kind !== "policy") throw wrongKind("a policy", found, file);
  const { policy: description } = found;
  const policy = buildPolicy(description, (name) => file.tensor(name), {
    device,
    ...(codebookSize !== undefined && { codebookSize }),
    ...(dtype !== undefined && { dtype }),
  });
  return { policy, description, notes: opened.notes };
}

/** A network that `prepare` has made ready; freed if it fails. */
const orFreed = <N extends Disposable>(network: N, prepare: () => void): N =>
  freedOnError(network, () => {
    prepare();
    return network;
  });

/** What is made with a network, which is freed where that fails. */
export function freedOnError<T>(network: Disposable, make: () => T): T {
  try {
    return make();
  } catch (error) {
    network[Symbol.dispose]();
    throw error;
  }
}

/**
 * Check what a network makes of a test image.
 *
 * @throws RangeError when a result is not finite: the weights are, but so large that results overflow.
 */
function requireUsable(path: string, results: () => Tensor[]): void {
  const areFinite = noGrad(() =>
    tidy(() => results().every((result) => result.isfinite().all().item() === 1)),
  );
  if (areFinite) return;
  const remedy = "Its weights are too large, or damaged: take another checkpoint";
  throw expected(path, "finite results for a test image", "NaN or infinity", remedy);
}

/**
 * A ramp over [0, 1]: float32 `[1, channels, side, side]`. No random number is drawn for it, and no value below 0 makes
 * a range check believe that it has seen images in [-1, 1].
 */
function testImage(side: number, device: Device, channels = 3): Tensor {
  return linspace(0, 1, channels * side * side, { device }).reshape(1, channels, side, side);
}

/** Arguments of {@link buildToklipTokenizer}, in camelCase or as published in snake_case. */
export type ToklipInitArgs = IBQArgs | { n_embed: number; [key: string]: unknown };

/** Options of {@link buildToklipTokenizer}; `ckpt_path` is taken too. */
export interface ToklipOptions {
  /** File of the weights; random ones where omitted. */
  ckptPath?: string;
  device?: Device;
}

/**
 * Build a tokenizer from its published arguments and freeze it.
 *
 * With a checkpoint the architecture is read from the file and must agree with the arguments; the file may hold IBQ,
 * LlamaGen's VQ or TokLIP. `useEma: true` takes the EMA of its weights, `false` the raw weights; where omitted, the
 * EMA if the file has one. Without a checkpoint the weights are random.
 *
 * @param initArgs - of {@link IBQ}. `l2Normalize: true` makes a {@link VQModel}, with the sizes of `ddconfig` where given.
 * @param given - {@link ToklipOptions}, or `ckptPath` and `device` as values.
 * @throws RangeError for an unknown argument, and when the file is not what the arguments say.
 */
export function buildToklipTokenizer(
  initArgs: ToklipInitArgs,
  ...given: [options?: ToklipOptions] | [ckptPath: string | null | undefined, device?: Device]
): FrozenTokenizer {
  const where = "buildToklipTokenizer";
  const options = readOptions<ToklipOptions>(where, given, {
    names: { ckptPath: true, device: true },
    order: ["ckptPath", "device"],
  });
  const args = readOptions<IBQArgs>(where, [initArgs], { names: IBQ_ARG_NAMES });
  const { nEmbed, embedDim, l2Normalize = false, useEma, ...rest } = args;
  const { device = "cpu" } = options;
  if (options.ckptPath !== undefined && args.ckptPath !== undefined) {
    throw expected(where, "ckptPath once", "it in the arguments and in the options");
  }
  const ckptPath = options.ckptPath ?? args.ckptPath;
  if (!Number.isInteger(nEmbed)) throw expected(where, "nEmbed, an integer", nEmbed);
  const { lookup: _, ...sizes } = ibqConfig({ ...rest, nEmbed, ...(embedDim !== undefined && { embedDim }) });
  const asked: Partial<TokenizerConfig> = { ...sizes, ...(l2Normalize && { lookup: "cosine" }) };
  if (ckptPath !== undefined) {
    const weights = useEma === undefined ? {} : ({ weights: useEma ? "ema" : "raw" } as const);
    return openTokenizer(ckptPath, { device, config: asked, ...weights }).tokenizer;
  }
  requireDevice(device);
  const model = l2Normalize
    ? new VQModel({ ...vqConfig({ codebookSize: nEmbed }), ...asked })
    : new IBQ({ ...rest, nEmbed, ...(embedDim !== undefined && { embedDim }) });
  return buildTokenizerFrozen(model.to({ device }));
}

/** A policy to train and the optimizer of its parameters. */
export interface PolicyAndOptimizer<P extends ArPolicy = ArPolicy> {
  readonly policy: P;
  readonly optimizer: AdamW;
}

/** Constructor of a program's own policy class. */
export type PolicyClass = new (options: never) => ArPolicy;

/** What the optimizer of a new policy is given. */
interface ArOptimizerConfig {
  /** 2e-4. */
  lr?: number;
  weightDecay?: number;
  betas?: readonly [number, number];
}

/** Which policy, how large, and how fast it learns. Options of its class may stand here or in `extra`. */
export interface ArConfig extends ArOptimizerConfig {
  /** `"llammagen"` is accepted for `"llamagen"`. */
  type: "gpt" | "llamagen" | "llammagen";
  /** A program's own class in place of the named one; it is given all options, `vocabSize` and `blockSize`. */
  cls?: PolicyClass;
  nLayer?: number;
  nHead?: number;
  nEmbd?: number;
  /** Further options of the class. */
  extra?: Record<string, unknown>;
  [option: string]: unknown;
}

/**
 * Build a policy with random weights, and AdamW for it.
 *
 * @param vocabSize - V, the tokenizer's codebook.
 * @param blockSize - most codes in a sequence.
 * @throws RangeError for an option that the policy's class does not know, and for `usePretrainedCodebook` without the
 *   codebook.
 */
export function buildArPolicy(vocabSize: number, blockSize: number, arCfg: ArConfig): PolicyAndOptimizer {
  return buildNewPolicy("buildArPolicy", vocabSize, blockSize, arCfg);
}

function buildNewPolicy(
  where: string,
  vocabSize: number,
  blockSize: number,
  arCfg: ArConfig,
): PolicyAndOptimizer {
  requireObject(`${where}: arCfg`, arCfg, 'a configuration such as { type: "gpt", nLayer: 12 }');
  const { type, cls, lr, weightDecay, betas, extra = {}, ...sizes } = camelKeys(arCfg) as ArConfig;
  const options = { ...sizes, ...(camelKeys(extra) as Record<string, unknown>) };
  for (const name of ["vocabSize", "blockSize"]) {
    if (!Object.hasOwn(options, name)) continue;
    throw expected(where, `${name} as an argument`, `it in the configuration`, "Leave it out there");
  }
  const optimizer = {
    ...(lr !== undefined && { lr }),
    ...(weightDecay !== undefined && { weightDecay }),
    ...(betas !== undefined && { betas }),
  };
  const Policy =
    cls ?? (type === "gpt" ? GPT : type === "llamagen" || type === "llammagen" ? LlamaGen : null);
  if (Policy === null) throw expected(where, 'ar.type "gpt" or "llamagen"', type);
  const policy = newPolicy(where, Policy, { ...options, vocabSize, blockSize });
  return { policy, optimizer: new AdamW(policy.parameters(), { lr: 2e-4, ...optimizer }) };
}

function newPolicy(where: string, Policy: PolicyClass, options: Record<string, unknown>): ArPolicy {
  if (Policy === LlamaGen) return new LlamaGen(llamaGenOptions(where, options));
  if (Policy === GPT) {
    const { usePretrainedCodebook, codebook } = options as unknown as GptOptions;
    if (usePretrainedCodebook && codebook === undefined) {
      const remedy = "Pass codebook, float32 [V, C]: codebookOf(tokenizer) gives that of a tokenizer";
      throw expected(where, "a codebook where usePretrainedCodebook is true", "none", remedy);
    }
  }
  return new Policy(options as never);
}

/** LlamaGen calls its width `dim`; `rope` is what it always has. */
function llamaGenOptions(where: string, options: Record<string, unknown>): LlamaGenOptions {
  const { nEmbd, rope, ...rest } = options;
  if (rope !== undefined && rope !== true) {
    throw expected(where, "extra.rope true for llamagen", rope, 'Use type "gpt" for learned positions');
  }
  if (nEmbd !== undefined && rest.dim !== undefined && nEmbd !== rest.dim) {
    throw expected(where, "one width", `nEmbd ${nEmbd} and dim ${rest.dim}`, "Leave one of them out");
  }
  return { ...(nEmbd === undefined ? {} : { dim: nEmbd }), ...rest } as LlamaGenOptions;
}

/** Keys of an object in camelCase. */
function camelKeys(value: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const given = Object.entries(value).filter(([, item]) => item !== undefined && item !== null);
  const entries = given.map(([key, item]) => [camelCase(key), item] as const);
  const twice = entries.find(([key], i) => entries.findIndex(([other]) => other === key) !== i);
  if (twice !== undefined) throw expected("ar", `${twice[0]} once`, "it in two spellings");
  return Object.fromEntries(entries);
}

/** Options of {@link buildGptPolicy}. */
export interface GptConfig extends Omit<ArConfig, "type"> {
  /** Start from `codebook`, with a projection to the policy's width. */
  usePretrainedCodebook?: boolean;
  /** float32 `[V, C]`, such as {@link codebookOf} gives. */
  codebook?: Tensor;
}

/**
 * Build a minGPT-style policy and AdamW for it, its code embeddings taken from the tokenizer's codebook when asked.
 *
 * @throws RangeError as {@link buildArPolicy} does.
 */
export function buildGptPolicy(cfg: GptConfig, vocabSize: number, blockSize: number): PolicyAndOptimizer {
  requireObject("buildGptPolicy: cfg", cfg, "a configuration such as { nLayer: 12 }");
  return buildNewPolicy("buildGptPolicy", vocabSize, blockSize, { ...cfg, type: "gpt" });
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

/** Options of the functions that open a metric's network. */
export interface OpenNetworkOptions {
  device?: Device;
}

function readDevice(where: string, given: readonly unknown[]): Device {
  const { device = "cpu" } = readOptions<OpenNetworkOptions>(where, given, { names: { device: true } });
  requireDevice(device);
  return device;
}

/** The weights of a network in a file, each read when it is asked for. */
function weightsIn(
  file: WeightsFile,
  { used, shapes }: Pick<NetworkPart, "used" | "shapes">,
): Record<string, Readable> {
  requireWeights(file, Object.values(used));
  return Object.fromEntries(
    Object.entries(used).map(([key, name]) => {
      const read = (): Tensor => finiteFloats(`${file.path}: ${name}`, file.tensor(name));
      return [key, { shape: shapes[key] as readonly number[], read }];
    }),
  );
}

/** Weights as float32, in which a number may overflow that was finite in the file. */
function finiteFloats(where: string, tensor: Tensor): Tensor {
  const own = tensor.dtype.includes("float") ? tensor.float() : tensor;
  if (tidy(() => own.isfinite().all().item()) === 1) return own;
  throw expected(where, "finite weights", "NaN or infinity", "The file is damaged, or its training diverged");
}

/**
 * LPIPS on a backbone from a file: torchvision's VGG16, AlexNet or SqueezeNet 1.1, recognised by its shapes, with the
 * published heads unless the file has heads of its own. A VQGAN's training file, which holds it, is taken too.
 *
 * @throws RangeError when the file holds none of them, or weights that are not finite or too large.
 */
export function openLpips(path: string, ...given: [options?: OpenNetworkOptions]): LPIPS {
  const device = readDevice("openLpips", given);
  using opened = openModel(path);
  const { file, found } = opened;
  const parts = networksIn(file).flatMap((part) => {
    const net = part.network === null ? undefined : LPIPS_NETS[part.network];
    return net === undefined ? [] : [{ net, part }];
  });
  const [only] = parts;
  if (only === undefined) throw wrongKind("torchvision's VGG16, AlexNet or SqueezeNet 1.1", found, file);
  const lpips = new LPIPS({ net: only.net, backbone: weightsIn(file, only.part) });
  return orFreed(lpips, () => {
    lpips.to({ device });
    requireUsable(path, () => {
      const image = testImage(64, device);
      return [lpips.forward(image, image.neg())];
    });
  });
}

/** A classifier of random weights, to train. */
export function buildClassifier(config: ClassifierConfig): FeatureClassifier {
  return new FeatureClassifier(config);
}

/**
 * A classifier that `rlar classifier` trained, frozen. Its `name` has the path, for the numbers that it gives.
 *
 * @throws RangeError when the file holds none, or weights that are not finite or too large.
 */
export function openClassifier(path: string, ...given: [options?: OpenNetworkOptions]): FeatureClassifier {
  const device = readDevice("openClassifier", given);
  using opened = openModel(path);
  return classifierOf(path, opened, device);
}

function classifierOf(path: string, { file, found }: OpenedModel, device: Device): FeatureClassifier {
  if (found?.kind !== "classifier") throw wrongKind("a classifier of rlar classifier", found, file);
  const model = init.skipInit(() => new FeatureClassifier(found.config));
  model.name = `classifier of ${found.config.numClasses} classes (${path})`;
  return filled(path, model, file, found.used, device);
}

/** A frozen network with the weights of a file, tried on a test image. */
function filled<N extends Module & FeatureNetwork>(
  path: string,
  model: N,
  file: WeightsFile,
  used: Readonly<Record<string, string>>,
  device: Device,
): N {
  const shapes = Object.fromEntries(Object.entries(used).map(([key, name]) => [key, file.info(name).shape]));
  return orFreed(model, () => {
    model.loadStateDict(weightsIn(file, { used, shapes }));
    model.eval().requiresGrad_(false).to({ device });
    requireUsable(path, () => {
      const { features, probabilities } = model.describe(testImage(64, device));
      return [features, probabilities];
    });
  });
}

/**
 * A network whose features describe images, recognised by its file: a classifier of `rlar classifier`, or Inception v3 with
 * the weights of published FIDs or torchvision's. Its `name` says which.
 *
 * @throws RangeError when the file holds none, or weights that are not finite or too large.
 */
export function openFeatureNetwork(
  path: string,
  ...given: [options?: OpenNetworkOptions]
): FeatureNetwork & Disposable {
  const device = readDevice("openFeatureNetwork", given);
  using opened = openModel(path);
  const { file, found } = opened;
  if (found?.kind === "classifier") return classifierOf(path, opened, device);
  if (found?.kind !== "metric" || !found.network.startsWith("Inception v3")) {
    throw wrongKind("a classifier of rlar classifier, or Inception v3", found, file);
  }
  const classes = file.info(found.used["fc.weight"] as string).shape[0] as number;
  const model = init.skipInit(() => new InceptionV3(classes));
  return filled(path, model, file, found.used, device);
}

/** The perceptual distance in the features of a classifier's file; see {@link openClassifier}. */
export function openPerceptual(path: string, ...given: [options?: OpenNetworkOptions]): PerceptualDistance {
  return new PerceptualDistance(openClassifier(path, { device: readDevice("openPerceptual", given) }));
}

/** A network for a perceptual distance, recognised by its file: LPIPS, or the distance of a classifier. */
export function openDistance(
  path: string,
  ...given: [options?: OpenNetworkOptions]
): { name: "lpips" | "perceptual"; network: LPIPS | PerceptualDistance } {
  const device = readDevice("openDistance", given);
  {
    using opened = openModel(path);
    if (opened.found?.kind !== "classifier") return { name: "lpips", network: openLpips(path, { device }) };
  }
  // Batches of a data set are in range, however bright.
  const network = new PerceptualDistance(openClassifier(path, { device }), { checkRange: false });
  return { name: "perceptual", network };
}

/** PatchGAN's discriminator with random weights, to train. */
export function buildDiscriminator(options: DiscriminatorOptions): NLayerDiscriminator {
  return new NLayerDiscriminator(options);
}

/**
 * PatchGAN's discriminator from a file of its own or from a tokenizer's training, under any prefix.
 *
 * @throws RangeError when the file holds none, or weights that are not finite or too large.
 */
export function openDiscriminator(
  path: string,
  ...given: [options?: OpenNetworkOptions]
): NLayerDiscriminator {
  const device = readDevice("openDiscriminator", given);
  for (const wrapper of [undefined, "discriminator"]) {
    using file = tryOpen(path, wrapper);
    const part = file && networksIn(file).find(({ network }) => network === "PatchGAN discriminator");
    if (!file || !part) continue;
    const ndf = part.shapes["main.0.weight"]?.[0] ?? 0;
    const nLayers = Object.keys(part.shapes).filter((name) => name.endsWith(".running_mean")).length;
    const discriminator = new NLayerDiscriminator({ ndf, nLayers });
    return orFreed(discriminator, () => {
      discriminator.loadStateDict(weightsIn(file, part));
      discriminator.eval().requiresGrad_(false).to({ device });
      requireUsable(path, () => [discriminator.score(testImage(8 * 2 ** nLayers, device))]);
    });
  }
  throw expected(
    path,
    "a PatchGAN discriminator (main.0.weight, ...)",
    "none",
    `${rlarCommand(["inspect", path])} shows what is in it`,
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
 * @throws RangeError for a program's own tokenizer, whose codebook is not accessible.
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
 * @throws RangeError for a program's own tokenizer, whose latents are not accessible.
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
