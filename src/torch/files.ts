/**
 * Reading files by position and replacing files atomically, for the safetensors and checkpoint readers and writers. Tensor data
 * is copied between disk and memory in pieces.
 */
import { randomBytes } from "node:crypto";
import {
  closeSync,
  constants,
  fstatSync,
  fsyncSync,
  openSync,
  readSync,
  renameSync,
  rmSync,
  writeSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";
import { makeFolders } from "#folders";
import { native } from "./binding.js";
import { callTensor, NO_VALUES } from "./call.js";
import { expected } from "./errors.js";
import type { Tensor } from "./tensor.js";

/** Bytes that can be read from any place. */
export interface ByteSource {
  readonly size: number;
  /** Fill `target` from `offset` on. */
  readInto(offset: number, target: Uint8Array): void;
  read(offset: number, length: number): Uint8Array;
}

/** Bytes in memory. */
export class MemoryBytes implements ByteSource {
  readonly size: number;
  readonly #bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    this.size = bytes.length;
    // A Buffer's own slice() shares memory, which readers of a Uint8Array do not expect.
    this.#bytes = new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.length);
  }

  readInto(offset: number, target: Uint8Array): void {
    target.set(this.read(offset, target.length));
  }

  read(offset: number, length: number): Uint8Array {
    if (offset < 0 || offset + length > this.size) {
      throw expected("MemoryBytes.read", `a range inside ${this.size} bytes`, `${offset} + ${length}`);
    }
    return this.#bytes.subarray(offset, offset + length);
  }
}

/** An open regular file. */
export class FileBytes implements ByteSource {
  readonly path: string;
  readonly size: number;
  #fd: number | undefined;

  /** @throws RangeError when `path` cannot be opened or is not a regular file. */
  constructor(path: string) {
    this.path = path;
    try {
      // Otherwise opening a named pipe waits for a program that writes to it.
      this.#fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
    } catch (error) {
      throw expected(path, "a file that can be read", systemReason(error));
    }
    const stat = fstatSync(this.#fd);
    if (!stat.isFile()) {
      this.close();
      throw expected(path, "a regular file", stat.isDirectory() ? "a folder" : "a device or pipe");
    }
    this.size = stat.size;
  }

  readInto(offset: number, target: Uint8Array): void {
    if (this.#fd === undefined)
      throw expected(this.path, "an open file", "a closed one", "Read before closing it");
    let done = 0;
    while (done < target.length) {
      const count = this.#readSome(this.#fd, offset + done, target.subarray(done));
      if (count === 0) {
        const what = `${target.length} bytes at byte ${offset}`;
        throw expected(this.path, what, `${done} before the end of the file`, "The file was cut short");
      }
      done += count;
    }
  }

  #readSome(fd: number, offset: number, target: Uint8Array): number {
    try {
      return readSync(fd, target, 0, Math.min(target.length, CALL_BYTES), offset);
    } catch (error) {
      throw expected(this.path, "a file that can be read", systemReason(error));
    }
  }

  read(offset: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    this.readInto(offset, bytes);
    return bytes;
  }

  close(): void {
    if (this.#fd !== undefined) closeSync(this.#fd);
    this.#fd = undefined;
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** Well below the 2 GiB that one read or write call moves. */
const CALL_BYTES = 2 ** 30;

/** Large enough that calls do not count, small enough to stay in a processor's cache. */
const PIECE_BYTES = 2 ** 20;

/** The operating system's reason, such as `ENOENT: no such file or directory`. */
function systemReason(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/**
 * Go through a contiguous CPU tensor in pieces, each a flat view with a buffer of its size.
 *
 * The bytes are copied by way of the buffer: an ArrayBuffer over the tensor's own memory would keep all of it until
 * the event loop turns, however soon the tensor is disposed of.
 */
function forEachPiece(
  tensor: Tensor,
  elementBytes: number,
  visit: (piece: Tensor, bytes: Uint8Array) => void,
): void {
  const step = PIECE_BYTES / elementBytes;
  const base = tensor.storageOffset;
  const buffer = new Uint8Array(Math.min(PIECE_BYTES, tensor.numel * elementBytes));
  for (let start = 0; start < tensor.numel; start += step) {
    const count = Math.min(step, tensor.numel - start);
    const piece = tensor.asStrided([count], [1], base + start);
    try {
      visit(piece, buffer.subarray(0, count * elementBytes));
    } finally {
      piece.dispose();
    }
  }
}

/** Fill a contiguous CPU tensor from a file. */
export function readTensorData(
  source: ByteSource,
  offset: number,
  tensor: Tensor,
  elementBytes: number,
): void {
  let at = offset;
  forEachPiece(tensor, elementBytes, (piece, bytes) => {
    source.readInto(at, bytes);
    native.writeBytes(piece.live, bytes);
    at += bytes.length;
  });
}

/** Give the bytes of a contiguous CPU tensor to `take`, a piece at a time; `take` must not keep them. */
export function forTensorData(tensor: Tensor, elementBytes: number, take: (bytes: Uint8Array) => void): void {
  forEachPiece(tensor, elementBytes, (piece, bytes) => {
    native.readBytes(piece.live, bytes);
    take(bytes);
  });
}

/** Refuse a tensor that cannot be written. */
export function mustHaveValues(where: string, tensor: Tensor): void {
  if (tensor.device === "meta") throw expected(where, "a tensor with values", tensor, NO_VALUES);
}

/**
 * The tensor's values in row-major CPU memory, for a file. A complex view may be conjugated or negated by a flag
 * alone, which is resolved.
 */
export function plainValues(tensor: Tensor): Tensor {
  const moved = tensor.detach().to({ device: "cpu" });
  const resolved = callTensor<Tensor>("aten::resolve_neg", [callTensor("aten::resolve_conj", [moved])]);
  return resolved.contiguous();
}

/** Append bytes to a file: one call may write fewer than it was given. */
export function writeAll(fd: number, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length; ) {
    done += writeSync(fd, bytes, done, Math.min(bytes.length - done, CALL_BYTES));
  }
}

/**
 * Do something that writes at `path`.
 *
 * @throws RangeError that names the path and a way out, where the system refuses; whatever else `action` throws.
 */
export function writing<T>(path: string, action: () => T): T {
  try {
    return action();
  } catch (error) {
    throw whyNotWritten(path, error);
  }
}

/** Make a folder, and those that it lies in, where it is absent. */
export function makeFolder(path: string): void {
  writing(path, () => {
    try {
      makeFolders(path);
    } catch (error) {
      // The folders above were made too, so it is not one of those that is absent.
      if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
      throw expected(path, "a folder that can be made", "a place where none can be made", "Choose another");
    }
  });
}

/** An error that says what the system refused to write and what to do; any other error unchanged. */
function whyNotWritten(path: string, error: unknown): unknown {
  const { code, syscall } = error as NodeJS.ErrnoException;
  if (syscall === undefined) return error;
  const reason = systemReason(error).replace(/, \w+ '.*$/s, ""); // its path may be a temporary one
  if (code === "ENOSPC" || code === "EDQUOT")
    return expected(path, "room on the disk", reason, "Free some; what stood there before is untouched");
  const remedy = REMEDIES[code ?? ""] ?? "Choose another, or change its permissions";
  return expected(path, "a path that can be written", reason, remedy);
}

/** What to do by the system's reason. */
const REMEDIES: Readonly<Record<string, string>> = {
  ENOENT: "Make its folder first, or put it back if it was moved",
  ENOTDIR: "A part of it is a file: choose another",
  EISDIR: "It is a folder: choose another",
  EROFS: "Choose one on a disk that is not read-only",
  ENAMETOOLONG: "Choose a shorter name",
};

/** Remove the remains of a failed write, a file or a folder. A failure of this removal must not hide the first error. */
export function removeAfterFailure(path: string): void {
  try {
    rmSync(path, { recursive: true, force: true });
  } catch {}
}

/**
 * Write a file at `path` atomically.
 *
 * `content` goes to a file under a temporary name in the same folder, which is flushed to disk and renamed. When
 * anything fails the temporary file is removed and an existing file at `path` stays.
 *
 * @param content - bytes, text, or a function that fills the open file.
 * @throws RangeError when the folder is absent or the disk is full; whatever `content` throws.
 */
export function replaceFile(path: string, content: string | Uint8Array | ((fd: number) => void)): void {
  const folder = dirname(path);
  const temporary = join(folder, `.${basename(path)}.${process.pid}.${randomBytes(4).toString("hex")}.tmp`);
  let fd: number;
  try {
    fd = openSync(temporary, "wx");
  } catch (error) {
    throw whyNotWritten(path, error);
  }
  let isOpen = true;
  try {
    if (typeof content === "function") content(fd);
    else writeAll(fd, typeof content === "string" ? Buffer.from(content) : content);
    fsyncSync(fd);
    isOpen = false;
    closeSync(fd);
    renameSync(temporary, path);
  } catch (error) {
    try {
      if (isOpen) closeSync(fd);
    } catch {} // of a disk that is gone, as the first error says
    removeAfterFailure(temporary);
    throw whyNotWritten(path, error);
  }
  writing(path, () => flushFolder(folder));
}

/** A rename changes the folder, and a power cut loses it unless the folder is flushed. */
export function flushFolder(folder: string): void {
  const fd = openSync(folder, "r");
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}
