/** `rlar config`, and reading the configuration of the training commands from a command line. */
import { existsSync } from "node:fs";

import { classifierKind } from "../config/classifier.js";
import { configJsonSchema, configYaml, explainConfig, explanationText } from "../config/explain.js";
import { adviceOn } from "../config/input.js";
import { configurationPage } from "../config/page.js";
import { pretrainKind } from "../config/pretrain.js";
import { ConfigError, type ConfigKind, type ResolvedConfig, resolveConfig } from "../config/resolve.js";
import { sweepKind } from "../config/sweep.js";
import { tokenizerKind } from "../config/tokenizer.js";
import { trainKind } from "../config/train_kind.js";

/** A kind whose configurations are only shown. */
type AnyKind = ConfigKind<object>;

/** What `--for` names: the commands that have a configuration. */
export const kinds: Readonly<Record<string, AnyKind>> = Object.fromEntries(
  [trainKind, pretrainKind, tokenizerKind, classifierKind, sweepKind].map((kind) => [
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
  const overrides = args.filter((arg) => arg.includes("="));
  const [file, ...others] = args.filter((arg) => !arg.includes("="));
  const isStdin = file === "-";
  if (file !== undefined && !isStdin && !existsSync(file)) {
    throw new ConfigError([
      `${file}: expected a configuration file or key=value, got neither. Check the path, and write keys as key=value.`,
    ]);
  }
  if (others.length > 0) {
    throw new ConfigError([
      `command line: expected one configuration file and key=value, got ${[file, ...others].join(" and ")}. Write keys without spaces: key=value.`,
    ]);
  }
  return resolveConfig(
    {
      ...(file !== undefined && { file: isStdin ? "/dev/stdin" : file }),
      overrides,
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
export function config(
  what: "show" | "explain" | "presets" | "schema" | "docs",
  args: readonly string[],
  options: ConfigCommandOptions,
): void {
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
  }
}
