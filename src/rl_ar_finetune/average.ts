/**
 * Averages of policies' files: what `rlar average` and `rlar sweep` write. `averageWeights` computes them.
 *
 * A run's change of the weights is small beside the chance in it: of two runs of a few dozen steps that differ in their seed, the
 * changes have a cosine similarity of less than 0.1. The average keeps what they share.
 */
import { averageWeights } from "../nn/index.js";
import { saveSafetensors, type Tensor, tidy } from "../torch/index.js";
import { knownConfig, openModel, usedBy, type WeightsChoice, wrongKind } from "./describe_weights.js";

/** A file of a policy, and which of its weights. */
export type AveragedFile = WeightsChoice & { readonly path: string };

/** Options of {@link averagePolicies}. */
export interface AveragePoliciesOptions {
  /** The policy that all were fine-tuned from; needed where the scale is not 1. */
  readonly base?: AveragedFile | undefined;
  /** How far to go from the base: 1 to the average, above 1 beyond it. */
  readonly scale: number;
  /** The safetensors file to write; one that is there is replaced. */
  readonly out: string;
}

/**
 * Write the average of policies, or a point beyond it, with what the first one's file says of it.
 *
 * @returns the agreement of {@link averageWeights}.
 * @throws RangeError when a file holds no policy, or as {@link averageWeights} throws; nothing is written then.
 */
export function averagePolicies(
  files: readonly AveragedFile[],
  { base, scale, out }: AveragePoliciesOptions,
): number | null {
  return tidy(() => {
    const models = files.map(read);
    const start = base === undefined ? undefined : read(base).tensors;
    const { weights, agreement } = averageWeights(
      models.map(({ tensors }) => tensors),
      { scale, ...(start !== undefined && { base: start }) },
    );
    const average = { policies: files.map(({ path }) => path), base: base?.path ?? null, scale };
    saveSafetensors(out, weights, { ...models[0]?.metadata, average: JSON.stringify(average) });
    return agreement;
  });
}

/** Weights under the policy's own keys, and the file's metadata with what its shapes tell. */
function read({ path, ...choice }: AveragedFile): {
  tensors: Record<string, Tensor>;
  metadata: Record<string, string>;
} {
  using opened = openModel(path, choice);
  const { file, found } = opened;
  if (found?.kind !== "policy") throw wrongKind("a policy", found, file);
  const tensors = Object.fromEntries(
    Object.entries(usedBy(found)).map(([key, name]) => [key, file.tensor(name)]),
  );
  return { tensors, metadata: { config: JSON.stringify(knownConfig(found.policy)), ...file.metadata } };
}
