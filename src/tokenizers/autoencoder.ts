/**
 * The convolutional encoder and decoder of taming's VQGAN, IBQ and LlamaGen's VQ: residual blocks, attention over all
 * positions, resampling by two between levels. The same modules serve the weight names of both families. The codebook
 * between encoder and decoder is in `quantizers.ts`.
 *
 * @see Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis".
 */
import { Conv2d, GroupNorm, Module } from "../nn/index.js";
import { callTensor, functional as F, type Tensor, tidy } from "../torch/index.js";

/**
 * The family of state-dict keys: `encoder.down.0.block.0` and `decoder.up.4` (ibq, also used by taming), or
 * `encoder.conv_blocks.0.res.0` and `decoder.conv_blocks.0`, with the decoder's blocks in execution order (llamagen).
 */
export type Naming = "ibq" | "llamagen";

/**
 * Sizes of the encoder and the decoder. A level is a resolution: level 0 is that of the image, each further level half
 * of the one before.
 */
export interface AutoencoderConfig {
  naming: Naming;
  inChannels: number;
  outChannels: number;
  /** Channels of level 0 for a factor of 1. */
  ch: number;
  /** Factor of `ch` per level. */
  chMult: readonly number[];
  /** Residual blocks per level in the encoder; the decoder has one more. */
  numResBlocks: number;
  /**
   * Levels that have attention after each residual block. The middle block, at the lowest resolution, always has
   * attention.
   */
  attnLevels: readonly number[];
  /** Channels of the encoder's output and the decoder's input. */
  zChannels: number;
  dropout: number;
  /**
   * Maximum number of groups of a GroupNorm. If it does not divide the channels, their greatest common divisor is used,
   * so that the channels need not be multiples of 32.
   */
  normGroups: number;
}

type Step = (x: Tensor) => Tensor;

/** Apply the steps one after another, and free each result once the next is computed. */
function chain(x: Tensor, steps: readonly Step[]): Tensor {
  let h = x;
  for (const step of steps) {
    const next = step(h);
    if (h !== x && h !== next) h.dispose();
    h = next;
  }
  return h;
}

const stepOf =
  (layer: { forward(x: Tensor): Tensor }): Step =>
  (x) =>
    layer.forward(x);

/** `x * sigmoid(x)`, in place; the input is the result of a norm, which nothing else uses. */
const swish: Step = (x) => callTensor("aten::silu_", [x]);

/** @see Wu and He 2018, "Group Normalization". */
function norm(channels: number, groups: number): GroupNorm {
  return new GroupNorm(greatestCommonDivisor(groups, channels), channels, { eps: 1e-6 });
}

function greatestCommonDivisor(a: number, b: number): number {
  return b === 0 ? a : greatestCommonDivisor(b, a % b);
}

const conv3 = (inChannels: number, outChannels: number): Conv2d =>
  new Conv2d(inChannels, outChannels, 3, { padding: 1 });

/**
 * Residual block: twice norm, swish and convolution, and a shortcut, which is a 1x1 convolution if the number of
 * channels changes.
 */
class ResnetBlock extends Module {
  readonly norm1: GroupNorm;
  readonly conv1: Conv2d;
  readonly norm2: GroupNorm;
  readonly conv2: Conv2d;
  readonly nin_shortcut: Conv2d | null;
  readonly #steps: readonly Step[];

  constructor(inChannels: number, outChannels: number, config: AutoencoderConfig) {
    super();
    this.norm1 = norm(inChannels, config.normGroups);
    this.conv1 = conv3(inChannels, outChannels);
    this.norm2 = norm(outChannels, config.normGroups);
    this.conv2 = conv3(outChannels, outChannels);
    this.nin_shortcut = inChannels === outChannels ? null : new Conv2d(inChannels, outChannels, 1);
    const first = [stepOf(this.norm1), swish, stepOf(this.conv1)];
    const second = [stepOf(this.norm2), swish, this.#dropout(config.dropout), stepOf(this.conv2)];
    this.#steps = [...first, ...second];
  }

  #dropout(p: number): Step {
    return (x) => F.dropout(x, p, this.training);
  }

  forward(x: Tensor): Tensor {
    return tidy(() => {
      const h = chain(x, this.#steps);
      return h.add_(this.nin_shortcut === null ? x : this.nin_shortcut.forward(x));
    });
  }
}

/** Attention of one head over all positions, added to its input. */
class AttnBlock extends Module {
  readonly norm: GroupNorm;
  readonly q: Conv2d;
  readonly k: Conv2d;
  readonly v: Conv2d;
  readonly proj_out: Conv2d;

  constructor(channels: number, config: AutoencoderConfig) {
    super();
    this.norm = norm(channels, config.normGroups);
    this.q = new Conv2d(channels, channels, 1);
    this.k = new Conv2d(channels, channels, 1);
    this.v = new Conv2d(channels, channels, 1);
    this.proj_out = new Conv2d(channels, channels, 1);
  }

  forward(x: Tensor): Tensor {
    return tidy(() => {
      const [b, c, h, w] = x.dims(4);
      const normed = this.norm.forward(x);
      const heads = (layer: Conv2d): Tensor =>
        layer
          .forward(normed)
          .reshape(b, 1, c, h * w)
          .transpose(2, 3);
      // [b, 1, hw, c], scaled by 1 / sqrt(c)
      const mixed = F.scaledDotProductAttention(heads(this.q), heads(this.k), heads(this.v));
      return this.proj_out.forward(mixed.transpose(2, 3).reshape(b, c, h, w)).add_(x);
    });
  }
}

/** Halves the resolution. Zeros are padded only at the bottom and the right, as the published weights require. */
class Downsample extends Module {
  readonly conv: Conv2d;

  constructor(channels: number) {
    super();
    this.conv = new Conv2d(channels, channels, 3, { stride: 2 });
  }

  forward(x: Tensor): Tensor {
    return tidy(() => this.conv.forward(F.pad(x, [0, 1, 0, 1])));
  }
}

/** Doubles the resolution: nearest-neighbour upsampling, then a convolution. */
class Upsample extends Module {
  readonly conv: Conv2d;

  constructor(channels: number) {
    super();
    this.conv = conv3(channels, channels);
  }

  forward(x: Tensor): Tensor {
    return tidy(() => this.conv.forward(F.interpolate(x, { scale: 2 })));
  }
}

/**
 * The residual blocks of one level, each followed by attention if the level has it, and the resampling to the next
 * level.
 */
class Level extends Module {
  readonly #steps: readonly Step[];

  constructor(
    level: number,
    channels: { from: number; to: number },
    count: number,
    resample: Downsample | Upsample | null,
    config: AutoencoderConfig,
  ) {
    super();
    const { from, to } = channels;
    const blocks = Array.from({ length: count }, (_, i) => new ResnetBlock(i === 0 ? from : to, to, config));
    const hasAttention = config.attnLevels.includes(level);
    const attn = hasAttention ? blocks.map(() => new AttnBlock(to, config)) : [];
    const key = resample instanceof Downsample ? "downsample" : "upsample";
    Object.assign(this, { [config.naming === "ibq" ? "block" : "res"]: blocks, attn, [key]: resample });
    const mixed = blocks.flatMap((block, i) => (hasAttention ? [block, attn[i] as AttnBlock] : [block]));
    this.#steps = [...mixed, ...(resample === null ? [] : [resample])].map(stepOf);
  }

  forward(x: Tensor): Tensor {
    return chain(x, this.#steps);
  }
}

class Middle extends Module {
  readonly block_1: ResnetBlock;
  readonly attn_1: AttnBlock;
  readonly block_2: ResnetBlock;

  constructor(channels: number, config: AutoencoderConfig) {
    super();
    this.block_1 = new ResnetBlock(channels, channels, config);
    this.attn_1 = new AttnBlock(channels, config);
    this.block_2 = new ResnetBlock(channels, channels, config);
  }
}

/** The fields of the middle block under the family's names, and its three steps. */
function middle(channels: number, config: AutoencoderConfig): { mid: Module | Module[]; steps: Step[] } {
  const mid = new Middle(channels, config);
  const layers = [mid.block_1, mid.attn_1, mid.block_2];
  return { mid: config.naming === "ibq" ? mid : layers, steps: layers.map(stepOf) };
}

const widths = (config: AutoencoderConfig): number[] => config.chMult.map((factor) => config.ch * factor);

/** Images float32 `[B, inChannels, H, W]` to features `[B, zChannels, H / d, W / d]`, d = 2 ** (levels - 1). */
export class Encoder extends Module {
  // Only declared: the fields then get the order of their assignments, which is that of the published state dicts.
  declare readonly conv_in: Conv2d;
  declare readonly norm_out: GroupNorm;
  declare readonly conv_out: Conv2d;
  readonly #steps: readonly Step[];

  constructor(config: AutoencoderConfig) {
    super();
    const channels = widths(config);
    const deepest = channels.at(-1) as number;
    this.conv_in = conv3(config.inChannels, config.ch);
    const levels = channels.map((to, level) => {
      const from = level === 0 ? config.ch : (channels[level - 1] as number);
      const resample = level === channels.length - 1 ? null : new Downsample(to);
      return new Level(level, { from, to }, config.numResBlocks, resample, config);
    });
    const { mid, steps } = middle(deepest, config);
    Object.assign(this, { [config.naming === "ibq" ? "down" : "conv_blocks"]: levels, mid });
    this.norm_out = norm(deepest, config.normGroups);
    this.conv_out = conv3(deepest, config.zChannels);
    const end = [stepOf(this.norm_out), swish, stepOf(this.conv_out)];
    this.#steps = [stepOf(this.conv_in), ...levels.map(stepOf), ...steps, ...end];
  }

  forward(images: Tensor): Tensor {
    return tidy(() => chain(images, this.#steps));
  }
}

/** Features float32 `[B, zChannels, h, w]` to images `[B, outChannels, h * d, w * d]`, d = 2 ** (levels - 1). */
export class Decoder extends Module {
  declare readonly conv_in: Conv2d;
  declare readonly norm_out: GroupNorm;
  /** The last layer of the decoder; its weight serves to compute the adaptive weight of adversarial losses. */
  declare readonly conv_out: Conv2d;
  readonly #steps: readonly Step[];

  constructor(config: AutoencoderConfig) {
    super();
    const channels = widths(config);
    const deepest = channels.at(-1) as number;
    this.conv_in = conv3(config.zChannels, deepest);
    const { mid, steps } = middle(deepest, config);
    const levels = channels.map((to, level) => {
      const from = channels[level + 1] ?? deepest;
      const resample = level === 0 ? null : new Upsample(to);
      return new Level(level, { from, to }, config.numResBlocks + 1, resample, config);
    });
    const inOrder = levels.toReversed();
    const fields = config.naming === "ibq" ? { up: levels } : { conv_blocks: inOrder };
    Object.assign(this, { mid, ...fields });
    this.norm_out = norm(channels[0] as number, config.normGroups);
    this.conv_out = conv3(channels[0] as number, config.outChannels);
    const end = [this.#widen, stepOf(this.norm_out), swish, stepOf(this.conv_out)];
    this.#steps = [stepOf(this.conv_in), ...steps, ...inOrder.map(stepOf), ...end];
  }

  /** Casts the results of packed convolutions to the dtype of the last layer, which is not packed. */
  readonly #widen: Step = (x) => {
    return this.conv_in.packed === null ? x : x.to({ dtype: this.conv_out.weight.dtype });
  };

  forward(features: Tensor): Tensor {
    return tidy(() => chain(features, this.#steps));
  }
}

/**
 * Bytes of activations at a time for an image of this many pixels, without autograd: five tensors at the level with the
 * largest product of channels and pixels (a block's input, its padding or shortcut, and input and output of a
 * convolution).
 */
export function activationBytes(config: AutoencoderConfig, pixels: number): number {
  const channels = widths(config);
  // An Upsample has the channels of the lower level at the resolution of the higher one.
  const elements = channels.map(
    (to, level) => (Math.max(to, channels[level + 1] ?? 0) * pixels) / 4 ** level,
  );
  return 5 * 4 * Math.max(...elements);
}
