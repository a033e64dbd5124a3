/**
 * Builds the parts of a run from its configuration: tokenizer, policy, reference, optimizer, EMA, reward, images. `train_loop.ts`
 * uses them.
 */

import type { ArSection, Precision, TrainConfig } from "../config/resolve.js";
import { localRank } from "../distributed/index.js";
import { AdamW, Ema, Module, type PackedLayers, type ParameterGroup } from "../nn/index.js";
import type { ArPolicy, Lora } from "../policies/index.js";
import { openImages, type RunImages } from "../run/images.js";
import { fingerprintOf, weightsFingerprint } from "../run/resume.js";
import type { FrozenTokenizer } from "../tokenizers/index.js";
import {
  type AutocastState,
  allowTf32,
  cudaDeviceCount,
  type Device,
  type DType,
  deriveSeed,
  expected,
  isCudaAvailable,
  manualSeed,
  requireDevice,
  setNumThreads,
  type Tensor,
  tidy,
  zeros,
} from "../torch/index.js";
import { type Own, owning } from "../torch/owning.js";
import {
  addLora,
  buildArPolicy,
  buildTokenizerFrozen,
  codebookOf,
  openDiscriminator,
  openLpips,
  openPerceptual,
  openPolicy,
  openTokenizer,
  WithoutAdapters,
} from "./builder.js";
import { openCodeVectors } from "./code_distance.js";
import { CodeFrequency } from "./code_frequency.js";
import { openEncoderTerms } from "./encoder_rewards.js";
import { openKernelTerm } from "./kernel_reward.js";
import { ValueHead } from "./optimize.js";
import { openCustomTerms } from "./own_rewards.js";
import { openReference } from "./reference.js";
import { openServerTerms } from "./reward_server.js";
import {
  latentCosineTerm,
  patchGanTerm,
  type ReconstructionType,
  reconstructionTerm,
  type Term,
  unrewardedTerm,
} from "./rewards.js";

/** Everything that a run works with. Disposing of it frees what was opened or built, not what a program passed in. */
export interface RunParts extends RunImages, Disposable {
  readonly device: Device;
  readonly tokenizer: FrozenTokenizer;
  readonly policy: ArPolicy;
  /** Adapters of the policy, which are trained in place of its weights; null without `ar.lora`. */
  readonly lora: Lora | null;
  /** The module whose weights the optimizer updates and the EMA follows, beside a value head: the adapters, or the policy. */
  readonly trained: Module;
  /**
   * The policy that KL is measured against, frozen but for `kl.refreshEvery`; null, and not loaded, if no KL is measured.
   */
  readonly reference: ArPolicy | null;
  /** Fingerprints of the weights that are used and not trained, by what they are: tokenizer, reward networks, reference. */
  readonly frozen: Readonly<Record<string, string>>;
  readonly valueHead: ValueHead | null;
  readonly optimizer: AdamW;
  readonly ema: Ema | null;
  /** `steer.yaml` may change their weights. */
  terms: readonly Term[];
  /** float `[V, D]`: codes as points, for `update.codeDistance`; null without it. */
  readonly codeVectors: Tensor | null;
  /** Counts of drawn and true codes, for `update.codeFrequency`; null without it. */
  readonly codeFrequency: CodeFrequency | null;
  /** The distance of `eval.perceptual`, which no reward uses; null where there is none. */
  readonly unrewarded: Term | null;
  /** What the policy computes in, or null for its own dtype. */
  readonly policyCast: AutocastState | null;
  /** Type for packed weights while codes are drawn one by one; null where nothing is packed. */
  readonly packAs: DType | null;
  /** The decoder's convolutions in bfloat16; null where they compute in float32. */
  readonly narrowDecoder: PackedLayers | null;
}

/** bfloat16 where asked for, or on CUDA where it is left open. */
export function castOf(precision: Precision, device: Device): AutocastState | null {
  const isCuda = device.startsWith("cuda");
  if (precision === "float32" || (precision === "auto" && !isCuda)) return null;
  return { device: isCuda ? "cuda" : "cpu", dtype: "bfloat16" };
}

/**
 * The device that is asked for; `auto` is CUDA where there is one. Of several processes on a machine each takes the GPU of
 * its local rank, unless the launcher shows it one alone.
 */
export function deviceOf(config: { readonly train: { readonly device: string } }): Device {
  const { device } = config.train;
  const isCuda = device === "cuda" || (device === "auto" && isCudaAvailable());
  if (!isCuda) return device === "auto" ? "cpu" : (device as Device);
  return localRank() === 0 || cudaDeviceCount() === 1 ? "cuda" : `cuda:${localRank()}`;
}

/**
 * Open and build all parts.
 *
 * @throws RangeError that names the part that cannot be opened, and what to do; parts opened before are freed.
 */
export async function openRunParts(config: TrainConfig): Promise<RunParts> {
  return owning((own) => openOwned(config, own));
}

/** @param own - is given every part that the run has to free, in the order in which they are made. */
async function openOwned(config: TrainConfig, own: Own): Promise<Omit<RunParts, typeof Symbol.dispose>> {
  const device = deviceOf(config);
  requireDevice(device);
  if (config.train.threads !== null) setNumThreads(config.train.threads);
  // Weights that no file gives are drawn from the default generator.
  manualSeed(deriveSeed(config.seed, "init"));
  const notes: string[] = [];
  const tokenizer = tokenizerOf(config, device, notes);
  if (config.tokenizer.model === null) own(tokenizer);
  const side = config.data.size / tokenizer.downsample;
  if (!Number.isInteger(side)) {
    throw expected(
      "data.size",
      `a multiple of ${tokenizer.downsample}, the pixels of a code`,
      config.data.size,
    );
  }
  // A loader's images have the size that it gives them.
  const isLoader = config.dataloader !== null;
  const codes = isLoader ? (config.rollout.maxLen ?? side * side) : side * side;
  if ((config.rollout.maxLen ?? codes) !== codes) {
    const remedy = `The decoder wants all codes of an image: change data.size, or omit maxLen`;
    throw expected(
      "rollout.maxLen",
      `${codes}, the codes of an image of ${config.data.size} px`,
      config.rollout.maxLen,
      remedy,
    );
  }
  const policy = policyOf(config, device, tokenizer, codes, notes);
  if (config.ar.policy === null) own(policy);
  if (policy.blockSize < codes && !isLoader) {
    const remedy = `Use images of ${Math.sqrt(policy.blockSize) * tokenizer.downsample} px, or another policy`;
    throw expected("data.size", `images of at most ${policy.blockSize} codes, the policy's`, codes, remedy);
  }
  policy.gradientCheckpointing = config.ar.gradientCheckpointing;
  const lora = loraOf(config, policy);
  if (lora !== null) {
    // A program's own policy keeps what it has learnt.
    own({ [Symbol.dispose]: () => keptOrNot(config, lora).dispose() });
  }
  const reference = openReference(
    config,
    { policy, lora, device, codebookSize: tokenizer.codebookSize },
    own,
  );
  const valueHead = config.algorithm === "ppo" ? own(new ValueHead(policy.hiddenSize).to({ device })) : null;
  const trained = lora ?? policy;
  own(allowTf32(config.precision.tf32));
  const policyCast = castOf(config.precision.policy, device);
  const numClasses = config.rollout.start === "condition" ? classesOfPolicy(policy) : undefined;
  const images = own(
    await openImages(config, {
      batchSize: config.rollout.images,
      device,
      codebookSize: tokenizer.codebookSize,
      wants: "which rewards compare samples with",
      mayBeTexts: true,
      ...(numClasses !== undefined && { numClasses }),
    }),
  );
  const networks: Record<string, string> = {};
  const codeVectors = await openCodeVectors(config, { source: images.source, tokenizer, device });
  if (codeVectors !== null) own(codeVectors);
  return {
    device,
    tokenizer,
    policy,
    lora,
    trained,
    reference,
    terms: [
      ...termsOf(config, device, own, networks),
      ...openEncoderTerms(config, { tokenizer, device }, (term) => owned(term, own), networks),
      ...(await openCustomTerms(config, networks)),
      ...openServerTerms(config).map((term) => owned(term, own)),
      ...(await openKernelTerm(config, { source: images.source, tokenizer, device }, networks)).map((term) =>
        owned(term, own),
      ),
    ],
    codeVectors,
    codeFrequency: config.update.codeFrequency > 0 ? own(new CodeFrequency(tokenizer.codebookSize)) : null,
    unrewarded: unrewardedOf(config, device, own, networks),
    frozen: {
      ...fingerprintOf("tokenizer", tokenizer.vq),
      ...networks,
      ...(lora !== null && { "policy under the adapters": weightsFingerprint(policy.stateDict()) }),
      // The policy without its adapters has no weights of its own.
      ...(reference !== null &&
        !(reference instanceof WithoutAdapters) && { reference: weightsFingerprint(reference.stateDict()) }),
    },
    valueHead,
    optimizer: own(optimizerOf(config, trained, valueHead)),
    ema:
      config.ema.decay === null
        ? null
        : own(new Ema(trained, { decay: config.ema.decay, warmup: config.ema.warmup })),
    policyCast,
    packAs: packAsOf(policy, policyCast),
    narrowDecoder: config.precision.tokenizer === "bfloat16" ? own(tokenizer.narrowDecoder()) : null,
    ...images,
    notes: [...notes, ...images.notes],
  };
}

/** Move a program's own model to the device of the run, and note it. */
function moveTo(device: Device, key: string, model: unknown, notes: string[]): void {
  if (!(model instanceof Module)) return;
  const before = model.parameters()[0]?.device;
  model.to({ device });
  const now = model.parameters()[0]?.device;
  if (now !== before) notes.push(`${key} was on ${before} and is now on ${now}, the device of the run`);
}

/**
 * The frozen tokenizer, from a program or a file. A program's is moved to the device.
 *
 * @param notes - is given what the user should know about it.
 */
export function tokenizerOf(
  config: Pick<TrainConfig, "tokenizer">,
  device: Device,
  notes: string[] = [],
): FrozenTokenizer {
  const { model, path, wrapper, weights, config: known } = config.tokenizer;
  if (model !== null) {
    const frozen = "vq" in model ? model : buildTokenizerFrozen(model);
    moveTo(device, "tokenizer.model", frozen.vq, notes);
    return frozen;
  }
  const opened = openTokenizer(path as string, {
    device,
    config: known,
    ...(wrapper !== null && { wrapper }),
    ...(weights !== null && { weights }),
  });
  notes.push(...opened.notes);
  return opened.tokenizer;
}

/**
 * The policy: a program's, which is moved to the device, a file's, or a new one for sequences of `codes`.
 *
 * @param tokenizer - the tokenizer whose codes it draws, or the size of its codebook where no weight is read.
 * @param notes - is given what was assumed of the file, and whether a program's policy was moved.
 */
export function policyOf(
  config: { readonly ar: ArSection; readonly blockSize: number | null },
  device: Device,
  tokenizer: FrozenTokenizer | number,
  codes: number,
  notes: string[] = [],
): ArPolicy {
  const vocabSize = typeof tokenizer === "number" ? tokenizer : tokenizer.codebookSize;
  const { policy, path, wrapper, weights, type, nLayer, nHead, nEmbd, extra, cls } = config.ar;
  const blockSize = config.blockSize ?? codes;
  if (policy !== null) {
    if (policy.vocabSize !== vocabSize)
      throw expected("ar.policy", `a vocabulary of ${vocabSize}, the tokenizer's codebook`, policy.vocabSize);
    moveTo(device, "ar.policy", policy, notes);
    return policy;
  }
  if (path !== null) {
    const opened = openPolicy(path, {
      device,
      codebookSize: vocabSize,
      ...(wrapper !== null && { wrapper }),
      ...(weights !== null && { weights }),
      ...(nHead !== null && { nHead }),
      ...(config.blockSize !== null && { blockSize }),
      // A file without its own number of codes is used for images of this many.
      assume: { blockSize: codes },
    });
    notes.push(...opened.notes);
    return opened.policy;
  }
  const sizes = {
    ...(nLayer !== null && { nLayer }),
    ...(nHead !== null && { nHead }),
    ...(nEmbd !== null && { nEmbd }),
  };
  const built = buildArPolicy(vocabSize, blockSize, {
    type: type ?? "gpt",
    ...(cls !== null && { cls }),
    ...sizes,
    extra: {
      ...(extra.usePretrainedCodebook === true && typeof tokenizer !== "number" && codebookOf(tokenizer)),
      ...extra,
    },
  });
  built.optimizer.dispose();
  return built.policy.to({ device });
}

/** Classes that a policy knows: the id of its null class. Undefined where it is told none, or texts in their place. */
export function classesOfPolicy(policy: ArPolicy): number | undefined {
  const { features = null } = policy.options as { features?: object | null };
  if (features !== null) return undefined;
  return tidy(() => {
    const { classes } = policy.nullCondition({ classes: zeros([1], { dtype: "int64" }) });
    return classes === undefined || classes.item() === 0 ? undefined : Number(classes.item());
  });
}

/** Adapters where the configuration asks for them. */
function loraOf({ ar }: TrainConfig, policy: ArPolicy): Lora | null {
  const { rank, alpha, targets } = ar.lora;
  if (rank === null) return null;
  const options = { rank, ...(alpha !== null && { alpha }), ...(targets !== null && { targets }) };
  return addLora(policy, options, "ar.lora");
}

function keptOrNot({ ar }: TrainConfig, lora: Lora): Lora {
  if (ar.policy !== null && !lora.isMerged) lora.merge();
  return lora;
}

/** The type of the policy's products on a CPU, where packed layers are made for it. */
function packAsOf(policy: ArPolicy, cast: AutocastState | null): DType | null {
  const [first] = policy.parameters();
  if (first === undefined || first.device !== "cpu") return null;
  const dtype = cast?.dtype ?? first.dtype;
  return dtype === "float32" || dtype === "bfloat16" ? dtype : null;
}

function optimizerOf(config: TrainConfig, trained: Module, valueHead: ValueHead | null): AdamW {
  const { lr, betas, eps, weightDecay } = config.optimizer;
  const params = trained.namedParameters().filter(([, parameter]) => parameter.requiresGrad);
  const groups: ParameterGroup[] = [{ params }];
  if (valueHead !== null) {
    const named = valueHead.namedParameters().map(([name, value]) => [`value_head.${name}`, value] as const);
    groups.push({ params: named, lr: config.ppo.valueLr, eps: 1e-5 });
  }
  return new AdamW(groups, { lr, betas, eps, weightDecay, isSharded: config.train.shardOptimizer });
}

/** A term with a network that was opened for it. */
function owned(term: Term, own: Own): Term {
  own({ [Symbol.dispose]: () => term.dispose?.() });
  return term;
}

/** @param networks - is given the fingerprint of each network. */
function unrewardedOf(
  { eval: { perceptual: path } }: TrainConfig,
  device: Device,
  own: Own,
  networks: Record<string, string>,
): Term | null {
  if (path === null) return null;
  const network = openPerceptual(path, { device });
  Object.assign(networks, fingerprintOf("network of eval.perceptual", network));
  return owned(unrewardedTerm(network), own);
}

/** @param networks - is given the fingerprint of each network. */
function termsOf(config: TrainConfig, device: Device, own: Own, networks: Record<string, string>): Term[] {
  const { reward } = config;
  const amp = castOf(config.precision.rewards, device);
  const common = { ...(reward.chunk !== null && { chunk: reward.chunk }), ...(amp !== null && { amp }) };
  const terms: Term[] = [];
  const pixel: readonly [ReconstructionType, number][] = [
    ["l1", reward.l1.weight],
    ["l2", reward.l2.weight],
    ["psnr", reward.psnr.weight],
    ["ssim", reward.ssim.weight],
    ["ms_ssim", reward.msSsim.weight],
  ];
  for (const [type, weight] of pixel)
    if (weight !== 0) terms.push(reconstructionTerm(type, { ...common, weight }));
  const { lpips, perceptual, patchGan, latentCosine } = reward;
  if (lpips.weight !== 0) {
    if (lpips.path === null)
      throw expected("reward.lpips.path", "torchvision's VGG16, AlexNet or SqueezeNet weights", "none");
    const network = openLpips(lpips.path, { device });
    Object.assign(networks, fingerprintOf("network of reward.lpips", network));
    terms.push(owned(reconstructionTerm("lpips", { ...common, weight: lpips.weight, lpips: network }), own));
  }
  if (perceptual.weight !== 0) {
    if (perceptual.path === null)
      throw expected("reward.perceptual.path", "a file of rlar classifier", "none");
    const network = openPerceptual(perceptual.path, { device });
    Object.assign(networks, fingerprintOf("network of reward.perceptual", network));
    const options = { ...common, weight: perceptual.weight, perceptual: network };
    terms.push(owned(reconstructionTerm("perceptual", options), own));
  }
  if (patchGan.weight !== 0) {
    if (patchGan.path === null)
      throw expected("reward.patchGan.path", "a PatchGAN discriminator's weights", "none");
    const network = openDiscriminator(patchGan.path, { device });
    Object.assign(networks, fingerprintOf("network of reward.patchGan", network));
    terms.push(owned(patchGanTerm(network, { ...common, weight: patchGan.weight }), own));
  }
  if (latentCosine.weight !== 0) terms.push(latentCosineTerm(latentCosine.weight));
  return terms;
}
