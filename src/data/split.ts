/** Splitting a data set into training and held-out images. Each part is a source with its own fingerprint. */
import { createHash } from "node:crypto";

import { expected } from "../torch/index.js";
import type { Block, ImageSource } from "./source.js";
export interface SplitOptions {
  /** Share of the groups to hold out, between 0 and 1. */
  readonly heldOut: number;
  readonly seed?: number;
  /**
   * What an image shows, from its id: images of one group stay together, such as one design in several styles. Each
   * image is a group of its own by default.
   */
  readonly groupOf?: (id: string) => string;
}

/**
 * Split a set into images to train on and images to hold out, so that no group is in both.
 *
 * The side of a group depends only on the seed and its name, so images that are added later do not move others. The share is
 * therefore approximate.
 *
 * @throws RangeError when one side would be empty.
 */
export function splitSource(
  source: ImageSource,
  { heldOut, seed = 0, groupOf = (id) => id }: SplitOptions,
): { train: ImageSource; heldOut: ImageSource } {
  if (!(heldOut > 0 && heldOut < 1))
    throw expected("splitSource", "a share heldOut between 0 and 1", heldOut);
  const sides: [number[], number[]] = [[], []];
  const sideOf = new Map<string, 0 | 1>();
  for (let i = 0; i < source.length; i++) {
    const group = groupOf(source.idOf(i));
    const side = sideOf.get(group) ?? (shareOf(seed, group) < heldOut ? 1 : 0);
    sideOf.set(group, side);
    sides[side].push(i);
  }
  const empty = sides[0].length === 0 ? "to train on" : sides[1].length === 0 ? "to hold out" : undefined;
  if (empty !== undefined) {
    const remedy =
      "Use more images, hold out another share (data.evalPart; 0 for none), or give held-out images of their own (data.evalSource)";
    throw expected("splitSource", `images ${empty}`, `none of ${sideOf.size} groups`, remedy);
  }
  return { train: subset(source, sides[0]), heldOut: subset(source, sides[1]) };
}

/** A number from 0 to 1 for a group. */
function shareOf(seed: number, group: string): number {
  return createHash("sha256").update(`${seed}/split/${group}`).digest().readUIntBE(0, 6) / 2 ** 48;
}

/**
 * Some images of a set, renumbered from 0; class ids and notes stay.
 *
 * @param indices - ascending, each once.
 */
export function subset(source: ImageSource, indices: readonly number[]): ImageSource {
  const places = Int32Array.from(indices);
  for (let i = 0; i < places.length; i++) {
    const [before, at] = [places[i - 1] ?? -1, places[i] as number];
    if (at <= before || at >= source.length) {
      throw expected("subset", `ascending indices below ${source.length}`, `${at} after ${before}`);
    }
  }
  if (places.length === 0) throw expected("subset", "at least one index", "none");
  const placeOf = (index: number): number => places[index] as number;
  return {
    kind: source.kind,
    length: places.length,
    classNames: source.classNames,
    ...(source.notes !== undefined && { notes: source.notes }),
    fingerprint: createHash("sha256").update(source.fingerprint).update(places).digest("hex"),
    variants: source.variants,
    ...(source.codeLength !== undefined && { codeLength: source.codeLength }),
    ...(source.blocks !== undefined && { blocks: blocksOf(source.blocks, places) }),
    ...(source.hasClasses !== undefined && { hasClasses: source.hasClasses }),
    ...(source.hasCaptions !== undefined && { hasCaptions: source.hasCaptions }),
    idOf: (index) => source.idOf(placeOf(index)),
    classOf: (index) => source.classOf(placeOf(index)),
    locate: async (index, variant) => await source.locate(placeOf(index), variant),
  };
}

/** The blocks with only the images that are left in them. Opening one costs as much as before. */
function blocksOf(blocks: readonly Block[], places: Int32Array): Block[] {
  const left: Block[] = [];
  let next = 0;
  let end = 0;
  for (const { length, bytes } of blocks) {
    end += length;
    const first = next;
    while (next < places.length && (places[next] as number) < end) next++;
    if (next > first) left.push({ length: next - first, bytes });
  }
  return left;
}
