/** Which keys of a configuration a program reads: one that nothing reads is a promise that is not kept. */
import type { TrainConfig } from "../../src/rl_ar_finetune/config.js";
import { configKeys, isSection } from "../../src/rl_ar_finetune/config_schema.js";

/**
 * A configuration that notes which of its keys are read. Spreading a section counts as reading all of it; writing the
 * configuration down, to a file or a checkpoint, does not count.
 *
 * @returns the configuration, and a function that names the keys that nothing has read.
 */
export function watchReads(config: TrainConfig): { config: TrainConfig; unread: () => string[] } {
  const read = new Set<string>();
  const watched = (section: object, path: string): object => {
    const copy = {};
    for (const [name, value] of Object.entries(section)) {
      const at = path === "" ? name : `${path}.${name}`;
      const inner = isSection(at) ? watched(value as object, at) : undefined;
      const get = (): unknown => {
        if (inner !== undefined) return inner;
        if (!/config_docs/.test(new Error().stack ?? "")) read.add(at);
        return value;
      };
      Object.defineProperty(copy, name, { get, enumerable: true });
    }
    return copy;
  };
  const unread = (): string[] =>
    configKeys.map((key) => key.path.join(".")).filter((path) => !read.has(path));
  return { config: watched(config, "") as TrainConfig, unread };
}
