/**
 * LlamaGen's transformer: LLaMA blocks over an image's codes with rotary positions in two dimensions, after a class
 * token or the features of a text. Weights and keys are those of the published models.
 *
 * Sun et al. 2024, "Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation".
 *
 * Deviations: labels are dropped by `isDropped` of the condition, not at random inside `forward`; in training as in
 * evaluation `forward` returns only logits that predict codes. As in the original, position tables and masks are not in
 * the state dict.
 */
import { Buffer, type Embedding, init, type Linear, Module, RMSNorm } from "../nn/index.js";
import {
  cat,
  expected,
  noGrad,
  type OptionNames,
  readOptions,
  type Tensor,
  tidy,
  where,
} from "../torch/index.js";
import { paddingMask, paddingRow, type Seen } from "./attention.js";
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
  placeOf,
  runBlock,
  zeroLinear,
} from "./layers.js";
import { gatedWidth, LlamaAttention, LlamaFeedForward, type LlamaSizes } from "./llama_blocks.js";
import type { ArPolicy, Condition, DecodeCache } from "./policy.js";
import { rotaryTable } from "./rotary.js";

/** Constructor options, named as the published ones; `multipleOf` sets the feed-forward's width unless `ffnDim` does. */
export interface LlamaGenOptions {
  dim: number;
  nLayer: number;
  nHead: number;
  /** Number of key heads; by default equal to `nHead`. */
  nKvHead?: number;
  vocabSize?: number;
  /** T: codes in a full image, a square number. */
  blockSize?: number;
  /** `c2i` takes classes, `t2i` features. */
  modelType?: "c2i" | "t2i";
  numClasses?: number;
  /** C: width of a text feature. */
  captionDim?: number;
  /** Condition tokens: 1 for classes, else S, the number of features of every text. */
  clsTokenNum?: number;
  multipleOf?: number;
  ffnDim?: number;
  ropeBase?: number;
  normEps?: number;
  initializerRange?: number;
  tokenDropoutP?: number;
  attnDropoutP?: number;
  residDropoutP?: number;
  ffnDropoutP?: number;
  dropPathRate?: number;
}

const OPTION_NAMES: OptionNames<LlamaGenOptions> = {
  dim: "number",
  nLayer: "number",
  nHead: "number",
  nKvHead: "number",
  vocabSize: "number",
  blockSize: "number",
  modelType: true,
  numClasses: "number",
  captionDim: "number",
  clsTokenNum: "number",
  multipleOf: "number",
  ffnDim: "number",
  ropeBase: "number",
  normEps: "number",
  initializerRange: "number",
  tokenDropoutP: "number",
  attnDropoutP: "number",
  residDropoutP: "number",
  ffnDropoutP: "number",
  dropPathRate: "number",
};

/** Sizes of the published models: `new LlamaGen({ ...llamaGenPresets["GPT-B"], blockSize: 256 })`. */
export const llamaGenPresets: Readonly<
  Record<
    "GPT-B" | "GPT-L" | "GPT-XL" | "GPT-XXL" | "GPT-XXXL" | "GPT-1B" | "GPT-3B" | "GPT-7B",
    { nLayer: number; nHead: number; dim: number }
  >
> = {
  "GPT-B": { nLayer: 12, nHead: 12, dim: 768 },
  "GPT-L": { nLayer: 24, nHead: 16, dim: 1024 },
  "GPT-XL": { nLayer: 36, nHead: 20, dim: 1280 },
  "GPT-XXL": { nLayer: 48, nHead: 24, dim: 1536 },
  "GPT-XXXL": { nLayer: 48, nHead: 40, dim: 2560 },
  "GPT-1B": { nLayer: 22, nHead: 32, dim: 2048 },
  "GPT-3B": { nLayer: 24, nHead: 32, dim: 3200 },
  "GPT-7B": { nLayer: 32, nHead: 32, dim: 4096 },
};

/** GELU between two projections without biases: `[..., C]` to `[..., D]`. */
class CaptionProjection extends Module {
  readonly fc1: Linear;
  readonly fc2: Linear;

  constructor(captionDim: number, dim: number, std: number) {
    super();
    this.fc1 = linear(captionDim, dim, { std });
    this.fc2 = linear(dim, dim, { std });
  }

  forward(features: Tensor): Tensor {
    return this.fc2.forward(this.fc1.forward(features).gelu("tanh"));
  }
}

/** Text features as tokens. The null features are a buffer of random numbers that is never trained. */
class CaptionEmbedder extends Module {
  readonly uncond_embedding: Buffer;
  readonly cap_proj: CaptionProjection;

  constructor(tokens: number, captionDim: number, dim: number, std: number) {
    super();
    this.uncond_embedding = tidy(() => {
      return new Buffer(init.normal([tokens, captionDim], 0, 1 / Math.sqrt(captionDim)));
    });
    this.cap_proj = new CaptionProjection(captionDim, dim, std);
  }

  /** Project features `[B, S, C]` to `[B, S, D]`; undefined or dropped features are replaced by the null features. */
  forward(features: Tensor | undefined, isDropped: Tensor | undefined, batch: number): Tensor {
    const { uncond_embedding: none, cap_proj: project } = this;
    const place = placeOf(none);
    const [s, c] = none.dims(2);
    if (features !== undefined && (features.shape[1] !== s || features.shape[2] !== c)) {
      const remedy = "Pad on the left with isReal false, or cut";
      throw expected("condition.features", `shape [${batch}, ${s}, ${c}]`, features, remedy);
    }
    const given = features?.to(place) ?? none.expand(batch, s, c);
    if (isDropped === undefined) return project.forward(given);
    return project.forward(where(isDropped.to({ device: place.device }).view(batch, 1, 1), none, given));
  }
}

class Block extends Module {
  readonly attention: LlamaAttention;
  readonly feed_forward: LlamaFeedForward;
  readonly attention_norm: RMSNorm;
  readonly ffn_norm: RMSNorm;
  readonly #dropPath: number;

  constructor(sizes: LlamaSizes, eps: number, dropPathP: number) {
    super();
    this.attention = new LlamaAttention(sizes);
    this.feed_forward = new LlamaFeedForward(sizes);
    this.attention_norm = new RMSNorm(sizes.dim, { eps });
    this.ffn_norm = new RMSNorm(sizes.dim, { eps });
    this.#dropPath = dropPathP;
  }

  forward(x: Tensor, factors: Tensor, seen: Seen): Tensor {
    const p = this.#dropPath;
    const a = this.attention.forward(this.attention_norm.forward(x), factors, seen);
    const h = x.add(dropPath(a, p, this.training));
    const f = this.feed_forward.forward(this.ffn_norm.forward(h));
    return h.add(dropPath(f, p, this.training));
  }
}

/** LlamaGen, class-conditional or text-conditional, of any size. */
export class LlamaGen extends Module implements ArPolicy {
  readonly cls_embedding: LabelEmbedder | CaptionEmbedder;
  readonly tok_embeddings: Embedding;
  readonly layers: Block[];
  readonly norm: RMSNorm;
  readonly output: Linear;
  /** Rotary factors of all positions; computed, not saved. */
  readonly rotary: Buffer;
  readonly vocabSize: number;
  readonly blockSize: number;
  readonly hiddenSize: number;
  /** All options, defaults included. */
  readonly options: LlamaGenOptions;
  gradientCheckpointing = false;
  readonly #conditionTokens: number;
  readonly #sizes: LlamaSizes;
  readonly #tokenDropoutP: number;

  /** @throws RangeError for an unknown option, and for sizes that do not go together. */
  constructor(given: LlamaGenOptions) {
    super();
    const options = readOptions<LlamaGenOptions>("LlamaGen", [given], { names: OPTION_NAMES });
    const {
      dim,
      nLayer,
      nHead,
      nKvHead = nHead,
      vocabSize = 16384,
      blockSize = 256,
      modelType = "c2i",
      numClasses = 1000,
      captionDim = 2048,
      clsTokenNum = modelType === "c2i" ? 1 : 120,
      multipleOf = 256,
      ffnDim = gatedWidth(dim, multipleOf),
      ropeBase = 10000,
      normEps = 1e-5,
      initializerRange: std = 0.02,
      tokenDropoutP = 0.1,
      attnDropoutP = 0,
      residDropoutP = 0.1,
      ffnDropoutP = 0.1,
      dropPathRate: maxDropPath = 0,
    } = options;
    const isText = modelType === "t2i";
    if (!isText && modelType !== "c2i") throw expected("LlamaGen: modelType", "c2i or t2i", modelType);
    const sizes = { dim, nLayer, nHead, nKvHead, vocabSize, blockSize, ffnDim, clsTokenNum };
    const rates = { tokenDropoutP, attnDropoutP, residDropoutP, ffnDropoutP, dropPathRate: maxDropPath };
    checkSizes("LlamaGen", { ...sizes, ...(isText && { captionDim }) }, rates);
    if (!isText) checkClasses("LlamaGen", "numClasses", numClasses);
    checkNumbers("LlamaGen", { ropeBase, normEps, initializerRange: std });
    checkHeads("LlamaGen", dim, nHead, nKvHead);
    this.options = {
      ...sizes,
      modelType,
      ...(isText ? { captionDim } : { numClasses }),
      ropeBase,
      normEps,
      initializerRange: std,
      ...rates,
    };
    if (modelType === "c2i" && clsTokenNum !== 1)
      throw expected("LlamaGen", "clsTokenNum 1 for classes", clsTokenNum);
    this.rotary = tidy(() => {
      const rotary = { blockSize, headDim: dim / nHead, conditionTokens: clsTokenNum, base: ropeBase };
      return new Buffer(rotaryTable("LlamaGen", rotary), { persistent: false });
    });
    this.vocabSize = vocabSize;
    this.blockSize = blockSize;
    this.hiddenSize = dim;
    this.#conditionTokens = clsTokenNum;
    this.#tokenDropoutP = tokenDropoutP;
    this.#sizes = { dim, nHead, nKvHead, ffnDim, std, attnDropoutP, residDropoutP, ffnDropoutP };
    this.cls_embedding =
      modelType === "c2i"
        ? new LabelEmbedder(numClasses, dim, std)
        : new CaptionEmbedder(clsTokenNum, captionDim, dim, std);
    this.tok_embeddings = embedding(vocabSize, dim, std);
    this.layers = Array.from({ length: nLayer }, (_, i) => {
      return new Block(this.#sizes, normEps, dropPathRate(maxDropPath, i, nLayer));
    });
    this.norm = new RMSNorm(dim, { eps: normEps });
    this.output = zeroLinear(dim, vocabSize);
  }

  hidden(tokens: Tensor, condition: Condition): Tensor {
    const [batch, n] = checkTokens("LlamaGen.hidden", tokens, this.blockSize);
    return tidy(() => {
      const { x, isReal } = this.#embed("LlamaGen.hidden", tokens, condition, batch);
      const mask = isReal && paddingMask(isReal, x.size(1), x);
      return this.norm.forward(this.#run(x, mask, null).narrow(1, this.#conditionTokens - 1, n + 1));
    });
  }

  logits(hidden: Tensor): Tensor {
    return tidy(() => this.output.forward(hidden).float());
  }

  forward(tokens: Tensor, condition: Condition): Tensor {
    return tidy(() => this.logits(this.hidden(tokens, condition)));
  }

  nullCondition(condition: Condition): Condition {
    const { cls_embedding: embedder } = this;
    if (embedder instanceof LabelEmbedder) return embedder.nullCondition(condition);
    const { features, isReal } = condition;
    if (features === undefined) return {};
    const none = embedder.uncond_embedding.to(placeOf(features)).expand(...features.shape);
    // Dropped texts keep their padding mask: the null features are used with the mask of the text in training and
    // sampling.
    return isReal === undefined ? { features: none } : { features: none, isReal };
  }

  openCache(batch: number, options: { maxLen?: number } = {}): DecodeCache {
    const { dim, nHead, nKvHead } = this.#sizes;
    const maxLen = maxLenOf("LlamaGen.openCache", options, this.blockSize);
    const capacity = this.#conditionTokens + maxLen - 1;
    return new KvCache({ batch, capacity, heads: nKvHead, headDim: dim / nHead });
  }

  prefill(cache: DecodeCache, tokens: Tensor, condition: Condition): Tensor {
    const [batch] = checkTokens("LlamaGen.prefill", tokens, this.blockSize);
    const own = checkPrefill("LlamaGen.prefill", cache, tokens, this.#conditionTokens);
    return noGrad(() =>
      tidy(() => {
        const { x, isReal } = this.#embed("LlamaGen.prefill", tokens, condition, batch);
        const length = x.size(1);
        own.hold(isReal && paddingRow(isReal, own.capacity, x), []);
        const y = this.#run(x, isReal && paddingMask(isReal, length, x), own).select(1, length - 1);
        own.advance(length);
        return this.logits(this.norm.forward(y));
      }),
    );
  }

  decode(cache: DecodeCache, token: Tensor): Tensor {
    const own = checkDecode("LlamaGen.decode", cache, token);
    return noGrad(() =>
      tidy(() => {
        const x = this.tok_embeddings.forward(token.unsqueeze(1)); // [B, 1, D]
        const y = this.#run(this.#drop(x), own.stepMask(), own).select(1, 0);
        own.advance(1);
        return this.logits(this.norm.forward(y));
      }),
    );
  }

  repeatCache(cache: DecodeCache, times: number, into?: DecodeCache): DecodeCache {
    return repeatCache("LlamaGen.repeatCache", cache, times, into);
  }

  #drop(x: Tensor): Tensor {
    return dropout(x, this.#tokenDropoutP, this.training);
  }

  /** Condition and codes, `[B, S + n, D]`. */
  #embed(
    where: string,
    tokens: Tensor,
    condition: Condition,
    batch: number,
  ): { x: Tensor; isReal: Tensor | null } {
    const { cls_embedding: embedder } = this;
    const isText = embedder instanceof CaptionEmbedder;
    checkCondition(where, condition, { classes: !isText, features: isText }, batch);
    const given = isText ? condition.features : condition.classes;
    const start = embedder.forward(given, condition.isDropped, batch);
    const codes = this.tok_embeddings.forward(tokens);
    const x = this.#drop(cat([start.to({ dtype: codes.dtype }), codes], 1));
    return { x, isReal: condition.isReal ?? null };
  }

  /** All blocks over `[B, n, D]`, which comes after what the cache holds. */
  #run(x: Tensor, mask: Tensor | null, cache: KvCache | null): Tensor {
    const n = x.size(1);
    const factors = cache === null ? this.rotary.narrow(0, 0, n) : cache.rowsOf(this.rotary, 0, n);
    let h = x;
    for (const [layer, block] of this.layers.entries()) {
      const run = (h: Tensor, factors: Tensor, mask: Tensor | null): Tensor => {
        return block.forward(h, factors, { mask, cache, layer });
      };
      h = runBlock(this.gradientCheckpointing, run, [h, factors, mask]);
    }
    return h;
  }
}
