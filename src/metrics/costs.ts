/** What it costs to look at images with a metric's network, told from its sizes alone. */
import { BACKBONES, type LpipsNet } from "./backbones.js";
import type { ClassifierConfig } from "./classifier.js";

/** What one image costs; a multiplication and its addition are two operations. */
export interface NetworkCosts {
  readonly flops: number;
  /** Numbers in the feature maps that are compared, which images keep for all their samples; 0 where none are. */
  readonly features: number;
  /** Numbers in the largest map. */
  readonly largest: number;
}

/** Of the network of LPIPS, for images of `side` by `side`. */
export function backboneCosts(net: LpipsNet, side: number): NetworkCosts {
  const { steps, pool, taps, channels } = BACKBONES[net];
  const costs = { flops: 0, features: 0, largest: 3 * side * side };
  let size = side;
  for (const [i, step] of steps.entries()) {
    if (step === "pool") {
      const round = pool.ceilMode ? Math.ceil : Math.floor;
      size = round((size - pool.kernel) / 2) + 1;
    } else if (step !== "relu" && step.kind === "conv") {
      size = Math.floor((size + 2 * step.padding - step.kernel) / step.stride) + 1;
      costs.flops += 2 * step.in * step.out * step.kernel ** 2 * size ** 2;
      costs.largest = Math.max(costs.largest, step.out * size ** 2);
    } else if (step !== "relu") {
      const weights = step.in * step.squeeze + 10 * step.squeeze * step.expand;
      costs.flops += 2 * weights * size ** 2;
      costs.largest = Math.max(costs.largest, 2 * step.expand * size ** 2);
    }
    const tap = taps.indexOf(i);
    if (tap >= 0) costs.features += (channels[tap] as number) * size ** 2;
  }
  return costs;
}

/** Of a feature classifier, up to its last feature map. */
export function classifierCosts(
  config: Required<Omit<ClassifierConfig, "classNames">>,
  side: number,
): NetworkCosts {
  const { widths, depth } = config;
  const [first, ...later] = widths as [number, ...number[]];
  const costs = {
    flops: 2 * 27 * first * side ** 2,
    features: first * side ** 2,
    largest: first * side ** 2,
  };
  let from = first;
  let size = side;
  for (const to of later) {
    size = Math.ceil(size / 2);
    const entrance = 9 * from * to + 9 * to * to + from * to;
    costs.flops += 2 * (entrance + (depth - 1) * 18 * to * to) * size ** 2;
    costs.features += to * size ** 2;
    costs.largest = Math.max(costs.largest, to * size ** 2);
    from = to;
  }
  return costs;
}

/** Of PatchGAN's discriminator, told from the shapes of its weights. */
export function discriminatorCosts(
  shapes: Readonly<Record<string, readonly number[]>>,
  side: number,
): NetworkCosts {
  const layers = Object.values(shapes).filter((shape) => shape.length === 4);
  const costs = { flops: 0, features: 0, largest: 3 * side * side };
  let size = side;
  for (const [i, [to = 0, from = 0, kernel = 0]] of layers.entries()) {
    // The last two layers do not halve.
    const stride = i < layers.length - 2 ? 2 : 1;
    size = Math.floor((size + 2 - kernel) / stride) + 1;
    costs.flops += 2 * to * from * kernel ** 2 * size ** 2;
    costs.largest = Math.max(costs.largest, to * size ** 2);
  }
  return costs;
}
