/**
 * The two towers of an encoder: images or codes to one vector, texts to one vector, in the same space. `load.ts` gives them
 * their weights, `preprocess.ts` prepares images and `texts.ts` makes the codes of texts.
 *
 * @see Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision" (CLIP); Zhai et al. 2023,
 *   "Sigmoid Loss for Language Image Pre-Training" (SigLIP); Lin et al. 2025, "TokLIP: Marry Visual Tokens to CLIP for
 *   Multimodal Comprehension and Generation".
 */
import { Conv2d, Embedding, init, LayerNorm, Linear, Module, Parameter } from "../nn/index.js";
import { arange, cat, expected, functional as F, type Tensor, tidy } from "../torch/index.js";
import { AttentionPool, Block, runBlocks, type TransformerConfig } from "./transformer.js";

/** What a vision tower reads: patches of an image, or the features of a tokenizer's codes (TokLIP). */
export type VisionInput =
  | { readonly kind: "patches"; readonly patchSize: number; readonly hasBias: boolean }
  | { readonly kind: "codes"; readonly codebookSize: number; readonly embedDim: number };

/** A vision tower. */
export interface VisionConfig extends TransformerConfig {
  readonly input: VisionInput;
  /** Pixels per side of an image. */
  readonly imageSize: number;
  /** Rows and columns of patches or codes. */
  readonly grid: readonly [number, number];
  /** CLIP: a class token, whose output is the result. SigLIP: attention pooling. */
  readonly pool: "class" | "attention";
  /** Whether a layer norm comes before the blocks, as in CLIP. */
  readonly hasPreNorm: boolean;
  /** TokLIP: position i sees positions 0 ... i alone. */
  readonly isCausal: boolean;
  /** Width of the result, E: a linear map without bias makes it of D. null: none, and E is D. */
  readonly outputWidth: number | null;
}

/** A text tower. */
export interface TextConfig extends TransformerConfig {
  readonly vocabSize: number;
  /** L: codes per text. */
  readonly contextLength: number;
  readonly isCausal: boolean;
  /**
   * The position whose output is the result: `highest` code (CLIP, whose end has the highest), first `end`, or `last`.
   */
  readonly pool: "highest" | "end" | "last";
  /** Code of the end, for `end`. */
  readonly endId: number | null;
  /** E. */
  readonly outputWidth: number;
  /** The map to E: without it E is D. */
  readonly projection: "none" | "plain" | "bias";
}

const parameter = (shape: readonly number[], std: number): Parameter =>
  tidy(() => new Parameter(init.normal(shape, 0, std)));

/** Images or codes to vectors. */
export class VisionTower extends Module {
  readonly config: VisionConfig;
  /** Of patches. */
  readonly patch: Conv2d | null = null;
  /** Of codes: the tokenizer's rows, and the two maps that lift them to D. */
  readonly codebook: Embedding | null = null;
  readonly table: Linear | null = null;
  readonly mapping: Linear | null = null;
  readonly class_token: Parameter | null;
  readonly positions: Parameter;
  readonly norm_pre: LayerNorm | null;
  readonly blocks: Block[];
  readonly norm_post: LayerNorm;
  readonly pool: AttentionPool | null;
  readonly proj: Linear | null;

  constructor(config: VisionConfig) {
    super();
    this.config = config;
    const { input, width, eps, grid, outputWidth } = config;
    if (input.kind === "patches") {
      const { patchSize, hasBias } = input;
      this.patch = new Conv2d(3, width, patchSize, { stride: patchSize, bias: hasBias });
    } else {
      this.codebook = new Embedding(input.codebookSize, input.embedDim);
      this.table = new Linear(input.embedDim, 4 * width);
      this.mapping = new Linear(4 * width, width);
    }
    const std = width ** -0.5;
    const hasClass = config.pool === "class";
    this.class_token = hasClass ? parameter([width], std) : null;
    this.positions = parameter([grid[0] * grid[1] + (hasClass ? 1 : 0), width], std);
    this.norm_pre = config.hasPreNorm ? new LayerNorm(width, { eps }) : null;
    this.blocks = Array.from({ length: config.depth }, () => new Block(config));
    this.norm_post = new LayerNorm(width, { eps });
    this.pool = config.pool === "attention" ? new AttentionPool(config) : null;
    this.proj = outputWidth === null ? null : new Linear(width, outputWidth, { bias: false });
  }

  /** E. */
  get outputWidth(): number {
    return this.config.outputWidth ?? this.config.width;
  }

  /**
   * @param input - of a tower of patches, prepared pixels float `[N, 3, S, S]`; of one of codes, int64 `[N, T]` in raster order,
   *   T = rows * columns, or their rows float `[N, T, C]`, C the width of the codebook, with a gradient to them.
   * @returns float `[N, E]`, not normalised.
   */
  forward(input: Tensor): Tensor {
    return tidy(() => {
      const tokens =
        this.patch === null ? this.#ofCodes(input) : this.patch.forward(input).flatten(2).transpose(1, 2);
      const { class_token: token, norm_pre } = this;
      const all = token === null ? tokens : cat([token.expand(tokens.size(0), 1, -1), tokens], 1);
      const placed = all.add(this.positions);
      const y = runBlocks(
        this.blocks,
        norm_pre === null ? placed : norm_pre.forward(placed),
        this.config.isCausal,
      );
      const pooled =
        this.pool === null
          ? this.norm_post.forward(y.select(1, 0))
          : this.pool.forward(this.norm_post.forward(y));
      return this.proj === null ? pooled : this.proj.forward(pooled);
    });
  }

  /** The codebook is normalised at each look-up, as the tokenizer does it. */
  #ofCodes(codes: Tensor): Tensor {
    const { codebook, table, mapping, positions } = this;
    if (codebook === null || table === null || mapping === null) {
      throw expected("VisionTower", "patches or codes as input", "neither");
    }
    const length = positions.size(0);
    if (codes.size(1) !== length) {
      const [rows, columns] = this.config.grid;
      const remedy = `The encoder was trained with images of ${this.config.imageSize} px; use that data.size`;
      throw expected("VisionTower", `${length} codes, ${rows} x ${columns}`, codes.size(1), remedy);
    }
    const rows = codes.ndim === 2 ? F.embedding(codes, F.normalize(codebook.weight)) : codes;
    return mapping.forward(table.forward(rows).gelu());
  }
}

/** Codes of texts to vectors. */
export class TextTower extends Module {
  readonly config: TextConfig;
  readonly tokens: Embedding;
  readonly positions: Parameter;
  readonly blocks: Block[];
  readonly norm: LayerNorm;
  readonly proj: Linear | null;

  constructor(config: TextConfig) {
    super();
    this.config = config;
    const { width, eps, projection, outputWidth } = config;
    this.tokens = new Embedding(config.vocabSize, width);
    this.positions = parameter([config.contextLength, width], 0.01);
    this.blocks = Array.from({ length: config.depth }, () => new Block(config));
    this.norm = new LayerNorm(width, { eps });
    this.proj =
      projection === "none" ? null : new Linear(width, outputWidth, { bias: projection === "bias" });
  }

  /**
   * @param tokens - int64 `[N, L]`.
   * @returns float `[N, E]`, not normalised.
   */
  forward(tokens: Tensor): Tensor {
    return tidy(() => {
      const [n, length] = tokens.dims(2) as [number, number];
      const { contextLength, pool, endId } = this.config;
      if (length > contextLength)
        throw expected("TextTower", `at most ${contextLength} codes per text`, length);
      const placed = this.tokens.forward(tokens).add(this.positions.narrow(0, 0, length));
      const y = runBlocks(this.blocks, placed, this.config.isCausal);
      let chosen: Tensor;
      if (pool === "last") chosen = y.select(1, length - 1);
      else {
        const places =
          pool === "highest"
            ? tokens.argmax(1)
            : tokens
                .eq(endId as number)
                .int()
                .argmax(1);
        chosen = y.index(arange(n, { device: tokens.device as "cpu" }), places);
      }
      const pooled = this.norm.forward(chosen);
      return this.proj === null ? pooled : this.proj.forward(pooled);
    });
  }
}
