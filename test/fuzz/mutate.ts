/** Random changes to files, each decided by a seed, a format and the number of the try alone. */
import { createHash } from "node:crypto";

/** Random numbers of one try. */
export class Dice {
  #state: number;

  constructor(seed: number, format: string, number: number) {
    this.#state = createHash("sha256").update(`${seed}/${format}/${number}`).digest().readUInt32LE(0);
  }

  /** A whole number from 0 to `count - 1`: Mulberry32. */
  below(count: number): number {
    this.#state = (this.#state + 0x6d2b79f5) | 0;
    let t = Math.imul(this.#state ^ (this.#state >>> 15), 1 | this.#state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return Math.floor((((t ^ (t >>> 14)) >>> 0) / 2 ** 32) * count);
  }

  of<T>(choices: readonly T[]): T {
    return choices[this.below(choices.length)] as T;
  }
}

/** Numbers at which readers go wrong. */
const ODD = [0n, 1n, 127n, 128n, 255n, 256n, 511n, 512n, 32767n, 65535n, 65536n];
const LARGE = [
  2n ** 31n - 1n,
  2n ** 31n,
  2n ** 32n - 1n,
  2n ** 53n,
  2n ** 63n - 1n,
  2n ** 63n,
  2n ** 64n - 1n,
];

/** What stands in texts in the place of a number or a word. */
const WORDS = [
  "0",
  "-1",
  "0.5",
  "1e30",
  "4294967296",
  "99999999999999999999",
  "NaN",
  "null",
  "",
  "true",
  "[]",
  "{}",
  "\\ud800",
];

/** Up to eight changes of bytes; `others` gives pieces to copy in. */
export function changeBytes(bytes: Buffer, dice: Dice, others: readonly Buffer[]): Buffer {
  let made: Buffer = Buffer.from(bytes);
  for (let left = 1 + dice.below(8); left > 0; left--) made = changeOnce(made, dice, others);
  return made;
}

function changeOnce(bytes: Buffer, dice: Dice, others: readonly Buffer[]): Buffer {
  const { length } = bytes;
  if (length === 0) return Buffer.from([dice.below(256)]);
  // Ends hold footers and indices, starts hold headers.
  const at = dice.of([
    dice.below(length),
    dice.below(Math.min(length, 64)),
    length - 1 - dice.below(Math.min(length, 256)),
  ]);
  const end = Math.min(length, at + 1 + dice.below(64));
  switch (dice.below(9)) {
    case 0:
      bytes[at] = dice.below(256);
      return bytes;
    case 1:
      bytes[at] = (bytes[at] as number) ^ (1 << dice.below(8));
      return bytes;
    case 2:
    case 3: {
      const size = dice.of([1, 2, 4, 8]);
      const value = BigInt.asUintN(8 * size, dice.of(dice.of([ODD, LARGE])));
      const field = Buffer.from(value.toString(16).padStart(2 * size, "0"), "hex");
      if (dice.below(2) === 0) field.reverse();
      field.copy(bytes, at);
      return bytes;
    }
    case 4:
      return Buffer.concat([bytes.subarray(0, at), bytes.subarray(end)]);
    case 5:
      return Buffer.concat([bytes.subarray(0, end), bytes.subarray(at)]);
    case 6:
      return bytes.subarray(0, at);
    case 7: {
      const other = dice.of(others);
      const from = dice.below(other.length);
      const piece = other.subarray(from, from + 1 + dice.below(256));
      return Buffer.concat([bytes.subarray(0, at), piece, bytes.subarray(at)]);
    }
    default:
      bytes.fill(dice.of([0, 0xff, dice.below(256)]), at, end);
      return bytes;
  }
}

/** A text with numbers, words or lines changed. */
export function changeText(text: string, dice: Dice): string {
  let made = text;
  for (let left = 1 + dice.below(4); left > 0; left--) {
    const lines = made.split("\n");
    const line = dice.below(lines.length);
    switch (dice.below(6)) {
      case 0:
        lines.splice(line, 1);
        break;
      case 1:
        lines.splice(line, 0, dice.of(lines));
        break;
      case 2:
        lines[line] = `${" ".repeat(dice.below(6))}${(lines[line] as string).trimStart()}`;
        break;
      case 3:
        lines[line] =
          `${lines[line]}${dice.of(["&a", " *a", ": ", "{", "[", "]", "}", "\0", "\t", "- ", "!!js/function", "<<: *a", '"'])}`;
        break;
      default: {
        // A number or a word, wherever it stands.
        const found = [...(lines[line] as string).matchAll(/-?\d[\d.e+-]*|[A-Za-z_]\w*/g)];
        if (found.length === 0) break;
        const { 0: word, index } = dice.of(found);
        const whole = lines[line] as string;
        lines[line] = `${whole.slice(0, index)}${dice.of(WORDS)}${whole.slice(index + word.length)}`;
      }
    }
    made = lines.join("\n");
  }
  return made;
}
