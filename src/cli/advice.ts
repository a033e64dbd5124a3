/** What to do about a command line that Commander refuses, where what was meant is likely. */
import { kinds } from "./config.js";

/**
 * @param command - its name.
 * @param message - of the refusal, in Commander's words.
 * @returns a sentence, or null where nothing is likely.
 */
export function adviceOnRefusal(command: string, message: string): string | null {
  const option = /unknown option '--?(.*)'/.exec(message)?.[1];
  if (option !== undefined) {
    const [name = "", value = "VALUE"] = option.split("=");
    const kind = Object.hasOwn(kinds, command) ? kinds[command] : undefined;
    if (kind?.keys.some(({ path }) => path.join(".") === name))
      return `Write keys without dashes: ${name}=${value}.`;
    if (command === "report" && name === "run") return "Name the folders of runs without an option.";
  }
  if (/^error: too many arguments/.test(message)) {
    if (command === "eval") return "Name a run by --run DIR.";
    if (command === "sample") return "Name a run by --run DIR, and several classes by --class A,B.";
  }
  return null;
}
