/**
 * Restarts of unused codes: a code that no image has used for a number of updates is replaced by a feature of the batch.
 *
 * After Dhariwal et al. 2020, "Jukebox: A Generative Model for Music", section 3.1 (random restarts). Deviations: a
 * code is restarted after a number of updates without use, not when its average usage is low; features are drawn in
 * proportion to their squared distance from their codes (Arthur and Vassilvitskii 2007, "k-means++"), because uniform
 * draws would put most codes on plain backgrounds; the codebook is trained by gradients. The optimizer's moments are
 * not reset: those of an unused code have decayed to about 0.
 */
import type { StateDict } from "../nn/index.js";
import type { TokenizerModel } from "../tokenizers/index.js";
import {
  type Device,
  functional as F,
  type Generator,
  keep,
  noGrad,
  rand,
  randperm,
  type Tensor,
  tidy,
  toDevice,
  zeros,
} from "../torch/index.js";

/** Number of candidate features for each code to restart. */
const CHOICE = 4;

/** Counts the updates since each code was last used, and restarts codes. */
export class CodeRestarts implements Disposable {
  readonly #model: TokenizerModel;
  readonly #after: number;
  /** int64 `[V]`. */
  readonly #ages: Tensor;

  /** @param after - updates without use after which a code is restarted. */
  constructor(model: TokenizerModel, after: number) {
    const device = model.quantize.embedding.weight.device as Device;
    this.#model = model;
    this.#after = after;
    this.#ages = keep(zeros([model.codebookSize], { dtype: "int64", device }));
  }

  /**
   * Count the codes of an update, and restart unused codes at features of its images. If there are more codes to
   * restart than the images have positions, the others wait for the next update.
   *
   * @param codes - int64 `[B, T]`.
   * @param latentsOf - features float `[K, D, h, w]` of K of the images, given by `indices`, int64 `[K]`.
   * @param generator - on the CPU.
   * @param others - further tensors `[V, D]` to move, such as the EMA of the codebook.
   * @returns how many codes moved.
   */
  update(
    codes: Tensor,
    latentsOf: (indices: Tensor) => Tensor,
    generator: Generator,
    others: readonly Tensor[],
  ): number {
    const ages = this.#ages;
    const device = ages.device as Device;
    const { quantize } = this.#model;
    return noGrad(() =>
      tidy(() => {
        ages.add_(1).scatter_(0, codes.flatten(), 0);
        const due = ages.ge(this.#after).nonzero().flatten();
        if (due.numel === 0) return 0;
        const [b, t] = codes.dims(2);
        const images = Math.min(b, Math.ceil((CHOICE * due.numel) / t));
        const latents = latentsOf(toDevice(randperm(b, { generator }).narrow(0, 0, images), device)).float();
        const plain = latents.movedim(1, 3).flatten(0, 2); // [K * T, D]
        const rows = quantize.config.lookup === "cosine" ? F.normalize(plain) : plain;
        const nearest = F.embedding(quantize.codesOf(latents).flatten(), quantize.table());
        const distance = rows.sub(nearest).square().sum(1);
        const count = Math.min(due.numel, rows.size(0));
        // Taking the largest log-weights after adding Gumbel noise draws without replacement.
        const uniform = rand([rows.size(0)], { generator });
        const noise = toDevice(uniform.log().neg().log().neg(), device);
        const chosen = rows.indexSelect(0, distance.add(1e-12).log().add(noise).topk(count, 0).indices);
        const moved = due.narrow(0, 0, count);
        for (const table of [quantize.embedding.weight, ...others]) table.indexCopy_(0, moved, chosen);
        ages.indexCopy_(0, moved, zeros([count], { dtype: "int64", device }));
        return count;
      }),
    );
  }

  /** For a checkpoint. */
  stateDict(): StateDict {
    return { ages: this.#ages };
  }

  loadStateDict({ ages }: Readonly<StateDict>): void {
    this.#ages.copy_(ages as Tensor);
  }

  dispose(): void {
    this.#ages.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
