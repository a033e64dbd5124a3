/**
 * An encoder as a network of features, for distances between sets of images. It has the shape of `FeatureNetwork` of
 * `src/metrics`, without classes.
 */
import { expected, functional as F, noGrad, type Tensor, tidy, zeros } from "../torch/index.js";
import type { Encoder } from "./encoder.js";

/** The image embeddings of an encoder, not normalised, as published Fréchet and kernel distances with CLIP have them. */
export class EncoderFeatures {
  readonly encoder: Encoder;
  readonly name: string;
  readonly featureSize: number;
  readonly numClasses = 0;
  readonly #encode: ((images: Tensor) => Tensor) | null;

  /**
   * @param encode - images float `[N, 3, H, W]` in [-1, 1] to the tokenizer's codes, for an encoder that reads codes.
   * @throws RangeError for an encoder that reads codes, without `encode`.
   */
  constructor(encoder: Encoder, encode: ((images: Tensor) => Tensor) | null) {
    if (encoder.readsCodes && encode === null) {
      const remedy = "Its own file holds it";
      throw expected("EncoderFeatures", "the tokenizer whose codes the encoder reads", "none", remedy);
    }
    this.encoder = encoder;
    this.name = `${encoder.name} (image embedding)`;
    this.featureSize = encoder.width;
    this.#encode = encode;
  }

  /**
   * @param images - float `[N, 3, H, W]` in [-1, 1].
   * @returns features float32 `[N, E]`; probabilities float32 `[N, 0]`.
   */
  describe(images: Tensor): { features: Tensor; probabilities: Tensor } {
    return noGrad(() =>
      tidy(() => {
        const { encoder } = this;
        const features =
          encoder.readsCodes && this.#encode !== null
            ? encoder.embedCodes(this.#encode(images.clamp(-1, 1)))
            : encoder.embedImages(images);
        return { features, probabilities: zeros([images.size(0), 0]) };
      }),
    );
  }

  dispose(): void {
    this.encoder.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Largest difference of normalised codebooks that rounding to float16 explains. */
const SAME_CODES = 2e-3;

/**
 * Check that a tokenizer's codes are those that an encoder was trained with: both have the same codebook.
 *
 * @param where - the key or option that names the encoder, for messages.
 * @param table - the tokenizer's rows, float `[V, C]`.
 * @throws RangeError for another codebook, whose codes mean something else.
 */
export function requireSameCodebook(where: string, encoder: Encoder, table: Tensor): void {
  const own = encoder.visual?.codebook?.weight;
  if (own === undefined) throw expected(where, "an encoder that reads codes, such as TokLIP", encoder.name);
  const remedy = "Use the tokenizer inside the same TokLIP file: its codes are those that the encoder knows";
  const [ours, theirs] = [own, table].map(({ shape }) => `[${shape.join(", ")}]`);
  if (ours !== theirs) throw expected(where, `the tokenizer's codebook ${theirs}`, ours, remedy);
  const far = tidy(() => {
    const unit = (rows: Tensor): Tensor => F.normalize(rows.detach().cpu().float());
    return unit(own).sub(unit(table)).abs().amax().item();
  });
  if (far > SAME_CODES)
    throw expected(where, "the tokenizer's codebook", "another one of the same size", remedy);
}
