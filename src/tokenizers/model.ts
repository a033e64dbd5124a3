/**
 * Encoder, codebook and decoder as one tokenizer. `ibq.ts` and `vq_model.ts` build the published models.
 * Reconstruction, perceptual and adversarial losses are in `src/trainers`.
 */
import { Conv2d, Module, type PackedLayers, packConvs } from "../nn/index.js";
import { cat, expected, noGrad, type OptionNames, readOptions, type Tensor, tidy } from "../torch/index.js";
import { type AutoencoderConfig, activationBytes, Decoder, Encoder } from "./autoencoder.js";
import { checkImages, gridOf } from "./checks.js";
import {
  QUANTIZER_CONFIG_NAMES,
  type Quantized,
  type QuantizerConfig,
  VectorQuantizer,
} from "./quantizers.js";
import type { Grid, ImageTokenizer } from "./tokenizer.js";

/** The configuration of a tokenizer as plain data, stored with its weights. */
export interface TokenizerConfig extends AutoencoderConfig, QuantizerConfig {}

/** Names of all keys of a {@link TokenizerConfig}. */
export const TOKENIZER_CONFIG_NAMES: OptionNames<TokenizerConfig> = {
  naming: true,
  inChannels: "number",
  outChannels: "number",
  ch: "number",
  chMult: true,
  numResBlocks: "number",
  attnLevels: true,
  zChannels: "number",
  dropout: "number",
  normGroups: "number",
  ...QUANTIZER_CONFIG_NAMES,
};

/** Result of the trainable forward: {@link Quantized} without the features, and the images. */
export interface TokenizerOutput extends Omit<Quantized, "quantized"> {
  /** float32 `[B, C, H, W]`, about [-1, 1]. */
  reconstruction: Tensor;
}

export abstract class TokenizerModel extends Module implements ImageTokenizer {
  readonly encoder: Encoder;
  readonly decoder: Decoder;
  readonly quantize: VectorQuantizer;
  readonly quant_conv: Conv2d;
  readonly post_quant_conv: Conv2d;
  readonly config: TokenizerConfig;
  readonly downsample: number;
  /**
   * Maximum bytes of activations of `encode`, `encodeLatent`, `decode` and `decodeCode`, which split a batch into parts
   * of at least one image to stay below it. Default 2 GiB on a GPU and 256 MiB on a CPU, where larger parts are hardly
   * faster. Weights and autograd graphs are not counted. The results do not depend on it, except for rounding if a part
   * is a single small image, for which LibTorch uses another convolution algorithm.
   */
  memoryBudget: number | undefined;

  constructor(given: TokenizerConfig) {
    super();
    const where = new.target.name;
    const config = readOptions<TokenizerConfig>(where, [given], { names: TOKENIZER_CONFIG_NAMES });
    checkConfig(where, config);
    this.config = config;
    this.downsample = 2 ** (config.chMult.length - 1);
    this.encoder = new Encoder(config);
    this.decoder = new Decoder(config);
    this.quantize = new VectorQuantizer(quantizerConfig(config));
    this.quant_conv = new Conv2d(config.zChannels, config.embedDim, 1);
    this.post_quant_conv = new Conv2d(config.embedDim, config.zChannels, 1);
  }

  get codebookSize(): number {
    return this.config.codebookSize;
  }

  encode(images: Tensor): Tensor {
    this.#checkImages("encode", images);
    const codesOf = (part: Tensor): Tensor => this.quantize.codesOf(this.#latent(part));
    return noGrad(() => tidy(() => this.#inParts(images, this.#pixels(images), codesOf)));
  }

  /** @throws TypeError, RangeError when codes and grid do not fit; TorchError for a code outside the codebook. */
  decodeCode(codes: Tensor, grid?: Grid): Tensor {
    const [h, w] = gridOf(`${this.constructor.name}.decodeCode`, codes, grid);
    const imagesOf = (part: Tensor): Tensor => this.#images(this.quantize.getCodebookEntry(part, [h, w]));
    return noGrad(() => tidy(() => this.#inParts(codes, h * w * this.downsample ** 2, imagesOf)));
  }

  /**
   * Features before quantization, differentiable.
   *
   * @param images - float32 `[B, C, H, W]` in [-1, 1]; H and W multiples of `downsample`.
   * @returns float32 `[B, D, H / downsample, W / downsample]`.
   */
  encodeLatent(images: Tensor): Tensor {
    this.#checkImages("encodeLatent", images);
    return tidy(() => this.#inParts(images, this.#pixels(images), (part) => this.#latent(part)));
  }

  /**
   * Images of quantized features, not clamped, differentiable.
   *
   * @param quantized - float32 `[B, D, h, w]`.
   * @returns float32 `[B, C, h * downsample, w * downsample]`, about [-1, 1].
   */
  decode(quantized: Tensor): Tensor {
    const pixels = this.#pixels(quantized) * this.downsample ** 2;
    return tidy(() => this.#inParts(quantized, pixels, (part) => this.#images(part)));
  }

  /**
   * Reconstruct the whole batch at once, differentiably, and return the loss terms of the codebook.
   *
   * @param images - float32 `[B, C, H, W]` in [-1, 1]; H and W multiples of `downsample`.
   */
  forward(images: Tensor): TokenizerOutput {
    this.#checkImages("forward", images);
    return tidy(() => {
      const { quantized, ...rest } = this.quantize.forward(this.#latent(images));
      return { ...rest, reconstruction: this.#images(quantized) };
    });
  }

  /**
   * Let the decoder compute its convolutions in bfloat16 until the returned object is disposed of, in calls without
   * gradients. Norms, the softmax of attention and the last layer stay in float32. Needs memory for a copy of the
   * decoder's weights.
   */
  narrowDecoder(): PackedLayers {
    return packConvs(this.decoder, { dtype: "bfloat16", except: [this.decoder.conv_out] });
  }

  #latent(images: Tensor): Tensor {
    return tidy(() => this.quant_conv.forward(this.encoder.forward(images)));
  }

  #images(quantized: Tensor): Tensor {
    return tidy(() => this.decoder.forward(this.post_quant_conv.forward(quantized)).to({ dtype: "float32" }));
  }

  #checkImages(method: string, images: Tensor): void {
    const { inChannels: channels } = this.config;
    checkImages(`${this.constructor.name}.${method}`, images, { channels, downsample: this.downsample });
  }

  #pixels(x: Tensor): number {
    return x.size(2) * x.size(3);
  }

  #inParts(batch: Tensor, pixels: number, fn: (part: Tensor) => Tensor): Tensor {
    const b = batch.size(0);
    const budget = this.memoryBudget ?? (batch.device.startsWith("cuda") ? 2 ** 31 : 2 ** 28);
    const most = Math.max(1, Math.floor(budget / activationBytes(this.config, pixels)));
    if (most >= b) return fn(batch);
    const size = Math.ceil(b / Math.ceil(b / most));
    return cat(batch.split(size).map((part) => tidy(() => fn(part))));
  }
}

/** The part of a configuration that concerns the codebook. */
function quantizerConfig(config: TokenizerConfig): QuantizerConfig {
  const entries = Object.entries(config).filter(([name]) => Object.hasOwn(QUANTIZER_CONFIG_NAMES, name));
  return Object.fromEntries(entries) as unknown as QuantizerConfig;
}

function checkConfig(where: string, config: TokenizerConfig): void {
  const { ch, chMult, numResBlocks, attnLevels, zChannels, embedDim, codebookSize, normGroups } = config;
  const counts = { ch, numResBlocks, zChannels, embedDim, codebookSize, normGroups };
  for (const [name, value] of Object.entries(counts)) {
    if (!Number.isInteger(value) || value < 1) throw expected(where, `a whole ${name} of at least 1`, value);
  }
  const { lookup, naming, dropout, beta, entropyTemperature, sampleEntropyWeight, batchEntropyWeight } =
    config;
  if (naming !== "ibq" && naming !== "llamagen") throw expected(where, "naming ibq or llamagen", naming);
  if (lookup !== "dot" && lookup !== "cosine" && lookup !== "l2") {
    throw expected(where, "lookup dot, cosine or l2", lookup);
  }
  const weights = { dropout, beta, entropyTemperature, sampleEntropyWeight, batchEntropyWeight };
  for (const [name, value] of Object.entries(weights)) {
    if (!Number.isFinite(value)) throw expected(where, `${name}, a finite number`, value);
  }
  const channels = chMult.map((factor) => factor * ch);
  if (chMult.length === 0 || !channels.every((count) => Number.isInteger(count) && count > 0)) {
    throw expected(where, `chMult with whole multiples of ch ${ch}`, chMult);
  }
  const stray = attnLevels.find((level) => !(level in chMult));
  if (stray !== undefined) throw expected(where, `attnLevels below ${chMult.length}`, stray);
}
