/**
 * Reference sets that others described: published `mu` and `sigma` of the Inception network of FIDs (`.npz`, also those beside
 * ADM's images), and embeddings that `rlar embed` wrote. A Fréchet distance is between features of one network, so a set is
 * refused where its network is another.
 */
import { readNpz, toFloat64 } from "../data/index.js";
import { type Moments, moments } from "../metrics/distribution.js";
import { expected, keep, openSafetensors, tensor, tidy } from "../torch/index.js";

/** The network that described a set. */
export interface DescribedBy {
  readonly name: string;
  readonly sha256: string;
}

/** A reference set. The tensors live until it is disposed of. */
export interface ReferenceSet extends Disposable {
  readonly path: string;
  /** null for published moments, which are of the Inception network of FIDs. */
  readonly network: DescribedBy | null;
  /** Images; null where the file does not say. */
  readonly images: number | null;
  readonly moments: Moments;
}

/** What `rlar embed` writes into the metadata of its file. */
export const EMBEDDINGS_KIND = "rlar embeddings";

/** Width of the features of published FIDs. */
const FID_WIDTH = 2048;

/**
 * Open a reference set.
 *
 * @throws RangeError for a file of anything else, and for moments that are not finite or do not fit.
 */
export function openReferenceSet(path: string): ReferenceSet {
  const set = path.endsWith(".npz") ? published(path) : embedded(path);
  const { mean, cov } = set.moments;
  return {
    ...set,
    path,
    [Symbol.dispose]: () => {
      for (const part of [mean, cov]) part.dispose();
    },
  };
}

function published(path: string): Omit<ReferenceSet, "path" | typeof Symbol.dispose> {
  const { mu, sigma } = readNpz(path, ["mu", "sigma"]);
  if (mu === undefined || sigma === undefined) {
    throw expected(
      path,
      "arrays mu and sigma",
      `${mu ? "no sigma" : "no mu"}`,
      "rlar embed makes a reference set of images",
    );
  }
  const [width] = mu.shape;
  if (mu.shape.length !== 1 || sigma.shape.join() !== `${width},${width}`) {
    throw expected(
      path,
      "mu [D] and sigma [D, D]",
      `[${mu.shape.join(", ")}] and [${sigma.shape.join(", ")}]`,
    );
  }
  const parts = tidy(() => {
    const mean = tensor(toFloat64(mu, `${path}: mu`));
    const cov = tensor(toFloat64(sigma, `${path}: sigma`)).reshape(width as number, width as number);
    if (mean.isfinite().all().item() !== 1 || cov.isfinite().all().item() !== 1) {
      throw expected(path, "finite moments", "NaN or infinity");
    }
    return { mean: keep(mean), cov: keep(cov.clone()) };
  });
  // Published files do not say of how many images they are; the distance does not need it.
  return { network: null, images: null, moments: { ...parts, count: 0 } };
}

function embedded(path: string): Omit<ReferenceSet, "path" | typeof Symbol.dispose> {
  using file = openSafetensors(path);
  const { kind, network, network_sha256: sha256 } = file.metadata;
  if (kind !== EMBEDDINGS_KIND || network === undefined || sha256 === undefined) {
    const remedy = "rlar embed writes one; published ones are .npz files with mu and sigma";
    throw expected(
      path,
      "embeddings of rlar embed",
      `metadata ${Object.keys(file.metadata).join(", ") || "none"}`,
      remedy,
    );
  }
  return tidy(() => {
    const embeddings = file.tensor("embeddings");
    const { mean, cov, count } = moments(embeddings);
    return {
      network: { name: network, sha256 },
      images: count,
      moments: { mean: keep(mean), cov: keep(cov), count },
    };
  });
}

/**
 * Check that a set was described by a network.
 *
 * @param sha256 - of the network's file; null where a program passed it open.
 * @throws RangeError for another network: distances between features of two networks mean nothing.
 */
export function requireDescribedBy(
  set: ReferenceSet,
  { name, featureSize }: { name: string; featureSize: number },
  sha256: string | null,
): void {
  const remedy =
    "A distance between features of two networks means nothing: describe the set with this one, by rlar embed";
  const width = set.moments.mean.size(0);
  if (set.network === null) {
    if (/\(FID\)/.test(name) && width === featureSize) return;
    const got = `published moments of width ${width}, which are of the Inception network of FIDs (${FID_WIDTH})`;
    throw expected(set.path, `features of ${name}`, got, remedy);
  }
  const isSame =
    set.network.name === name && width === featureSize && (sha256 === null || set.network.sha256 === sha256);
  if (isSame) return;
  const hash = (value: string | null): string =>
    value === null ? "" : ` (SHA-256 ${value.slice(0, 12)}...)`;
  throw expected(
    set.path,
    `features of ${name}${hash(sha256)}`,
    `${set.network.name}${hash(set.network.sha256)}`,
    remedy,
  );
}
