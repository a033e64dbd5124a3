/**
 * Interface of data sets in all formats: a numbered list of images or codes, each with an identity and a class. A source holds
 * no open files and no tensors, so it need not be closed.
 */
import { createHash, type Hash } from "node:crypto";

import { expected } from "../torch/index.js";
import { type Caption, readCaption } from "./captions.js";
import { type FilePart, type ImageBytes, readFeatures, readImage } from "./decode.js";
import type { Classes } from "./labels.js";
import type { Features } from "./npy.js";
import type { Pixels } from "./resample.js";

/** Where to find one image, or the codes of one. */
export interface Located {
  readonly image?: ImageBytes;
  /** int64 `[T]`. */
  readonly codes?: BigInt64Array;
  /** Features of the text that goes with the image: read already, or the `.npy` file they are in. */
  readonly features?: Features | FilePart;
  readonly caption?: Caption;
}

/** Consecutive images that are costly to read separately, such as a parquet row group. */
export interface Block {
  /** Images in it. */
  readonly length: number;
  /** Memory that it takes while it is open. */
  readonly bytes: number;
}

/** A data set that can be read in any order. */
export interface ImageSource {
  /** `texts`: captions or classes without images. */
  readonly kind: "images" | "codes" | "texts";
  readonly length: number;
  /** Name of each class; `classOf` gives places in it. */
  readonly classNames: readonly string[];
  /** Notes for the user, such as files that are not read; each is a line to print once. */
  readonly notes?: readonly string[];
  /** SHA-256 over identities, classes, sizes and a sample of the contents, to recognise the set. */
  readonly fingerprint: string;
  /** Prepared crops of each image that code files may hold; 1 elsewhere. */
  readonly variants: number;
  /** `T`, the codes of one image. */
  readonly codeLength?: number;
  /** Blocks of consecutive images that cover the set, where the order of reading matters for speed. */
  readonly blocks?: readonly Block[];
  /** A name that stays the same wherever the data set lies. */
  idOf(index: number): string;
  classOf(index: number): number;
  /** Only of sets of texts: whether they have classes. */
  readonly hasClasses?: boolean;
  /** Whether all images or texts have a caption; absent means that none has. */
  readonly hasCaptions?: boolean;
  /** @throws Error on this image; others may be readable. */
  locate(index: number, variant: number): Promise<Located>;
}
export interface SourceOptions {
  /**
   * Names of all classes in the order of their ids. Give them when the set has only some of the classes that a model
   * knows, such as 100 of ImageNet's 1000.
   */
  readonly classNames?: readonly string[] | undefined;
  /**
   * What holds the class: a parquet column, the ending of tar members, or a tensor of a code file. `null` puts all
   * images in one class.
   */
  readonly label?: string | null | undefined;
  /** What holds the image: a parquet column, the ending of tar members, or a tensor of a code file. */
  readonly image?: string | undefined;
  /**
   * What holds the caption: a parquet column, the extension of tar members or of files beside the images, `json.FIELD` of
   * such, or a field of a JSONL file. `null` reads no captions. By default `txt`, or the column `caption`, `text` or `prompt`.
   */
  readonly captions?: string | null | undefined;
}

/** One image or its codes, with its class and text features. */
export interface Sample {
  readonly id: string;
  readonly classId: number;
  /** As it is in the file: any size. */
  readonly pixels?: Pixels;
  readonly codes?: BigInt64Array;
  readonly features?: Features;
  readonly caption?: string;
}

/** Read one image, whole and uncropped, or one row of codes. @throws Error that names what is wrong with it. */
export async function readSample(source: ImageSource, index: number, variant = 0): Promise<Sample> {
  if (!Number.isInteger(index) || index < 0 || index >= source.length) {
    throw expected("readSample", `an index from 0 to ${source.length - 1}`, index);
  }
  const id = source.idOf(index);
  const { image, codes, features, caption } = await source.locate(index, variant);
  return {
    id,
    classId: source.classOf(index),
    ...(image !== undefined && { pixels: await readImage(image, id) }),
    ...(codes !== undefined && { codes }),
    ...(features !== undefined && {
      features: "path" in features ? await readFeatures(features, id) : features,
    }),
    ...(caption !== undefined && { caption: await readCaption(caption, id) }),
  };
}

/** A source of images from its classes and from what differs between the formats. */
export function imageSource(
  { ids, names, notes }: Classes,
  parts: Pick<ImageSource, "fingerprint" | "idOf" | "locate"> & Partial<ImageSource>,
): ImageSource {
  return {
    kind: "images",
    length: ids.length,
    classNames: names,
    variants: 1,
    classOf: (index) => ids[index] as number,
    ...parts,
    notes: [...(parts.notes ?? []), ...notes],
  };
}

/**
 * Start a fingerprint with what a set consists of. Each kind of set then adds the sizes and some of the contents
 * of its files.
 */
export function hashListing(idOf: (index: number) => string, { ids, names }: Classes): Hash {
  const hash = createHash("sha256").update(JSON.stringify(names));
  for (const [i, id] of ids.entries()) hash.update(`${idOf(i)}\0${id}\n`);
  return hash;
}

/** At most `count` of the numbers below `length`, evenly spread. */
export function spread(length: number, count: number): number[] {
  const some = Math.min(length, count);
  return Array.from({ length: some }, (_, i) => Math.floor((i * length) / some));
}
