/** `rlar inspect`: what a file of weights holds, from its header alone. */
import { describeWeights, type ModelDescription } from "../rl_ar_finetune/builder.js";
import { DTYPES, openWeights, type WeightsFile } from "../torch/index.js";

/** Options of `rlar inspect`. */
export interface InspectOptions {
  wrapper?: string;
  weights?: "ema" | "raw";
  heads?: number;
  codes?: number;
  all?: boolean;
  json?: boolean;
}

export function inspect(path: string, options: InspectOptions): void {
  using file = openWeights(path, options.wrapper === undefined ? {} : { wrapper: options.wrapper });
  const found = describeWeights(file, {
    ...(options.weights && { weights: options.weights }),
    ...(options.heads !== undefined && { nHead: options.heads }),
    ...(options.codes !== undefined && { blockSize: options.codes }),
  });
  const facts = factsOf(file, found);
  process.stdout.write(
    options.json ? `${JSON.stringify(facts, null, 2)}\n` : print(file, facts, options.all ?? false),
  );
}

interface Facts {
  file: string;
  format: string;
  /** What the file holds, in words. */
  model: string;
  config: Record<string, unknown>;
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

function factsOf(file: WeightsFile, found: ModelDescription | null): Facts {
  const usedNames = usedBy(found) ?? file.names;
  const dtypes: Record<string, number> = {};
  let parameters = 0;
  let bytes = 0;
  for (const name of usedNames) {
    const { dtype, shape } = file.info(name);
    const count = shape.reduce((product, size) => product * size, 1);
    parameters += count;
    bytes += count * (DTYPES[dtype as keyof typeof DTYPES]?.size ?? 0);
    dtypes[dtype] = (dtypes[dtype] ?? 0) + 1;
  }
  return {
    file: file.path,
    format: file.format,
    model: nameOf(found),
    config: configOf(found),
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

/** Names in the file of the weights that a model takes; null where the model is unknown. */
export function usedBy(found: ModelDescription | null): string[] | null {
  if (found?.kind === "tokenizer") return Object.values(found.tokenizer.used);
  if (found?.kind === "policy") return Object.values(found.policy.used);
  return null;
}

/** A model in words. */
export function nameOf(found: ModelDescription | null): string {
  if (found === null) return "unknown";
  if (found.kind === "metric") return found.network;
  if (found.kind === "classifier") return "feature classifier";
  if (found.kind === "tokenizer") return `tokenizer ${found.tokenizer.name}`;
  const names = { gpt: "GPT (minGPT style)", llamagen: "LlamaGen", ibq_ar: "IBQ's transformer" };
  return `policy ${names[found.policy.family]}`;
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

function print(file: WeightsFile, facts: Facts, all: boolean): string {
  const dtypes = Object.entries(facts.dtypes).map(([name, count]) => `${name} x ${count}`);
  const config = Object.entries(facts.config).map(([key, value]) => `${key} ${JSON.stringify(value)}`);
  const lines: [string, string][] = [
    ["file", `${facts.file} (${facts.format}${facts.wrapper === "" ? "" : `, under "${facts.wrapper}"`})`],
    ["model", facts.model],
    ...(config.length > 0 ? [["config", config.join(", ")] as [string, string]] : []),
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
