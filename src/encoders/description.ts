/**
 * What an encoder is, read from the configuration beside its weights: transformers' `config.json` and
 * `preprocessor_config.json`, open_clip's `open_clip_config.json`; of TokLIP, whose files have none, from shapes. `load.ts`
 * reads the weights.
 */
import { countParts, type Shapes } from "../nn/index.js";
import { expected, isPlainObject } from "../torch/index.js";
import type { Naming } from "./names.js";
import type { ImagePreprocessing } from "./preprocess.js";
import type { Clean } from "./texts.js";
import type { TextConfig, VisionConfig } from "./towers.js";
import type { Activation, TransformerConfig } from "./transformer.js";

/** A described encoder. */
export interface EncoderDescription {
  /** Printed beside every number made with it: `CLIP, 224 px, patches of 32, width 768`. */
  readonly name: string;
  readonly family: "clip" | "siglip" | "toklip";
  readonly naming: Naming;
  readonly vision: VisionConfig;
  readonly text: TextConfig;
  /** How images are prepared; null for TokLIP, whose tokenizer reads them. */
  readonly preprocessing: ImagePreprocessing | null;
  /** How texts are cleaned before they become codes. */
  readonly clean: Clean;
  /** Code that fills texts up to L where it is not the tokenizer's own, as in open_clip. */
  readonly padId: number | null;
}

type Values = Readonly<Record<string, unknown>>;

const OPENAI_MEAN = [0.48145466, 0.4578275, 0.40821073] as const;
const OPENAI_STD = [0.26862954, 0.26130258, 0.27577711] as const;
const HALVES = [0.5, 0.5, 0.5] as const;

/** Values of one object of a configuration file. Each is read with its type; what was not read can be refused. */
class Section {
  readonly where: string;
  readonly #values: Values;
  readonly #read = new Set<string>();

  constructor(where: string, values: unknown) {
    if (values !== undefined && !isPlainObject(values)) throw expected(where, "an object", values);
    this.where = where;
    this.#values = (values ?? {}) as Values;
  }

  section(key: string): Section {
    this.#read.add(key);
    return new Section(`${this.where}.${key}`, this.#values[key]);
  }

  get(key: string): unknown {
    this.#read.add(key);
    return this.#values[key];
  }

  /** A whole number of at least 1; `fallback` where the file omits it. */
  size(key: string, fallback?: number): number {
    const value = this.get(key) ?? fallback;
    if (Number.isInteger(value) && Number(value) >= 1) return Number(value);
    throw expected(`${this.where}.${key}`, "a whole number of at least 1", value);
  }

  number(key: string, fallback: number): number {
    const value = this.get(key) ?? fallback;
    if (typeof value === "number" && Number.isFinite(value)) return value;
    throw expected(`${this.where}.${key}`, "a finite number", value);
  }

  string(key: string, fallback: string): string {
    const value = this.get(key) ?? fallback;
    if (typeof value === "string") return value;
    throw expected(`${this.where}.${key}`, "a string", value);
  }

  /** Numbers of three channels. */
  channels(key: string, fallback: readonly number[]): readonly number[] {
    const value = this.get(key) ?? fallback;
    if (Array.isArray(value) && value.length === 3 && value.every((each) => typeof each === "number"))
      return value;
    throw expected(`${this.where}.${key}`, "three numbers", value);
  }

  /** Refuse a value other than these, each meaning that something is not used. */
  unused(keys: readonly string[]): void {
    for (const key of keys) {
      const value = this.get(key);
      if (value === undefined || value === null || value === false || value === 0 || value === "") continue;
      throw expected(`${this.where}.${key}`, "a model without it", value, "This variant is not supported");
    }
  }

  /** Refuse every value that was not read. */
  finish(known: readonly string[]): void {
    for (const [key, value] of Object.entries(this.#values)) {
      if (this.#read.has(key) || known.includes(key)) continue;
      throw expected(
        `${this.where}.${key}`,
        "a value that is known here",
        value,
        "This variant is not supported",
      );
    }
  }
}

const ACTIVATIONS: Readonly<Record<string, Activation>> = {
  gelu: "gelu",
  quick_gelu: "quick_gelu",
  gelu_pytorch_tanh: "gelu_tanh",
};

function gridOf(where: string, imageSize: number, patchSize: number): [number, number] {
  const side = Math.floor(imageSize / patchSize);
  if (side >= 1) return [side, side];
  throw expected(where, "an image of at least one patch", `${imageSize} px and patches of ${patchSize}`);
}

function nameOf(family: "CLIP" | "SigLIP", { imageSize, input, width }: VisionConfig): string {
  const patches = input.kind === "patches" ? `patches of ${input.patchSize}` : "codes";
  return `${family}, ${imageSize} px, ${patches}, width ${width}`;
}

/**
 * Describe a folder of transformers.
 *
 * Values that `config.json` omits are the library's defaults, as it has them.
 *
 * @param preprocessor - `preprocessor_config.json`, where there is one.
 * @param tokenizerClass - `tokenizer_class` of `tokenizer_config.json`.
 * @throws RangeError for another model than CLIP and SigLIP.
 */
export function describeTransformers(
  where: string,
  config: unknown,
  preprocessor: unknown,
  tokenizerClass: string | undefined,
): EncoderDescription {
  const whole = new Section(where, config);
  const type = whole.string("model_type", "");
  if (type !== "clip" && type !== "siglip") {
    const remedy = "SigLIP 2 of fixed size has model_type siglip; NaFlex (siglip2) is not supported";
    throw expected(`${where}.model_type`, "clip or siglip", type === "" ? undefined : type, remedy);
  }
  const isClip = type === "clip";
  const [act, eps] = isClip ? ["quick_gelu", 1e-5] : ["gelu_pytorch_tanh", 1e-6];
  const [text, vision] = [whole.section("text_config"), whole.section("vision_config")];
  const sizesOf = (part: Section, width: number, heads: number): TransformerConfig => {
    const name = part.string("hidden_act", act as string);
    const activation = ACTIVATIONS[name];
    if (activation === undefined) {
      throw expected(`${part.where}.hidden_act`, `one of ${Object.keys(ACTIVATIONS).join(", ")}`, name);
    }
    return checkedHeads(part.where, {
      width: part.size("hidden_size", width),
      heads: part.size("num_attention_heads", heads),
      depth: part.size("num_hidden_layers", 12),
      hidden: part.size("intermediate_size", 4 * width),
      activation,
      eps: part.number("layer_norm_eps", eps as number),
    });
  };
  const imageSize = vision.size("image_size", 224);
  const patchSize = vision.size("patch_size", isClip ? 32 : 16);
  if (vision.size("num_channels", 3) !== 3)
    throw expected(`${vision.where}.num_channels`, "3", vision.get("num_channels"));
  if (vision.get("vision_use_head") === false)
    throw expected(`${vision.where}.vision_use_head`, "true", false);
  const sizes = sizesOf(text, isClip ? 512 : 768, isClip ? 8 : 12);
  const embedDim = isClip ? whole.size("projection_dim", 512) : text.size("projection_size", sizes.width);
  const endId = text.number("eos_token_id", 49407);
  const visionConfig: VisionConfig = {
    ...sizesOf(vision, 768, 12),
    input: { kind: "patches", patchSize, hasBias: !isClip },
    imageSize,
    grid: gridOf(vision.where, imageSize, patchSize),
    pool: isClip ? "class" : "attention",
    hasPreNorm: isClip,
    isCausal: false,
    outputWidth: isClip ? embedDim : null,
  };
  const shown = new Section("preprocessor_config.json", preprocessor);
  const rescale = shown.number("rescale_factor", 1 / 255);
  if (Math.abs(rescale * 255 - 1) > 1e-6)
    throw expected("preprocessor_config.json.rescale_factor", "1 / 255", rescale);
  const [mean, std] = isClip ? [OPENAI_MEAN, OPENAI_STD] : [HALVES, HALVES];
  return {
    name: nameOf(isClip ? "CLIP" : "SigLIP", visionConfig),
    family: type,
    naming: "hf",
    vision: visionConfig,
    text: {
      ...sizes,
      vocabSize: text.size("vocab_size", isClip ? 49408 : 32000),
      contextLength: text.size("max_position_embeddings", isClip ? 77 : 64),
      isCausal: isClip,
      // Files before 2023 state 2, and mean the highest code.
      pool: isClip ? (endId === 2 ? "highest" : "end") : "last",
      endId: isClip && endId !== 2 ? endId : null,
      outputWidth: embedDim,
      projection: isClip ? "plain" : "bias",
    },
    preprocessing: {
      size: imageSize,
      resize: isClip ? "shortest" : "squash",
      interpolation: interpolationOf(shown.get("resample") ?? 3),
      mean: shown.channels("image_mean", mean),
      std: shown.channels("image_std", std),
    },
    // SigLIP's own tokenizer removes punctuation; SigLIP 2 was trained with lower case.
    clean: isClip ? "none" : /^siglip(?!2)/i.test(tokenizerClass ?? "") ? "punctuation" : "lower",
    padId: null,
  };
}

/** Pillow's numbers of filters. */
function interpolationOf(value: unknown): "bicubic" | "bilinear" {
  if (value === 3 || value === "bicubic") return "bicubic";
  if (value === 2 || value === "bilinear") return "bilinear";
  throw expected("resample", "2 (bilinear) or 3 (bicubic)", value);
}

function checkedHeads<T extends TransformerConfig>(where: string, config: T): T {
  if (config.width % config.heads === 0) return config;
  throw expected(where, `a number of heads that divides ${config.width}`, config.heads);
}

/** Heads of timm's vision transformers by the size in their names. */
const TIMM_HEADS: Readonly<Record<string, number>> = { base: 12, large: 16, so400m: 16, giantopt: 16 };

/** Those of timm's SigLIP models that have the tanh approximation. */
const TIMM_TANH = /patch32_siglip|large_patch16_siglip_512|so400m_patch16|giantopt/;

/**
 * Describe a folder of open_clip.
 *
 * @param config - `open_clip_config.json`.
 * @param shapes - of the weights.
 * @throws RangeError for a variant that is not supported.
 */
export function describeOpenClip(where: string, config: unknown, shapes: Shapes): EncoderDescription {
  const whole = new Section(where, config);
  const model = whole.section("model_cfg");
  const shown = whole.section("preprocess_cfg");
  const embedDim = model.size("embed_dim");
  const plain: Activation = model.get("quick_gelu") === true ? "quick_gelu" : "gelu";
  const vision = model.section("vision_cfg");
  const text = model.section("text_cfg");
  const isTimm = vision.get("timm_model_name") !== undefined;
  const visionConfig = isTimm
    ? timmVision(vision, embedDim, shapes)
    : openClipVision(vision, embedDim, plain);
  const width = text.size("width", 512);
  text.unused([
    "hf_model_name",
    "embed_cls",
    "ls_init_value",
    "final_ln_after_pool",
    "variable_text",
    "qk_norm",
  ]);
  text.unused([
    "scaled_cosine_attn",
    "scale_heads",
    "scale_attn_inner",
    "scale_attn",
    "scale_fc",
    "block_type",
  ]);
  const pool = text.string("pool_type", "argmax");
  if (pool !== "argmax" && pool !== "last") throw expected(`${text.where}.pool_type`, "argmax or last", pool);
  const projection = text.string("proj_type", "linear");
  const tokenizer = text.get("hf_tokenizer_name");
  const kwargs = text.section("tokenizer_kwargs");
  const clean = kwargs.string("clean", typeof tokenizer === "string" ? "whitespace" : "lower");
  const padId = text.number("pad_id", 0);
  const textConfig: TextConfig = checkedHeads(text.where, {
    width,
    heads: text.size("heads", 8),
    depth: text.size("layers", 12),
    hidden: Math.trunc(width * text.number("mlp_ratio", 4)),
    activation: actOf(text, plain),
    eps: epsOf(text),
    vocabSize: text.size("vocab_size", 49408),
    contextLength: text.size("context_length", 77),
    isCausal: text.get("no_causal_mask") !== true,
    pool: pool === "last" ? "last" : "highest",
    endId: null,
    outputWidth: embedDim,
    projection: projection === "none" ? "none" : text.get("proj_bias") === true ? "bias" : "plain",
  });
  text.finish([
    "tokenizer_mode",
    "text_arch",
    "output_tokens",
    "hf_pooler_type",
    "hf_proj_type",
    "hf_model_pretrained",
  ]);
  model.finish(["custom_text", "init_logit_scale", "init_logit_bias", "nonscalar_logit_scale"]);
  const mode = shown.string("resize_mode", "shortest");
  if (mode !== "shortest" && mode !== "squash") {
    throw expected(`${shown.where}.resize_mode`, "shortest or squash", mode);
  }
  return {
    name: nameOf(isTimm ? "SigLIP" : "CLIP", visionConfig),
    family: isTimm ? "siglip" : "clip",
    naming: isTimm ? "timm" : "open_clip",
    vision: visionConfig,
    text: textConfig,
    preprocessing: {
      size: visionConfig.imageSize,
      resize: mode,
      interpolation: interpolationOf(shown.get("interpolation") ?? "bicubic"),
      mean: shown.channels("mean", OPENAI_MEAN),
      std: shown.channels("std", OPENAI_STD),
    },
    clean: cleanOf(`${kwargs.where}.clean`, clean),
    padId: typeof tokenizer === "string" ? null : padId,
  };
}

function cleanOf(where: string, clean: string): Clean {
  if (clean === "canonicalize") return "canonical";
  if (clean === "lower") return "whitespace_lower";
  if (clean === "whitespace") return "whitespace";
  throw expected(where, "canonicalize, lower or whitespace", clean);
}

function actOf(section: Section, plain: Activation): Activation {
  const kwargs = section.section("act_kwargs");
  const approximate = kwargs.string("approximate", "none");
  kwargs.finish([]);
  if (approximate === "none") return plain;
  if (approximate === "tanh" && plain === "gelu") return "gelu_tanh";
  throw expected(`${kwargs.where}.approximate`, "none, or tanh with plain GELU", approximate);
}

function epsOf(section: Section): number {
  const kwargs = section.section("norm_kwargs");
  const eps = kwargs.number("eps", 1e-5);
  kwargs.finish([]);
  return eps;
}

function openClipVision(vision: Section, embedDim: number, plain: Activation): VisionConfig {
  if (Array.isArray(vision.get("layers"))) {
    throw expected(`${vision.where}.layers`, "a vision transformer", "a ResNet", "Use a ViT");
  }
  const width = vision.size("width", 768);
  const headWidth = vision.size("head_width", 64);
  const imageSize = vision.size("image_size", 224);
  const patchSize = vision.size("patch_size", 16);
  vision.unused([
    "ls_init_value",
    "attentional_pool",
    "no_ln_pre",
    "qk_norm",
    "scaled_cosine_attn",
    "scale_heads",
  ]);
  vision.unused(["scale_attn_inner", "scale_attn", "scale_fc", "block_type", "image_seq_len"]);
  const pool = vision.string("pool_type", "tok");
  if (pool !== "tok") throw expected(`${vision.where}.pool_type`, "tok", pool);
  const config: VisionConfig = checkedHeads(vision.where, {
    width,
    heads: Math.trunc(width / headWidth),
    depth: vision.size("layers", 12),
    hidden: Math.trunc(width * vision.number("mlp_ratio", 4)),
    activation: actOf(vision, plain),
    eps: epsOf(vision),
    input: { kind: "patches", patchSize, hasBias: false },
    imageSize,
    grid: gridOf(vision.where, imageSize, patchSize),
    pool: "class",
    hasPreNorm: true,
    isCausal: false,
    outputWidth: embedDim,
  });
  // Dropout of patches is for training; the final norm is the same before and after the choice of the class token.
  vision.finish([
    "patch_dropout",
    "final_ln_after_pool",
    "output_tokens",
    "attn_pooler_queries",
    "attn_pooler_heads",
  ]);
  return config;
}

/** Sizes of timm's transformer that its shapes show. */
function timmSizes(where: string, shapes: Shapes): Pick<VisionConfig, "width" | "depth" | "hidden" | "grid"> {
  const sizeAt = (key: string, dim: number): number => {
    const size = shapes[key]?.[dim];
    if (size === undefined)
      throw expected(where, `${key} with ${dim + 1} dimensions or more`, shapes[key] ?? "none");
    return size;
  };
  const count = sizeAt("visual.trunk.pos_embed", 1);
  const side = Math.round(Math.sqrt(count));
  if (side * side !== count) throw expected(where, "positions of a square grid", count);
  return {
    width: sizeAt("visual.trunk.pos_embed", 2),
    depth: countParts(Object.keys(shapes), "visual.trunk.blocks"),
    hidden: sizeAt("visual.trunk.blocks.0.mlp.fc1.weight", 0),
    grid: [side, side],
  };
}

function timmVision(vision: Section, embedDim: number, shapes: Shapes): VisionConfig {
  const name = vision.string("timm_model_name", "");
  const [, size] = /^vit_([a-z0-9]+)_patch\d+_siglip_\d+$/.exec(name) ?? [];
  if (size === undefined || TIMM_HEADS[size] === undefined) {
    const remedy = "Models of open_clip's own transformer and timm's SigLIP are supported";
    throw expected(`${vision.where}.timm_model_name`, "a SigLIP model of timm", name, remedy);
  }
  if (vision.get("timm_pool") !== "map")
    throw expected(`${vision.where}.timm_pool`, "map", vision.get("timm_pool"));
  const proj = vision.get("timm_proj");
  if (proj !== "none" && proj !== "") throw expected(`${vision.where}.timm_proj`, "none", proj);
  const kwargs = vision.section("timm_model_kwargs");
  const act = kwargs.string("act_layer", TIMM_TANH.test(name) ? "gelu_tanh" : "gelu");
  if (act !== "gelu" && act !== "gelu_tanh")
    throw expected(`${kwargs.where}.act_layer`, "gelu or gelu_tanh", act);
  const heads = kwargs.size("num_heads", TIMM_HEADS[size]);
  kwargs.finish(["img_size", "patch_size", "embed_dim", "depth"]);
  const sizes = timmSizes(vision.where, shapes);
  const patchSize = shapes["visual.trunk.patch_embed.proj.weight"]?.[2] ?? 0;
  if (sizes.width !== embedDim)
    throw expected(`${vision.where}: width`, `${embedDim}, as embed_dim says`, sizes.width);
  const config: VisionConfig = checkedHeads(vision.where, {
    ...sizes,
    heads,
    activation: act,
    eps: 1e-6,
    input: { kind: "patches", patchSize, hasBias: true },
    imageSize: vision.size("image_size", 224),
    pool: "attention",
    hasPreNorm: false,
    isCausal: false,
    outputWidth: null,
  });
  vision.finish(["timm_model_pretrained", "timm_proj_bias", "timm_drop", "timm_drop_path", "patch_dropout"]);
  return config;
}

/** Heads of both towers of the released TokLIP models, whose width is 1152. */
const TOKLIP_HEADS = 16;

/** Whether the names of a file are those of TokLIP, whole or not. */
export function isToklip(shapes: Shapes): boolean {
  return (
    Object.hasOwn(shapes, "visual.trunk.vq_table.weight") || Object.hasOwn(shapes, "visual.vq_table.weight")
  );
}

/**
 * Describe a TokLIP, whose architecture the shapes show but for the heads: S of 256 px, L of 384 px, or one of other sizes.
 *
 * @param options.heads - of both towers; 16 by default, as the released models have.
 * @throws RangeError for the variant with open_clip's own vision transformer, of which no weights are published.
 */
export function describeToklip(
  where: string,
  shapes: Shapes,
  options: { heads?: number } = {},
): EncoderDescription {
  const { heads = TOKLIP_HEADS } = options;
  if (Object.hasOwn(shapes, "visual.vq_table.weight")) {
    const got = "open_clip's own one (visual.vq_table)";
    throw expected(
      where,
      "TokLIP with timm's vision transformer (visual.trunk.vq_table)",
      got,
      "Use TokLIP_S_256 or TokLIP_L_384",
    );
  }
  const sizeAt = (key: string, dim: number): number => {
    const size = shapes[key]?.[dim];
    if (size === undefined) throw expected(where, `${key}, as TokLIP has it`, shapes[key] ?? "none");
    return size;
  };
  const sizes = timmSizes(where, shapes);
  const common = { heads, activation: "gelu_tanh", eps: 1e-6 } as const;
  const width = sizeAt("text.positional_embedding", 1);
  const imageSize = 16 * sizes.grid[0];
  const vision: VisionConfig = checkedHeads(where, {
    ...sizes,
    ...common,
    input: {
      kind: "codes",
      codebookSize: sizeAt("visual.trunk.vq.quantize.embedding.weight", 0),
      embedDim: sizeAt("visual.trunk.vq_table.weight", 1),
    },
    imageSize,
    pool: "attention",
    hasPreNorm: false,
    isCausal: true,
    outputWidth: null,
  });
  const text: TextConfig = checkedHeads(where, {
    ...common,
    width,
    depth: countParts(Object.keys(shapes), "text.transformer.resblocks"),
    hidden: sizeAt("text.transformer.resblocks.0.mlp.c_fc.weight", 0),
    vocabSize: sizeAt("text.token_embedding.weight", 0),
    contextLength: sizeAt("text.positional_embedding", 0),
    isCausal: false,
    pool: "last",
    endId: null,
    outputWidth: sizes.width,
    projection: "bias",
  });
  return {
    name: `TokLIP, ${imageSize} px, ${sizes.grid.join(" x ")} codes, width ${sizes.width}`,
    family: "toklip",
    naming: "timm",
    vision,
    text,
    preprocessing: null,
    clean: "canonical",
    padId: null,
  };
}
