/**
 * Recognise the network of a metric in a file by names and shapes. Loading it is done in `rl_ar_finetune/builder.ts`.
 */
import { BACKBONES, backboneShapes, headKey, lpipsKey } from "./backbones.js";
import { type ClassifierConfig, classifierShapes } from "./classifier.js";
import { FID_CLASSES, inceptionClasses } from "./inception.js";

/** Result of {@link recogniseMetricNetwork}. */
export type MetricNetwork =
  | "torchvision vgg16"
  | "torchvision alexnet"
  | "torchvision squeezenet1_1"
  | "LPIPS heads vgg"
  | "LPIPS heads alex"
  | "LPIPS heads squeeze"
  | "LPIPS vgg"
  | "LPIPS alex"
  | "LPIPS squeeze"
  | "PatchGAN discriminator"
  | "Inception v3 (FID)"
  | "Inception v3 (torchvision)";

type Shapes = Readonly<Record<string, readonly number[]>>;

/**
 * Name the network that a state dict's shapes are those of: a backbone with or without its classifier, heads of
 * LPIPS, both together, a PatchGAN of any width and depth, or Inception v3, which has 1008 classes where it is the one
 * of FIDs.
 *
 * @param shapes - by key, wrappers such as `discriminator.` taken off.
 * @returns null for anything else, a backbone with a layer too many included.
 */
export function recogniseMetricNetwork(shapes: Shapes): MetricNetwork | null {
  const own: Record<string, readonly number[]> = {};
  for (const [name, shape] of Object.entries(shapes)) {
    const key = lpipsKey(name);
    if (key !== null) own[key] = shape;
  }
  for (const net of ["vgg", "alex", "squeeze"] as const) {
    const { torchvision, channels } = BACKBONES[net];
    const backbone = backboneShapes(net);
    const heads = Object.fromEntries(channels.map((c, k) => [headKey(k), [1, c, 1, 1]]));
    if (isSame(own, { ...backbone, ...heads })) return `LPIPS ${net}`;
    if (isSame(own, backbone)) return `torchvision ${torchvision}` as MetricNetwork;
    if (isSame(own, heads)) return `LPIPS heads ${net}`;
  }
  if (isDiscriminator(shapes)) return "PatchGAN discriminator";
  const numClasses = inceptionClasses(shapes);
  if (numClasses === null) return null;
  return numClasses === FID_CLASSES ? "Inception v3 (FID)" : "Inception v3 (torchvision)";
}

/** The sizes of the {@link FeatureClassifier} that a state dict's shapes are those of, or null. */
export function recogniseClassifier(shapes: Shapes): Required<Omit<ClassifierConfig, "classNames">> | null {
  const widthOf = (key: string): number | undefined => shapes[key]?.[0];
  const numClasses = widthOf("head.weight");
  const widths = [widthOf("stem.weight")];
  while (widths.at(-1) !== undefined) widths.push(widthOf(`blocks.${widths.length - 1}.0.conv1.weight`));
  let depth = 0;
  while (widthOf(`blocks.0.${depth}.conv1.weight`) !== undefined) depth++;
  const known = widths.filter((width) => width !== undefined);
  if (numClasses === undefined || known.length < 2) return null;
  const config = { numClasses, widths: known, depth };
  return isSame(shapes, classifierShapes(config)) ? config : null;
}

function isSame(a: Shapes, b: Shapes): boolean {
  const names = Object.keys(b);
  if (names.length !== Object.keys(a).length) return false;
  return names.every((name) => a[name]?.join() === b[name]?.join());
}

/** Whether the shapes are those of NLayerDiscriminator of the width and depth that they imply. */
function isDiscriminator(shapes: Shapes): boolean {
  const ndf = shapes["main.0.weight"]?.[0] ?? 0;
  const nLayers = Object.keys(shapes).filter((name) => /^main\.\d+\.running_mean$/.test(name)).length;
  if (nLayers === 0) return false;
  const wanted: Record<string, readonly number[]> = { "main.0.weight": [ndf, 3, 4, 4], "main.0.bias": [ndf] };
  let from = ndf;
  for (let layer = 1; layer <= nLayers; layer++) {
    const to = ndf * Math.min(2 ** layer, 8);
    wanted[`main.${layer * 3 - 1}.weight`] = [to, from, 4, 4];
    for (const name of ["weight", "bias", "running_mean", "running_var"])
      wanted[`main.${layer * 3}.${name}`] = [to];
    wanted[`main.${layer * 3}.num_batches_tracked`] = [];
    from = to;
  }
  wanted[`main.${nLayers * 3 + 2}.weight`] = [1, from, 4, 4];
  wanted[`main.${nLayers * 3 + 2}.bias`] = [1];
  return isSame(shapes, wanted);
}
