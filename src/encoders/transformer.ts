/**
 * The transformer that CLIP, SigLIP and TokLIP share: pre-norm blocks, and SigLIP's attention pooling. Embeddings of images,
 * codes and texts are in `towers.ts`.
 *
 * @see Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words"; Zhai et al. 2022, "Scaling Vision Transformers", for the
 *   pooling.
 */
import { init, LayerNorm, Linear, Module, Parameter } from "../nn/index.js";
import { functional as F, type Tensor, tidy } from "../torch/index.js";

/** `gelu_tanh` is GELU's tanh approximation, `quick_gelu` is `x * sigmoid(1.702 x)` of OpenAI's CLIP. */
export type Activation = "gelu" | "gelu_tanh" | "quick_gelu";

/** Sizes of a transformer. */
export interface TransformerConfig {
  /** D. */
  readonly width: number;
  /** H; divides D. */
  readonly heads: number;
  readonly depth: number;
  /** Width inside the MLPs. */
  readonly hidden: number;
  readonly activation: Activation;
  /** Added to the variance in layer norms. */
  readonly eps: number;
}

function activate(x: Tensor, activation: Activation): Tensor {
  switch (activation) {
    case "gelu":
      return x.gelu();
    case "gelu_tanh":
      return x.gelu("tanh");
    case "quick_gelu":
      return tidy(() => x.mul(x.mul(1.702).sigmoid()));
  }
}

/** `[N, T, D]` to `[N, H, T, D / H]`. */
const splitHeads = (x: Tensor, heads: number): Tensor => x.unflatten(-1, [heads, -1]).transpose(1, 2);

/** `[N, H, T, D / H]` to `[N, T, D]`. */
const joinHeads = (x: Tensor): Tensor => x.transpose(1, 2).flatten(2);

/** Self-attention, `[N, T, D]` to the same shape. Queries, keys and values are rows of one weight, in this order. */
class Attention extends Module {
  readonly qkv: Linear;
  readonly proj: Linear;
  readonly #heads: number;

  constructor(width: number, heads: number) {
    super();
    this.#heads = heads;
    this.qkv = new Linear(width, 3 * width);
    this.proj = new Linear(width, width);
  }

  forward(x: Tensor, isCausal: boolean): Tensor {
    return tidy(() => {
      const [q, k, v] = this.qkv
        .forward(x)
        .chunk(3, -1)
        .map((part) => splitHeads(part, this.#heads)) as [Tensor, Tensor, Tensor];
      return this.proj.forward(joinHeads(F.scaledDotProductAttention(q, k, v, { isCausal })));
    });
  }
}

class Mlp extends Module {
  readonly fc1: Linear;
  readonly fc2: Linear;
  readonly #activation: Activation;

  constructor({ width, hidden, activation }: TransformerConfig) {
    super();
    this.#activation = activation;
    this.fc1 = new Linear(width, hidden);
    this.fc2 = new Linear(hidden, width);
  }

  forward(x: Tensor): Tensor {
    return tidy(() => this.fc2.forward(activate(this.fc1.forward(x), this.#activation)));
  }
}

/** One pre-norm block, `[N, T, D]` to the same shape. */
export class Block extends Module {
  readonly norm1: LayerNorm;
  readonly attn: Attention;
  readonly norm2: LayerNorm;
  readonly mlp: Mlp;

  constructor(config: TransformerConfig) {
    super();
    this.norm1 = new LayerNorm(config.width, { eps: config.eps });
    this.attn = new Attention(config.width, config.heads);
    this.norm2 = new LayerNorm(config.width, { eps: config.eps });
    this.mlp = new Mlp(config);
  }

  /** @param isCausal - whether position i sees positions 0 ... i alone. */
  forward(x: Tensor, isCausal: boolean): Tensor {
    return tidy(() => {
      const y = x.add(this.attn.forward(this.norm1.forward(x), isCausal));
      return y.add(this.mlp.forward(this.norm2.forward(y)));
    });
  }
}

/** Run blocks one after another; without gradients, one input stays in memory. */
export function runBlocks(blocks: readonly Block[], x: Tensor, isCausal: boolean): Tensor {
  return tidy(() => {
    let y = x;
    for (const block of blocks) {
      const input = y;
      y = block.forward(input, isCausal);
      if (input !== x) input.dispose();
    }
    return y;
  });
}

/** SigLIP's pooling: one learnt query attends to all positions, then an MLP. `[N, T, D]` to `[N, D]`. */
export class AttentionPool extends Module {
  readonly latent: Parameter;
  readonly qkv: Linear;
  readonly proj: Linear;
  readonly norm: LayerNorm;
  readonly mlp: Mlp;
  readonly #heads: number;

  constructor(config: TransformerConfig) {
    super();
    const { width, heads, eps } = config;
    this.#heads = heads;
    this.latent = tidy(() => new Parameter(init.normal([width], 0, width ** -0.5)));
    this.qkv = new Linear(width, 3 * width);
    this.proj = new Linear(width, width);
    this.norm = new LayerNorm(width, { eps });
    this.mlp = new Mlp(config);
  }

  forward(x: Tensor): Tensor {
    return tidy(() => {
      const width = x.size(-1);
      const { weight, bias } = this.qkv;
      const part = (from: number, count: number, input: Tensor): Tensor =>
        F.linear(
          input,
          weight.narrow(0, from * width, count * width),
          bias?.narrow(0, from * width, count * width) ?? null,
        );
      const query = part(0, 1, this.latent.expand(x.size(0), 1, width));
      const [k, v] = part(1, 2, x)
        .chunk(2, -1)
        .map((each) => splitHeads(each, this.#heads)) as [Tensor, Tensor];
      const seen = joinHeads(F.scaledDotProductAttention(splitHeads(query, this.#heads), k, v));
      const pooled = this.proj.forward(seen);
      return pooled.add(this.mlp.forward(this.norm.forward(pooled))).select(1, 0);
    });
  }
}
