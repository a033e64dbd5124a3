/**
 * Averages of the weights of models that were trained from the same start, and steps beyond them. `rlar average` reads and writes
 * the files.
 */
import { expected, readOptions, stack, type Tensor, tidy } from "../torch/index.js";
import { requireShapes, type Shapes } from "./state_dict.js";

/** Weights by name. */
type Weights = Readonly<Record<string, Tensor>>;

/** Options of {@link averageWeights}. */
export interface AverageOptions {
  /** The weights that all models started from; required where the scale is not 1. */
  readonly base?: Weights;
  /** How far to go from the base: 1 to the average, above 1 beyond it. Default: 1. */
  readonly scale?: number;
}

/** What {@link averageWeights} found. */
export interface Averaged {
  /** `base + scale (mean - base)`, computed in float64, in the dtypes and on the device of the first model. */
  readonly weights: Record<string, Tensor>;
  /**
   * Mean cosine similarity between the changes of two models, in [-1, 1]: where it is small, most of a change is chance. null
   * without a base, with one model, or where a model did not change.
   */
  readonly agreement: number | null;
}

/**
 * The average of models, or a point beyond it on the line from their common start.
 *
 * Weights are averaged as in Model soups (Wortsman et al. 2022) and WARP (Ramé et al. 2024, without its spherical interpolation):
 * what chance did differs between the runs and cancels. A scale above 1 is the extrapolation of ExPO (Zheng et al. 2024, with
 * `scale = 1 + alpha`).
 *
 * @param models - weights of the same names and shapes.
 * @throws RangeError when there is no model, names or shapes differ, a weight is not finite, or the scale is not finite or needs a
 *   base that was not given.
 */
export function averageWeights(models: readonly Weights[], ...given: [options?: AverageOptions]): Averaged {
  const { base, scale = 1 } = readOptions<AverageOptions>("averageWeights", given, {
    names: { base: true, scale: "number" },
  });
  const [first] = models;
  if (first === undefined) throw expected("averageWeights", "at least one model", 0);
  if (!Number.isFinite(scale)) throw expected("averageWeights: scale", "a finite number", scale);
  if (scale !== 1 && base === undefined)
    throw expected("averageWeights: base", `the weights that scale ${scale} starts from`, "none");
  for (const each of base === undefined ? models : [base, ...models])
    requireShapes("averageWeights", "the first model", shapesIn(first), namesIn(each), shapesIn(each));
  const count = models.length;
  // Inner products of the changes, [models, models].
  const products = new Float64Array(count * count);
  const weights: Record<string, Tensor> = {};
  for (const [name, { dtype }] of Object.entries(first)) {
    weights[name] = tidy(() => {
      const all = stack(models.map((each) => finite(name, each)));
      const mean = all.mean([0]);
      if (base === undefined) return mean.to({ dtype });
      const start = finite(name, base);
      const changes = all.sub(start).reshape([count, -1]);
      const own = changes.matmul(changes.transpose(0, 1)).flatten().toArray();
      for (let i = 0; i < products.length; i += 1) (products[i] as number) += own[i] as number;
      return start.add(mean.sub(start).mul(scale)).to({ dtype });
    });
  }
  return { weights, agreement: base === undefined ? null : meanCosine(products, count) };
}

/** A weight in float64. */
function finite(name: string, weights: Weights): Tensor {
  const weight = (weights[name] as Tensor).detach().to({ dtype: "float64" });
  if (weight.isfinite().all().item() === 1) return weight;
  throw expected(`averageWeights: ${name}`, "finite weights", "NaN or infinity");
}

/** Mean cosine similarity of the pairs of vectors, by their inner products; null where a vector is 0 or there is but one. */
function meanCosine(products: Float64Array, count: number): number | null {
  const at = (j: number, k: number): number => products[j * count + k] as number;
  let sum = 0;
  for (let k = 0; k < count; k += 1) {
    for (let j = 0; j < k; j += 1) sum += at(j, k) / Math.sqrt(at(j, j) * at(k, k));
  }
  const mean = sum / ((count * (count - 1)) / 2);
  return Number.isFinite(mean) ? mean : null;
}

const shapesIn = (weights: Weights): Shapes =>
  Object.fromEntries(Object.entries(weights).map(([name, { shape }]) => [name, shape]));

/** The names of weights, as they are in a file whose names are the model's. */
const namesIn = (weights: Weights): Record<string, string> =>
  Object.fromEntries(Object.keys(weights).map((name) => [name, name]));
