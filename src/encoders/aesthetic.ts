/**
 * Heads that predict how much people like an image from its CLIP embedding, as LAION published them: one linear layer, or
 * several with or without ReLU between. The encoder is the caller's; its weights must be those that the head was trained on.
 */
import { init, Linear, Module, requireShapes, shapesOf } from "../nn/index.js";
import { expected, functional as F, noGrad, openWeights, type Tensor, tidy } from "../torch/index.js";

/** Places of the layers in the published sequences, which hold dropout, and in one of them ReLU, in between. */
const LINEAR: readonly number[] = [0, 2, 4, 6, 7];
const RELU: readonly number[] = [0, 3, 6, 9, 11];

/** `[N, E]` to a score each, about 1 to 10. */
export class AestheticHead extends Module {
  /** By their places in the published sequence; a single layer is at 0. */
  readonly layers: (Linear | null)[];
  readonly hasRelu: boolean;

  /**
   * @param widths - E, the widths between and 1.
   * @param hasRelu - whether ReLU is between the layers.
   */
  constructor(widths: readonly number[], hasRelu: boolean) {
    super();
    this.hasRelu = hasRelu;
    const places = hasRelu ? RELU : LINEAR;
    this.layers = Array.from({ length: (places[widths.length - 2] as number) + 1 }, (_, place) => {
      const i = places.indexOf(place);
      return i < 0 ? null : new Linear(widths[i] as number, widths[i + 1] as number);
    });
    this.eval().requiresGrad_(false);
  }

  /** E. */
  get width(): number {
    return (this.layers[0] as Linear).weight.size(1);
  }

  /**
   * @param embeddings - float `[N, E]`; made of length 1 first.
   * @returns float32 `[N]`, higher is more liked.
   */
  forward(embeddings: Tensor): Tensor {
    return tidy(() => {
      const layers = this.layers.filter((layer) => layer !== null);
      let x = F.normalize(embeddings.float(), { dim: -1 });
      for (const [i, layer] of layers.entries()) {
        x = layer.forward(x);
        if (this.hasRelu && i < layers.length - 1) x = x.relu();
      }
      return x.squeeze(-1);
    });
  }
}

/**
 * Open an aesthetic head: `sa_0_4_vit_l_14_linear.pth` of LAION's first predictor, or `sac+logos+ava1-l14-linearMSE.pth` and its
 * kind of the second.
 *
 * @throws RangeError for a file of anything else.
 */
export function openAestheticHead(path: string): AestheticHead {
  using file = openWeights(path);
  const { shapes } = file;
  const isSingle = Object.hasOwn(shapes, "weight");
  const nameOf = (key: string): string => (isSingle ? key.replace("layers.0.", "") : key);
  const places = isSingle
    ? [0]
    : Object.keys(shapes)
        .flatMap((key) => /^layers\.(\d+)\.weight$/.exec(key)?.[1] ?? [])
        .map(Number);
  const hasRelu = places.join() === RELU.join();
  if (!isSingle && !hasRelu && places.join() !== LINEAR.join()) {
    const got = `layers ${places.join(", ") || "none"}`;
    throw expected(
      path,
      "an aesthetic head: one linear layer, or five at 0, 2, 4, 6, 7 or 0, 3, 6, 9, 11",
      got,
    );
  }
  const shapeAt = (place: number): readonly number[] => shapes[nameOf(`layers.${place}.weight`)] ?? [];
  const widths = [shapeAt(places[0] as number)[1] ?? 0, ...places.map((place) => shapeAt(place)[0] ?? 0)];
  const build = (): AestheticHead => new AestheticHead(widths, hasRelu);
  const wanted = shapesOf(path, build);
  const used = Object.fromEntries(Object.keys(wanted).map((key) => [key, nameOf(key)]));
  const known = new Set(Object.values(used));
  const own = Object.keys(shapes).filter((key) => !known.has(key));
  requireShapes(
    path,
    "an aesthetic head",
    wanted,
    { ...used, ...Object.fromEntries(own.map((key) => [key, key])) },
    shapes,
  );
  if (widths.at(-1) !== 1) throw expected(path, "a head of one output", widths.at(-1));
  const head = init.skipInit(build);
  for (const [key, value] of Object.entries(head.stateDict())) {
    noGrad(() => tidy(() => value.copy_(file.tensor(nameOf(key)).float())));
  }
  return head;
}
