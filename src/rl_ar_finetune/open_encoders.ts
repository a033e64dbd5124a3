/**
 * Opens the networks of rewards and evaluations that read images or codes as meaning: CLIP, SigLIP and TokLIP, LAION's aesthetic
 * heads, and DISTS. `builder.ts` opens everything else.
 */
import {
  type AestheticHead,
  describeEncoder,
  type Encoder,
  EncoderFeatures,
  encoderFiles,
  isEncoder,
  type OpenEncoderOptions,
  openAestheticHead,
  openEncoder,
  requireSameCodebook,
} from "../encoders/index.js";
import { DISTS, type FeatureNetwork } from "../metrics/index.js";
import type { FrozenTokenizer, TokenizerModel } from "../tokenizers/index.js";
import { type Device, expected, openWeights, readOptions, requireDevice, tidy } from "../torch/index.js";
import { freedOnError, openFeatureNetwork, openTokenizer } from "./builder.js";
import { networksIn, openModel, wrongKind } from "./describe_weights.js";

export { describeEncoder, encoderFiles, isEncoder, openEncoder };

/** Options of {@link openFeatures}. */
export interface OpenFeaturesOptions {
  device?: Device;
  /** Whose codes TokLIP reads; the one inside its file where omitted. */
  tokenizer?: FrozenTokenizer;
  /** Whether an encoder is opened with its text tower; default false. */
  withTexts?: boolean;
  /** File or folder of the text tokenizer; default the folder of the weights. */
  textTokenizer?: string;
}

/**
 * A network whose features describe images, recognised by its file: CLIP, SigLIP or TokLIP, or one of
 * {@link openFeatureNetwork}'s. Its `name` says which.
 *
 * @throws RangeError when the path holds none, or weights that are not finite.
 */
export function openFeatures(
  path: string,
  ...given: [options?: OpenFeaturesOptions]
): FeatureNetwork & Disposable {
  const options = readOptions<OpenFeaturesOptions>("openFeatures", given, {
    names: { device: true, tokenizer: true, withTexts: "boolean", textTokenizer: true },
  });
  const { device = "cpu", tokenizer, withTexts = false, textTokenizer } = options;
  requireDevice(device);
  if (!isEncoder(path)) return openFeatureNetwork(path, { device });
  const texts = textTokenizer === undefined ? {} : { tokenizer: textTokenizer };
  const encoder = openEncoder(path, { device, towers: { text: withTexts }, ...texts });
  return freedOnError(encoder, () => {
    if (!encoder.readsCodes) return new EncoderFeatures(encoder, null);
    const codesOf = tokenizer ?? openTokenizer(path, { device }).tokenizer;
    requireTokenizerOf(path, encoder, codesOf);
    return new EncoderFeatures(encoder, (images) => codesOf.encode(images));
  });
}

/** Check that a tokenizer's codes are those that an encoder reads; see {@link requireSameCodebook}. */
export function requireTokenizerOf(where: string, encoder: Encoder, { vq }: FrozenTokenizer): void {
  if (!("quantize" in vq)) {
    throw expected(where, "the tokenizer that the encoder was trained with", vq.constructor.name);
  }
  requireSameCodebook(where, encoder, (vq as TokenizerModel).quantize.embedding.weight);
}

/**
 * An encoder and a head that scores its image embeddings.
 *
 * @throws RangeError when the widths differ, or a path holds something else.
 */
export function openAesthetic(
  encoderPath: string,
  headPath: string,
  options: Pick<OpenEncoderOptions, "device"> = {},
): { encoder: Encoder; head: AestheticHead } {
  const encoder = openEncoder(encoderPath, { ...options, towers: { text: false } });
  return freedOnError(encoder, () => {
    const head = openAestheticHead(headPath);
    if (head.width !== encoder.width) {
      const remedy = "Use the encoder that the head was trained on, such as OpenAI's CLIP ViT-L/14";
      throw expected(headPath, `a head for embeddings of width ${encoder.width}`, head.width, remedy);
    }
    head.to({ device: options.device ?? "cpu" });
    return { encoder, head };
  });
}

/**
 * DISTS with the weights of two files: torchvision's VGG16 and the published `weights.pt`.
 *
 * @throws RangeError when a file holds something else.
 */
export function openDists(backbone: string, weights: string, options: { device?: Device } = {}): DISTS {
  const { device = "cpu" } = options;
  using opened = openModel(backbone);
  const part = networksIn(opened.file).find(({ network }) => /vgg/.test(network ?? ""));
  if (part === undefined) throw wrongKind("torchvision's VGG16", opened.found, opened.file);
  using file = openWeights(weights);
  for (const name of ["alpha", "beta"]) {
    if (file.names.includes(name)) continue;
    throw expected(weights, "DISTS's weights, alpha and beta", file.names.slice(0, 3).join(", ") || "none");
  }
  const { file: vgg } = opened;
  const dists = tidy(() => {
    const own = Object.entries(part.used).map(([key, name]) => {
      return [key, { shape: part.shapes[key] ?? [], read: () => vgg.tensor(name) }];
    });
    const given = { alpha: file.tensor("alpha"), beta: file.tensor("beta") };
    return new DISTS({ backbone: Object.fromEntries(own), weights: given });
  });
  return freedOnError(dists, () => dists.to({ device }));
}
