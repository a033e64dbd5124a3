/** `rlar completion`: a script for the shell that completes commands, options, configuration keys and file names. */
import type { Command } from "commander";

import { kinds } from "./config.js";

/** Words of one command that can be completed: options, values of enumerated arguments, keys that end with `=`. */
function wordsOf(command: Command): string[] {
  const options = command.options.map(({ long }) => long).filter((long) => long !== undefined);
  const keys = kinds[command.name()]?.keys.map(({ path }) => `${path.join(".")}=`) ?? [];
  return [...options, "--help", ...keys];
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
    const lines = program.commands.flatMap((command) => [
      `complete -c rlar -n __fish_use_subcommand -a ${command.name()} -d '${command.description().replaceAll("'", "")}'`,
      ...wordsOf(command).map(
        (word) => `complete -c rlar -n '__fish_seen_subcommand_from ${command.name()}' -a '${word}'`,
      ),
    ]);
    return `${lines.join("\n")}\n`;
  }
  const cases = program.commands.map(
    (command) => `    ${command.name()}) words="${wordsOf(command).join(" ")}" ;;`,
  );
  const script = `_rlar() {
  local current="\${COMP_WORDS[COMP_CWORD]}" words=""
  case "\${COMP_WORDS[1]}" in
${cases.join("\n")}
  esac
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "${commands.join(" ")} --help --version" -- "$current"))
    return
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current") $(compgen -f -- "$current"))
  case "\${COMPREPLY[0]}" in *=) compopt -o nospace 2>/dev/null ;; esac
}
complete -F _rlar rlar
`;
  return shell === "zsh" ? `autoload -U +X bashcompinit && bashcompinit\n${script}` : script;
}
