/**
 * Writer of NumPy's `.npz` archives: a zip with a `.npy` file for each array, not compressed. Data are written in pieces, so
 * that an archive may be larger than memory: 50,000 images of 256 px are 9.8 GB. That size needs the 64-bit fields of our
 * own zip writer, which fflate does not have. Format: NumPy's NEP 1 (version 1.0).
 */
import { replaceFile } from "../torch/files.js";
import { expected } from "../torch/index.js";
import { ZipWriter } from "../torch/zip_writer.js";

/** An array to write. */
export interface NpzArray {
  /** `u1`, `i8`, `f4`, ...: `i`, `u` or `f` and the bytes of one number. */
  readonly type: string;
  readonly shape: readonly number[];
  /** Its numbers, little-endian and row-major, in pieces of any size. Gone through once. */
  readonly data: Iterable<Uint8Array>;
}

/**
 * Write arrays to an archive. It is there whole or not at all, and the same arrays give the same bytes.
 *
 * @param arrays - by name; `arr_0`, `arr_1`, ... is what readers expect of arrays without one.
 * @throws RangeError when an array's data are not as long as its shape says, or the disk is full.
 */
export function writeNpz(path: string, arrays: Readonly<Record<string, NpzArray>>): void {
  replaceFile(path, (fd) => {
    const zip = new ZipWriter(fd);
    for (const [key, { type, shape, data }] of Object.entries(arrays)) {
      const header = npyHeader(type, shape);
      const bytes = shape.reduce((product, size) => product * size, Number(type.slice(1)));
      zip.add(`${key}.npy`, header.length + bytes, (put) => {
        put(header);
        let length = 0;
        for (const piece of data) {
          put(piece);
          length += piece.length;
        }
        if (length === bytes) return;
        throw expected(`writeNpz: ${key}`, `${bytes} bytes for ${type} [${shape.join(", ")}]`, length);
      });
    }
    zip.finish();
  });
}

/** The header of a `.npy` file of version 1.0; data begin at a multiple of 64. */
function npyHeader(type: string, shape: readonly number[]): Buffer {
  const descr = `${type.endsWith("1") ? "|" : "<"}${type}`;
  const sizes = shape.length === 1 ? `${shape[0]},` : shape.join(", ");
  const text = `{'descr': '${descr}', 'fortran_order': False, 'shape': (${sizes}), }`;
  const padded = text.padEnd(Math.ceil((text.length + 11) / 64) * 64 - 11);
  const head = Buffer.from("\u0093NUMPY\u0001\u0000\u0000\u0000", "latin1");
  head.writeUInt16LE(padded.length + 1, 8);
  return Buffer.concat([head, Buffer.from(`${padded}\n`, "latin1")]);
}
