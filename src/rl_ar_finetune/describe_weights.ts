/**
 * What a file of weights holds, told from its header alone: which model, how large, and what else is said beside it.
 */
import { type ClassifierConfig, recogniseClassifier, recogniseMetricNetwork } from "../metrics/index.js";
import { type PolicyDescription, recognisePolicy } from "../policies/index.js";
import { recogniseTokenizer, type TokenizerConfig, type TokenizerDescription } from "../tokenizers/index.js";
import { expected, type WeightsFile } from "../torch/index.js";

/** What a file of weights was found to be. */
export type ModelDescription =
  | { readonly kind: "tokenizer"; readonly tokenizer: TokenizerDescription }
  | { readonly kind: "policy"; readonly policy: PolicyDescription }
  | { readonly kind: "classifier"; readonly config: ClassifierConfig }
  | { readonly kind: "metric"; readonly network: string };

/** Sizes that a file of ours states because shapes do not tell them. */
export interface StatedSizes {
  nHead?: number;
  blockSize?: number;
  numClasses?: number;
}

/** What {@link describeWeights} may be told in place of finding it out. */
export interface DescribeOptions extends StatedSizes {
  weights?: "raw" | "ema";
  /** What the caller knows of a tokenizer; see {@link recogniseTokenizer}. */
  tokenizerConfig?: Partial<TokenizerConfig>;
}

/**
 * Say which model a file of weights holds, from its header alone.
 *
 * @returns null when it is none that is known here.
 * @throws RangeError when it is a known one that is not whole.
 */
export function describeWeights(file: WeightsFile, options: DescribeOptions = {}): ModelDescription | null {
  const { shapes } = file;
  const { weights, tokenizerConfig, ...sizes } = options;
  const stated = statedConfig(file);
  const network = recogniseMetricNetwork(shapes);
  if (network !== null) return { kind: "metric", network };
  const classifier = recogniseClassifier(shapes);
  if (classifier !== null) return { kind: "classifier", config: withNames(classifier, stated) };
  // A transformer's file may hold its tokenizer as well, which then is the lesser part.
  const policy = recognisePolicy(shapes, { where: file.path, ...statedSizes(stated), ...sizes });
  if (policy !== null) return { kind: "policy", policy };
  const config = { ...(stated as Partial<TokenizerConfig>), ...tokenizerConfig };
  const tokenizer = recogniseTokenizer(shapes, { config, ...(weights && { weights }) });
  return tokenizer === null ? null : { kind: "tokenizer", tokenizer };
}

/** A classifier's sizes, with the names of the classes where its file has them. */
function withNames(config: ClassifierConfig, { classNames }: Record<string, unknown>): ClassifierConfig {
  return Array.isArray(classNames) ? { ...config, classNames: classNames.map(String) } : config;
}

/** The configuration that `rlar convert` and the trainers write beside the weights. */
export function statedConfig(file: WeightsFile): Record<string, unknown> {
  const text = file.metadata.config;
  if (text === undefined) return {};
  try {
    return JSON.parse(text) as Record<string, unknown>;
  } catch {
    throw expected(`${file.path}: metadata.config`, "JSON", text.slice(0, 40), "Convert the file again");
  }
}

/** Those of a {@link statedConfig}. */
export function statedSizes(config: Record<string, unknown>): StatedSizes {
  const sizes: StatedSizes = {};
  const numClasses = config.numClasses ?? config.classNum;
  if (typeof config.nHead === "number") sizes.nHead = config.nHead;
  if (typeof config.blockSize === "number") sizes.blockSize = config.blockSize;
  if (typeof numClasses === "number") sizes.numClasses = numClasses;
  return sizes;
}

/** The error for a file that holds something else than is wanted. */
export function wrongKind(
  path: string,
  wanted: string,
  found: ModelDescription | null,
  file: WeightsFile,
): RangeError {
  const names = file.names.slice(0, 3).join(", ");
  const got =
    found === null
      ? `${file.names.length} tensors of an unknown model (${names}, ...)`
      : found.kind === "metric"
        ? found.network
        : found.kind === "classifier"
          ? `a classifier of ${found.config.numClasses} classes`
          : found.kind === "policy"
            ? `a policy (${found.policy.family})`
            : `a tokenizer (${found.tokenizer.name})`;
  return expected(path, wanted, got, "rlar inspect FILE shows what is in it");
}
