/**
 * Whether a network that judges learnt from the images that a network of the reward learnt from: two such networks are no
 * independent judges, since what pleases one pleases the other. `rlar classifier` writes what this reads into its files.
 */
import { describeWeights } from "../rl_ar_finetune/builder.js";
import { isEncoder } from "../rl_ar_finetune/open_encoders.js";
import { isPlainObject, openWeights } from "../torch/index.js";

/** What the file of a network says of its training. */
export interface Learnt {
  /** Fingerprint of the training images; null where the file does not say. */
  readonly fingerprint: string | null;
  /** Names of the classes; null where it does not say, or has none. */
  readonly classNames: readonly string[] | null;
}

const UNKNOWN: Learnt = { fingerprint: null, classNames: null };

/** Read it from the file's header. */
export function learntOf(path: string): Learnt {
  if (isEncoder(path)) return UNKNOWN;
  using file = openWeights(path);
  const found = describeWeights(file);
  const names = found?.kind === "classifier" ? found.config.classNames : undefined;
  return {
    fingerprint: fingerprintIn(file.metadata.training),
    classNames: names === undefined || names.length < 2 ? null : names,
  };
}

/** @param text - `training` of the metadata: JSON, if a trainer of this project wrote the file. */
function fingerprintIn(text: string | undefined): string | null {
  try {
    const { data } = JSON.parse(text ?? "{}") as { data?: unknown };
    const fingerprint = isPlainObject(data) ? data.fingerprint : null;
    return typeof fingerprint === "string" ? fingerprint : null;
  } catch {
    return null;
  }
}

/**
 * Whether a judge learnt from the same images as one of the reward's networks: from a set with the same fingerprint, or with
 * the same classes, as another split or size of the set has.
 *
 * @param rewarded - of the reward's networks; null where these are not known.
 * @returns null where it is not known.
 */
export function sharesImages(judge: Learnt, rewarded: readonly Learnt[] | null): boolean | null {
  if (rewarded === null) return null;
  if (rewarded.some((other) => isSame(judge, other))) return true;
  return rewarded.every(({ fingerprint }) => fingerprint !== null && judge.fingerprint !== null)
    ? false
    : null;
}

const isSame = (a: Learnt, b: Learnt): boolean =>
  (a.fingerprint !== null && a.fingerprint === b.fingerprint) ||
  (a.classNames !== null && a.classNames.join("\n") === b.classNames?.join("\n"));
