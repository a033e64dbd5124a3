/**
 * Text files by the line, in pieces: the record of a long run is longer than the longest string (512 MiB). What the lines hold
 * is for `log.ts` and the report.
 */
import { closeSync, constants, openSync, readSync } from "node:fs";

import { replaceFile, writeAll } from "../torch/files.js";

/** Bytes that are read or written at once. */
const PIECE_BYTES = 2 ** 20;

/** A longer line is no record; it is given as an empty one. */
const MAX_LINE_BYTES = 2 ** 26;

/** The lines of a UTF-8 file, each with its line break; the last one may have none. */
export function* fileLines(path: string, pieceBytes: number = PIECE_BYTES): Generator<string> {
  // Otherwise opening a named pipe waits for a program that writes to it.
  const fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  try {
    const buffer = Buffer.alloc(pieceBytes);
    // A line that spans several pieces; its bytes are joined before they are decoded, as a character may span two.
    let parts: Buffer[] = [];
    let length = 0;
    for (let count = readSync(fd, buffer); count > 0; count = readSync(fd, buffer)) {
      let start = 0;
      while (start < count) {
        const at = buffer.subarray(0, count).indexOf(10, start);
        const end = at < 0 ? count : at + 1;
        length += end - start;
        if (length > MAX_LINE_BYTES) parts = [];
        else parts.push(Buffer.from(buffer.subarray(start, end)));
        start = end;
        if (at < 0) break;
        yield length > MAX_LINE_BYTES ? "\n" : Buffer.concat(parts).toString();
        parts = [];
        length = 0;
      }
    }
    if (length > 0) yield Buffer.concat(parts).toString();
  } finally {
    closeSync(fd);
  }
}

/** Write lines, each with its line break, to a file that is replaced as a whole; they may be read from that file. */
export function replaceLines(path: string, lines: Iterable<string>): void {
  replaceFile(path, (fd) => {
    let text = "";
    for (const line of lines) {
      text += line;
      if (text.length < PIECE_BYTES) continue;
      writeAll(fd, Buffer.from(text));
      text = "";
    }
    writeAll(fd, Buffer.from(text));
  });
}
