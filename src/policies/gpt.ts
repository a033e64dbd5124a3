/**
 * minGPT over the codes of an image: learned position embeddings, LayerNorm before each residual branch, projections
 * with biases, and a class token in front. Features of a text or of anything else can be added, as tokens in front or
 * through cross-attention. Weights and keys are those of the class-conditional minGPT published with IBQ.
 *
 * Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training"; Shi et al. 2024, "Taming
 * Scalable Visual Tokenizer for Autoregressive Image Generation" (IBQ).
 *
 * Deviations: there is no buffer `blocks.N.attn.mask`, since attention is causal without it; labels are dropped by
 * `isDropped` of the condition, not at random inside `forward`; the class embedding is drawn from N(0, 0.02) also when
 * codes are embedded by a codebook, while the original leaves it at N(0, 1); features, cross-attention and `classNum:
 * 0` are additions, whose keys exist only if they are used.
 */
import { type Embedding, init, LayerNorm, type Linear, Module, Parameter } from "../nn/index.js";
import {
  callTensor,
  cat,
  expected,
  noGrad,
  type OptionNames,
  readOptions,
  type Tensor,
  tidy,
  where,
} from "../torch/index.js";
import { attend, attendTo, paddingMask, paddingRow, type Seen, splitHeads } from "./attention.js";
import { checkCondition } from "./condition.js";
import { checkDecode, checkPrefill, checkTokens, KvCache, maxLenOf, repeatCache } from "./kv_cache.js";
import {
  checkClasses,
  checkHeads,
  checkSizes,
  dropout,
  embedding,
  LabelEmbedder,
  linear,
  placeOf,
  runBlock,
  zeroLinear,
} from "./layers.js";
import type { ArPolicy, Condition, DecodeCache } from "./policy.js";

/** How features are added: `tokens` of them in front of the class token, or any number through cross-attention. */
export type GptFeatures = { kind: "prepend"; dim: number; tokens: number } | { kind: "cross"; dim: number };

/** Constructor options, named as the published ones. */
export interface GptOptions {
  vocabSize: number;
  /**
   * T: maximum number of codes in a sequence. With the class token the input also has T positions, because the last
   * code is never an input.
   */
  blockSize: number;
  nLayer?: number;
  nHead?: number;
  nEmbd?: number;
  embdPdrop?: number;
  residPdrop?: number;
  attnPdrop?: number;
  /** Number of classes; 0 for an unconditional model, whose start token is one learned vector. */
  classNum?: number;
  tokenDrop?: number;
  clsTokenNumber?: 1;
  /** Whether codes are embedded by the rows of the tokenizer's codebook and a projection. The rows are trained too. */
  usePretrainedCodebook?: boolean;
  /**
   * float `[V, nCodebookEmbd]`: initial values of these rows, copied. By default they are drawn from N(0, 0.02), for a
   * model whose weights are loaded afterwards.
   */
  codebook?: Tensor;
  nCodebookEmbd?: number;
  features?: GptFeatures;
}

const OPTION_NAMES: OptionNames<GptOptions> = {
  vocabSize: "number",
  blockSize: "number",
  nLayer: "number",
  nHead: "number",
  nEmbd: "number",
  embdPdrop: "number",
  residPdrop: "number",
  attnPdrop: "number",
  classNum: "number",
  tokenDrop: "number",
  clsTokenNumber: "number",
  usePretrainedCodebook: "boolean",
  codebook: true,
  nCodebookEmbd: "number",
  features: true,
};

function checkFeatures(given: GptFeatures): void {
  const features = readOptions<{ kind: string; dim: number; tokens?: number }>("GPT: features", [given], {
    names: { kind: true, dim: "number", tokens: "number" },
  });
  const { kind, dim, tokens } = features;
  if (kind !== "prepend" && kind !== "cross") throw expected("GPT: features.kind", "prepend or cross", kind);
  checkSizes("GPT: features", { dim, ...(kind === "prepend" && { tokens }) }, {});
  if (kind === "cross" && tokens !== undefined) {
    throw expected("GPT: features", "no tokens for cross-attention", tokens, "It takes any number of them");
  }
}

/** Dropout rates and sizes of the blocks. */
interface BlockSizes {
  nHead: number;
  nEmbd: number;
  residPdrop: number;
  attnPdrop: number;
}

/** Keys, values and mask of the features of one layer. */
interface Cross {
  keys: Tensor;
  values: Tensor;
  /** `[B, 1, 1, S]`, added to the logits. */
  mask: Tensor | null;
}

/** Four projections with biases around {@link attend}. */
class Attention extends Module {
  readonly key: Linear;
  readonly query: Linear;
  readonly value: Linear;
  readonly proj: Linear;
  readonly #sizes: BlockSizes;

  /**
   * @param isSilent - whether the output projection starts at zero, so that the branch adds nothing before training.
   */
  constructor(sizes: BlockSizes, isSilent = false) {
    super();
    const d = sizes.nEmbd;
    this.#sizes = sizes;
    this.key = linear(d, d, { bias: true });
    this.query = linear(d, d, { bias: true });
    this.value = linear(d, d, { bias: true });
    this.proj = isSilent ? zeroLinear(d, d, { bias: true }) : linear(d, d, { bias: true });
  }

  /** Keys and values `[B, H, S, headDim]` of `x` `[B, S, D]`. */
  keysAndValues(x: Tensor): [keys: Tensor, values: Tensor] {
    const { nHead } = this.#sizes;
    return [splitHeads(this.key.forward(x), nHead), splitHeads(this.value.forward(x), nHead)];
  }

  forward(x: Tensor, seen: Seen): Tensor {
    const { nHead, attnPdrop } = this.#sizes;
    const q = splitHeads(this.query.forward(x), nHead);
    const [k, v] = this.keysAndValues(x);
    return this.#project(attend(q, k, v, { ...seen, dropout: this.training ? attnPdrop : 0 }));
  }

  across(x: Tensor, { keys, values, mask }: Cross): Tensor {
    const { nHead, attnPdrop } = this.#sizes;
    const q = splitHeads(this.query.forward(x), nHead);
    return this.#project(attendTo(q, keys, values, mask, this.training ? attnPdrop : 0));
  }

  #project(y: Tensor): Tensor {
    return dropout(this.proj.forward(y), this.#sizes.residPdrop, this.training);
  }
}

class Block extends Module {
  readonly ln1: LayerNorm;
  readonly ln2: LayerNorm;
  readonly attn: Attention;
  readonly mlp: readonly [Linear, null, Linear];
  readonly ln_cross: LayerNorm | null;
  readonly cross_attn: Attention | null;
  readonly #residPdrop: number;

  constructor(sizes: BlockSizes, isCross: boolean) {
    super();
    const d = sizes.nEmbd;
    this.#residPdrop = sizes.residPdrop;
    this.ln1 = new LayerNorm(d);
    this.ln2 = new LayerNorm(d);
    this.attn = new Attention(sizes);
    this.mlp = [linear(d, 4 * d, { bias: true }), null, linear(4 * d, d, { bias: true })];
    this.ln_cross = isCross ? new LayerNorm(d) : null;
    this.cross_attn = isCross ? new Attention(sizes, true) : null;
  }

  /** Keys and values of the features `[B, S, D]` for cross-attention. */
  look(features: Tensor | null, mask: Tensor | null): Cross | null {
    if (features === null || this.cross_attn === null) return null;
    // Gradients are summed within the block first. This is the order, and so the rounding, of gradient checkpointing.
    const own = callTensor<Tensor>("aten::alias", [features]);
    const [keys, values] = this.cross_attn.keysAndValues(own);
    return { keys, values, mask };
  }

  forward(x: Tensor, seen: Seen, cross: Cross | null): Tensor {
    let h = x.add(this.attn.forward(this.ln1.forward(x), seen));
    if (cross !== null && this.cross_attn !== null && this.ln_cross !== null) {
      h = h.add(this.cross_attn.across(this.ln_cross.forward(h), cross));
    }
    const [up, , down] = this.mlp;
    const y = down.forward(up.forward(this.ln2.forward(h)).gelu());
    return h.add(dropout(y, this.#residPdrop, this.training));
  }
}

/** minGPT over codes, class-conditional, conditioned on features, both, or neither. */
export class GPT extends Module implements ArPolicy {
  readonly pos_emb: Parameter;
  readonly uncond_embedding: Parameter | null;
  readonly tok_emb: Embedding;
  readonly embedding_projection: Linear | null;
  readonly class_emb: LabelEmbedder;
  readonly cond_proj: Linear | null;
  readonly blocks: Block[];
  readonly ln_f: LayerNorm;
  readonly head: Linear;
  readonly vocabSize: number;
  readonly blockSize: number;
  readonly hiddenSize: number;
  /** All options, defaults included, without the codebook, which is part of the weights. */
  readonly options: GptOptions;
  gradientCheckpointing = false;
  readonly #sizes: BlockSizes;
  readonly #features: GptFeatures | null;
  readonly #embdPdrop: number;
  readonly #tokenDrop: number;

  /** @throws RangeError for an unknown option, and for sizes that do not go together. */
  constructor(given: GptOptions) {
    super();
    const options = readOptions<GptOptions>("GPT", [given], { names: OPTION_NAMES });
    const {
      vocabSize,
      blockSize,
      nLayer = 12,
      nHead = 8,
      nEmbd = 256,
      embdPdrop = 0,
      residPdrop = 0,
      attnPdrop = 0,
      classNum = 1000,
      tokenDrop = 0.1,
      clsTokenNumber = 1,
      usePretrainedCodebook = false,
      codebook,
      nCodebookEmbd = codebook?.size(1) ?? 256,
      features = null,
    } = options;
    const rates = { embdPdrop, residPdrop, attnPdrop, tokenDrop };
    checkSizes("GPT", { vocabSize, blockSize, nLayer, nHead, nEmbd, nCodebookEmbd }, rates);
    checkClasses("GPT", "classNum", classNum);
    checkHeads("GPT", nEmbd, nHead, nHead);
    if (clsTokenNumber !== 1) throw expected("GPT", "clsTokenNumber 1", clsTokenNumber);
    if (features !== null) checkFeatures(features);
    this.options = {
      vocabSize,
      blockSize,
      nLayer,
      nHead,
      nEmbd,
      ...rates,
      classNum,
      ...(usePretrainedCodebook && { usePretrainedCodebook, nCodebookEmbd }),
      ...(features !== null && { features }),
    };
    if (codebook !== undefined && !usePretrainedCodebook) {
      throw expected("GPT", "usePretrainedCodebook where a codebook is given", "false");
    }
    if (codebook !== undefined && codebook.shape.join() !== `${vocabSize},${nCodebookEmbd}`) {
      throw expected("GPT", `a codebook of shape [${vocabSize}, ${nCodebookEmbd}]`, codebook);
    }
    this.vocabSize = vocabSize;
    this.blockSize = blockSize;
    this.hiddenSize = nEmbd;
    this.#sizes = { nHead, nEmbd, residPdrop, attnPdrop };
    this.#features = features;
    this.#embdPdrop = embdPdrop;
    this.#tokenDrop = tokenDrop;
    this.pos_emb = tidy(() => new Parameter(init.zeros([1, blockSize + this.#leading, nEmbd])));
    this.uncond_embedding = features && tidy(() => new Parameter(init.normal([1, 1, features.dim], 0, 0.02)));
    this.tok_emb = embedding(vocabSize, usePretrainedCodebook ? nCodebookEmbd : nEmbd);
    this.embedding_projection = usePretrainedCodebook ? linear(nCodebookEmbd, nEmbd, { bias: true }) : null;
    this.class_emb = new LabelEmbedder(classNum, nEmbd);
    this.cond_proj = features && linear(features.dim, nEmbd, { bias: true });
    this.blocks = Array.from({ length: nLayer }, () => new Block(this.#sizes, features?.kind === "cross"));
    this.ln_f = new LayerNorm(nEmbd);
    this.head = linear(nEmbd, vocabSize);
    if (codebook !== undefined) noGrad(() => this.tok_emb.weight.copy_(codebook));
  }

  hidden(tokens: Tensor, condition: Condition): Tensor {
    const [batch, n] = checkTokens("GPT.hidden", tokens, this.blockSize);
    return tidy(() => {
      const { x, features, isReal } = this.#embed("GPT.hidden", tokens, condition, batch);
      const mask = isReal && features === null ? paddingMask(isReal, x.size(1), x) : null;
      const featureMask = isReal && features && paddingRow(isReal, isReal.size(1), x);
      let h = x;
      for (const block of this.blocks) {
        const run = (
          h: Tensor,
          mask: Tensor | null,
          features: Tensor | null,
          featureMask: Tensor | null,
        ): Tensor => {
          return block.forward(h, { mask }, block.look(features, featureMask));
        };
        h = runBlock(this.gradientCheckpointing, run, [h, mask, features, featureMask]);
      }
      return this.ln_f.forward(h.narrow(1, this.#leading, n + 1));
    });
  }

  logits(hidden: Tensor): Tensor {
    return tidy(() => this.head.forward(hidden).float());
  }

  forward(tokens: Tensor, condition: Condition): Tensor {
    return tidy(() => this.logits(this.hidden(tokens, condition)));
  }

  nullCondition(condition: Condition): Condition {
    const none = this.class_emb.nullCondition(condition);
    const { features, isReal } = condition;
    if (features === undefined || this.uncond_embedding === null) return none;
    none.features = this.uncond_embedding.to(placeOf(features)).expand(...features.shape);
    if (isReal !== undefined) none.isReal = isReal;
    return none;
  }

  openCache(batch: number, options: { maxLen?: number } = {}): DecodeCache {
    const { nHead, nEmbd } = this.#sizes;
    const maxLen = maxLenOf("GPT.openCache", options, this.blockSize);
    const capacity = this.#leading + maxLen;
    return new KvCache({ batch, capacity, heads: nHead, headDim: nEmbd / nHead });
  }

  prefill(cache: DecodeCache, tokens: Tensor, condition: Condition): Tensor {
    const [batch] = checkTokens("GPT.prefill", tokens, this.blockSize);
    const own = checkPrefill("GPT.prefill", cache, tokens, this.#leading + 1);
    return noGrad(() =>
      tidy(() => {
        const { x, features, isReal } = this.#embed("GPT.prefill", tokens, condition, batch);
        if (features === null) {
          own.hold(isReal && paddingRow(isReal, own.capacity, x), []);
          return this.#step(x, isReal && paddingMask(isReal, x.size(1), x), own);
        }
        const looks = this.blocks.flatMap((block) => block.cross_attn?.keysAndValues(features) ?? []);
        own.hold(null, isReal === null ? looks : [...looks, paddingRow(isReal, isReal.size(1), x)]);
        return this.#step(x, null, own);
      }),
    );
  }

  decode(cache: DecodeCache, token: Tensor): Tensor {
    const own = checkDecode("GPT.decode", cache, token);
    return noGrad(() =>
      tidy(() => {
        const codes = dropout(this.#codes(token.unsqueeze(1)), this.#tokenDrop, this.training); // [B, 1, D]
        return this.#step(this.#place(codes, own.rowsOf(this.pos_emb, 1, 1)), own.stepMask(), own);
      }),
    );
  }

  repeatCache(cache: DecodeCache, times: number, into?: DecodeCache): DecodeCache {
    return repeatCache("GPT.repeatCache", cache, times, into);
  }

  /** Number of feature tokens before the class token. */
  get #leading(): number {
    return this.#features?.kind === "prepend" ? this.#features.tokens : 0;
  }

  /** Run all blocks on `[B, n, D]`, the positions after those in the cache; returns the logits of the last position. */
  #step(x: Tensor, mask: Tensor | null, cache: KvCache): Tensor {
    // Keys and values of the features for each block, then their mask where there is one.
    const { extra } = cache;
    const featureMask = extra.length % 2 === 1 ? (extra.at(-1) as Tensor) : null;
    let h = x;
    for (const [layer, block] of this.blocks.entries()) {
      const [keys, values] = extra.slice(2 * layer, 2 * layer + 2);
      const cross = block.cross_attn && keys && values ? { keys, values, mask: featureMask } : null;
      h = tidy(() => block.forward(h, { mask, cache, layer }, cross));
    }
    const n = x.size(1);
    cache.advance(n);
    return this.logits(this.ln_f.forward(h.select(1, n - 1)));
  }

  /** The input of the first block, and the features for cross-attention. */
  #embed(where: string, tokens: Tensor, condition: Condition, batch: number): Embedded {
    const { isDropped, classes, isReal } = condition;
    checkCondition(
      where,
      condition,
      { classes: this.class_emb.numClasses > 0, features: this.#features !== null },
      batch,
    );
    const start = this.class_emb.forward(classes, isDropped, batch);
    const codes = this.#codes(tokens);
    const sequence = dropout(cat([start, codes.to(placeOf(start))], 1), this.#tokenDrop, this.training);
    const features = this.#embedFeatures(condition, batch);
    const isLeading = features !== null && this.#features?.kind === "prepend";
    const whole = isLeading ? cat([features.to(placeOf(sequence)), sequence], 1) : sequence;
    const positions = this.pos_emb.narrow(1, 0, whole.size(1));
    return {
      x: this.#place(whole, positions),
      features: isLeading ? null : features,
      isReal: isReal ?? null,
    };
  }

  /** Add the embeddings of the positions. */
  #place(x: Tensor, positions: Tensor): Tensor {
    return dropout(x.add(positions), this.#embdPdrop, this.training);
  }

  #codes(tokens: Tensor): Tensor {
    const rows = this.tok_emb.forward(tokens);
    return this.embedding_projection?.forward(rows) ?? rows;
  }

  /** Features `[B, S, C]`, the null ones where absent or dropped, to `[B, S, D]`. */
  #embedFeatures({ features, isDropped }: Condition, batch: number): Tensor | null {
    const { uncond_embedding: none, cond_proj: project } = this;
    const wanted = this.#features;
    if (none === null || project === null || wanted === null) return null;
    const tokens = wanted.kind === "prepend" ? wanted.tokens : (features?.shape[1] ?? 1);
    if (features !== undefined && (features.shape[1] !== tokens || features.shape[2] !== wanted.dim)) {
      const remedy = "Pad on the left with isReal false, or cut";
      throw expected("condition.features", `shape [${batch}, ${tokens}, ${wanted.dim}]`, features, remedy);
    }
    const place = placeOf(none);
    const given = features?.to(place) ?? none.expand(batch, tokens, wanted.dim);
    if (isDropped === undefined) return project.forward(given);
    return project.forward(where(isDropped.to({ device: place.device }).view(batch, 1, 1), none, given));
  }
}

/** The input of the blocks. */
interface Embedded {
  /** `[B, n, D]`. */
  x: Tensor;
  /** Features for cross-attention, `[B, S, D]`; null without cross-attention. */
  features: Tensor | null;
  isReal: Tensor | null;
}
