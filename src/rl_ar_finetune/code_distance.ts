/**
 * Codes as points, for the loss `update.codeDistance`: where the squared distance of two codes' points is how far apart they are
 * in what the rewards compare. `scoring.ts` computes the expected distance and `objective.ts` adds it to the loss.
 *
 * The gradient of an expectation over all codes, after "Mean Actor-Critic" (Allen et al. 2017, arXiv 1709.00503, eq. 5) and
 * "Expected Policy Gradients" (Ciosek and Whiteson 2018, arXiv 1706.05374). Deviations: the critic is this fixed distance and no
 * learned network, it sees one place at a time, and it is added to the sampled policy gradient in place of replacing it. So it is
 * biased by what a code changes at other places, which the sampled rewards measure.
 */
import type { TrainConfig } from "../config/resolve.js";
import { onePass } from "../data/index.js";
import { type RunImages, readOptionsOf, someOf } from "../run/images.js";
import type { FrozenTokenizer } from "../tokenizers/index.js";
import {
  cat,
  type Device,
  expected,
  keep,
  noGrad,
  ones,
  type Tensor,
  tidy,
  toDevice,
  zeros,
} from "../torch/index.js";
import { openLpips, openPerceptual } from "./builder.js";

/** Training images whose codes are looked at, and how many at a time. */
const IMAGES = 2048;
const AT_A_TIME = 64;

/** What stands at each code of images: float32 `[B, C, h, w]` for a grid of h x w codes. */
export type Describe = (images: Tensor, grid: readonly [h: number, w: number]) => Tensor;

/**
 * The pixels of each code's patch: squared distances are mean squared errors of patches.
 *
 * @param images - float `[B, 3, h * p, w * p]`.
 * @returns float32 `[B, 3 * p * p, h, w]`.
 */
export function patches(images: Tensor, [h, w]: readonly [number, number]): Tensor {
  return tidy(() => {
    const p = images.size(2) / h;
    const parts = images.float().reshape(-1, 3, h, p, w, p).permute(0, 1, 3, 5, 2, 4);
    return parts.reshape(-1, 3 * p * p, h, w).mul(1 / Math.sqrt(3 * p * p));
  });
}

/** Adds up what stands at each code, and makes the points of it. Sums are float64 on the CPU: the same on every machine. */
export class CodeVectors implements Disposable {
  readonly #codebookSize: number;
  /** float64 `[V, D]` and `[V, 1]`. */
  #sums: Tensor | null = null;
  readonly #counts: Tensor;

  constructor(codebookSize: number) {
    this.#codebookSize = codebookSize;
    this.#counts = keep(zeros([codebookSize, 1], { dtype: "float64" }));
  }

  /**
   * @param codes - int64 `[B, h * w]`, of images.
   * @param described - float `[B, D, h, w]`.
   */
  add(codes: Tensor, described: Tensor): void {
    tidy(() => {
      const places = toDevice(described, "cpu").double().flatten(2).transpose(1, 2).flatten(0, 1); // [B * h * w, D]
      const index = toDevice(codes, "cpu").reshape(-1, 1);
      const d = places.size(1);
      this.#sums ??= keep(zeros([this.#codebookSize, d], { dtype: "float64" }));
      this.#sums.scatterAdd_(0, index.expand(index.size(0), d), places);
      this.#counts.scatterAdd_(0, index, ones(index.shape, { dtype: "float64" }));
    });
  }

  /**
   * The mean of what stood at each code, with the mean of all places as one place more, which is also what a code that did not
   * occur gets. Scaled such that two codes, drawn as often as they occurred, have a mean squared distance of 1.
   *
   * @returns float32 `[V, D]`.
   * @throws RangeError when all codes are alike.
   */
  points(): Tensor {
    const sums = this.#sums;
    if (sums === null) throw expected("CodeVectors.points", "images, added before", "none");
    return tidy(() => {
      const counts = this.#counts;
      const shares = counts.div(counts.sum());
      const means = sums.add(sums.sum(0, true).div(counts.sum())).div(counts.add(1));
      const centred = means.sub(means.mul(shares).sum(0, true));
      const distance = 2 * centred.square().mul(shares).sum().item(); // E|x - y|^2 of independent x and y
      if (!(distance > 0)) {
        const remedy = "Are the training images all alike? Set update.codeDistance=0";
        throw expected(
          "update.codeDistance",
          "codes that stand for different things",
          "codes all alike",
          remedy,
        );
      }
      return centred.mul(1 / Math.sqrt(distance)).float();
    });
  }

  [Symbol.dispose](): void {
    this.#sums?.dispose();
    this.#counts.dispose();
  }
}

/**
 * The points where the configuration asks for them, from the training images' own codes and from what `reward.l2`,
 * `reward.perceptual` and `reward.lpips` compare, weighted as in the reward. Reads at most 2,048 images.
 *
 * @returns float32 `[V, D]` on the device; null where `update.codeDistance` is 0.
 * @throws RangeError for a program's own loader, whose images cannot be read twice.
 */
export async function openCodeVectors(
  config: TrainConfig,
  { source, tokenizer, device }: Pick<RunImages, "source"> & { tokenizer: FrozenTokenizer; device: Device },
): Promise<Tensor | null> {
  if (config.update.codeDistance === 0) return null;
  if (source === null || source.kind !== "images") {
    const remedy = "Set data.source to images, or update.codeDistance=0";
    const got = source === null ? "a program's own loader" : source.kind;
    throw expected("update.codeDistance", "training images whose codes it can look at", got, remedy);
  }
  const { l2, lpips, perceptual } = config.reward;
  const described: [weight: number, describe: Describe][] = [[l2.weight, patches]];
  // The rules require the paths.
  const ours = perceptual.weight > 0 ? openPerceptual(perceptual.path as string, { device }) : null;
  using _ours = ours?.network ?? null;
  if (ours !== null) described.push([perceptual.weight, (images, grid) => ours.points(images, grid)]);
  using lpipsNetwork = lpips.weight > 0 ? openLpips(lpips.path as string, { device }) : null;
  if (lpipsNetwork !== null)
    described.push([lpips.weight, (images, grid) => lpipsNetwork.points(images, grid)]);
  const side = config.data.size / tokenizer.downsample;
  using vectors = new CodeVectors(tokenizer.codebookSize);
  const chosen = someOf(source, IMAGES);
  const { flip: _, balance: __, ...read } = readOptionsOf(config);
  for await (const batch of onePass(chosen, { ...read, batchSize: Math.min(AT_A_TIME, chosen.length) })) {
    using _ = batch;
    noGrad(() =>
      tidy(() => {
        const images = toDevice(batch.images as Tensor, device);
        const maps = described.flatMap(([weight, describe]) =>
          weight > 0 ? [describe(images, [side, side]).mul(Math.sqrt(weight))] : [],
        );
        vectors.add(tokenizer.encode(images), cat(maps, 1));
      }),
    );
  }
  return keep(tidy(() => toDevice(vectors.points(), device)));
}
