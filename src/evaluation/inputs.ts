/**
 * Inputs of an evaluation: models and networks from files or a program, and images, split as in training. Images are read once.
 * Held-out images are kept with their codes; of training images only the features are kept.
 */

import { createHash } from "node:crypto";
import { existsSync, statSync } from "node:fs";
import { basename } from "node:path";
import { type DataConfig, resolveConfig } from "../config/resolve.js";
import {
  type Batch,
  type ImageSource,
  mostUnreadable,
  onePass,
  type ReadOptions,
  spread,
  subset,
} from "../data/index.js";
import { gatherParts, gatherValues, ownParts } from "../distributed/index.js";
import type { LPIPS } from "../metrics/lpips.js";
import { Module } from "../nn/index.js";
import type { ArPolicy, Condition } from "../policies/index.js";
import {
  describeWeights,
  openLpips,
  openPerceptual,
  openPolicy,
  openTokenizer,
} from "../rl_ar_finetune/builder.js";
import { encoderFiles, isEncoder, openFeatures } from "../rl_ar_finetune/open_encoders.js";
import { rangesOf } from "../rl_ar_finetune/scoring.js";
import { sha256Of } from "../run/checkpoint.js";
import { openSources, readOptionsOf, someOf } from "../run/images.js";
import type { FrozenTokenizer } from "../tokenizers/index.js";
import { known } from "../torch/arguments.js";
import {
  cat,
  type Device,
  expected,
  keep,
  openWeights,
  type Tensor,
  tensor,
  tidy,
  toDevice,
  zeros,
} from "../torch/index.js";
import { owning } from "../torch/owning.js";
import { forEachDecoded } from "./draws.js";
import { type Described, Describer } from "./measure.js";
import type { Judge, ModelEvalOptions, PolicyFile } from "./options.js";
import { openReferenceSet, type ReferenceSet, requireDescribedBy } from "./reference_set.js";
import { learntOf, sharesImages } from "./shared_data.js";

/** A file that the evaluation used. */
export interface FileFact {
  /** `tokenizer`, `A`, `B`, `features`, `lpips`, `reference`. */
  readonly role: string;
  readonly path: string;
  readonly sha256: string;
  /** For networks: whether the reward used this one; null if unknown. */
  readonly isRewarded?: boolean | null;
  /** For judges: whether one of the reward's networks learnt from the same images; null if unknown. */
  readonly sharesImages?: boolean | null;
}

/** A network that judged. */
export interface NetworkFact {
  readonly name: string;
  readonly featureSize: number;
  readonly numClasses: number;
  /** SHA-256 of its file, or of the hashes of its files; null where a program passed it open. */
  readonly sha256?: string | null;
  /** The reference set that it described, if there is one; its hash is in `files`. */
  readonly reference?: { readonly path: string; readonly images: number | null } | null;
  /** Whether the reward used this network; null where that is not known. */
  readonly isRewarded: boolean | null;
  /** Whether one of the reward's networks learnt from the same images; null where that is not known. */
  readonly sharesImages: boolean | null;
}

/** What is known of the networks, in the order of `features`. */
export function networkFacts(
  { judges, files, published }: EvalInputs,
  features: readonly (string | Judge)[],
): NetworkFact[] {
  return judges.map((judge, k) => {
    const { name, featureSize, numClasses } = judge.network;
    const file = files.find(({ role, path }) => role === "features" && path === features[k]);
    const isDescribed = published?.judges.includes(judge) === true;
    return {
      name,
      featureSize,
      numClasses,
      sha256: file?.sha256 ?? null,
      reference: isDescribed ? { path: published.set.path, images: published.set.images } : null,
      isRewarded: file?.isRewarded ?? null,
      sharesImages: file?.sharesImages ?? null,
    };
  });
}

/** Models, networks and data sets, open. Those that a program passed are left as they are when this is disposed of. */
export interface EvalInputs extends Disposable {
  readonly device: Device;
  readonly tokenizer: FrozenTokenizer;
  readonly policies: readonly { readonly label: string; readonly policy: ArPolicy }[];
  readonly judges: readonly Judge[];
  readonly lpips: LPIPS | null;
  /** A set that others described, and the judges whose features it has. */
  readonly published: { readonly set: ReferenceSet; readonly judges: readonly Judge[] } | null;
  readonly files: readonly FileFact[];
  readonly data: DataConfig;
  readonly train: ImageSource;
  /** What is held out, without the images that a checkpoint was chosen on. */
  readonly heldOut: ImageSource | null;
  /** Number of held-out images that are not used, because a checkpoint was chosen on them. */
  readonly setAside: number;
  /** T: codes of an image. */
  readonly codes: number;
}

/**
 * Open everything.
 *
 * @throws ConfigError for keys of `data` that cannot be used, RangeError for files and images that cannot.
 */
export async function openInputs(options: ModelEvalOptions): Promise<EvalInputs> {
  return owning((own) =>
    openParts(options, (value) =>
      Symbol.dispose in value ? own(value as typeof value & Disposable) : value,
    ),
  );
}

/** @param own - given each part that is opened here. */
async function openParts(
  options: ModelEvalOptions,
  own: <T extends object>(value: T) => T,
): Promise<Omit<EvalInputs, typeof Symbol.dispose>> {
  const { device = "cpu", dtype = "float32" } = options;
  const files: FileFact[] = [];
  // A file that is gone cannot be the judge's.
  const rewardFiles = options.rewardNetworks?.filter((path) => existsSync(path));
  const rewarded = rewardFiles === undefined ? null : new Set(rewardFiles.map(hashOf));
  const rewardLearnt =
    rewardFiles?.length === options.rewardNetworks?.length ? (rewardFiles?.map(learntOf) ?? null) : null;
  const note = (role: string, path: string): string => {
    const sha256 = hashOf(path);
    const isNetwork = role === "features" || role === "lpips";
    files.push({
      role,
      path,
      sha256,
      ...(isNetwork && { isRewarded: rewarded?.has(sha256) ?? null }),
      ...(role === "features" && { sharesImages: sharesImages(learntOf(path), rewardLearnt) }),
    });
    return path;
  };

  if (options.against !== undefined && options.policy === undefined) {
    throw expected("eval", "a policy to set the other against", "none", "Name the one before by policy");
  }
  const { data } = resolveConfig({ values: { data: { ...options.data } }, isComplete: false }).config;
  if (data.source === null) throw expected("eval", "images: data.source", "none");
  const { train, heldOut: whole = null } = await openSources({
    seed: 0,
    data,
    eval: { every: 1, images: 1 },
  });
  const heldOut = whole === null ? null : withoutChosen(whole, options.chosenOn ?? 0);
  if (train.kind !== "images") throw expected(data.source, "images to judge by", "code files");

  const openTokenizerOf = ({ path, wrapper, weights, config }: TokenizerFile): FrozenTokenizer =>
    openTokenizer(note("tokenizer", path), { device, ...known({ wrapper, weights, config }) }).tokenizer;
  const openPolicyOf = (label: string, { path, ...more }: PolicyFile): ArPolicy => {
    const options = { device, dtype, codebookSize: tokenizer.codebookSize, assume: { blockSize: codes } };
    return openPolicy(note(label, path), { ...options, ...known(more) }).policy;
  };

  const given = options.tokenizer;
  const tokenizer =
    typeof given === "object" && "encode" in given
      ? given
      : own(openTokenizerOf(typeof given === "string" ? { path: given } : given));
  requireOn(device, "tokenizer", tokenizer.vq);
  const side = data.size / tokenizer.downsample;
  if (!Number.isInteger(side)) {
    throw expected("data.size", `a multiple of ${tokenizer.downsample}, the pixels of a code`, data.size);
  }
  const codes = side * side;

  const policies = [options.policy, options.against].flatMap((policy, i) => {
    if (policy === undefined) return [];
    const label = i === 0 ? "A" : "B";
    const opened =
      policy instanceof Module
        ? policy
        : own(openPolicyOf(label, typeof policy === "string" ? { path: policy } : (policy as PolicyFile)));
    requireOn(device, i === 0 ? "policy" : "against", opened);
    checkPolicy(label, opened as ArPolicy, tokenizer.codebookSize, codes);
    return [{ label, policy: opened as ArPolicy }];
  });

  const judges = (options.features ?? []).map((network) =>
    typeof network === "string" ? openJudge(note("features", network), device, tokenizer, own) : network,
  );
  const names = judges.map(({ network }) => network.name);
  const twice = names.find((name, i) => names.indexOf(name) !== i);
  if (twice !== undefined) throw expected("eval", "networks of different names", `${twice} twice`);
  const lpips = options.lpips === undefined ? null : own(openLpips(note("lpips", options.lpips), { device }));
  const published =
    options.reference === undefined
      ? null
      : publishedOf(own(openReferenceSet(note("reference", options.reference))), judges, options, files);

  const setAside = (whole?.length ?? 0) - (heldOut?.length ?? 0);
  return {
    device,
    tokenizer,
    policies,
    judges,
    lpips,
    published,
    files,
    data,
    train,
    heldOut,
    setAside,
    codes,
  };
}

/** @throws RangeError for a program's own model on another device than the evaluation's. */
function requireOn(device: Device, name: string, model: unknown): void {
  const found = model instanceof Module ? model.parameters()[0]?.device : undefined;
  if (found === undefined || found === (device === "cuda" ? "cuda:0" : device)) return;
  const remedy = `Move it with to({ device: "${device}" }), or set the option device`;
  throw expected(`eval: ${name}`, `a model on ${device}`, `one on ${found}`, remedy);
}

/** The judges that described a reference set: at least one must have. */
function publishedOf(
  set: ReferenceSet,
  judges: readonly Judge[],
  { features = [] }: ModelEvalOptions,
  files: readonly FileFact[],
): EvalInputs["published"] {
  if (judges.length === 0) {
    throw expected(set.path, "a network of features to compare it with", "none", "Name it with --features");
  }
  const refusals: unknown[] = [];
  const fitting = judges.filter(({ network }, k) => {
    const given = features[k];
    const fact = files.find(({ role, path }) => role === "features" && path === given);
    try {
      requireDescribedBy(set, network, fact?.sha256 ?? null);
      return true;
    } catch (error) {
      refusals.push(error);
      return false;
    }
  });
  if (fitting.length === 0) throw refusals[0];
  return { set, judges: fitting };
}

/** SHA-256 of a file; of an encoder in several files, of the hashes of all of them. */
export function hashOf(path: string): string {
  const isFolder = statSync(path, { throwIfNoEntry: false })?.isDirectory();
  if (isFolder === undefined) throw expected(path, "a file of weights", "nothing there", "Check the path");
  const files = isFolder || path.endsWith(".index.json") ? encoderFiles(path) : [path];
  if (files.length === 1) return sha256Of(files[0] as string);
  const lines = files.map((file) => `${sha256Of(file)}  ${basename(file)}\n`);
  return createHash("sha256").update(lines.join("")).digest("hex");
}

/**
 * Held-out images without those on which a training run chose its best checkpoint.
 *
 * @param count - how many it evaluated on, spread over the set as `someOf` spreads them.
 */
function withoutChosen(source: ImageSource, count: number): ImageSource {
  if (count === 0) return source;
  const chosen = new Set(spread(source.length, count));
  const rest = Array.from({ length: source.length }, (_, i) => i).filter((i) => !chosen.has(i));
  if (rest.length === 0) {
    throw expected(
      "eval: --checkpoint best",
      "held-out images that the best checkpoint was not chosen on",
      `none: the run evaluated on all ${source.length}`,
      "Judge the last checkpoint, or train with a smaller eval.images",
    );
  }
  return subset(source, rest);
}

type TokenizerFile = Exclude<ModelEvalOptions["tokenizer"], string | FrozenTokenizer>;

function checkPolicy(label: string, policy: ArPolicy, codebookSize: number, codes: number): void {
  const where = `eval: policy ${label}`;
  if (policy.vocabSize !== codebookSize) {
    throw expected(where, `a vocabulary of ${codebookSize}, the tokenizer's codebook`, policy.vocabSize);
  }
  if (policy.blockSize < codes) {
    const remedy = "Use smaller images, or another policy";
    throw expected(where, `room for ${codes} codes, those of an image`, policy.blockSize, remedy);
  }
}

/** A network that judges, and its distance of images where it is a classifier. */
function openJudge(
  path: string,
  device: Device,
  tokenizer: FrozenTokenizer,
  own: <T extends object>(value: T) => T,
): Judge {
  if (isEncoder(path) || !isClassifier(path))
    return { network: own(openFeatures(path, { device, tokenizer })), distance: null };
  const perceptual = openPerceptual(path, { device });
  const network = own(perceptual.network);
  return {
    network,
    classNames: network.config.classNames,
    distance: (images, samples) => perceptual.forward(images, samples),
  };
}

function isClassifier(path: string): boolean {
  using file = openWeights(path);
  return describeWeights(file)?.kind === "classifier";
}

/** Images that no model was trained on, kept on the CPU; the tensors live until `dispose()`. */
export interface HeldOut extends Disposable {
  /** uint8 `[H, 3, s, s]`. */
  readonly images: Tensor;
  /** int64 `[H, T]`. */
  readonly codes: Tensor;
  /** int64 `[H]`. */
  readonly classes: Tensor;
  /** What the images are to be, for policies that take it; of H rows. */
  readonly condition: Condition;
  /** Names of images that could not be read. */
  readonly unreadable: readonly string[];
}

/** Names of a source's images that are not among those that were read. */
function unreadOf(source: ImageSource, read: readonly string[]): string[] {
  const known = new Set(read);
  const names = Array.from({ length: source.length }, (_, i) => source.idOf(i));
  return names.filter((name) => !known.has(name));
}

/** How images are read: on the CPU, `batch` at a time. */
function shapeOf({ data }: EvalInputs, batch: number): ReadOptions {
  const { flip: _, seed: __, ...shape } = readOptionsOf({ data, seed: 0, rollout: { images: batch } });
  return shape;
}

/** A batch, and the places of its images in the set. */
interface PlacedBatch {
  readonly batch: Batch;
  readonly places: readonly number[];
}

/**
 * A set in batches, once through. Of several processes each gets some of the whole batches, one after another.
 *
 * @param size - images of a batch.
 */
async function* ownBatches(
  inputs: EvalInputs,
  source: ImageSource,
  size: number,
): AsyncGenerator<PlacedBatch, void> {
  const own = ownParts(rangesOf(source.length, size));
  const indices = own.flatMap(([from, count]) => Array.from({ length: count }, (_, i) => from + i));
  if (indices.length === 0) return;
  const maxUnreadable = inputs.data.maxUnreadable ?? mostUnreadable(source.length);
  let next = indices[0] as number;
  for await (const batch of onePass(subset(source, indices), { ...shapeOf(inputs, size), maxUnreadable })) {
    const places = batch.ids.map((id) => {
      while (source.idOf(next) !== id) next++; // past those that cannot be read
      return next++;
    });
    yield { batch, places };
  }
}

/**
 * Read held-out images and encode them.
 *
 * @param limit - most of them; they are spread over the set.
 */
export async function readHeldOut(
  inputs: EvalInputs,
  source: ImageSource,
  options: { limit: number; batch: number; start: "condition" | "empty" },
): Promise<HeldOut> {
  const { tokenizer, device } = inputs;
  const parts: { images: Tensor; codes: Tensor; classes: Tensor; features?: Tensor; isReal?: Tensor }[] = [];
  const chosen = someOf(source, options.limit);
  const ids: string[] = [];
  for await (const { batch } of ownBatches(inputs, chosen, Math.min(options.batch, chosen.length))) {
    using _ = batch;
    ids.push(...batch.ids);
    parts.push(
      tidy(() => {
        const images = batch.images as Tensor;
        const codes = encodePieces(tokenizer, images, device);
        const { classes, features, isReal } = batch;
        const bytes = images.add(1).mul(127.5).round().to({ dtype: "uint8" });
        const text = features && { features: features.clone(), ...(isReal && { isReal: isReal.clone() }) };
        return { images: bytes, codes, classes: classes.clone(), ...text };
      }),
    );
  }
  const read = tidy(() => {
    const all = (of: "images" | "codes" | "classes"): Tensor => gatherParts(parts.map((part) => part[of]));
    const classes = all("classes");
    const condition = options.start === "empty" ? {} : { ...(textOf(parts) ?? { classes }) };
    return { images: all("images"), codes: all("codes"), classes, condition };
  });
  disposeAll(parts.flatMap((part) => Object.values(part)));
  const tensors = [read.images, read.codes, read.classes, ...(Object.values(read.condition) as Tensor[])];
  for (const tensor of tensors) keep(tensor);
  return {
    ...read,
    unreadable: unreadOf(chosen, gatherValues(ids).flat()),
    [Symbol.dispose]: () => disposeAll(tensors),
  };
}

function disposeAll(tensors: readonly Tensor[]): void {
  for (const tensor of tensors) tensor.dispose();
}

/** Images to encode at a time: as many pixels as fill a cache. */
function encodePieces(tokenizer: FrozenTokenizer, images: Tensor, device: Device): Tensor {
  const step = Math.max(1, Math.floor(2 ** 19 / images.size(2) ** 2));
  return cat(images.split(step).map((piece) => tidy(() => tokenizer.encode(toDevice(piece, device)).cpu())));
}

/** Text features of all batches of all processes, padded on the left to the longest. */
function textOf(parts: readonly { features?: Tensor; isReal?: Tensor }[]): Condition | null {
  const lengths = gatherValues(parts.map(({ features }) => features?.size(1) ?? null)).flat();
  if (lengths.includes(null)) return null;
  const length = Math.max(...(lengths as number[]));
  const padded = (part: Tensor): Tensor => {
    const [b, s] = [part.size(0), part.size(1)];
    return s === length
      ? part
      : cat([zeros([b, length - s, ...part.shape.slice(2)], { dtype: part.dtype }), part], 1);
  };
  return {
    features: gatherParts(parts.map(({ features }) => padded(features as Tensor))),
    isReal: gatherParts(
      parts.map(({ features, isReal }) => {
        const shape = (features as Tensor).shape.slice(0, 2);
        return padded(isReal ?? zeros(shape, { dtype: "bool" }).logicalNot());
      }),
    ),
  };
}

/** Features of the training images, and of some of them as the tokenizer gives them back. */
export interface Trained extends Disposable {
  /** Images that were read. */
  readonly count: number;
  /** By the judges' order. */
  readonly described: readonly Described[];
  /** Some, spread over the set: rows of `described`. */
  readonly chosen: readonly number[];
  readonly classes: Tensor;
  /** Reconstructions of the chosen. */
  readonly reconstructed: readonly Described[];
  /** Names of images that could not be read. */
  readonly unreadable: readonly string[];
}

/**
 * Describe training images.
 *
 * @param limit - most of them, spread over the set.
 * @param some - how many of them to reconstruct.
 */
export async function readTrained(
  inputs: EvalInputs,
  options: { limit: number; some: number; batch: number },
): Promise<Trained> {
  const { tokenizer, device, judges, data } = inputs;
  const source = someOf(inputs.train, options.limit);
  const [described, reconstructed] = [new Describer(judges), new Describer(judges)];
  using _described = described;
  using _reconstructed = reconstructed;
  const chosen: number[] = [];
  const classes: number[] = [];
  const share = Math.min(1, options.some / source.length);
  const names: string[] = [];
  let count = 0;
  for await (const { batch, places } of ownBatches(inputs, source, Math.min(options.batch, source.length))) {
    using _ = batch;
    names.push(...batch.ids);
    tidy(() => {
      const images = batch.images as Tensor;
      described.add(toDevice(images, device));
      const rows = [...places.keys()].filter((row) => isChosen(places[row] as number, share));
      if (rows.length > 0) {
        const codes = encodePieces(
          tokenizer,
          images.indexSelect(0, tensor(rows, { dtype: "int64" })),
          device,
        );
        forEachDecoded(tokenizer, codes, { size: data.size, device }, (decoded) =>
          reconstructed.add(decoded),
        );
      }
      chosen.push(...rows.map((row) => count + row));
      const ids = batch.classes.toList() as number[];
      classes.push(...rows.map((row) => ids[row] as number));
      count += images.size(0);
    });
  }
  const found = gatherValues({ chosen, classes, names, count });
  const before = found.map((_, i) => found.slice(0, i).reduce((sum, each) => sum + each.count, 0));
  const rows = found.flatMap((each, i) => each.chosen.map((row) => (before[i] as number) + row));
  const all = { described: described.all(), reconstructed: rows.length === 0 ? [] : reconstructed.all() };
  const tensors = [...all.described, ...all.reconstructed].flatMap((part) => [
    part.features,
    part.probabilities,
  ]);
  const ids = tensor(
    found.flatMap((each) => each.classes),
    { dtype: "int64" },
  );
  return {
    count: found.reduce((sum, each) => sum + each.count, 0),
    chosen: rows,
    classes: ids,
    unreadable: unreadOf(
      source,
      found.flatMap((each) => each.names),
    ),
    ...all,
    [Symbol.dispose]: () => disposeAll([...tensors, ids]),
  };
}

/** Whether the image at a place of a set is one of a share of all, evenly. */
const isChosen = (place: number, share: number): boolean =>
  Math.floor((place + 1) * share + 1e-9) > Math.floor(place * share + 1e-9);

/** Float images of kept ones: `[n, 3, s, s]` in [-1, 1]. */
export function imagesFromBytes(bytes: Tensor, from: number, count: number, device: Device): Tensor {
  return tidy(() =>
    toDevice(bytes.narrow(0, from, count), device)
      .float()
      .div(127.5)
      .sub(1),
  );
}

/** What each judge says of kept images. The tensors are the caller's. */
export function describeKept(
  { judges, device }: EvalInputs,
  { images }: HeldOut,
  batch: number,
): Described[] {
  using describer = new Describer(judges);
  for (const [from, count] of ownParts(rangesOf(images.size(0), batch))) {
    tidy(() => describer.add(imagesFromBytes(images, from, count, device)));
  }
  return describer.all();
}
