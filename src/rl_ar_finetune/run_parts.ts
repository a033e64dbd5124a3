/**
 * The parts of a run, made from its configuration: tokenizer, policy, reference, optimizer, average, reward, images.
 * What they do together is in `train_loop.ts`.
 */
import {
  type Batch,
  type Batches,
  BatchReader,
  type Cursor,
  fromIterable,
  type ImageSource,
  type Loader,
  onePass,
  openSource,
  type ReadOptions,
  splitSource,
  subset,
} from "../data/index.js";
import { AdamW, Ema, type ParameterGroup } from "../nn/index.js";
import type { ArPolicy } from "../policies/index.js";
import type { FrozenTokenizer } from "../tokenizers/index.js";
import {
  type AutocastState,
  type Device,
  deriveSeed,
  expected,
  isCudaAvailable,
  manualSeed,
  requireDevice,
  setNumThreads,
} from "../torch/index.js";
import {
  buildArPolicy,
  buildTokenizerFrozen,
  clonePolicy,
  openDiscriminator,
  openLpips,
  openPolicy,
  openTokenizer,
} from "./builder.js";
import type { Precision, TrainConfig } from "./config.js";
import {
  customTerm,
  latentCosineTerm,
  patchGanTerm,
  type ReconstructionType,
  reconstructionTerm,
  type Term,
} from "./rewards.js";
import { groupOf, readOptionsOf, sourceOptionsOf } from "./settings.js";
import { ValueHead } from "./value_head.js";

/** Everything that a run works with; it lives as long as the run. */
export interface RunParts {
  readonly device: Device;
  readonly tokenizer: FrozenTokenizer;
  readonly policy: ArPolicy;
  /** The frozen policy that KL is measured against; null at coefficient 0, when it is not even loaded. */
  readonly reference: ArPolicy | null;
  readonly valueHead: ValueHead | null;
  readonly optimizer: AdamW;
  readonly ema: Ema | null;
  readonly terms: readonly Term[];
  /** What the policy computes in, or null for its own dtype. */
  readonly policyCast: AutocastState | null;
  /** Fingerprint of the images, null for a user's own loader. */
  readonly fingerprint: string | null;
  /** Batches of the training images from a cursor on. */
  readonly batchesFrom: (cursor: Cursor | undefined) => Batches;
  /** The images that are evaluated on, always the same. */
  readonly evalBatches: () => AsyncIterable<Batch>;
  readonly evalImages: number;
}

/** bfloat16 where asked for, or on CUDA where it is left open. */
export function castOf(precision: Precision, device: Device): AutocastState | null {
  const isCuda = device.startsWith("cuda");
  if (precision === "float32" || (precision === "auto" && !isCuda)) return null;
  return { device: isCuda ? "cuda" : "cpu", dtype: "bfloat16" };
}

/** The device that is asked for; `auto` is CUDA where there is one. */
export function deviceOf(config: TrainConfig): Device {
  const { device } = config.train;
  if (device !== "auto") return device as Device;
  return isCudaAvailable() ? "cuda" : "cpu";
}

/**
 * Open and build all parts.
 *
 * @throws RangeError naming the part that cannot be had, and what to do.
 */
export async function openRunParts(config: TrainConfig): Promise<RunParts> {
  const device = deviceOf(config);
  requireDevice(device);
  if (config.train.threads !== null) setNumThreads(config.train.threads);
  // Weights that no file gives are drawn from the default generator.
  manualSeed(deriveSeed(config.seed, "init"));
  const tokenizer = tokenizerOf(config, device);
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
    const remedy = `The decoder wants all codes of an image: change data.size, or leave maxLen out`;
    throw expected(
      "rollout.maxLen",
      `${codes}, the codes of an image of ${config.data.size} px`,
      config.rollout.maxLen,
      remedy,
    );
  }
  const policy = policyOf(config, device, tokenizer.codebookSize, codes);
  if (policy.blockSize < codes && !isLoader) {
    const remedy = `Use images of ${Math.sqrt(policy.blockSize) * tokenizer.downsample} px, or another policy`;
    throw expected("data.size", `images of at most ${policy.blockSize} codes, the policy's`, codes, remedy);
  }
  policy.gradientCheckpointing = config.ar.gradientCheckpointing;
  const reference = config.kl.coef === 0 ? null : referenceOf(config, device, policy, tokenizer.codebookSize);
  const valueHead = config.algorithm === "ppo" ? new ValueHead(policy.hiddenSize).to({ device }) : null;
  const images = await imagesOf(config, device, tokenizer.codebookSize);
  return {
    device,
    tokenizer,
    policy,
    reference,
    valueHead,
    optimizer: optimizerOf(config, policy, valueHead),
    ema:
      config.ema.decay === null
        ? null
        : new Ema(policy, { decay: config.ema.decay, warmup: config.ema.warmup }),
    terms: termsOf(config, device),
    policyCast: castOf(config.precision.policy, device),
    ...images,
  };
}

function tokenizerOf(config: TrainConfig, device: Device): FrozenTokenizer {
  const { model, path, wrapper, weights, config: known } = config.tokenizer;
  if (model !== null) return "vq" in model ? model : buildTokenizerFrozen(model);
  return openTokenizer(path as string, {
    device,
    config: known,
    ...(wrapper !== null && { wrapper }),
    ...(weights !== null && { weights }),
  }).tokenizer;
}

function policyOf(config: TrainConfig, device: Device, vocabSize: number, codes: number): ArPolicy {
  const { policy, path, wrapper, type, nLayer, nHead, nEmbd, extra, cls } = config.ar;
  const blockSize = config.blockSize ?? codes;
  if (policy !== null) {
    if (policy.vocabSize === vocabSize) return policy;
    throw expected("ar.policy", `a vocabulary of ${vocabSize}, the tokenizer's codebook`, policy.vocabSize);
  }
  if (path !== null) {
    return openPolicy(path, {
      device,
      codebookSize: vocabSize,
      ...(wrapper !== null && { wrapper }),
      ...(nHead !== null && { nHead }),
      ...(config.blockSize !== null && { blockSize }),
    }).policy;
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
    extra: { ...extra },
  });
  built.optimizer.dispose();
  return built.policy.to({ device });
}

function referenceOf(config: TrainConfig, device: Device, policy: ArPolicy, codebookSize: number): ArPolicy {
  const { path } = config.kl;
  const { nHead } = config.ar;
  const reference =
    path === null
      ? clonePolicy(policy)
      : openPolicy(path, {
          device,
          codebookSize,
          ...(nHead !== null && { nHead }),
          blockSize: policy.blockSize,
        }).policy;
  reference.eval().requiresGrad_(false);
  return reference;
}

function optimizerOf(config: TrainConfig, policy: ArPolicy, valueHead: ValueHead | null): AdamW {
  const { lr, betas, eps, weightDecay } = config.optimizer;
  const trained = policy.namedParameters().filter(([, parameter]) => parameter.requiresGrad);
  const groups: ParameterGroup[] = [{ params: trained }];
  if (valueHead !== null) {
    const named = valueHead.namedParameters().map(([name, value]) => [`value_head.${name}`, value] as const);
    groups.push({ params: named, lr: config.ppo.valueLr, eps: 1e-5 });
  }
  return new AdamW(groups, { lr, betas, eps, weightDecay });
}

function termsOf(config: TrainConfig, device: Device): Term[] {
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
  const { lpips, patchGan, latentCosine, custom } = reward;
  if (lpips.weight !== 0) {
    if (lpips.path === null)
      throw expected("reward.lpips.path", "torchvision's VGG16, AlexNet or SqueezeNet weights", "none");
    const network = openLpips(lpips.path, { device });
    terms.push(reconstructionTerm("lpips", { ...common, weight: lpips.weight, lpips: network }));
  }
  if (patchGan.weight !== 0) {
    if (patchGan.path === null)
      throw expected("reward.patchGan.path", "a PatchGAN discriminator's weights", "none");
    terms.push(patchGanTerm(openDiscriminator(patchGan.path, { device }), patchGan.weight));
  }
  if (latentCosine.weight !== 0) terms.push(latentCosineTerm(latentCosine.weight));
  if (custom.fn !== null && custom.weight !== 0) terms.push(customTerm("custom", custom.fn, custom.weight));
  return terms;
}

type Images = Pick<RunParts, "fingerprint" | "batchesFrom" | "evalBatches" | "evalImages">;

async function imagesOf(config: TrainConfig, device: Device, codebookSize: number): Promise<Images> {
  const { data, seed, dataloader, rollout } = config;
  const { flip: _, seed: __, ...shape } = { ...readOptionsOf(config), device, codebookSize };
  if (dataloader !== null) {
    const options = { batchSize: rollout.images, size: data.size, crop: data.crop, device };
    return {
      fingerprint: null,
      batchesFrom: (cursor) => fromIterable(dataloader as Loader, { ...options, ...(cursor && { cursor }) }),
      ...(await evalOf(config, undefined, shape)),
    };
  }
  const options = sourceOptionsOf(config);
  const whole = await openSource(data.source as string, options);
  const own = data.evalSource === null ? undefined : await openSource(data.evalSource, options);
  const group = groupOf(config);
  const isSplit = own === undefined && config.eval.every > 0 && data.evalPart > 0;
  const parts = isSplit
    ? splitSource(whole, { heldOut: data.evalPart, seed, ...(group && { groupOf: group }) })
    : { train: whole, heldOut: own };
  if (parts.train.kind !== "images") {
    throw expected(
      "data.source",
      "images, which rewards compare samples with",
      "code files",
      "Use them to pre-train",
    );
  }
  return {
    fingerprint: parts.train.fingerprint,
    batchesFrom: (cursor) =>
      new BatchReader(parts.train, {
        ...readOptionsOf(config),
        device,
        codebookSize,
        ...(cursor && { cursor }),
      }),
    ...(await evalOf(config, parts.heldOut, shape)),
  };
}

async function evalOf(
  config: TrainConfig,
  heldOut: ImageSource | undefined,
  shape: ReadOptions,
): Promise<Pick<Images, "evalBatches" | "evalImages">> {
  if (heldOut === undefined || config.eval.every === 0) {
    return { evalImages: 0, evalBatches: async function* () {} };
  }
  const count = Math.min(config.eval.images, heldOut.length);
  // Spread over the set, whose order is often that of its classes.
  const chosen = subset(
    heldOut,
    Array.from({ length: count }, (_, i) => Math.floor((i * heldOut.length) / count)),
  );
  const batchSize = Math.min(config.rollout.images, count);
  return { evalImages: count, evalBatches: () => onePass(chosen, { ...shape, batchSize }) };
}
