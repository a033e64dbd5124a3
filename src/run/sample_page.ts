/**
 * A page of images to look at during a run: each input, the tokenizer's reconstruction of it, and samples.
 */

import type { TrainConfig } from "../config/resolve.js";
import { imageGrid } from "../data/index.js";
import { cat, type Tensor, tidy } from "../torch/index.js";
import type { PlainData } from "./plain_data.js";

/** Samples of an image that are shown. */
const SHOWN = 6;

/**
 * A row for each image: input, reconstruction (the ceiling), samples.
 *
 * @param ceiling - float `[B, 3, H, W]`.
 * @param samples - float `[B * G, 3, H, W]`.
 * @param rewards - float `[B, G]`.
 */
export function samplePage(
  config: TrainConfig,
  images: Tensor,
  ceiling: Tensor,
  samples: Tensor,
  rewards: Tensor,
  ids: readonly string[],
): { page: Tensor; about: { readonly [key: string]: PlainData } } {
  return tidy(() => {
    const [b, g] = rewards.dims(2);
    const rows = Math.min(b, config.log.imageRows);
    const shown = Math.min(g, SHOWN);
    const page = imageGrid(
      Array.from({ length: rows }, (_, i) =>
        cat([images.narrow(0, i, 1), ceiling.narrow(0, i, 1), samples.narrow(0, i * g, shown)])
          .clamp(-1, 1)
          .cpu(),
      ),
    );
    const values = rewards.narrow(0, 0, rows).narrow(1, 0, shown).toList() as number[][];
    return {
      page,
      about: { columns: ["input", "reconstruction", "samples"], ids: ids.slice(0, rows), rewards: values },
    };
  });
}
