/**
 * Losses of tokenizer training: reconstruction loss, adversarial loss, the adaptive weight between the two, and the
 * discriminator's loss. The codebook losses are in the forward pass of the model.
 *
 * After Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis" (VQGAN), LlamaGen (Sun et al. 2024)
 * and IBQ (Shi et al. 2024, SEED-Voken). Deviations from their code:
 * - Each loss is differentiated with respect to the image once, and the sum of these gradients is backpropagated
 *   through the decoder once. The published code runs the backward pass of the discriminator and of the perceptual
 *   network twice.
 * - `non_saturating` averages the logits of an image's patches before the loss, as SEED-Voken does; LlamaGen's code
 *   swaps prediction and target there. `vanilla` has one loss term per patch.
 * - The discriminator's loss has no weight, since AdamW's update does not change when the loss is scaled. Before its
 *   start the discriminator does not run; the published code runs it and multiplies its loss by 0.
 *
 * @see Lim and Ye 2017, "Geometric GAN" (hinge); Goodfellow et al. 2014, "Generative Adversarial Nets" (the others);
 *   Tseng et al. 2021, "Regularizing Generative Adversarial Networks under Limited Data" (LeCam).
 */
import { allReduce, gatherValues } from "../distributed/index.js";
import { backward, functional as F, grad, noGrad, type Tensor, tidy } from "../torch/index.js";

/** Mean absolute or mean squared difference. */
type Pixelwise = "l1" | "l2";

/** Kinds of adversarial losses. */
export type Adversarial = "hinge" | "vanilla" | "non_saturating";

/** Term added to the denominator of the adaptive weight, and maximum of that weight. */
const BALANCE_EPS = 1e-4;
const MOST_BALANCE = 1e4;

/** Reconstruction loss on pixels, 0-d: `mean |y - x|` or `mean (y - x)^2`. */
export function pixelLoss(images: Tensor, reconstruction: Tensor, kind: Pixelwise): Tensor {
  return (kind === "l1" ? F.l1Loss : F.mseLoss)(reconstruction, images);
}

/**
 * The decoder's adversarial loss, 0-d: hinge `-mean(d)`, vanilla `mean softplus(-d)`, non_saturating
 * `mean_n softplus(-mean_hw d)`.
 *
 * @param logits - float `[N, 1, h, w]`: discriminator logits of reconstructions.
 */
export function generatorLoss(logits: Tensor, kind: Adversarial): Tensor {
  return tidy(() => {
    const d = logits.float();
    if (kind === "hinge") return d.mean().neg();
    return judged(d, kind).neg().softplus().mean();
  });
}

/**
 * The discriminator's loss, 0-d: hinge `(mean relu(1 - r) + mean relu(1 + f)) / 2`, vanilla
 * `(mean softplus(-r) + mean softplus(f)) / 2`, non_saturating the sum of the latter two over images' means.
 *
 * @param real - float `[N, 1, h, w]`: logits of images.
 * @param fake - float `[N, 1, h, w]`: logits of reconstructions.
 */
export function discriminatorLoss(real: Tensor, fake: Tensor, kind: Adversarial): Tensor {
  return tidy(() => {
    const [r, f] = [real.float(), fake.float()];
    if (kind === "hinge") return r.rsub(1).relu().mean().add(f.add(1).relu().mean()).mul(0.5);
    const sum = judged(r, kind).neg().softplus().mean().add(judged(f, kind).softplus().mean());
    return kind === "vanilla" ? sum.mul(0.5) : sum;
  });
}

/** Logits that enter the loss: of each patch, or the mean of each image. */
const judged = (logits: Tensor, kind: Adversarial): Tensor =>
  kind === "non_saturating" ? logits.flatten(1).mean(1) : logits;

/** Running means of the discriminator's logits; both start at 0. */
export interface LecamAverages {
  readonly real: number;
  readonly fake: number;
}

/**
 * The running means after a step: `decay * average + (1 - decay) * mean`. Synchronizes with the GPU.
 *
 * @param share - this process's fraction of the images of all processes; the mean is over all of them.
 */
export function updateLecam(
  averages: LecamAverages,
  real: Tensor,
  fake: Tensor,
  decay = 0.999,
  share = 1,
): LecamAverages {
  const mean = (logits: Tensor): number => {
    const own = noGrad(() => tidy(() => logits.float().mean().item()));
    return gatherValues(own * share).reduce((sum, part) => sum + part);
  };
  return {
    real: decay * averages.real + (1 - decay) * mean(real),
    fake: decay * averages.fake + (1 - decay) * mean(fake),
  };
}

/**
 * LeCam regularization, which keeps the discriminator's logits near their running means, 0-d:
 * `mean relu(r - average of f)^2 + mean relu(average of r - f)^2`.
 *
 * @see Tseng et al. 2021, eq. 5; as in SEED-Voken, differences of the other sign do not count.
 */
export function lecamLoss(real: Tensor, fake: Tensor, averages: LecamAverages): Tensor {
  return tidy(() => {
    const above = real.float().sub(averages.fake).relu().square().mean();
    return above.add(fake.float().rsub(averages.real).relu().square().mean());
  });
}

/** Loss terms as functions of the reconstruction, 0-d each. */
interface ImageTerms {
  /** Reconstruction loss: pixels and perceptual distance, weighted. */
  readonly near: Tensor;
  /** {@link generatorLoss}; null before the discriminator's start. */
  readonly adversarial: Tensor | null;
}

/** Weight of the adversarial loss. */
interface AdversarialWeight {
  readonly weight: number;
  /** Whether {@link balance} multiplies the weight. */
  readonly isAdaptive: boolean;
}

/**
 * Backpropagate `near + weight * adversarial + others`.
 *
 * @param reconstruction - the decoder's images, in the graph.
 * @param last - the weight of the decoder's last layer.
 * @param termsOf - computes the loss terms of the given images, which are a detached copy of `reconstruction`.
 * @param others - further terms, 0-d, such as the codebook's.
 * @param share - this process's fraction of the images of all processes: the gradients of the processes sum to the
 *   gradient of the whole batch.
 * @returns the result of `termsOf`, and the factor of the adversarial term (0 where there is none).
 */
export function backwardThroughImage<T extends ImageTerms>(
  reconstruction: Tensor,
  last: Tensor,
  termsOf: (images: Tensor) => T,
  { weight, isAdaptive }: AdversarialWeight,
  others: readonly Tensor[],
  share = 1,
): T & { readonly factor: number } {
  return tidy(() => {
    const images = reconstruction.detach().requiresGrad_();
    const terms = termsOf(images);
    const { near, adversarial } = terms;
    let [total] = grad([near], [images]) as [Tensor];
    let factor = 0;
    if (adversarial !== null && weight !== 0) {
      // The autograd graph is kept because the discriminator's loss uses the same logits.
      const [ofAdversarial] = grad([adversarial], [images], [null], { retainGraph: true }) as [Tensor];
      factor = weight * (isAdaptive ? balance(reconstruction, last, total, ofAdversarial, share) : 1);
      total = total.add(ofAdversarial, factor);
    }
    const all = others.map((term) => term.mul(share));
    backward([reconstruction, ...all], [total.mul(share), ...all.map(() => null)]);
    return { ...terms, factor };
  });
}

/**
 * The weight that makes the gradient norms of both losses at the decoder's last layer equal:
 * `min(|grad near| / (|grad adversarial| + 1e-4), 1e4)`, norms of the gradients of its weight.
 *
 * @param near - gradient of the reconstruction loss with respect to the reconstruction.
 * @param adversarial - gradient of the adversarial loss.
 * @param share - as in {@link backwardThroughImage}.
 * @see Esser et al. 2021, eq. 7, with the constants of the published code.
 */
export function balance(
  reconstruction: Tensor,
  last: Tensor,
  near: Tensor,
  adversarial: Tensor,
  share = 1,
): number {
  return tidy(() => {
    const normOf = (gradient: Tensor): number => {
      const [own] = grad([reconstruction], [last], [gradient], { retainGraph: true }) as [Tensor];
      const whole = own.float().mul(share).contiguous();
      allReduce([whole]);
      return whole.norm().item();
    };
    return Math.min(normOf(near) / (normOf(adversarial) + BALANCE_EPS), MOST_BALANCE);
  });
}
