/**
 * A reward for realism: each sample's share of the kernel distance between the samples of a batch and the training images, in
 * the features of a network. Unlike a distance from the image it asks for no particular image, so it holds against the blur and
 * the loss of variety that such distances pay for.
 */
import type { TrainConfig } from "../config/resolve.js";
import { onePass } from "../data/index.js";
import { allGather, ownShare } from "../distributed/index.js";
import type { FeatureNetwork } from "../metrics/features.js";
import { signOf } from "../metrics/measures.js";
import { Module } from "../nn/index.js";
import { type RunImages, readOptionsOf, someOf } from "../run/images.js";
import { weightsFingerprint } from "../run/resume.js";
import type { FrozenTokenizer } from "../tokenizers/index.js";
import { cat, type Device, expected, keep, noGrad, type Tensor, tidy, toDevice } from "../torch/index.js";
import { openClassifier } from "./builder.js";
import { isEncoder, openFeatures } from "./open_encoders.js";
import { generationsOf, type Term } from "./rewards.js";

/** `polynomial`: (x . y / D + 1)^3, that of the KID; `rbf`: exp(-|x - y|^2 / (2 s^2)), s^2 the mean |x - y|^2 of real features. */
export type Kernel = "polynomial" | "rbf";

/** Samples that the network describes at a time. */
const AT_A_TIME = 256;

/**
 * The witness function of the kernel distance at each sample: how much more alike it is to real images than to samples of other
 * images. Its mean over the samples is the negative of half the derivative of the squared distance by the policy's samples.
 *
 * w_i = mean_r k(f_i, r) - mean_{j of other images} k(f_i, f_j), float64. Samples of one image share its given codes, so they
 * are no independent draws and are not compared with each other. Where no other image is in the batch, the second mean is 0.
 *
 * @param features - float `[B * G, D]`: of sample n belongs to image floor(n / G).
 * @param real - float `[M, D]`.
 * @param options.generations - G.
 * @param options.variance - s^2 of `rbf`; {@link meanSquaredDistance} of the real features.
 * @returns float64 `[B * G]`.
 * @see Gretton et al. 2012, "A Kernel Two-Sample Test", sec. 2.3; Bińkowski et al. 2018, "Demystifying MMD GANs".
 */
export function kernelWitness(
  features: Tensor,
  real: Tensor,
  { kernel, generations, variance = 1 }: { kernel: Kernel; generations: number; variance?: number },
): Tensor {
  return tidy(() => {
    const [x, r] = [features.double(), real.double()];
    const n = x.size(0);
    const of = (a: Tensor, b: Tensor): Tensor =>
      kernel === "polynomial"
        ? a
            .matmul(b.transpose(0, 1))
            .mul(1 / a.size(1))
            .add(1)
            .pow(3)
        : squaredDistances(a, b)
            .mul(-1 / (2 * variance))
            .exp();
    const toReal = of(x, r).mean(1);
    const others = n - generations;
    if (others === 0) return toReal;
    const within = of(x, x);
    const own = within.unflatten(0, [-1, generations]).unflatten(2, [-1, generations]); // [B, G, B, G]
    const siblings = own.diagonal(0, 0, 2).sum(1); // [G, G, B] to [G, B]
    const toOthers = within.sum(1).sub(siblings.transpose(0, 1).reshape(n));
    return toReal.sub(toOthers.div(others));
  });
}

/** `[n, m]` of `[n, D]` and `[m, D]`. */
function squaredDistances(a: Tensor, b: Tensor): Tensor {
  const norms = a.square().sum(1, true).add(b.square().sum(1).unsqueeze(0));
  return norms.sub(a.matmul(b.transpose(0, 1)).mul(2)).clamp(0);
}

/** The mean over all pairs of different rows of |x - y|^2: twice the sum of the variances (n - 1). */
export function meanSquaredDistance(features: Tensor): number {
  return tidy(() => features.double().var(0).sum().item() * 2);
}

/** Options of {@link kernelTerm}. */
export interface KernelTermOptions {
  readonly weight: number;
  readonly kernel: Kernel;
  /** Frees the network. */
  readonly dispose?: () => void;
}

/**
 * The term. It owns the features of the real images. The samples of a batch are those of all processes, but for the last
 * batch of an evaluation where some have none of it.
 *
 * @param real - float `[M, D]`, M at least 2.
 */
export function kernelTerm(
  network: FeatureNetwork,
  real: Tensor,
  { weight, kernel, dispose }: KernelTermOptions,
): Term {
  const variance = kernel === "rbf" ? meanSquaredDistance(real) : 1;
  return {
    name: "kernel",
    weight,
    sign: signOf("kernel"),
    measure: (judged, batch) => {
      const { samples } = judged;
      const generations = generationsOf(judged);
      const own = describe(network, samples.clamp(-1, 1));
      if (batch === undefined) return kernelWitness(own, real, { kernel, generations, variance });
      const all = allGather(own.unflatten(0, [-1, generations]), batch).flatten(0, 1);
      const [first] = ownShare(batch);
      const witness = kernelWitness(all, real, { kernel, generations, variance });
      return witness.narrow(0, first * generations, samples.size(0));
    },
    dispose: () => {
      real.dispose();
      dispose?.();
    },
  };
}

const describe = (network: FeatureNetwork, images: Tensor): Tensor =>
  cat(images.split(AT_A_TIME).map((piece) => tidy(() => network.describe(piece).features.float())));

/**
 * Open the term where the configuration asks for it: the network, and the features of training images, which are read once.
 *
 * @param networks - is given the fingerprint of the network.
 * @throws RangeError for a file without such a network, and for a program's own loader, whose images cannot be read twice.
 */
export async function openKernelTerm(
  config: TrainConfig,
  { source, tokenizer, device }: Pick<RunImages, "source"> & { tokenizer: FrozenTokenizer; device: Device },
  networks: Record<string, string>,
): Promise<Term[]> {
  const { weight, path, kernel, images } = config.reward.kernel;
  if (weight === 0) return [];
  if (source === null || source.kind !== "images") {
    const remedy = "Set data.source to images, or reward.kernel.weight=0";
    throw expected(
      "reward.kernel",
      "training images to compare with",
      source === null ? "a program's own loader" : source.kind,
      remedy,
    );
  }
  const file = path as string; // the rules require it
  const network = isEncoder(file)
    ? openFeatures(file, { device, tokenizer })
    : openClassifier(file, { device });
  try {
    if (network instanceof Module)
      networks["network of reward.kernel"] = weightsFingerprint(network.stateDict());
    const chosen = someOf(source, images);
    const { flip: _, balance: __, ...read } = readOptionsOf(config);
    const parts: Tensor[] = [];
    for await (const batch of onePass(chosen, { ...read, batchSize: Math.min(AT_A_TIME, chosen.length) })) {
      using _ = batch;
      parts.push(keep(noGrad(() => tidy(() => describe(network, toDevice(batch.images as Tensor, device))))));
    }
    const real = keep(tidy(() => cat(parts)));
    for (const part of parts) part.dispose();
    if (real.size(0) < 2)
      throw expected("reward.kernel", "at least 2 training images to compare with", real.size(0));
    return [kernelTerm(network, real, { weight, kernel, dispose: () => network[Symbol.dispose]() })];
  } catch (error) {
    network[Symbol.dispose]();
    throw error;
  }
}
