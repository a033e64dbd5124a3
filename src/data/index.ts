/** Public names of `src/data`. */
export { type AugmentOptions, augment } from "./augment.js";
export {
  Batch,
  type Batches,
  type BatchParts,
  type PassedOver,
  type Unreadable,
  UnreadableImages,
} from "./batch.js";
export {
  BatchReader,
  type BatchReaderOptions,
  mostUnreadable,
  onePass,
  type ReadOptions,
} from "./batch_reader.js";
export { openCodes } from "./codes.js";
export type { Crop, FilePart, ImageBytes } from "./decode.js";
export { DecodePool, DecodePoolError } from "./decode_pool.js";
export { EMOJI_PACKAGES, type EmojiOptions, type EmojiSummary, prepareEmoji } from "./emoji.js";
export { openFolder } from "./folder.js";
export { openIdx } from "./idx.js";
export {
  encodePng,
  listImages,
  pixelsToTensor,
  readImages,
  readPixels,
  tensorToPixels,
  writePng,
} from "./images.js";
export {
  fromIterable,
  type Loader,
  type LoaderBatch,
  type LoaderImage,
  type LoaderItem,
  type LoaderOptions,
} from "./iterable.js";
export { type ClassCount, checkClassIds, classCounts, describeClasses } from "./labels.js";
export type { Features } from "./npy.js";
export { readNpz, toFloat64 } from "./npz.js";
export { openSource } from "./open_source.js";
export {
  type BalancedOrder,
  balancedOrder,
  type Cursor,
  epochOrder,
  permutation,
  START,
} from "./order.js";
export { givenPart, labelledPage, type PageRow, pageLayout } from "./page.js";
export { openParquet } from "./parquet.js";
export { centerCrop, cropTo, type Filter, type Pixels, resize, smallestSideCrop } from "./resample.js";
export {
  type Block,
  type ImageSource,
  type Located,
  readSample,
  type Sample,
  type SourceOptions,
  spread,
} from "./source.js";
export { type SplitOptions, splitSource, subset } from "./split.js";
export { openTar } from "./tar.js";
export { openTexts } from "./texts.js";
