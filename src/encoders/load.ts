/**
 * Opens an encoder from files: a folder of transformers (CLIP, SigLIP), one of open_clip, or a TokLIP checkpoint. Every tensor
 * of the file is used or known to be of no use; others are refused by name.
 */
import { existsSync, readdirSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { init, requireShapes, type Shapes, shapesOf } from "../nn/index.js";
import {
  cat,
  type Device,
  type DType,
  expected,
  noGrad,
  openWeights,
  readOptions,
  requireDevice,
  type Tensor,
  tidy,
  type WeightsFile,
} from "../torch/index.js";
import { isObject } from "../torch/json.js";
import {
  describeOpenClip,
  describeToklip,
  describeTransformers,
  type EncoderDescription,
  isToklip,
} from "./description.js";
import { Encoder, type Towers } from "./encoder.js";
import { COMPUTED, type Part, type Sources, textSources, visionSources } from "./names.js";
import { openTextTokenizer, readJson } from "./texts.js";
import { TextTower, VisionTower } from "./towers.js";

/** Options of {@link openEncoder}. */
export interface OpenEncoderOptions {
  device?: Device;
  /** Of the towers, float32 where omitted. */
  dtype?: DType;
  /** Towers to load; both where omitted. */
  towers?: Partial<Towers>;
  /** The text tokenizer: `tokenizer.json` or its folder. Default is the folder of the weights. */
  tokenizer?: string;
  /** Heads of a TokLIP of other sizes than the released ones. */
  heads?: number;
}

const OPEN_CLIP_CONFIG = "open_clip_config.json";

/** What a whole processor of transformers 5 is saved in, that of images among the rest. */
const PROCESSOR_CONFIG = "processor_config.json";

/**
 * Load an encoder.
 *
 * @param path - a folder of transformers or open_clip, a file in it, or TokLIP's file.
 * @param given - {@link OpenEncoderOptions}.
 * @throws RangeError when the file or folder holds none, lacks tensors, has unknown ones or others in their shapes, or has
 *   weights that are not finite; and where the text tower is asked for without its tokenizer.
 */
export function openEncoder(path: string, ...given: [options?: OpenEncoderOptions]): Encoder {
  const options = readOptions<OpenEncoderOptions>("openEncoder", given, {
    names: { device: true, dtype: true, towers: true, tokenizer: true, heads: "number" },
  });
  const { device = "cpu", dtype = "float32", heads } = options;
  requireDevice(device);
  const towers = { vision: true, text: true, ...options.towers };
  const folder = folderOf(path);
  using file = openWeights(weightsIn(path));
  const description = describe(file, folder, heads === undefined ? {} : { heads });
  const texts = towers.text
    ? openTextTokenizer(options.tokenizer ?? folder, { clean: description.clean, padId: description.padId })
    : null;
  const sources = sourcesOf(file, description);
  const encoder = init.skipInit(() => new Encoder(description, towers, Object.hasOwn(sources, "logit_bias")));
  try {
    encoder.to({ dtype });
    for (const [name, own] of Object.entries(encoder.stateDict())) {
      const parts = sources[name];
      if (parts === undefined) throw expected(file.path, `a source of ${name}`, "none");
      noGrad(() => tidy(() => own.copy_(read(file, parts, own.shape))));
    }
    encoder.to({ device });
  } catch (error) {
    encoder.dispose();
    throw error;
  }
  encoder.texts = texts;
  return encoder;
}

/** Describe an encoder from its configuration and the header of its weights. */
export function describeEncoder(path: string, options: { heads?: number } = {}): EncoderDescription {
  const folder = folderOf(path);
  using file = openWeights(weightsIn(path));
  const description = describe(file, folder, options);
  sourcesOf(file, description);
  return description;
}

/**
 * Whether a path holds an encoder, by the names of its tensors: TokLIP, or CLIP or SigLIP of transformers or open_clip. False
 * for what cannot be read as weights.
 */
export function isEncoder(path: string): boolean {
  let file: WeightsFile;
  try {
    file = openWeights(weightsIn(path));
  } catch {
    return false;
  }
  using open = file;
  const names = Object.keys(open.shapes);
  return names.some((name) => /^(vision_model\.|visual\.(conv1|trunk|vq_table)\b)/.test(name));
}

/** The files that an encoder's numbers depend on: its weights, all shards of them, and its configuration; sorted. */
export function encoderFiles(path: string): string[] {
  const weights = weightsIn(path);
  const folder = dirname(weights);
  const shards = weights.endsWith(".index.json")
    ? readdirSync(folder).filter((name) => /-\d+-of-\d+\.(safetensors|bin)$/.test(name))
    : [];
  const settings = ["config.json", "preprocessor_config.json", PROCESSOR_CONFIG, OPEN_CLIP_CONFIG];
  const present =
    path === weights && shards.length === 0 ? [] : settings.filter((name) => existsSync(join(folder, name)));
  return [weights, ...[...shards, ...present].map((name) => join(folder, name))].sort();
}

const isFolder = (path: string): boolean => statSync(path, { throwIfNoEntry: false })?.isDirectory() === true;

/** Where a file's configuration stands. */
const folderOf = (path: string): string => (isFolder(path) ? path : dirname(path));

/** The weights of a folder, of which there may be several formats; an index comes before a single file. */
function weightsIn(path: string): string {
  if (!isFolder(path)) return path;
  const names = readdirSync(path);
  const preferred = [
    "model.safetensors.index.json",
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pt",
  ].find((name) => names.includes(name));
  if (preferred !== undefined) return join(path, preferred);
  const found = names.filter((name) => /\.(safetensors|pt|pth|bin)$/.test(name));
  if (found.length === 1) return join(path, found[0] as string);
  throw expected(path, "a folder with the weights of one model", found.join(", ") || "none", "Name the file");
}

function describe(file: WeightsFile, folder: string, options: { heads?: number }): EncoderDescription {
  const { shapes } = file;
  if (isToklip(shapes)) return describeToklip(file.path, shapes, options);
  if (options.heads !== undefined) throw expected("openEncoder: heads", "it for TokLIP alone", options.heads);
  const inFolder = (name: string): string => join(folder, name);
  const jsonOf = (name: string): unknown =>
    existsSync(inFolder(name)) ? readJson(inFolder(name), "settings in JSON") : undefined;
  const openClip = jsonOf(OPEN_CLIP_CONFIG);
  const isHf = Object.keys(shapes).some((name) => name.startsWith("vision_model."));
  if (!isHf && openClip !== undefined) {
    return describeOpenClip(inFolder(OPEN_CLIP_CONFIG), openClip, shapes);
  }
  const config = jsonOf("config.json");
  if (isHf && config !== undefined) {
    const tokenizer = jsonOf("tokenizer_config.json");
    const processor = jsonOf(PROCESSOR_CONFIG);
    const ofImages = isObject(processor) ? processor.image_processor : undefined;
    const kind = isObject(tokenizer) ? tokenizer.tokenizer_class : undefined;
    return describeTransformers(
      inFolder("config.json"),
      config,
      jsonOf("preprocessor_config.json") ?? ofImages,
      typeof kind === "string" ? kind : undefined,
    );
  }
  const isOpenClip = Object.keys(shapes).some((name) => /^visual\.(conv1|trunk)\b/.test(name));
  if (!isHf && !isOpenClip) {
    const got = `tensors such as ${Object.keys(shapes).slice(0, 3).join(", ")}`;
    throw expected(file.path, "an encoder: TokLIP, or CLIP or SigLIP of transformers or open_clip", got);
  }
  const wanted = isHf ? "config.json" : OPEN_CLIP_CONFIG;
  const remedy = "It is published with the weights, and states what shapes do not: heads, activation, norms";
  throw expected(folder, `${wanted} beside the weights`, "none", remedy);
}

/** Sources of all tensors, checked against the file. */
function sourcesOf(file: WeightsFile, description: EncoderDescription): Sources {
  const { path: where, shapes } = file;
  const { naming } = description;
  const isPrefixed = Object.hasOwn(shapes, "text.positional_embedding");
  const inner = (prefix: string, sources: Sources): Sources =>
    Object.fromEntries(Object.entries(sources).map(([name, parts]) => [`${prefix}.${name}`, parts]));
  const visionShapes = shapesOf(where, () => new VisionTower(description.vision));
  const textShapes = shapesOf(where, () => new TextTower(description.text));
  const scalar = (name: string): Record<string, readonly Part[]> => {
    const shape = shapes[name];
    return shape === undefined ? {} : { [name]: [{ name, shape: shape.join() === "1" ? [1] : [] }] };
  };
  const sources: Sources = {
    ...inner("visual", visionSources(description.vision, naming, visionShapes)),
    ...inner("text", textSources(description.text, naming, textShapes, isPrefixed)),
    logit_scale: [{ name: "logit_scale", shape: [] }],
    ...scalar("logit_scale"),
    ...scalar("logit_bias"),
  };
  const parts = Object.values(sources).flat();
  const wanted = Object.fromEntries(parts.map(({ name, shape }) => [name, shape]));
  const used = Object.fromEntries(
    [...Object.keys(wanted), ...Object.keys(shapes).filter((name) => !isUnused(name, description))].map(
      (name) => [name, name],
    ),
  );
  requireShapes(where, description.name, wanted, used, shapes as Shapes);
  return sources;
}

/** Tensors that the towers do not need: TokLIP's tokenizer but for its codebook, and its convolution of patches. */
function isUnused(name: string, { family }: EncoderDescription): boolean {
  if (COMPUTED.test(name)) return true;
  return family === "toklip" && /^visual\.trunk\.(vq|patch_embed)\./.test(name);
}

/** Parts of a file as one tensor of a shape. */
function read(file: WeightsFile, parts: readonly Part[], shape: readonly number[]): Tensor {
  return tidy(() => {
    const all = parts.map(({ name, isTransposed = false }) => {
      const tensor = file.tensor(name);
      if (!tensor.dtype.includes("float"))
        throw expected(`${file.path}: ${name}`, "a floating-point tensor", tensor);
      const own = tensor.float();
      if (own.isfinite().all().item() !== 1) {
        const remedy = "The file is damaged, or its training diverged";
        throw expected(`${file.path}: ${name}`, "finite weights", "some that are not", remedy);
      }
      return isTransposed ? own.transpose(0, 1) : own;
    });
    return (all.length === 1 ? (all[0] as Tensor) : cat(all)).reshape(shape);
  });
}
