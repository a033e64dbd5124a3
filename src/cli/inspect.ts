/** `rlar inspect`: print what a file of weights holds, from its header alone. */

import { POLICY_NAMES } from "../policies/index.js";
import {
  type DescribeOptions,
  type ModelDescription,
  type OpenedModel,
  openModel,
  usedBy,
  type WeightsChoice,
  weightsOf,
} from "../rl_ar_finetune/builder.js";
import { isAdapter, MERGE } from "../rl_ar_finetune/describe_weights.js";
import { DTYPES, type DType, openWeights, type WeightsFile } from "../torch/index.js";

/** Options of commands that read one file of weights. */
export interface FileOptions {
  wrapper?: string;
  weights?: "ema" | "raw";
  heads?: number;
  codes?: number;
}

/** Options of `rlar inspect`. */
export interface InspectOptions extends FileOptions {
  all?: boolean;
  json?: boolean;
}

/** @returns 3 when the file holds a model that cannot be used; its tensors are shown all the same. */
export function inspect(path: string, options: InspectOptions): number {
  const { json, all = false } = options;
  const show = (
    { file, found, notes }: Pick<OpenedModel, "file" | "found" | "notes">,
    problem: string | null,
  ): void => {
    const facts = { ...factsOf(file, found), notes, problem };
    process.stdout.write(json ? `${JSON.stringify(facts, null, 2)}\n` : print(file, facts, all));
  };
  try {
    using opened = openModel(path, askedOf(options));
    const isUnusable = opened.found === null && isAdapter(opened.file);
    show(opened, isUnusable ? `${MERGE}.` : null);
    return isUnusable ? 3 : 0;
  } catch (error) {
    // A file that cannot be read at all throws its own error here.
    using file = openWeights(path, options.wrapper === undefined ? {} : { wrapper: options.wrapper });
    show({ file, found: null, notes: [] }, (error as Error).message);
    return 3;
  }
}

/** Options of the command line as the builder has them. */
export function askedOf({ wrapper, weights, heads, codes }: FileOptions): WeightsChoice & DescribeOptions {
  return {
    ...(wrapper !== undefined && { wrapper }),
    ...(weights !== undefined && { weights }),
    ...(heads !== undefined && { nHead: heads }),
    ...(codes !== undefined && { blockSize: codes }),
  };
}

/** Print notes on a file to standard error, so that a program reads standard output alone. */
export function sayNotes(notes: readonly string[]): void {
  for (const note of notes) process.stderr.write(`note: ${note}\n`);
}

interface Facts {
  file: string;
  format: string;
  /** What the file holds, in words. */
  model: string;
  config: Record<string, unknown>;
  /** Which weights are used; null where the model is unknown. */
  weights: "raw" | "ema" | null;
  /** Sizes that the file does not state, and what was assumed. */
  missing: readonly string[];
  notes: readonly string[];
  /** Why the model cannot be used, or null. */
  problem: string | null;
  parameters: number;
  bytes: number;
  dtypes: Record<string, number>;
  wrapper: string;
  otherWrappers: readonly string[];
  used: number;
  ignored: { reason: string; tensors: number; example: string }[];
  besides: readonly string[];
  metadata: Readonly<Record<string, string>>;
}

function factsOf(file: WeightsFile, found: ModelDescription | null): Omit<Facts, "notes" | "problem"> {
  const usedNames = found === null ? file.names : Object.values(usedBy(found));
  const dtypes: Record<string, number> = {};
  let parameters = 0;
  let bytes = 0;
  for (const name of usedNames) {
    const { dtype, shape } = file.info(name);
    const count = shape.reduce((product, size) => product * size, 1);
    parameters += count;
    bytes += count * (Object.hasOwn(DTYPES, dtype) ? DTYPES[dtype as DType].size : 0);
    dtypes[dtype] = (dtypes[dtype] ?? 0) + 1;
  }
  return {
    file: file.path,
    format: file.format,
    model: nameOf(found),
    config: configOf(found),
    weights: found === null ? null : weightsOf(found),
    missing: found?.kind === "policy" ? found.policy.missing : [],
    parameters,
    bytes,
    dtypes,
    wrapper: file.wrapper,
    otherWrappers: file.otherWrappers,
    used: usedNames.length,
    ignored: ignoredBy(found),
    besides: file.extras,
    metadata: file.metadata,
  };
}

/** A model in words. */
export function nameOf(found: ModelDescription | null): string {
  if (found === null) return "unknown";
  if (found.kind === "metric") return found.network;
  if (found.kind === "classifier") return "feature classifier";
  if (found.kind === "tokenizer") return `tokenizer ${found.tokenizer.name}`;
  return `policy ${POLICY_NAMES[found.policy.family]}`;
}

function configOf(found: ModelDescription | null): Record<string, unknown> {
  if (found?.kind === "policy") return { ...found.policy.config };
  if (found?.kind === "classifier") return { ...found.config };
  if (found?.kind !== "tokenizer") return {};
  const { config, grid } = found.tokenizer;
  return grid === undefined ? { ...config } : { ...config, grid };
}

function ignoredBy(found: ModelDescription | null): Facts["ignored"] {
  const groups = new Map<string, string[]>();
  if (found?.kind === "tokenizer")
    for (const { reason, keys } of found.tokenizer.ignored) groups.set(reason, keys);
  if (found?.kind === "policy") {
    for (const { name, reason } of found.policy.ignored)
      groups.set(reason, [...(groups.get(reason) ?? []), name]);
  }
  return [...groups].map(([reason, names]) => ({ reason, tensors: names.length, example: names[0] ?? "" }));
}

const UNKNOWN: Readonly<Record<string, string>> = {
  nHead: "the file does not say how many attention heads; give --heads",
  blockSize:
    "the file does not say how many codes an image has; give --codes, such as --codes 256 for 256 px at 16 px per code",
};

function whichWeights(weights: "raw" | "ema", file: WeightsFile): string {
  const taken = weights === "ema" ? "the EMA of the weights" : "raw, those of the last step";
  return file.wrapper === "" ? taken : `${taken}, under "${file.wrapper}"`;
}

function print(file: WeightsFile, facts: Facts, all: boolean): string {
  const dtypes = Object.entries(facts.dtypes).map(([name, count]) => `${name} x ${count}`);
  const config = Object.entries(facts.config).map(([key, value]) => `${key} ${JSON.stringify(value)}`);
  const lines: [string, string][] = [
    ["file", `${facts.file} (${facts.format}${facts.wrapper === "" ? "" : `, under "${facts.wrapper}"`})`],
    ["model", facts.model],
    ...(facts.problem === null ? [] : [["problem", facts.problem] as [string, string]]),
    ...(config.length > 0 ? [["config", config.join(", ")] as [string, string]] : []),
    ...facts.missing.map((name): [string, string] => ["unknown", `${name}: ${UNKNOWN[name] ?? "not told"}`]),
    ...facts.notes.map((note): [string, string] => ["note", note]),
    ...(facts.weights === null ? [] : [["weights", whichWeights(facts.weights, file)] as [string, string]]),
    ["size", `${facts.parameters.toLocaleString("en")} numbers, ${(facts.bytes / 2 ** 20).toFixed(1)} MiB`],
    ["dtype", dtypes.join(", ")],
    ["used", `${facts.used} tensors`],
    ...facts.ignored.map((group): [string, string] => {
      return ["ignored", `${group.tensors} tensors: ${group.reason} (such as ${group.example})`];
    }),
    ...(facts.otherWrappers.length > 0
      ? [
          ["also", `weights under ${facts.otherWrappers.join(", ")}: --wrapper takes them`] as [
            string,
            string,
          ],
        ]
      : []),
    ...(facts.besides.length > 0 ? [["besides", facts.besides.join(", ")] as [string, string]] : []),
    ...Object.entries(facts.metadata).map(([key, value]): [string, string] => [`meta ${key}`, value]),
  ];
  const width = Math.max(...lines.map(([label]) => label.length));
  const text = lines.map(([label, value]) => `${label.padEnd(width)}  ${value}\n`).join("");
  if (!all) return text;
  const tensors = file.names.map(
    (name) => `${name}\t${file.info(name).dtype}\t[${file.info(name).shape.join(", ")}]\n`,
  );
  return text + tensors.join("");
}
