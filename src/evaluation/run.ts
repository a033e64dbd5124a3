/**
 * What a run's folder, or a configuration, says of an evaluation: the images and how they are split, the tokenizer, and
 * the policies before and after. The sections that are read are the same for all commands that train.
 */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";

import { parse } from "yaml";
import { ConfigError } from "../config/resolve.js";
import { describeWeights } from "../rl_ar_finetune/builder.js";
import { bestCheckpoint, listCheckpoints } from "../run/checkpoint.js";
import { openWeights } from "../torch/index.js";
import type { ModelEvalOptions, PolicyFile } from "./types.js";

/** Options of an evaluation that a run knows. */
export type RunEvalOptions = Pick<ModelEvalOptions, "start" | "features"> & {
  readonly data?: Readonly<Record<string, unknown>>;
  readonly tokenizer?: Exclude<ModelEvalOptions["tokenizer"], { encode: unknown }>;
  readonly policy?: PolicyFile;
  readonly against?: PolicyFile;
};

type Section = Readonly<Record<string, unknown>>;

const sectionOf = (value: unknown): Section =>
  typeof value === "object" && value !== null ? (value as Section) : {};

/**
 * Read a configuration: `data`, the tokenizer, the policy's file.
 *
 * @throws ConfigError when it cannot be read or is no configuration.
 */
export function optionsOfConfig(file: string): RunEvalOptions {
  let values: unknown;
  try {
    values = parse(readFileSync(file, "utf8"));
  } catch (error) {
    throw new ConfigError([
      `${file}: expected a configuration in YAML, got ${(error as Error).message.split("\n")[0]}.`,
    ]);
  }
  if (typeof values !== "object" || values === null || Array.isArray(values)) {
    throw new ConfigError([
      `${file}: expected keys and values, got ${Array.isArray(values) ? "a list" : String(values)}.`,
    ]);
  }
  const { data, tokenizer, ar, rollout } = values as Section;
  const [images, frozen, policy] = [sectionOf(data), sectionOf(tokenizer), sectionOf(ar)];
  const heads = policy.nHead ?? policy.n_head;
  return {
    data: images,
    ...(sectionOf(rollout).start === "empty" && { start: "empty" }),
    ...(typeof frozen.path === "string" && {
      tokenizer: frozen as Exclude<RunEvalOptions["tokenizer"], string | undefined>,
    }),
    ...(typeof policy.path === "string" && {
      policy: {
        path: policy.path,
        ...(typeof policy.wrapper === "string" && { wrapper: policy.wrapper }),
        ...(typeof heads === "number" && { nHead: heads }),
      },
    }),
  };
}

/**
 * Read a run's folder: its configuration, and what it made. A policy that was fine-tuned stands against the one that
 * it began with; its best checkpoint counts, the last where none is marked, and the average of its weights where there
 * is one.
 *
 * @throws ConfigError when the folder holds no run, or one that has made nothing yet.
 */
export function optionsOfRun(folder: string): RunEvalOptions {
  const config = join(folder, "config.yaml");
  if (!existsSync(config)) {
    throw new ConfigError([`--run: expected the folder of a run, got ${folder}, which has no config.yaml.`]);
  }
  const known = optionsOfConfig(config);
  const made = resultOf(folder);
  if (made === null) {
    throw new ConfigError([
      `--run: expected a run with a checkpoint, got ${folder}, which has none yet. --config ${config} takes its images alone.`,
    ]);
  }
  let kind: string | undefined;
  {
    using file = openWeights(made);
    kind = describeWeights(file)?.kind;
  }
  if (kind === "tokenizer") return { ...known, tokenizer: made };
  if (kind === "classifier") return { ...known, features: [made] };
  const after: PolicyFile = { path: made };
  return known.policy === undefined ? { ...known, policy: after } : { ...known, against: after };
}

/** The file of a run's result. */
function resultOf(folder: string): string | null {
  const whole = join(folder, "model.safetensors");
  if (existsSync(whole)) return whole;
  const checkpoints = join(folder, "checkpoints");
  const name = bestCheckpoint(checkpoints)?.name ?? listCheckpoints(checkpoints).at(-1);
  if (name === undefined) return null;
  const files = ["ema", "policy", "model"].map((part) => join(checkpoints, name, `${part}.safetensors`));
  return files.find((file) => existsSync(file)) ?? null;
}
