/**
 * Cosine distance of latents: the embedding term of VA-pi's reward. The tokenizer computes the latents.
 */
import { expected, functional as F, type Tensor, tidy } from "../torch/index.js";
import { atLeastFloat32 } from "./pairs.js";

/**
 * `1 - cos` of the angle between each sample's latent and its image's, all dimensions but the first flattened: 0
 * for the same direction, 1 for orthogonal ones, 2 for opposite ones. Lengths do not matter.
 *
 * VA-pi compares the codebook vectors of the sampled codes with the image's latent before quantisation. Differentiable
 * by both. A latent of zeros has cosine 0 with any other.
 *
 * @param images - float `[B, ...]`.
 * @param samples - float `[B * G, ...]`, the same dimensions after the first; sample n belongs to image floor(n / G).
 * @returns float32 `[B * G]` (float64 for float64 latents).
 */
export function latentCosine(images: Tensor, samples: Tensor): Tensor {
  const b = images.shape[0] ?? 0;
  const perImage = (samples.shape[0] ?? 0) / b;
  const isPaired = Number.isInteger(perImage) && perImage > 0 && images.ndim > 1;
  if (!isPaired || images.shape.slice(1).join() !== samples.shape.slice(1).join()) {
    const rest = images.shape
      .slice(1)
      .map((size) => `, ${size}`)
      .join("");
    throw expected("latentCosine", `latents [B, ...] and [B * G, ...], here [${b} * G${rest}]`, samples);
  }
  return tidy(() => {
    const x = atLeastFloat32(images).flatten(1).unsqueeze(1); // [B, 1, D]
    const y = atLeastFloat32(samples).flatten(1).unflatten(0, [b, perImage]); // [B, G, D]
    return F.cosineSimilarity(y, x, -1).rsub(1).flatten();
  });
}
