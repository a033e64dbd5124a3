/** What encoding and decoding cost, told from a tokenizer's configuration alone. */
import { activationBytes } from "./autoencoder.js";
import type { TokenizerConfig } from "./tokenizer_model.js";

/** What one image costs; a multiplication and its addition are two operations. */
export interface TokenizerCosts {
  readonly encodeFlops: number;
  readonly decodeFlops: number;
  /** Bytes of activations while it is encoded or decoded, without a graph. */
  readonly activationBytes: number;
  /** The same as the tokenizer itself reckons when it cuts a batch into parts, with room to spare. */
  readonly partBytes: number;
  /** Bytes that the graph of decoding it keeps, where the weights are frozen. */
  readonly decodeGraphBytes: number;
}

/** Costs of images of so many pixels: convolutions, attention over positions and the search of the codebook. */
export function tokenizerCosts(config: TokenizerConfig, pixels: number): TokenizerCosts {
  const { ch, chMult, numResBlocks, attnLevels, zChannels, embedDim, inChannels, outChannels } = config;
  const channels = chMult.map((factor) => factor * ch);
  const last = channels.length - 1;
  const deepest = channels[last] as number;
  const at = (level: number): number => pixels / 4 ** level;
  const conv3 = (from: number, to: number, level: number): number => 9 * from * to * at(level);
  const block = (from: number, to: number, level: number): number =>
    conv3(from, to, level) + conv3(to, to, level) + (from === to ? 0 : from * to * at(level));
  const attention = (width: number, level: number): number =>
    4 * width * width * at(level) + 2 * width * at(level) ** 2;
  let kept = 0;
  const keepBlock = (from: number, to: number, level: number): void => {
    kept += 3 * (from + to) * at(level); // what each norm, activation and convolution reads
  };
  const levelOf = (level: number, from: number, count: number): number => {
    const to = channels[level] as number;
    const blocks = block(from, to, level) + (count - 1) * block(to, to, level);
    return blocks + (attnLevels.includes(level) ? count * attention(to, level) : 0);
  };
  const middle = 2 * block(deepest, deepest, last) + attention(deepest, last);
  let encode = conv3(inChannels, ch, 0) + middle + conv3(deepest, zChannels, last);
  let decode = conv3(zChannels, deepest, last) + middle + conv3(channels[0] as number, outChannels, 0);
  for (const [level, to] of channels.entries()) {
    encode += levelOf(level, level === 0 ? ch : (channels[level - 1] as number), numResBlocks);
    if (level < last) encode += conv3(to, to, level + 1);
    decode += levelOf(level, channels[level + 1] ?? deepest, numResBlocks + 1);
    if (level > 0) decode += conv3(to, to, level - 1);
  }
  for (let i = 0; i < 2; i++) keepBlock(deepest, deepest, last);
  for (const [level, to] of channels.entries()) {
    keepBlock(channels[level + 1] ?? deepest, to, level);
    for (let i = 0; i < numResBlocks; i++) keepBlock(to, to, level);
    const attentions = (attnLevels.includes(level) ? numResBlocks + 1 : 0) + (level === last ? 1 : 0);
    kept += attentions * (7 * to * at(level) + at(level) ** 2) + (level > 0 ? to * at(level - 1) : 0);
  }
  kept += 3 * (channels[0] as number) * at(0) + zChannels * at(last);
  const around = zChannels * embedDim * at(last);
  const search = config.codebookSize * embedDim * at(last);
  return {
    encodeFlops: 2 * (encode + around + search),
    decodeFlops: 2 * (decode + around),
    activationBytes:
      4 * Math.max(...channels.map((to, level) => workingSet(to, channels[level + 1] ?? 0) * at(level))),
    partBytes: activationBytes(config, pixels),
    decodeGraphBytes: 4 * kept,
  };
}

/**
 * Numbers a pixel of a level that are alive at a time: five maps in a block of its own channels, and not quite three of
 * the lower level's where they arrive enlarged.
 */
function workingSet(channels: number, lower: number): number {
  return Math.max(5 * channels, 2.75 * lower);
}
