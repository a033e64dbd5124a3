/** Which keys of a configuration a program reads: one that nothing reads is a promise that is not kept. */

import type { ConfigKind } from "../../src/config/kind.js";
import type { TrainConfig } from "../../src/config/resolve.js";
import { trainKind } from "../../src/config/train_kind.js";

/** A configuration whose reads are watched. */
export interface Watched<T> {
  readonly config: T;
  readonly unread: () => string[];
}

/**
 * A configuration that notes which of its keys are read. Spreading a section counts as reading all of it; writing the
 * configuration down, to a file or a checkpoint, does not count.
 *
 * @returns the configuration, and a function that names the keys that nothing has read.
 */
export function watchReads<T extends object = TrainConfig>(
  config: T,
  kind: ConfigKind<T> = trainKind as unknown as ConfigKind<T>,
): Watched<T> {
  const read = new Set<string>();
  const watched = (section: object, path: string): object => {
    const copy = {};
    for (const [name, value] of Object.entries(section)) {
      const at = path === "" ? name : `${path}.${name}`;
      const inner = kind.isSection(at) ? watched(value as object, at) : undefined;
      const get = (): unknown => {
        if (inner !== undefined) return inner;
        if (!/config[\\/]explain\./.test(new Error().stack ?? "")) read.add(kind.patternOf(at));
        return value;
      };
      Object.defineProperty(copy, name, { get, enumerable: true });
    }
    return copy;
  };
  const unread = (): string[] => kind.keys.map((key) => key.path.join(".")).filter((path) => !read.has(path));
  return { config: watched(config, "") as T, unread };
}
