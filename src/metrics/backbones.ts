/**
 * The backbones of LPIPS: the convolutional parts of VGG16, AlexNet and SqueezeNet 1.1 with torchvision's names and numbers,
 * without the classifiers. The user supplies the weights as a file.
 *
 * VGG16: Simonyan and Zisserman 2015, configuration D. AlexNet: Krizhevsky 2014, "One weird trick for parallelizing
 * convolutional neural networks". SqueezeNet: Iandola et al. 2016, in its version 1.1.
 */
import { Conv2d, Module } from "../nn/index.js";
import { callTensor, cat, functional as F, type Tensor, tidy } from "../torch/index.js";

/** The backbones, under LPIPS's names. */
export type LpipsNet = "vgg" | "alex" | "squeeze";

interface ConvStep {
  readonly kind: "conv";
  readonly in: number;
  readonly out: number;
  readonly kernel: number;
  readonly stride: number;
  readonly padding: number;
}

/** Squeeze to few channels, then expand to `2 * expand`, half of them by 3 x 3 kernels. */
interface FireStep {
  readonly kind: "fire";
  readonly in: number;
  readonly squeeze: number;
  readonly expand: number;
}

type Step = ConvStep | FireStep | "relu" | "pool";

/** One backbone. */
export interface BackboneSpec {
  /** torchvision's name of the model. */
  readonly torchvision: string;
  /** By torchvision's index in `features`. */
  readonly steps: readonly Step[];
  readonly pool: { readonly kernel: number; readonly ceilMode: boolean };
  /** Indices of the steps whose outputs LPIPS compares. */
  readonly taps: readonly number[];
  /** Channels of those outputs. */
  readonly channels: readonly number[];
  /** Smallest side of an image whose last tap is not empty. */
  readonly minSize: number;
}

const conv = (
  from: number,
  to: number,
  kernel = 3,
  options: { stride?: number; padding?: number } = {},
): Step => {
  const { stride = 1, padding = 1 } = options;
  return { kind: "conv", in: from, out: to, kernel, stride, padding };
};

const fire = (from: number, squeeze: number, expand: number): Step => ({
  kind: "fire",
  in: from,
  squeeze,
  expand,
});

export const BACKBONES: Readonly<Record<LpipsNet, BackboneSpec>> = {
  vgg: {
    torchvision: "vgg16",
    // biome-ignore format: one line a stage
    steps: [
      conv(3, 64), "relu", conv(64, 64), "relu", "pool",
      conv(64, 128), "relu", conv(128, 128), "relu", "pool",
      conv(128, 256), "relu", conv(256, 256), "relu", conv(256, 256), "relu", "pool",
      conv(256, 512), "relu", conv(512, 512), "relu", conv(512, 512), "relu", "pool",
      conv(512, 512), "relu", conv(512, 512), "relu", conv(512, 512), "relu",
    ],
    pool: { kernel: 2, ceilMode: false },
    taps: [3, 8, 15, 22, 29],
    channels: [64, 128, 256, 512, 512],
    minSize: 16,
  },
  alex: {
    torchvision: "alexnet",
    // biome-ignore format: one line a stage
    steps: [
      conv(3, 64, 11, { stride: 4, padding: 2 }), "relu", "pool",
      conv(64, 192, 5, { padding: 2 }), "relu", "pool",
      conv(192, 384), "relu", conv(384, 256), "relu", conv(256, 256), "relu",
    ],
    pool: { kernel: 3, ceilMode: false },
    taps: [1, 4, 7, 9, 11],
    channels: [64, 192, 384, 256, 256],
    minSize: 31,
  },
  squeeze: {
    torchvision: "squeezenet1_1",
    // biome-ignore format: one line a stage
    steps: [
      conv(3, 64, 3, { stride: 2, padding: 0 }), "relu", "pool",
      fire(64, 16, 64), fire(128, 16, 64), "pool",
      fire(128, 32, 128), fire(256, 32, 128), "pool",
      fire(256, 48, 192), fire(384, 48, 192), fire(384, 64, 256), fire(512, 64, 256),
    ],
    pool: { kernel: 3, ceilMode: true },
    taps: [1, 4, 7, 9, 10, 11, 12],
    channels: [64, 128, 256, 384, 384, 512, 512],
    minSize: 17,
  },
};

/** Shapes of a backbone's weights and biases, by torchvision's keys. */
export function backboneShapes(net: LpipsNet): Record<string, readonly number[]> {
  const shapes: Record<string, readonly number[]> = {};
  const add = (name: string, from: number, to: number, kernel: number): void => {
    shapes[`features.${name}.weight`] = [to, from, kernel, kernel];
    shapes[`features.${name}.bias`] = [to];
  };
  for (const [i, step] of BACKBONES[net].steps.entries()) {
    if (typeof step === "string") continue;
    if (step.kind === "conv") {
      add(`${i}`, step.in, step.out, step.kernel);
    } else {
      add(`${i}.squeeze`, step.in, step.squeeze, 1);
      add(`${i}.expand1x1`, step.squeeze, step.expand, 1);
      add(`${i}.expand3x3`, step.squeeze, step.expand, 3);
    }
  }
  return shapes;
}

/** Key of a head's weight. */
export const headKey = (k: number): string => `lin${k}.model.1.weight`;

/**
 * The key that LPIPS has here for one of a published file, or null for what it does not use: torchvision's
 * classifiers, and the constants of the scaling.
 *
 * LPIPS's own files call the layers `net.slice1.0` or `net.slices.0.0`, with torchvision's index last, and hold the
 * heads as `lin0`, `lins.0` or both, at `model.0` where there is no dropout before.
 */
export function lpipsKey(name: string): string | null {
  if (/^(classifier|scaling_layer)\./.test(name)) return null;
  return name
    .replace(/^net\.slice(s\.)?\d+\./, "features.")
    .replace(/^(?:lin|lins\.)(\d+)\.model\.[01]\.weight$/, (_, k) => headKey(Number(k)));
}

/** SqueezeNet's block: x `[B, in, h, w]` to `[B, 2 * expand, h, w]`, not negative. */
export class Fire extends Module {
  readonly squeeze: Conv2d;
  readonly expand1x1: Conv2d;
  readonly expand3x3: Conv2d;

  constructor(inChannels: number, squeeze: number, expand: number) {
    super();
    this.squeeze = new Conv2d(inChannels, squeeze, 1);
    this.expand1x1 = new Conv2d(squeeze, expand, 1);
    this.expand3x3 = new Conv2d(squeeze, expand, 3, { padding: 1 });
  }

  forward(x: Tensor): Tensor {
    return tidy(() => {
      const narrow = relu_(this.squeeze.forward(x));
      return cat([relu_(this.expand1x1.forward(narrow)), relu_(this.expand3x3.forward(narrow))], 1);
    });
  }
}

/** Layers of a backbone by torchvision's index; null where a step has no weights. */
export function buildFeatures(net: LpipsNet): (Conv2d | Fire | null)[] {
  return BACKBONES[net].steps.map((step) => {
    if (typeof step === "string") return null;
    if (step.kind === "fire") return new Fire(step.in, step.squeeze, step.expand);
    return new Conv2d(step.in, step.out, step.kernel, { stride: step.stride, padding: step.padding });
  });
}

/**
 * Run images through a backbone and use each tapped output `[B, C, h, w]`, k-th of the list, as it comes. Without
 * gradients nothing but the layer at work stays in memory.
 */
export function atTaps<T>(
  net: LpipsNet,
  features: readonly (Conv2d | Fire | null)[],
  images: Tensor,
  use: (output: Tensor, k: number) => T,
): T[] {
  const { steps, pool, taps } = BACKBONES[net];
  return tidy(() => {
    const results: T[] = [];
    let x = images;
    for (const [i, step] of steps.entries()) {
      const layer = features[i];
      const input = x;
      if (layer) x = layer.forward(input);
      else if (step === "pool") x = F.maxPool2d(input, pool.kernel, { stride: 2, ceilMode: pool.ceilMode });
      else relu_(input);
      if (x !== input && input !== images) input.dispose();
      const k = taps.indexOf(i);
      if (k >= 0) results.push(tidy(() => use(x, k)));
    }
    return results;
  });
}

/** In place: what a convolution leaves is not needed again, not even backwards. */
export function relu_(x: Tensor): Tensor {
  return callTensor("aten::relu_", [x]);
}
