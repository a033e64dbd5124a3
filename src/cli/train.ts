/** `rlar train` and `rlar config`: runs and what they are configured by. */
import { existsSync } from "node:fs";

import { batchNumbers, ConfigError, type ResolvedConfig, resolveConfig } from "../rl_ar_finetune/config.js";
import {
  configJsonSchema,
  configYaml,
  explainConfig,
  explanationText,
} from "../rl_ar_finetune/config_docs.js";
import { type PresetName, presets } from "../rl_ar_finetune/presets.js";
import { trainRlLoop } from "../rl_ar_finetune/train_loop.js";

/** Options of `rlar train`. */
export interface TrainCommandOptions {
  preset?: PresetName;
  dryRun?: boolean;
  force?: boolean;
  json?: boolean;
}

/** A file, where the first argument is one, and `key=value` arguments. */
function sourcesOf(
  args: readonly string[],
  preset: PresetName | undefined,
  isComplete = true,
): ResolvedConfig {
  const [first, ...rest] = args;
  const isFile = first !== undefined && !first.includes("=");
  if (isFile && !existsSync(first)) {
    throw new ConfigError([
      `${first}: expected a configuration file or key=value, got neither. Check the path.`,
    ]);
  }
  return resolveConfig({
    ...(isFile ? { file: first, overrides: rest } : { overrides: args }),
    ...(preset && { preset }),
    isComplete,
  });
}

/**
 * Run a configuration; Ctrl-C ends after the step that is under way, with a checkpoint, and a second one at once.
 *
 * @returns the exit code: 0, or 130 after an interruption.
 */
export async function train(args: readonly string[], options: TrainCommandOptions): Promise<number> {
  const resolved = sourcesOf(args, options.preset);
  const { config, notes } = resolved;
  if (options.dryRun) {
    const numbers = Object.entries(batchNumbers(config)).map(([name, value]) => `# ${name}: ${value}\n`);
    process.stdout.write(`${configYaml(config, { comments: true })}\n${numbers.join("")}`);
    for (const note of notes) process.stdout.write(`# ${note}\n`);
    return 0;
  }
  const controller = new AbortController();
  const stop = (): void => {
    if (controller.signal.aborted) process.exit(130);
    controller.abort();
    process.stderr.write("\nending after this step; once more ends at once\n");
  };
  process.on("SIGINT", stop).on("SIGTERM", stop);
  try {
    const { dir, step, end } = await trainRlLoop(resolved, {
      signal: controller.signal,
      force: options.force ?? false,
      json: options.json ?? false,
    });
    const text = end === "interrupted" ? "interrupted" : end === "patience" ? "no better any more" : "done";
    if (!options.json) {
      process.stdout.write(
        `${text} after step ${step}: ${dir}\n` +
          `resume: the same command with run.dir=${dir} run.ifExists=resume\n` +
          `samples: rlar sample --policy ${dir}/checkpoints/step_${String(step).padStart(6, "0")}/policy.safetensors --tokenizer ${config.tokenizer.path}\n`,
      );
    }
    return end === "interrupted" ? 130 : 0;
  } finally {
    process.off("SIGINT", stop).off("SIGTERM", stop);
  }
}

/** `rlar config`: print a whole configuration, explain keys, list presets, or give the JSON schema. */
export function config(what: string, args: readonly string[], options: { preset?: PresetName }): void {
  switch (what) {
    case "show":
      process.stdout.write(configYaml(sourcesOf(args, options.preset, false).config, { comments: true }));
      return;
    case "explain": {
      const found = args.length === 0 ? explainConfig() : args.flatMap((path) => explainConfig(path));
      if (found.length === 0) {
        throw new ConfigError([
          `config explain: expected a key or a section, got ${args.join(" ")}. rlar config explain lists all.`,
        ]);
      }
      process.stdout.write(explanationText(found));
      return;
    }
    case "presets":
      for (const [name, { about }] of Object.entries(presets)) process.stdout.write(`${name}\n  ${about}\n`);
      return;
    case "schema":
      process.stdout.write(`${JSON.stringify(configJsonSchema(), null, 2)}\n`);
      return;
    default:
      throw new ConfigError([
        `config: expected show, explain, presets or schema, got ${what}. rlar config --help tells more.`,
      ]);
  }
}
