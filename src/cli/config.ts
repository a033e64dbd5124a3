/** `rlar config`, and reading the configuration of the training commands from a command line. */
import { existsSync } from "node:fs";

import { classifierKind } from "../config/classifier.js";
import { rlarCommand } from "../config/command.js";
import { configJsonSchema, configYaml, explainConfig, explanationText } from "../config/explain.js";
import { adviceOn } from "../config/input.js";
import { configurationPage } from "../config/page.js";
import { pretrainKind } from "../config/pretrain.js";
import { ConfigError, type ConfigKind, type ResolvedConfig, resolveConfig } from "../config/resolve.js";
import { tokenizerKind } from "../config/tokenizer.js";
import { trainKind } from "../config/train_kind.js";

/** A kind whose configurations are only shown. */
type AnyKind = ConfigKind<object>;

/** What `--for` names: the commands that have a configuration. */
export const kinds: Readonly<Record<string, AnyKind>> = Object.fromEntries(
  [trainKind, pretrainKind, tokenizerKind, classifierKind].map((kind) => [
    kind.name,
    kind as unknown as AnyKind,
  ]),
);

/** A configuration from a file, where the first argument is one, and `key=value` arguments. */
export function readConfig<T extends object>(
  kind: ConfigKind<T>,
  args: readonly string[],
  options: { preset?: string | undefined; isComplete?: boolean } = {},
): ResolvedConfig<T> {
  const { preset, isComplete = true } = options;
  const [first, ...rest] = args;
  const isFile = first !== undefined && !first.includes("=");
  if (isFile && !existsSync(first)) {
    throw new ConfigError([
      `${first}: expected a configuration file or key=value, got neither. Check the path.`,
    ]);
  }
  return resolveConfig(
    {
      ...(isFile ? { file: first, overrides: rest } : { overrides: args }),
      ...(preset !== undefined && { preset }),
      isComplete,
    },
    kind,
  );
}

/** Options of `rlar config`. */
export interface ConfigCommandOptions {
  preset?: string;
  /** The command whose configuration it is. */
  for: string;
}

/** `rlar config`: print a whole configuration, explain keys, list presets, give the JSON schema, or write the page of the documentation. */
export function config(what: string, args: readonly string[], options: ConfigCommandOptions): void {
  const kind = Object.hasOwn(kinds, options.for) ? kinds[options.for] : undefined;
  if (kind === undefined) {
    throw new ConfigError([`--for: expected ${Object.keys(kinds).join(", ")}, got ${options.for}.`]);
  }
  switch (what) {
    case "show": {
      const { config: shown } = readConfig(kind, args, { preset: options.preset, isComplete: false });
      process.stdout.write(configYaml(shown, { comments: true, kind }));
      return;
    }
    case "explain": {
      const found = (args.length === 0 ? [""] : args).map(
        (name) => [name, explainConfig(name, kind)] as const,
      );
      const unknown = found.filter(([, keys]) => keys.length === 0).map(([name]) => name);
      if (unknown.length > 0) {
        throw new ConfigError(
          unknown.map(
            (name) => `config explain: expected a key or a section, got ${name}. ${adviceOn(kind, name)}`,
          ),
        );
      }
      process.stdout.write(explanationText(found.flatMap(([, keys]) => keys)));
      return;
    }
    case "presets":
      for (const [name, { about }] of Object.entries(kind.presets))
        process.stdout.write(`${name}\n  ${about}\n`);
      return;
    case "schema":
      process.stdout.write(`${JSON.stringify(configJsonSchema(kind), null, 2)}\n`);
      return;
    case "docs":
      process.stdout.write(configurationPage(Object.values(kinds)));
      return;
    default:
      throw new ConfigError([
        `config: expected show, explain, presets, schema or docs, got ${what}. ${rlarCommand(["config", "--help"])} tells more.`,
      ]);
  }
}
