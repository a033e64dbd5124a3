/**
 * `rlar completion`: a script for the shell that completes commands, options with their values, and configuration keys; where
 * nothing of these fits the shell completes file names.
 */
import type { Command } from "commander";

import { kinds } from "./config.js";

/** What can follow a command: options, values of its first argument where they are known, keys that end with `=`. */
function wordsOf(command: Command): string[] {
  const options = command.options.map(({ long }) => long).filter((long) => long !== undefined);
  const values = command.registeredArguments[0]?.argChoices ?? [];
  const keys = kinds[command.name()]?.keys.map(({ path }) => `${path.join(".")}=`) ?? [];
  return [...values, ...options, "--help", ...keys];
}

/** Options that take a value, with the values where they are known. */
function valuesOf(command: Command): [option: string, values: readonly string[]][] {
  return command.options.flatMap(({ long, required, argChoices = [] }): [string, readonly string[]][] =>
    long != null && required ? [[long, argChoices]] : [],
  );
}

/**
 * The completion script of a shell.
 *
 * @param shell - `bash`, `zsh` or `fish`.
 * @returns a script to evaluate: `source <(rlar completion bash)`.
 */
export function completionScript(program: Command, shell: "bash" | "zsh" | "fish"): string {
  const commands = program.commands.map((command) => command.name());
  if (shell === "fish") {
    const lines = program.commands.flatMap((command) => {
      const here = `complete -c rlar -n '__fish_seen_subcommand_from ${command.name()}'`;
      const values = new Map(valuesOf(command));
      return [
        `complete -c rlar -n __fish_use_subcommand -a ${command.name()} -d '${command.description().replaceAll("'", "")}'`,
        ...wordsOf(command).map((word) => {
          const choices = values.get(word);
          if (choices === undefined) return `${here} -a '${word}'`;
          return `${here} -l ${word.slice(2)} -r${choices.length === 0 ? "" : ` -f -a '${choices.join(" ")}'`}`;
        }),
      ];
    });
    return `${lines.join("\n")}\n`;
  }
  const cases = program.commands.map((command) => {
    const values = valuesOf(command).map(([option, choices]) => `${option}) words="${choices.join(" ")}" ;;`);
    return `    ${command.name()}) words="${wordsOf(command).join(" ")}"
      case "$before" in ${values.join(" ")} esac ;;`;
  });
  const script = `_rlar() {
  local current="\${COMP_WORDS[COMP_CWORD]}" before="\${COMP_WORDS[COMP_CWORD-1]}" command="\${COMP_WORDS[1]}" words="" word
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "${commands.join(" ")} --help --version" -- "$current"))
    return
  fi
  if [ "$command" = launch ]; then
    for word in "\${COMP_WORDS[@]:2:COMP_CWORD-2}"; do
      case "$word" in ${Object.keys(kinds).join("|")}) command="$word" ;; esac
    done
  fi
  case "$command" in
${cases.join("\n")}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  case "\${COMPREPLY[0]}" in *=) compopt -o nospace 2>/dev/null ;; esac
}
complete -o default -F _rlar rlar
`;
  return shell === "zsh" ? `autoload -U +X bashcompinit && bashcompinit\n${script}` : script;
}
