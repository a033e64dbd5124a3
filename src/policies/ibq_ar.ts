/**
 * The transformer of IBQ's released generators: LlamaGen's blocks, each scaled, shifted and gated by the class (AdaLN); the
 * last norm is scaled and shifted too. Weights and keys are those of the published models.
 *
 * Shi et al. 2024, "Taming Scalable Visual Tokenizer for Autoregressive Image Generation"; AdaLN after Peebles and
 * Xie 2022, "Scalable Diffusion Models with Transformers".
 *
 * Deviations: labels are dropped by `isDropped` of the condition, not at random inside `forward`; the variants that no
 * released model uses (one AdaLN for all blocks, codes embedded by a codebook) are not implemented; in incremental
 * decoding the scales and shifts of the class are computed once per image, not in every step.
 */
import { Buffer, type Embedding, type Linear, Module, RMSNorm } from "../nn/index.js";
import { cat, noGrad, type OptionNames, readOptions, type Tensor, tidy } from "../torch/index.js";
import type { Seen } from "./attention.js";
import { checkCondition } from "./condition.js";
import { checkDecode, checkPrefill, checkTokens, KvCache, maxLenOf, repeatCache } from "./kv_cache.js";
import {
  checkClasses,
  checkHeads,
  checkNumbers,
  checkSizes,
  dropout,
  dropPath,
  dropPathRate,
  embedding,
  LabelEmbedder,
  linear,
  runBlock,
  zeroLinear,
} from "./layers.js";
import { gatedWidth, LlamaAttention, LlamaFeedForward, type LlamaSizes } from "./llama_blocks.js";
import type { ArPolicy, Condition, DecodeCache } from "./policy.js";
import { rotaryTable } from "./rotary.js";

/** Constructor options, named as the published ones; `multipleOf` sets the feed-forward's width unless `ffnDim` does. */
export interface IbqArOptions {
  vocabSize: number;
  /** T: codes in a full image, a square number. */
  blockSize: number;
  nLayer?: number;
  nHead?: number;
  nEmbd?: number;
  /** Number of key heads; by default equal to `nHead`. */
  nKvHead?: number;
  classNum?: number;
  tokenDrop?: number;
  residDropoutP?: number;
  attnDropoutP?: number;
  ffnDropoutP?: number;
  dropPathRate?: number;
  multipleOf?: number;
  ffnDim?: number;
  ropeBase?: number;
  normEps?: number;
  initializerRange?: number;
  /** Factor on the initial weights of the gate of each branch: small, so that branches add little at first. */
  alng?: number;
}

const OPTION_NAMES: OptionNames<IbqArOptions> = {
  vocabSize: "number",
  blockSize: "number",
  nLayer: "number",
  nHead: "number",
  nEmbd: "number",
  nKvHead: "number",
  classNum: "number",
  tokenDrop: "number",
  residDropoutP: "number",
  attnDropoutP: "number",
  ffnDropoutP: "number",
  dropPathRate: "number",
  multipleOf: "number",
  ffnDim: "number",
  ropeBase: "number",
  normEps: "number",
  initializerRange: "number",
  alng: "number",
};

/** Sizes of the published models, all with a codebook of 16384 and 256 codes per image. */
export const ibqArPresets: Readonly<
  Record<"B" | "L" | "XL" | "XXL", { nLayer: number; nHead: number; nEmbd: number }>
> = {
  B: { nLayer: 16, nHead: 16, nEmbd: 1024 },
  L: { nLayer: 20, nHead: 20, nEmbd: 1280 },
  XL: { nLayer: 24, nHead: 24, nEmbd: 1536 },
  XXL: { nLayer: 30, nHead: 30, nEmbd: 1920 },
};

/** Factor on the initial weights of scales and shifts. */
const SCALE_INIT = 0.5;

/** A projection of the class to `count` vectors of width D, under the key `ada_lin.1`. */
function adaLin(dim: number, count: number, std: number): [null, Linear] {
  return [null, linear(dim, count * dim, { bias: true, std })];
}

/** Scales, shifts and gates of a block for a class; each `[B, 1, D]`, 1 is already added to the scales. */
type Modulation = readonly [
  gate1: Tensor,
  gate2: Tensor,
  scale1: Tensor,
  scale2: Tensor,
  shift1: Tensor,
  shift2: Tensor,
];

class Block extends Module {
  readonly attention: LlamaAttention;
  readonly feed_forward: LlamaFeedForward;
  readonly attention_norm: RMSNorm;
  readonly ffn_norm: RMSNorm;
  readonly ada_lin: [null, Linear];
  readonly #dropPath: number;

  constructor(sizes: LlamaSizes, eps: number, dropPathP: number, alng: number) {
    super();
    const { dim, std } = sizes;
    this.attention = new LlamaAttention(sizes);
    this.feed_forward = new LlamaFeedForward(sizes);
    this.attention_norm = new RMSNorm(dim, { eps });
    this.ffn_norm = new RMSNorm(dim, { eps });
    this.ada_lin = adaLin(dim, 6, std);
    this.#dropPath = dropPathP;
    noGrad(() =>
      tidy(() => {
        const { weight } = this.ada_lin[1];
        weight.narrow(0, 0, 2 * dim).mul_(alng);
        weight.narrow(0, 2 * dim, 4 * dim).mul_(SCALE_INIT);
      }),
    );
  }

  /** @param silu - SiLU of the class's embedding, `[B, 1, D]`. */
  modulation(silu: Tensor): Modulation {
    const parts = this.ada_lin[1].forward(silu).chunk(6, -1);
    const [gate1, gate2, scale1, scale2, shift1, shift2] = parts as unknown as Modulation;
    return [gate1, gate2, scale1.add(1), scale2.add(1), shift1, shift2];
  }

  forward(x: Tensor, modulation: Modulation, factors: Tensor, seen: Seen): Tensor {
    const [gate1, gate2, scale1, scale2, shift1, shift2] = modulation;
    const p = this.#dropPath;
    const a = this.attention.forward(shift1.addcmul(this.attention_norm.forward(x), scale1), factors, seen);
    const h = x.addcmul(dropPath(a, p, this.training), gate1);
    const f = this.feed_forward.forward(shift2.addcmul(this.ffn_norm.forward(h), scale2));
    return h.addcmul(dropPath(f, p, this.training), gate2);
  }
}

/** The last norm, scaled and shifted by the class. */
class HeadNorm extends Module {
  readonly rmsnorm: RMSNorm;
  readonly ada_lin: [null, Linear];

  constructor(dim: number, std: number) {
    super();
    // In the published code this norm has the default epsilon, whatever the other norms have.
    this.rmsnorm = new RMSNorm(dim, { eps: 1e-5 });
    this.ada_lin = adaLin(dim, 2, std * SCALE_INIT);
  }

  /** Scale (with 1 added) and shift, each `[B, 1, D]`. */
  modulation(silu: Tensor): [scale: Tensor, shift: Tensor] {
    const [scale, shift] = this.ada_lin[1].forward(silu).chunk(2, -1) as [Tensor, Tensor];
    return [scale.add(1), shift];
  }

  forward(x: Tensor, [scale, shift]: readonly [Tensor, Tensor]): Tensor {
    return shift.addcmul(this.rmsnorm.forward(x), scale);
  }
}

/** IBQ's class-conditional generator, of any size. */
export class IbqAr extends Module implements ArPolicy {
  readonly tok_emb: Embedding;
  readonly class_emb: LabelEmbedder;
  readonly blocks: Block[];
  readonly head_nm: HeadNorm;
  readonly head: Linear;
  /** Rotary factors of all positions; computed, not saved. */
  readonly rotary: Buffer;
  readonly vocabSize: number;
  readonly blockSize: number;
  readonly hiddenSize: number;
  /** All options, defaults included. */
  readonly options: IbqArOptions;
  gradientCheckpointing = false;
  readonly #sizes: LlamaSizes;
  readonly #tokenDrop: number;

  /** @throws RangeError for an unknown option, and for sizes that do not go together. */
  constructor(given: IbqArOptions) {
    super();
    const options = readOptions<IbqArOptions>("IbqAr", [given], { names: OPTION_NAMES });
    const {
      vocabSize,
      blockSize,
      nLayer = 12,
      nHead = 8,
      nEmbd: dim = 256,
      nKvHead = nHead,
      classNum = 1000,
      tokenDrop = 0.1,
      residDropoutP = 0,
      attnDropoutP = 0,
      ffnDropoutP = 0.1,
      dropPathRate: maxDropPath = 0,
      multipleOf = 256,
      ffnDim = gatedWidth(dim, multipleOf),
      ropeBase = 10000,
      normEps = 1e-5,
      initializerRange: std = 0.02,
      alng = 1e-3,
    } = options;
    const sizes = { vocabSize, blockSize, nLayer, nHead, nEmbd: dim, nKvHead, ffnDim };
    const rates = { tokenDrop, residDropoutP, attnDropoutP, ffnDropoutP, dropPathRate: maxDropPath };
    checkSizes("IbqAr", sizes, rates);
    checkClasses("IbqAr", "classNum", classNum);
    checkNumbers("IbqAr", { ropeBase, normEps, initializerRange: std, alng });
    checkHeads("IbqAr", dim, nHead, nKvHead);
    this.options = { ...sizes, classNum, ropeBase, normEps, initializerRange: std, alng, ...rates };
    this.rotary = tidy(() => {
      const rotary = { blockSize, headDim: dim / nHead, conditionTokens: 1, base: ropeBase };
      return new Buffer(rotaryTable("IbqAr", rotary), { persistent: false });
    });
    this.vocabSize = vocabSize;
    this.blockSize = blockSize;
    this.hiddenSize = dim;
    this.#sizes = { dim, nHead, nKvHead, ffnDim, std, attnDropoutP, residDropoutP, ffnDropoutP };
    this.#tokenDrop = tokenDrop;
    this.tok_emb = embedding(vocabSize, dim, std);
    this.class_emb = new LabelEmbedder(classNum, dim, std);
    this.blocks = Array.from({ length: nLayer }, (_, i) => {
      return new Block(this.#sizes, normEps, dropPathRate(maxDropPath, i, nLayer), alng);
    });
    this.head_nm = new HeadNorm(dim, std);
    this.head = zeroLinear(dim, vocabSize);
  }

  hidden(tokens: Tensor, condition: Condition): Tensor {
    const [batch, n] = checkTokens("IbqAr.hidden", tokens, this.blockSize);
    return tidy(() => {
      const { x, silu } = this.#embed("IbqAr.hidden", tokens, condition, batch);
      const factors = this.rotary.narrow(0, 0, n + 1);
      let h = x;
      for (const block of this.blocks) {
        const run = (h: Tensor, factors: Tensor, silu: Tensor): Tensor => {
          return block.forward(h, block.modulation(silu), factors, { mask: null });
        };
        h = runBlock(this.gradientCheckpointing, run, [h, factors, silu]);
      }
      return this.head_nm.forward(h, this.head_nm.modulation(silu));
    });
  }

  logits(hidden: Tensor): Tensor {
    return tidy(() => this.head.forward(hidden).float());
  }

  forward(tokens: Tensor, condition: Condition): Tensor {
    return tidy(() => this.logits(this.hidden(tokens, condition)));
  }

  nullCondition(condition: Condition): Condition {
    return this.class_emb.nullCondition(condition);
  }

  openCache(batch: number, options: { maxLen?: number } = {}): DecodeCache {
    const { dim, nHead, nKvHead } = this.#sizes;
    const maxLen = maxLenOf("IbqAr.openCache", options, this.blockSize);
    return new KvCache({ batch, capacity: maxLen, heads: nKvHead, headDim: dim / nHead });
  }

  prefill(cache: DecodeCache, tokens: Tensor, condition: Condition): Tensor {
    const [batch] = checkTokens("IbqAr.prefill", tokens, this.blockSize);
    const own = checkPrefill("IbqAr.prefill", cache, tokens, 1);
    return noGrad(() =>
      tidy(() => {
        const { x, silu } = this.#embed("IbqAr.prefill", tokens, condition, batch);
        const modulations = this.blocks.flatMap((block) => [...block.modulation(silu)]);
        own.hold(null, [...modulations, ...this.head_nm.modulation(silu)]);
        return this.#step(x, own);
      }),
    );
  }

  decode(cache: DecodeCache, token: Tensor): Tensor {
    const own = checkDecode("IbqAr.decode", cache, token);
    return noGrad(() =>
      tidy(() => {
        const x = this.tok_emb.forward(token.unsqueeze(1)); // [B, 1, D]
        return this.#step(dropout(x, this.#tokenDrop, this.training), own);
      }),
    );
  }

  repeatCache(cache: DecodeCache, times: number, into?: DecodeCache): DecodeCache {
    return repeatCache("IbqAr.repeatCache", cache, times, into);
  }

  /** Run all blocks on `[B, n, D]`, the positions after those in the cache; returns the logits of the last position. */
  #step(x: Tensor, cache: KvCache): Tensor {
    const { extra } = cache;
    const n = x.size(1);
    const factors = cache.rowsOf(this.rotary, 0, n);
    const mask = cache.length > 0 ? cache.stepMask() : null;
    let h = x;
    for (const [layer, block] of this.blocks.entries()) {
      const modulation = extra.slice(6 * layer, 6 * layer + 6) as unknown as Modulation;
      h = tidy(() => block.forward(h, modulation, factors, { mask, cache, layer }));
    }
    cache.advance(n);
    const last = h.narrow(1, n - 1, 1);
    return this.logits(this.head_nm.forward(last, extra.slice(-2) as [Tensor, Tensor]).select(1, 0));
  }

  /** Class and codes `[B, 1 + n, D]`, and SiLU of the class's embedding. */
  #embed(where: string, tokens: Tensor, condition: Condition, batch: number): { x: Tensor; silu: Tensor } {
    checkCondition(where, condition, { classes: this.class_emb.numClasses > 0, features: false }, batch);
    const start = this.class_emb.forward(condition.classes, condition.isDropped, batch);
    const x = cat([start, this.tok_emb.forward(tokens)], 1);
    return { x: dropout(x, this.#tokenDrop, this.training), silu: start.silu() };
  }
}
