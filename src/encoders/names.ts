/**
 * Where each family of checkpoints keeps the tensors of the towers: names and shapes in the file by the names that the towers
 * have here. `load.ts` reads them.
 *
 * Families differ in names and layout alone: queries, keys and values in one tensor or three, maps stored as their transpose,
 * leading dimensions of 1.
 */
import type { Shapes } from "../nn/index.js";
import type { TextConfig, VisionConfig } from "./towers.js";

/** `hf`: transformers. `open_clip`: its own vision transformer. `timm`: open_clip with timm's, as SigLIP and TokLIP have it. */
export type Naming = "hf" | "open_clip" | "timm";

/** A tensor of a file that is a tensor here, or a part of one. */
export interface Part {
  readonly name: string;
  readonly shape: readonly number[];
  /** Stored as the transpose. */
  readonly isTransposed?: boolean;
}

/** Parts by the name here; several are joined along their first dimension, in this order. */
export type Sources = Readonly<Record<string, readonly Part[]>>;

/** Tensors that old versions store beside the weights and that are computed here. */
export const COMPUTED = /(^|\.)(position_ids|attn_mask|input_resolution|context_length|vocab_size)$/;

/** Names of the parts of a block, by naming. */
const BLOCK: Readonly<Record<Naming, Readonly<Record<string, string>>>> = {
  hf: {
    norm1: "layer_norm1",
    norm2: "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
  },
  open_clip: {
    norm1: "ln_1",
    norm2: "ln_2",
    "attn.proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
  },
  timm: {
    norm1: "norm1",
    norm2: "norm2",
    "attn.proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
  },
};

/** Names that are one tensor here and one in the file, with the shape here and there. */
class Names {
  readonly sources: Record<string, readonly Part[]> = {};
  readonly #wanted: Shapes;

  constructor(wanted: Shapes) {
    this.#wanted = wanted;
  }

  has(own: string): boolean {
    return Object.hasOwn(this.#wanted, own);
  }

  shape(own: string): readonly number[] {
    return this.#wanted[own] as readonly number[];
  }

  /** One tensor of the same shape, but for `leading` dimensions of 1. Nothing where the tower has no such tensor. */
  add(own: string, name: string, options: { leading?: number; isTransposed?: boolean } = {}): void {
    if (!this.has(own)) return;
    const { leading = 0, isTransposed = false } = options;
    const shape = isTransposed ? this.shape(own).toReversed() : this.shape(own);
    this.sources[own] = [
      { name, shape: [...Array<number>(leading).fill(1), ...shape], ...(isTransposed && { isTransposed }) },
    ];
  }

  /** Weight and bias, each where the tower has it. */
  addLayer(own: string, name: string): void {
    for (const part of ["weight", "bias"]) this.add(`${own}.${part}`, `${name}.${part}`);
  }

  /** Rows of queries, keys and values, in files that divide them so: `[q, k, v]` or `[q, kv]`. */
  addQkv(own: string, names: readonly string[]): void {
    for (const part of ["weight", "bias"]) {
      const [rows, ...rest] = this.shape(`${own}.${part}`) as [number, ...number[]];
      const width = rows / 3;
      const last = names.length - 1;
      this.sources[`${own}.${part}`] = names.map((name, i) => ({
        name: `${name}.${part}`,
        shape: [i === last ? rows - width * last : width, ...rest],
      }));
    }
  }

  /** `in_proj_weight` and `in_proj_bias` of torch's MultiheadAttention. */
  addInProjection(own: string, name: string): void {
    for (const part of ["weight", "bias"]) this.add(`${own}.${part}`, `${name}.in_proj_${part}`);
  }

  addBlocks(own: string, count: number, naming: Naming, prefix: string): void {
    for (let i = 0; i < count; i++) {
      const [mine, theirs] = [`${own}.${i}`, `${prefix}.${i}`];
      for (const [part, name] of Object.entries(BLOCK[naming]))
        this.addLayer(`${mine}.${part}`, `${theirs}.${name}`);
      const qkv = `${mine}.attn.qkv`;
      if (naming === "hf")
        this.addQkv(
          qkv,
          ["q", "k", "v"].map((part) => `${theirs}.self_attn.${part}_proj`),
        );
      else if (naming === "timm") this.addLayer(qkv, `${theirs}.attn.qkv`);
      else this.addInProjection(qkv, `${theirs}.attn`);
    }
  }
}

/**
 * Sources of a vision tower.
 *
 * @param wanted - shapes of the tower's state dict.
 */
export function visionSources(config: VisionConfig, naming: Naming, wanted: Shapes): Sources {
  const names = new Names(wanted);
  if (naming === "hf") {
    const at = "vision_model";
    names.addLayer("patch", `${at}.embeddings.patch_embedding`);
    names.add("class_token", `${at}.embeddings.class_embedding`);
    names.add("positions", `${at}.embeddings.position_embedding.weight`);
    names.addLayer("norm_pre", `${at}.pre_layrnorm`);
    names.addBlocks("blocks", config.depth, naming, `${at}.encoder.layers`);
    names.addLayer("norm_post", `${at}.post_layernorm`);
    names.addLayer("proj", "visual_projection");
    if (config.pool === "attention") {
      names.add("pool.latent", `${at}.head.probe`, { leading: 2 });
      names.addInProjection("pool.qkv", `${at}.head.attention`);
      names.addLayer("pool.proj", `${at}.head.attention.out_proj`);
      names.addLayer("pool.norm", `${at}.head.layernorm`);
      for (const part of ["fc1", "fc2"]) names.addLayer(`pool.mlp.${part}`, `${at}.head.mlp.${part}`);
    }
  } else if (naming === "open_clip") {
    names.add("patch.weight", "visual.conv1.weight");
    names.add("class_token", "visual.class_embedding");
    names.add("positions", "visual.positional_embedding");
    names.addLayer("norm_pre", "visual.ln_pre");
    names.addBlocks("blocks", config.depth, naming, "visual.transformer.resblocks");
    names.addLayer("norm_post", "visual.ln_post");
    names.add("proj.weight", "visual.proj", { isTransposed: true });
  } else {
    const at = "visual.trunk";
    names.addLayer("patch", `${at}.patch_embed.proj`);
    names.add("codebook.weight", `${at}.vq.quantize.embedding.weight`);
    names.addLayer("table", `${at}.vq_table`);
    names.addLayer("mapping", `${at}.vq_mapping`);
    names.add("positions", `${at}.pos_embed`, { leading: 1 });
    names.addBlocks("blocks", config.depth, naming, `${at}.blocks`);
    names.addLayer("norm_post", `${at}.norm`);
    names.add("pool.latent", `${at}.attn_pool.latent`, { leading: 2 });
    names.addQkv("pool.qkv", [`${at}.attn_pool.q`, `${at}.attn_pool.kv`]);
    for (const part of ["proj", "norm", "mlp.fc1", "mlp.fc2"]) {
      names.addLayer(`pool.${part}`, `${at}.attn_pool.${part}`);
    }
  }
  return names.sources;
}

/**
 * Sources of a text tower.
 *
 * @param isPrefixed - whether open_clip keeps the tower under `text.`.
 */
export function textSources(
  config: TextConfig,
  naming: Naming,
  wanted: Shapes,
  isPrefixed: boolean,
): Sources {
  const names = new Names(wanted);
  if (naming === "hf") {
    const at = "text_model";
    names.add("tokens.weight", `${at}.embeddings.token_embedding.weight`);
    names.add("positions", `${at}.embeddings.position_embedding.weight`);
    names.addBlocks("blocks", config.depth, naming, `${at}.encoder.layers`);
    names.addLayer("norm", `${at}.final_layer_norm`);
    names.addLayer("proj", config.projection === "bias" ? `${at}.head` : "text_projection");
  } else {
    const at = isPrefixed ? "text." : "";
    names.add("tokens.weight", `${at}token_embedding.weight`);
    names.add("positions", `${at}positional_embedding`);
    names.addBlocks("blocks", config.depth, "open_clip", `${at}transformer.resblocks`);
    names.addLayer("norm", `${at}ln_final`);
    if (config.projection === "bias") names.addLayer("proj", `${at}text_projection`);
    else names.add("proj.weight", `${at}text_projection`, { isTransposed: true });
  }
  return names.sources;
}
