/** FLOPs and activations of the convolutional networks for one image, computed from their sizes. */
import { BACKBONES, type LpipsNet } from "../metrics/backbones.js";
import type { ClassifierConfig } from "../metrics/index.js";
import { activationBytes } from "../tokenizers/autoencoder.js";
import type { TokenizerConfig } from "../tokenizers/index.js";

/**
 * Costs of a tokenizer for one image of so many pixels: convolutions, attention and the codebook search. A multiplication
 * and its addition are two FLOPs.
 */
export function tokenizerCosts(config: TokenizerConfig, pixels: number) {
  const { ch, chMult, numResBlocks, attnLevels, zChannels, embedDim, inChannels, outChannels } = config;
  const widths = chMult.map((factor) => factor * ch);
  const last = widths.length - 1;
  const deepest = widths[last] as number;
  const at = (level: number): number => pixels / 4 ** level;
  /** Multiplications of one side, and the numbers that its norms, activations and convolutions read. */
  const sideOf = (isDecoder: boolean): { products: number; saved: number } => {
    let products = zChannels * embedDim * at(last); // the projection between latents and codebook vectors
    let saved = 0;
    const conv = (from: number, to: number, level: number, reads = 1, taps = 9): void => {
      products += taps * from * to * at(level);
      saved += reads * from * at(level);
    };
    const block = (from: number, to: number, level: number): void => {
      conv(from, to, level, 3);
      conv(to, to, level, 3);
      if (from !== to) conv(from, to, level, 0, 1);
    };
    const attention = (width: number, level: number): void => {
      products += 4 * width * width * at(level) + 2 * width * at(level) ** 2;
      saved += 7 * width * at(level) + at(level) ** 2;
    };
    for (const [level, to] of widths.entries()) {
      const from = isDecoder ? (widths[level + 1] ?? deepest) : (widths[level - 1] ?? ch);
      for (let i = 0; i < numResBlocks + Number(isDecoder); i++) {
        block(i === 0 ? from : to, to, level);
        if (attnLevels.includes(level)) attention(to, level);
      }
      const next = isDecoder ? level - 1 : level + 1;
      if (next >= 0 && next <= last) conv(to, to, next);
    }
    for (let i = 0; i < 2; i++) block(deepest, deepest, last);
    attention(deepest, last);
    if (isDecoder) {
      conv(zChannels, deepest, last);
      conv(ch * (chMult[0] as number), outChannels, 0, 3);
    } else {
      conv(deepest, zChannels, last, 3);
      conv(inChannels, ch, 0);
    }
    return { products, saved };
  };
  const decoder = sideOf(true);
  const search = config.codebookSize * embedDim * at(last);
  // Alive at a time: five maps of a block, or not quite three of the lower level's channels after upsampling.
  const alive = widths.map((to, level) => Math.max(5 * to, 2.75 * (widths[level + 1] ?? 0)) * at(level));
  return {
    encodeFlops: 2 * (sideOf(false).products + search),
    decodeFlops: 2 * decoder.products,
    /** Activations of the encoder or the decoder, without a graph. */
    activationBytes: 4 * Math.max(...alive),
    /** The upper bound by which the tokenizer splits a batch into parts. */
    partBytes: activationBytes(config, pixels),
    /** What autograd saves in the decoder, whose weights are frozen. */
    decodeGraphBytes: 4 * decoder.saved,
  };
}

/** Costs of a metric's network for one image. */
export interface NetworkCosts {
  readonly flops: number;
  /** Elements of the feature maps that are compared; an image keeps its own for all its samples. */
  readonly features: number;
  /** Channels of these maps together. */
  readonly channels: number;
  /** Elements of the largest feature map. */
  readonly largest: number;
}

/** One feature map `[channels, size, size]`, and the weights that produce it. */
interface FeatureMap {
  readonly channels: number;
  readonly size: number;
  /** Multiplications per position. */
  readonly weights: number;
  readonly isCompared: boolean;
}

function networkCosts(maps: readonly FeatureMap[]): NetworkCosts {
  const sum = (of: (map: FeatureMap) => number): number => maps.reduce((total, map) => total + of(map), 0);
  return {
    flops: sum(({ weights, size }) => 2 * weights * size ** 2),
    features: sum(({ isCompared, channels, size }) => (isCompared ? channels * size ** 2 : 0)),
    channels: sum(({ isCompared, channels }) => (isCompared ? channels : 0)),
    largest: Math.max(...maps.map(({ channels, size }) => channels * size ** 2)),
  };
}

/** Costs of LPIPS's backbone for an image of `side` by `side`. */
export function backboneCosts(net: LpipsNet, side: number): NetworkCosts {
  const { steps, pool, taps } = BACKBONES[net];
  const maps: FeatureMap[] = [];
  let [size, channels] = [side, 3];
  for (const [i, step] of steps.entries()) {
    let weights = 0;
    if (step === "pool") {
      size = (pool.ceilMode ? Math.ceil : Math.floor)((size - pool.kernel) / 2) + 1;
    } else if (step !== "relu" && step.kind === "conv") {
      size = Math.floor((size + 2 * step.padding - step.kernel) / step.stride) + 1;
      channels = step.out;
      weights = step.in * step.out * step.kernel ** 2;
    } else if (step !== "relu") {
      channels = 2 * step.expand;
      weights = step.in * step.squeeze + 10 * step.squeeze * step.expand;
    }
    maps.push({ channels, size, weights, isCompared: taps.includes(i) });
  }
  return networkCosts([{ channels: 3, size: side, weights: 0, isCompared: false }, ...maps]);
}

/** Costs of a feature classifier, up to its last feature map. */
export function classifierCosts({ widths = [], depth = 1 }: ClassifierConfig, side: number): NetworkCosts {
  const [first = 0] = widths;
  const maps = widths.map((to, level): FeatureMap => {
    const size = Math.ceil(side / 2 ** level);
    const from = widths[level - 1] ?? 0;
    const weights = level === 0 ? 27 * first : from * to * 10 + 9 * to * to + (depth - 1) * 18 * to * to;
    return { channels: to, size, weights, isCompared: true };
  });
  return networkCosts(maps);
}

/** Costs of PatchGAN's discriminator, from the shapes of its weights. */
export function discriminatorCosts(
  shapes: Readonly<Record<string, readonly number[]>>,
  side: number,
): NetworkCosts {
  const layers = Object.values(shapes).filter((shape) => shape.length === 4);
  let size = side;
  const maps = layers.map(([to = 0, from = 0, kernel = 0], i): FeatureMap => {
    const stride = i < layers.length - 2 ? 2 : 1; // the last two layers keep the size
    size = Math.floor((size + 2 - kernel) / stride) + 1;
    return { channels: to, size, weights: to * from * kernel ** 2, isCompared: false };
  });
  return networkCosts([{ channels: 3, size: side, weights: 0, isCompared: false }, ...maps]);
}
