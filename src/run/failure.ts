/** Errors of a run: the first cause, with advice for the user. Loads no LibTorch, since every command has this. */
import { expected } from "../torch/errors.js";

/** Training produced numbers that are not finite; the last checkpoint is from before that. `rlar` ends with exit code 4. */
export class DivergedError extends Error {
  override readonly name = "DivergedError";
}

/**
 * The first error. If disposing of resources fails too, JavaScript's SuppressedError hides the first error; this returns the
 * first one, with the others named after it.
 */
export function firstError(error: unknown): unknown {
  const later: string[] = [];
  let first = error;
  while (first instanceof Error && first.name === "SuppressedError" && "suppressed" in first) {
    const { error: after } = first as unknown as { error: unknown };
    const message = after instanceof Error ? after.message : String(after);
    later.unshift(message);
    first = first.suppressed;
  }
  if (first instanceof Error) {
    // A full disk is full for every file: its path aside, one message is enough.
    const kind = (message: string): string => message.replace(/^.*?: expected/, "expected");
    const known = new Set([kind(first.message)]);
    for (const message of later) {
      if (!known.has(kind(message))) first.message += `\nand then ${message}`;
      known.add(kind(message));
    }
  }
  return first;
}

/** Words of allocators: of LibTorch on the CPU and on CUDA, of JavaScript, and of our own tensors where they name the bytes. */
const NO_MEMORY =
  /can't allocate memory|not enough memory|of free memory|out of memory|ENOMEM|bad_alloc|Array buffer allocation failed|Invalid typed array length/i;

/** Of Node.js where the process's address space is limited: it reserves 10 GB for a module of WebAssembly. */
const NO_ADDRESSES = /Cannot allocate Wasm memory/i;

/**
 * Run a training or a command, and turn its errors into the first cause with advice.
 *
 * @param memory - what to lower when memory runs out, as a sentence without its full stop.
 */
export async function explained<T>(memory: string, run: () => T | Promise<T>): Promise<T> {
  try {
    return await run();
  } catch (thrown) {
    const error = firstError(thrown);
    if (!(error instanceof Error)) throw error;
    if (NO_MEMORY.test(error.message)) {
      const [, tried, wanted = tried] =
        /tried to allocate ([\d.]+ ?\w+)|([\d.]+ \w+) of free memory/i.exec(error.message) ?? [];
      const isLimited = NO_ADDRESSES.test(error.message);
      const told = isLimited
        ? expected("memory", "10 GB of address space", "a limit below it", "Raise it with ulimit -v")
        : expected(
            "memory",
            wanted === undefined ? "enough of it" : `room for ${sizeOf(wanted)}`,
            "less",
            memory,
          );
      told.cause = error;
      throw told;
    }
    throw error;
  }
}

/** {@link explained}, for a training, in which too large weights are a divergence. */
export async function explainedTraining<T>(memory: string, loop: () => Promise<T>): Promise<T> {
  try {
    return await explained(memory, loop);
  } catch (error) {
    // Weights are finite and still so large that what is computed with them is not.
    if (error instanceof Error && /finite logits/.test(error.message))
      throw new DivergedError(error.message, { cause: error });
    throw error;
  }
}

/** Such as `312.5 MiB` of `327680000 bytes`; a size in another unit stays. */
function sizeOf(text: string): string {
  const bytes = /^(\d+) bytes$/.exec(text)?.[1];
  return bytes === undefined ? text : `${(Number(bytes) / 2 ** 20).toFixed(1)} MiB`;
}
