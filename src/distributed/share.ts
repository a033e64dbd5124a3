/** How rows are divided among the processes of a run. */
import { rank, size } from "./group.js";

/** `[from, count]` of each of `parts` consecutive parts of `total` rows; the first ones have one more where it does not divide. */
export function shares(total: number, parts: number): (readonly [from: number, count: number])[] {
  const each = Math.floor(total / parts);
  const more = total % parts;
  return Array.from(
    { length: parts },
    (_, i) => [i * each + Math.min(i, more), each + (i < more ? 1 : 0)] as const,
  );
}

/** `[from, count]` of the rows of this process; all rows for a process that is alone. */
export function ownShare(total: number): readonly [from: number, count: number] {
  return shares(total, size())[rank()] as readonly [number, number];
}

/** Those of a list of parts that this process does, consecutive ones; all of them for a process that is alone. */
export function ownParts<T>(parts: readonly T[]): readonly T[] {
  const [from, count] = ownShare(parts.length);
  return parts.slice(from, from + count);
}
