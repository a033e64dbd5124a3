/**
 * How a command of `rlar` is typed where this process runs, so that every printed command can be pasted as it is.
 */
import { dirname, relative } from "node:path";
import { fileURLToPath } from "node:url";

const root = dirname(dirname(dirname(dirname(fileURLToPath(import.meta.url)))));

/**
 * A command of `rlar` as it can be pasted: `npm run rlar -- ...` in a clone (with `--prefix` outside of it), `npx rlar ...`
 * where the package is installed, `rlar ...` where it was started under that name.
 *
 * @param words - the command's words; each is quoted for the shell where it has to be.
 */
export function rlarCommand(words: readonly string[], env: NodeJS.ProcessEnv = process.env): string {
  return [prefix(env), ...words.map(shellWord)].join(" ");
}

function prefix(env: NodeJS.ProcessEnv): string {
  if (env.RLAR_STARTED_AS === "rlar") return env.npm_command === undefined ? "rlar" : "npx rlar";
  if (env.npm_command === undefined) return "npx rlar";
  const folder = relative(env.INIT_CWD ?? process.cwd(), root);
  return folder === "" ? "npm run rlar --" : `npm --prefix ${shellWord(folder)} run rlar --`;
}

/** A word as a POSIX shell reads it. */
export function shellWord(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}
