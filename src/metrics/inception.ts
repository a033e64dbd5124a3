/**
 * Inception v3 as the published FID and inception scores use it, and as torchvision has it. The user
 * supplies the weights as a file: `pt_inception-2015-12-05-6726825d.pth`, which is TensorFlow's graph of 2015 with torchvision's
 * keys, or torchvision's own. Both have the same shapes and keys except for the classes (1008 and 1000), but pool differently
 * within blocks, so their numbers cannot be compared.
 *
 * After Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision", table 1 and figures 5 to 7.
 */
import {
  BatchNorm2d,
  Conv2d,
  Linear,
  type LoadReport,
  Module,
  type Readable,
  shapesOf,
} from "../nn/index.js";
import { callTensor, cat, functional as F, noGrad, readOptions, type Tensor, tidy } from "../torch/index.js";
import type { FeatureNetwork } from "./features.js";
import { checkImages, joined, ranges } from "./pairs.js";
import { RangeGuard } from "./range.js";

/** Side that images are resized to. */
const SIDE = 299;

/** Images at a time in {@link InceptionV3.describe}: about 0.3 GiB. */
const IMAGES_AT_A_TIME = 16;

/** Classes of TensorFlow's graph: ImageNet's 1,000 and some that stand for nothing. */
export const FID_CLASSES = 1008;

/** How a block pools before its last branch; windows of 3 x 3 with a border of 1. */
type Pooling = "mean" | "mean with border" | "max";

/** Convolution, normalisation and ReLU. */
class BasicConv2d extends Module {
  readonly conv: Conv2d;
  readonly bn: BatchNorm2d;

  constructor(from: number, to: number, kernel: F.Pair, options: { stride?: number; padding?: F.Pair } = {}) {
    super();
    this.conv = new Conv2d(from, to, kernel, { ...options, bias: false });
    this.bn = new BatchNorm2d(to, { eps: 1e-3 });
  }

  forward(x: Tensor): Tensor {
    return tidy(() => callTensor("aten::relu_", [this.bn.forward(this.conv.forward(x))]));
  }
}

const conv1x1 = (from: number, to: number): BasicConv2d => new BasicConv2d(from, to, 1);
const conv3x3 = (from: number, to: number): BasicConv2d => new BasicConv2d(from, to, 3, { padding: 1 });
/** Without a border: h to (h - 3) / 2 + 1. */
const halving = (from: number, to: number): BasicConv2d => new BasicConv2d(from, to, 3, { stride: 2 });
/** `n` columns wide, and as high as its input. */
const across = (from: number, to: number, n: number): BasicConv2d =>
  new BasicConv2d(from, to, [1, n], { padding: [0, (n - 1) / 2] });
const along = (from: number, to: number, n: number): BasicConv2d =>
  new BasicConv2d(from, to, [n, 1], { padding: [(n - 1) / 2, 0] });

function chain(x: Tensor, ...layers: BasicConv2d[]): Tensor {
  return layers.reduce((y, layer) => layer.forward(y), x);
}

function pool(x: Tensor, pooling: Pooling): Tensor {
  if (pooling === "max") return F.maxPool2d(x, 3, { stride: 1, padding: 1 });
  return F.avgPool2d(x, 3, { stride: 1, padding: 1, countIncludePad: pooling === "mean with border" });
}

const halved = (x: Tensor): Tensor => F.maxPool2d(x, 3, { stride: 2 });

/** 35 x 35: x `[N, from, h, w]` to `[N, 224 + pooled, h, w]`. */
class InceptionA extends Module {
  readonly branch1x1: BasicConv2d;
  readonly branch5x5_1: BasicConv2d;
  readonly branch5x5_2: BasicConv2d;
  readonly branch3x3dbl_1: BasicConv2d;
  readonly branch3x3dbl_2: BasicConv2d;
  readonly branch3x3dbl_3: BasicConv2d;
  readonly branch_pool: BasicConv2d;
  readonly #pooling: Pooling;

  constructor(from: number, pooled: number, pooling: Pooling) {
    super();
    this.branch1x1 = conv1x1(from, 64);
    this.branch5x5_1 = conv1x1(from, 48);
    this.branch5x5_2 = new BasicConv2d(48, 64, 5, { padding: 2 });
    this.branch3x3dbl_1 = conv1x1(from, 64);
    this.branch3x3dbl_2 = conv3x3(64, 96);
    this.branch3x3dbl_3 = conv3x3(96, 96);
    this.branch_pool = conv1x1(from, pooled);
    this.#pooling = pooling;
  }

  forward(x: Tensor): Tensor {
    return tidy(() => {
      const branches = [
        this.branch1x1.forward(x),
        chain(x, this.branch5x5_1, this.branch5x5_2),
        chain(x, this.branch3x3dbl_1, this.branch3x3dbl_2, this.branch3x3dbl_3),
        this.branch_pool.forward(pool(x, this.#pooling)),
      ];
      return cat(branches, 1);
    });
  }
}

/** 35 x 35 to 17 x 17: x `[N, from, h, w]` to `[N, from + 480, h', w']`. */
class InceptionB extends Module {
  readonly branch3x3: BasicConv2d;
  readonly branch3x3dbl_1: BasicConv2d;
  readonly branch3x3dbl_2: BasicConv2d;
  readonly branch3x3dbl_3: BasicConv2d;

  constructor(from: number) {
    super();
    this.branch3x3 = halving(from, 384);
    this.branch3x3dbl_1 = conv1x1(from, 64);
    this.branch3x3dbl_2 = conv3x3(64, 96);
    this.branch3x3dbl_3 = halving(96, 96);
  }

  forward(x: Tensor): Tensor {
    return tidy(() => {
      const deep = chain(x, this.branch3x3dbl_1, this.branch3x3dbl_2, this.branch3x3dbl_3);
      return cat([this.branch3x3.forward(x), deep, halved(x)], 1);
    });
  }
}

/** 17 x 17, kernels of 7 in two steps: x `[N, 768, h, w]` to the same shape. */
class InceptionC extends Module {
  readonly branch1x1: BasicConv2d;
  readonly branch7x7_1: BasicConv2d;
  readonly branch7x7_2: BasicConv2d;
  readonly branch7x7_3: BasicConv2d;
  readonly branch7x7dbl_1: BasicConv2d;
  readonly branch7x7dbl_2: BasicConv2d;
  readonly branch7x7dbl_3: BasicConv2d;
  readonly branch7x7dbl_4: BasicConv2d;
  readonly branch7x7dbl_5: BasicConv2d;
  readonly branch_pool: BasicConv2d;
  readonly #pooling: Pooling;

  constructor(inner: number, pooling: Pooling) {
    super();
    this.branch1x1 = conv1x1(768, 192);
    this.branch7x7_1 = conv1x1(768, inner);
    this.branch7x7_2 = across(inner, inner, 7);
    this.branch7x7_3 = along(inner, 192, 7);
    this.branch7x7dbl_1 = conv1x1(768, inner);
    this.branch7x7dbl_2 = along(inner, inner, 7);
    this.branch7x7dbl_3 = across(inner, inner, 7);
    this.branch7x7dbl_4 = along(inner, inner, 7);
    this.branch7x7dbl_5 = across(inner, 192, 7);
    this.branch_pool = conv1x1(768, 192);
    this.#pooling = pooling;
  }

  forward(x: Tensor): Tensor {
    return tidy(() => {
      const branches = [
        this.branch1x1.forward(x),
        chain(x, this.branch7x7_1, this.branch7x7_2, this.branch7x7_3),
        chain(
          x,
          this.branch7x7dbl_1,
          this.branch7x7dbl_2,
          this.branch7x7dbl_3,
          this.branch7x7dbl_4,
          this.branch7x7dbl_5,
        ),
        this.branch_pool.forward(pool(x, this.#pooling)),
      ];
      return cat(branches, 1);
    });
  }
}

/** 17 x 17 to 8 x 8: x `[N, 768, h, w]` to `[N, 1280, h', w']`. */
class InceptionD extends Module {
  readonly branch3x3_1: BasicConv2d;
  readonly branch3x3_2: BasicConv2d;
  readonly branch7x7x3_1: BasicConv2d;
  readonly branch7x7x3_2: BasicConv2d;
  readonly branch7x7x3_3: BasicConv2d;
  readonly branch7x7x3_4: BasicConv2d;

  constructor() {
    super();
    this.branch3x3_1 = conv1x1(768, 192);
    this.branch3x3_2 = halving(192, 320);
    this.branch7x7x3_1 = conv1x1(768, 192);
    this.branch7x7x3_2 = across(192, 192, 7);
    this.branch7x7x3_3 = along(192, 192, 7);
    this.branch7x7x3_4 = halving(192, 192);
  }

  forward(x: Tensor): Tensor {
    return tidy(() => {
      const three = chain(x, this.branch3x3_1, this.branch3x3_2);
      const seven = chain(x, this.branch7x7x3_1, this.branch7x7x3_2, this.branch7x7x3_3, this.branch7x7x3_4);
      return cat([three, seven, halved(x)], 1);
    });
  }
}

/** 8 x 8, branches that fork: x `[N, from, h, w]` to `[N, 2048, h, w]`. */
class InceptionE extends Module {
  readonly branch1x1: BasicConv2d;
  readonly branch3x3_1: BasicConv2d;
  readonly branch3x3_2a: BasicConv2d;
  readonly branch3x3_2b: BasicConv2d;
  readonly branch3x3dbl_1: BasicConv2d;
  readonly branch3x3dbl_2: BasicConv2d;
  readonly branch3x3dbl_3a: BasicConv2d;
  readonly branch3x3dbl_3b: BasicConv2d;
  readonly branch_pool: BasicConv2d;
  readonly #pooling: Pooling;

  constructor(from: number, pooling: Pooling) {
    super();
    this.branch1x1 = conv1x1(from, 320);
    this.branch3x3_1 = conv1x1(from, 384);
    this.branch3x3_2a = across(384, 384, 3);
    this.branch3x3_2b = along(384, 384, 3);
    this.branch3x3dbl_1 = conv1x1(from, 448);
    this.branch3x3dbl_2 = conv3x3(448, 384);
    this.branch3x3dbl_3a = across(384, 384, 3);
    this.branch3x3dbl_3b = along(384, 384, 3);
    this.branch_pool = conv1x1(from, 192);
    this.#pooling = pooling;
  }

  forward(x: Tensor): Tensor {
    return tidy(() => {
      const three = this.branch3x3_1.forward(x);
      const deep = chain(x, this.branch3x3dbl_1, this.branch3x3dbl_2);
      const branches = [
        this.branch1x1.forward(x),
        this.branch3x3_2a.forward(three),
        this.branch3x3_2b.forward(three),
        this.branch3x3dbl_3a.forward(deep),
        this.branch3x3dbl_3b.forward(deep),
        this.branch_pool.forward(pool(x, this.#pooling)),
      ];
      return cat(branches, 1);
    });
  }
}

/** Weights of {@link InceptionV3} by key, in memory or still in a file. */
type Weights = Readonly<Record<string, Tensor | Readable>>;

/**
 * The network, in evaluation and frozen. State-dict keys are torchvision's, without the auxiliary classifier.
 *
 * With 1008 classes it is the network of published FIDs: means leave the border out, and the last block takes the
 * maximum in their place, as TensorFlow's graph does. Features are the graph's `pool_3`. Class probabilities are of
 * logits without the bias, as the published inception scores have them (Salimans et al. 2016). Numbers agree with the
 * published ones as far as images are resized alike, which the graph does by half a pixel otherwise, and are of 8 bits.
 *
 * With any other number of classes it is torchvision's network, for which means count the border as zeros and logits
 * have their bias.
 */
export class InceptionV3 extends Module implements FeatureNetwork {
  readonly name: string;
  readonly featureSize = 2048;
  readonly numClasses: number;
  readonly Conv2d_1a_3x3: BasicConv2d;
  readonly Conv2d_2a_3x3: BasicConv2d;
  readonly Conv2d_2b_3x3: BasicConv2d;
  readonly Conv2d_3b_1x1: BasicConv2d;
  readonly Conv2d_4a_3x3: BasicConv2d;
  readonly Mixed_5b: InceptionA;
  readonly Mixed_5c: InceptionA;
  readonly Mixed_5d: InceptionA;
  readonly Mixed_6a: InceptionB;
  readonly Mixed_6b: InceptionC;
  readonly Mixed_6c: InceptionC;
  readonly Mixed_6d: InceptionC;
  readonly Mixed_6e: InceptionC;
  readonly Mixed_7a: InceptionD;
  readonly Mixed_7b: InceptionE;
  readonly Mixed_7c: InceptionE;
  readonly fc: Linear;
  readonly #guard = new RangeGuard("InceptionV3");

  /** @param numClasses - 1008 for the network of FIDs. Weights are random until {@link loadStateDict}. */
  constructor(numClasses: number) {
    super();
    const isFid = numClasses === FID_CLASSES;
    const mean: Pooling = isFid ? "mean" : "mean with border";
    this.name = isFid
      ? "Inception v3 (FID)"
      : "Inception v3 (torchvision; not comparable with published FID or IS)";
    this.numClasses = numClasses;
    this.Conv2d_1a_3x3 = halving(3, 32);
    this.Conv2d_2a_3x3 = new BasicConv2d(32, 32, 3);
    this.Conv2d_2b_3x3 = conv3x3(32, 64);
    this.Conv2d_3b_1x1 = conv1x1(64, 80);
    this.Conv2d_4a_3x3 = new BasicConv2d(80, 192, 3);
    this.Mixed_5b = new InceptionA(192, 32, mean);
    this.Mixed_5c = new InceptionA(256, 64, mean);
    this.Mixed_5d = new InceptionA(288, 64, mean);
    this.Mixed_6a = new InceptionB(288);
    this.Mixed_6b = new InceptionC(128, mean);
    this.Mixed_6c = new InceptionC(160, mean);
    this.Mixed_6d = new InceptionC(160, mean);
    this.Mixed_6e = new InceptionC(192, mean);
    this.Mixed_7a = new InceptionD();
    this.Mixed_7b = new InceptionE(1280, mean);
    this.Mixed_7c = new InceptionE(2048, isFid ? "max" : mean);
    this.fc = new Linear(2048, numClasses);
    this.eval().requiresGrad_(false);
  }

  /**
   * Take weights of a file, without torchvision's auxiliary classifier. Files of old versions have no
   * `num_batches_tracked`, which evaluation does not need.
   */
  override loadStateDict(state: Weights, options: { strict?: boolean } = {}): LoadReport {
    const own = Object.entries(this.stateDict()).filter(([name]) => isCounter(name));
    const given = Object.entries(state).filter(([name]) => !isAuxiliary(name));
    return super.loadStateDict(Object.fromEntries([...own, ...given]), options);
  }

  /**
   * Features, resized to 299 x 299 between neighbouring pixels.
   *
   * @param images - float `[N, 3, H, W]` in [-1, 1], of any size.
   * @returns float32 `[N, 2048]`, none negative.
   * @throws RangeError for images in another range; see {@link RangeGuard}.
   */
  features(images: Tensor): Tensor {
    checkImages("InceptionV3.features", images);
    this.#guard.checkImages(images);
    return tidy(() => {
      let x = F.interpolate(images.float(), { size: [SIDE, SIDE], mode: "bilinear" });
      for (const layer of [
        this.Conv2d_1a_3x3, // [N, 32, 149, 149]
        this.Conv2d_2a_3x3,
        this.Conv2d_2b_3x3, // [N, 64, 147, 147]
        { forward: halved },
        this.Conv2d_3b_1x1,
        this.Conv2d_4a_3x3, // [N, 192, 71, 71]
        { forward: halved },
        this.Mixed_5b,
        this.Mixed_5c,
        this.Mixed_5d, // [N, 288, 35, 35]
        this.Mixed_6a,
        this.Mixed_6b,
        this.Mixed_6c,
        this.Mixed_6d,
        this.Mixed_6e, // [N, 768, 17, 17]
        this.Mixed_7a,
        this.Mixed_7b,
        this.Mixed_7c, // [N, 2048, 8, 8]
      ]) {
        const input = x;
        x = layer.forward(input);
        input.dispose();
      }
      return x.mean([2, 3]);
    });
  }

  /**
   * Unscaled log-probabilities of the classes.
   *
   * @param features - float32 `[N, 2048]`.
   * @param options.bias - whether to add the last layer's bias; by default, not for the network of FIDs.
   * @returns float32 `[N, K]`.
   */
  logits(features: Tensor, options: { bias?: boolean } = {}): Tensor {
    const { bias = this.numClasses !== FID_CLASSES } = readOptions<{ bias?: boolean }>(
      "InceptionV3.logits",
      [options],
      { names: { bias: "boolean" } },
    );
    return F.linear(features, this.fc.weight, bias ? this.fc.bias : null);
  }

  /** See {@link FeatureNetwork.describe}; any number of images, 16 at a time. */
  describe(images: Tensor): { features: Tensor; probabilities: Tensor } {
    checkImages("InceptionV3.describe", images);
    return noGrad(() =>
      tidy(() => {
        const parts = ranges(images.size(0), IMAGES_AT_A_TIME).map(([start, count]) =>
          this.features(images.narrow(0, start, count)),
        );
        const features = joined(parts);
        return { features, probabilities: this.logits(features).softmax(1) };
      }),
    );
  }
}

const isAuxiliary = (name: string): boolean => name.startsWith("AuxLogits.");
const isCounter = (name: string): boolean => name.endsWith(".num_batches_tracked");

/**
 * Classes of the Inception v3 that a state dict's shapes are those of, auxiliary classifier or not; null for anything
 * else, one with a layer too many included.
 */
export function inceptionClasses(shapes: Readonly<Record<string, readonly number[]>>): number | null {
  const numClasses = shapes["fc.weight"]?.[0];
  if (numClasses === undefined || shapes["Conv2d_1a_3x3.conv.weight"] === undefined) return null;
  const own = shapesOf("inceptionClasses", () => new InceptionV3(1));
  own["fc.weight"] = [numClasses, 2048];
  own["fc.bias"] = [numClasses];
  const wanted = Object.entries(own).filter(([name]) => !isCounter(name));
  const given = Object.keys(shapes).filter((name) => !isAuxiliary(name) && !isCounter(name));
  if (given.length !== wanted.length) return null;
  const isSame = wanted.every(([name, shape]) => shapes[name]?.join() === shape.join());
  return isSame ? numClasses : null;
}
