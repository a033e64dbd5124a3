/**
 * Where TokLIP keeps its tokenizer: LlamaGen's VQ-16, decoder included, inside the vision tower. The towers themselves
 * are not built here.
 *
 * @see Lin et al. 2025, "TokLIP: Marry Visual Tokens to CLIP for Multimodal Comprehension and Generation".
 */
import type { Grid } from "./tokenizer.js";

/** Prefixes of the tokenizer's keys: in the released models, and in those with open_clip's own vision transformer. */
export const TOKLIP_PREFIXES: readonly string[] = ["visual.trunk.vq.", "visual.vq."];

/** Position embeddings of the two towers. The second may have one more, for the class token. */
const POSITIONS: readonly string[] = ["visual.trunk.pos_embed", "visual.positional_embedding"];

/**
 * Codes that the model was trained with: [16, 16] for 256 px, [24, 24] for 384 px; undefined where no position
 * embedding tells.
 *
 * @param shapes - shapes by key, without a leading `module.`.
 */
export function toklipGrid(shapes: Readonly<Record<string, readonly number[]>>): Grid | undefined {
  for (const key of POSITIONS) {
    const positions = shapes[key]?.at(-2) ?? 0; // [1, T, D] or [T, D]
    const side = Math.floor(Math.sqrt(positions));
    if (side > 0 && positions - side * side <= 1) return [side, side];
  }
  return undefined;
}
