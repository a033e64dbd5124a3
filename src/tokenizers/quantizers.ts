/**
 * The codebook: from features to the nearest codes, from codes to features, and the forward pass for training. The
 * lookup never holds the similarities of all codes and all positions in memory; the training forward of IBQ and of the
 * entropy loss does.
 *
 * Deviations from the published code: the straight-through value of IBQ is exactly the codebook's row, without the
 * rounding of `hard - soft + soft`; the entropy loss is not computed if its weight is 0; if a batch has more codes than
 * the record of used codes, its last ones are recorded. Similarities are float32 even under autocast.
 *
 * @see van den Oord et al. 2017, "Neural Discrete Representation Learning"; Yu et al. 2022, "Vector-quantized Image
 *   Modeling with Improved VQGAN" (normalised codes); Shi et al. 2024, "Taming Scalable Visual Tokenizer" (IBQ).
 */
import { Buffer, Embedding, init, Module } from "../nn/index.js";
import {
  cat,
  functional as F,
  isGradEnabled,
  noGrad,
  type OptionNames,
  readOptions,
  type Tensor,
  tidy,
  where,
  withoutAutocast,
  zeros,
} from "../torch/index.js";
import type { Grid } from "./tokenizer.js";

/**
 * Which code is nearest: the one with the largest dot product (IBQ), with the largest cosine (LlamaGen; rows are
 * normalized for decoding too), or with the smallest Euclidean distance (taming).
 */
export type Lookup = "dot" | "cosine" | "l2";

/** Shape and losses of a codebook. */
export interface QuantizerConfig {
  /** V. */
  codebookSize: number;
  embedDim: number;
  lookup: Lookup;
  /** Weight of the commitment loss (cosine, l2), or of the codebook's part of the loss (dot). */
  beta: number;
  /** Softmax temperature of the entropy loss. */
  entropyTemperature: number;
  /** Weight of the mean entropy per position, which is minimized; if both weights are 0, the entropy loss is off. */
  sampleEntropyWeight: number;
  /** Weight of the entropy of the mean distribution of the batch, which is maximized. */
  batchEntropyWeight: number;
  /** Whether the last 65,536 codes of training are recorded, in `codebook_used`. */
  hasUsageRecord: boolean;
}

/** Names of all keys of a {@link QuantizerConfig}. */
export const QUANTIZER_CONFIG_NAMES: OptionNames<QuantizerConfig> = {
  codebookSize: "number",
  embedDim: "number",
  lookup: true,
  beta: "number",
  entropyTemperature: "number",
  sampleEntropyWeight: "number",
  batchEntropyWeight: "number",
  hasUsageRecord: "boolean",
};

/** Result of the trainable forward. */
export interface Quantized {
  /** float32 `[B, D, h, w]`: the rows of the codes, with a gradient to the features. */
  quantized: Tensor;
  /** int64 `[B, T]`, T = h * w. */
  codes: Tensor;
  /** Terms to minimise, 0-d, by name: `codebook` and `commitment`, or `quant`; and `entropy` where it has a weight. */
  losses: Record<string, Tensor>;
  /** Metrics without gradient, 0-d: `sampleEntropy` and `batchEntropy` in nats, if the entropy loss is on. */
  stats: Record<string, Tensor>;
}

const USAGE_LENGTH = 65_536;

/** Maximum bytes of similarities that a lookup holds at a time. */
const SCORE_BYTES = 64 * 2 ** 20;

export class VectorQuantizer extends Module {
  readonly codebook_used: Buffer | null;
  readonly embedding: Embedding;
  readonly config: QuantizerConfig;

  /** @throws RangeError for an unknown option. */
  constructor(given: QuantizerConfig) {
    super();
    const config = readOptions<QuantizerConfig>("VectorQuantizer", [given], {
      names: QUANTIZER_CONFIG_NAMES,
    });
    const { codebookSize: v, embedDim, lookup } = config;
    this.config = config;
    this.codebook_used = config.hasUsageRecord ? tidy(() => new Buffer(zeros([USAGE_LENGTH]))) : null;
    this.embedding = new Embedding(v, embedDim);
    if (lookup === "dot") return;
    noGrad(() =>
      tidy(() => {
        const rows = init.uniform([v, embedDim], -1 / v, 1 / v);
        this.embedding.weight.copy_(lookup === "cosine" ? F.normalize(rows) : rows);
      }),
    );
  }

  /** The rows that are compared and decoded, `[V, D]`: the weight, normalized for the cosine lookup. */
  table(): Tensor {
    const { weight } = this.embedding;
    return this.config.lookup === "cosine" ? F.normalize(weight) : weight;
  }

  /**
   * Codes of features.
   *
   * @param z - float32 `[B, D, h, w]`.
   * @returns int64 `[B, h * w]`, in raster order.
   */
  codesOf(z: Tensor): Tensor {
    return noGrad(() =>
      tidy(() => nearestCodes(toRows(z), this.table(), this.config.lookup).reshape(z.size(0), -1)),
    );
  }

  /**
   * Features of codes.
   *
   * @param codes - int64 `[B, T]`, T = rows * columns of the grid.
   * @returns float32 `[B, D, h, w]`.
   */
  getCodebookEntry(codes: Tensor, [h, w]: Grid): Tensor {
    return tidy(() => fromRows(F.embedding(codes, this.table()), [codes.size(0), h, w]));
  }

  /**
   * Quantize differentiably.
   *
   * Cosine and l2 copy the gradient to the features (straight-through). Dot backpropagates through the softmax over all
   * codes, so that every row of the codebook gets a gradient (index backpropagation, IBQ).
   *
   * @param z - float32 `[B, D, h, w]`.
   */
  forward(z: Tensor): Quantized {
    const result = tidy(() =>
      withoutAutocast(z, () => {
        const [b, , h, w] = z.dims(4);
        const rows = toRows(z); // [N, D], N = b * h * w
        const terms = this.config.lookup === "dot" ? this.#propagate(rows) : this.#passThrough(rows);
        const { quantized, codes, ...rest } = terms;
        return { ...rest, quantized: fromRows(quantized, [b, h, w]), codes: codes.reshape(b, h * w) };
      }),
    );
    if (this.training && this.codebook_used !== null) record(this.codebook_used, result.codes);
    return result;
  }

  /** Fraction of the codebook among the last 65,536 codes of training; NaN if codes are not recorded. */
  usage(): number {
    const { codebook_used: used } = this;
    if (used === null) return Number.NaN;
    return tidy(() => used.unique().numel / this.config.codebookSize);
  }

  #passThrough(given: Tensor): Quantized {
    const { lookup, beta } = this.config;
    const rows = lookup === "cosine" ? F.normalize(given) : given;
    const table = this.table();
    const codes = nearestCodes(rows, table, lookup);
    const nearest = F.embedding(codes, table);
    const losses = {
      codebook: F.mseLoss(nearest, rows.detach()),
      commitment: F.mseLoss(rows, nearest.detach()).mul(beta),
    };
    const quantized = rows.add(nearest.sub(rows).detach());
    // Distances without the term that is the same for all codes of a position, which the softmax cancels.
    const entropy = this.#entropy(() => scores(rows, table, lookup).mul(2));
    return { quantized, codes, losses: { ...losses, ...entropy.losses }, stats: entropy.stats };
  }

  #propagate(rows: Tensor): Quantized {
    const { weight } = this.embedding;
    const logits = scores(rows, weight, "dot"); // [N, V]
    const codes = logits.argmax(1);
    const nearest = F.embedding(codes, weight);
    let quantized = nearest;
    if (isGradEnabled()) {
      // Zero in value; its gradient is that of the soft assignment, with the rows as constants.
      const soft = logits.softmax(1).matmul(weight.detach());
      quantized = nearest.add(soft.sub(soft.detach()));
    }
    const toCodes = F.mseLoss(quantized, rows).add(F.mseLoss(rows, nearest.detach()));
    const quant = toCodes.add(F.mseLoss(nearest, rows.detach()), this.config.beta);
    const entropy = this.#entropy(() => logits);
    return { quantized, codes, losses: { quant, ...entropy.losses }, stats: entropy.stats };
  }

  /** @see Yu et al. 2024, "Language Model Beats Diffusion: Tokenizer is Key to Visual Generation". */
  #entropy(affinity: () => Tensor): Pick<Quantized, "losses" | "stats"> {
    const { entropyTemperature, sampleEntropyWeight, batchEntropyWeight } = this.config;
    if (sampleEntropyWeight === 0 && batchEntropyWeight === 0) return { losses: {}, stats: {} };
    const logp = affinity().div(entropyTemperature).logSoftmax(1); // [N, V]
    const p = logp.exp();
    const sampleEntropy = p.mul(logp).sum(1).mean().neg();
    const mean = p.mean(0);
    const batchEntropy = mean.mul(mean.add(1e-5).log()).sum().neg();
    return {
      losses: { entropy: sampleEntropy.mul(sampleEntropyWeight).sub(batchEntropy, batchEntropyWeight) },
      stats: { sampleEntropy: sampleEntropy.detach(), batchEntropy: batchEntropy.detach() },
    };
  }
}

/** `[B, D, h, w]` to float32 `[B * h * w, D]`. */
function toRows(z: Tensor): Tensor {
  return z.permute(0, 2, 3, 1).reshape(-1, z.size(1)).to({ dtype: "float32" });
}

/** `[..., D]` with B * h * w rows to `[B, D, h, w]`. */
function fromRows(rows: Tensor, [b, h, w]: readonly [number, number, number]): Tensor {
  return rows.reshape(b, h, w, rows.size(-1)).permute(0, 3, 1, 2).contiguous();
}

/** Similarity of each row `[N, D]` to each code of the table `[V, D]`: `[N, V]`, larger is nearer. */
function scores(rows: Tensor, table: Tensor, lookup: Lookup): Tensor {
  const codes = table.transpose(0, 1);
  if (lookup !== "l2") return rows.matmul(codes);
  // -|z - e|^2 / 2 without |z|^2 / 2, which is the same for all codes.
  return table.square().sum(1).mul(-0.5).addmm(rows, codes);
}

/**
 * Index of the nearest code of each row; of equally near codes the first.
 *
 * @param rows - float32 `[N, D]`.
 * @param table - float32 `[V, D]`, normalised by the caller for `"cosine"`; the rows need not be.
 * @param scoreBytes - bytes of memory for similarities. Rows and codes are compared in blocks of this size; the result
 *   does not depend on it.
 * @returns int64 `[N]`.
 */
export function nearestCodes(
  rows: Tensor,
  table: Tensor,
  lookup: Lookup,
  scoreBytes: number = SCORE_BYTES,
): Tensor {
  const [n] = rows.dims(2);
  const v = table.size(0);
  const room = scoreBytes / 4;
  // Blocks with many rows keep the matrix product efficient; with few rows a block can have more codes.
  const codesAtOnce = Math.min(v, Math.max(1, Math.floor(room / Math.min(n, 256))));
  const rowsAtOnce = Math.max(1, Math.floor(room / codesAtOnce));
  const search = (): Tensor => {
    const found: Tensor[] = [];
    for (let start = 0; start < n; start += rowsAtOnce) {
      const part = rows.narrow(0, start, Math.min(rowsAtOnce, n - start));
      found.push(tidy(() => nearestInBlocks(part, table, lookup, codesAtOnce)));
    }
    return found.length === 1 ? (found[0] as Tensor) : cat(found);
  };
  return noGrad(() => tidy(() => withoutAutocast(rows, search)));
}

function nearestInBlocks(rows: Tensor, table: Tensor, lookup: Lookup, codesAtOnce: number): Tensor {
  const v = table.size(0);
  let best: { values: Tensor; indices: Tensor } | undefined;
  for (let start = 0; start < v; start += codesAtOnce) {
    best = tidy(() => {
      const block = table.narrow(0, start, Math.min(codesAtOnce, v - start));
      const { values, indices } = scores(rows, block, lookup).max(1);
      if (best === undefined) return { values, indices };
      // Strictly greater: of equally near codes the first is kept.
      const isNearer = values.gt(best.values);
      return {
        values: where(isNearer, values, best.values),
        indices: where(isNearer, indices.add(start), best.indices),
      };
    });
  }
  return (best as { indices: Tensor }).indices;
}

/** Append codes to the record, and remove the same number of oldest ones. */
function record(used: Buffer, codes: Tensor): void {
  noGrad(() =>
    tidy(() => {
      const all = codes.flatten().to({ dtype: used.dtype });
      const count = Math.min(all.numel, USAGE_LENGTH);
      const latest = all.narrow(0, all.numel - count, count);
      used.copy_(cat([used.narrow(0, count, USAGE_LENGTH - count), latest]));
    }),
  );
}
