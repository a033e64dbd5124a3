/**
 * Reader and writer of NumPy's `.npz` archives: a zip with a `.npy` file for each array, not compressed. Data are written in pieces,
 * so that an archive may be larger than memory: 50,000 images of 256 px are 9.8 GB. That size needs the 64-bit fields of our
 * own zip writer, which fflate does not have. Format: NumPy's NEP 1 (version 1.0).
 */
import { FileBytes, replaceFile } from "../torch/files.js";
import { expected } from "../torch/index.js";
import { ZipArchive } from "../torch/zip.js";
import { ZipWriter } from "../torch/zip_writer.js";
import { type RawArray, readNpy, toFloat32 } from "./npy.js";

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

/** An array of an archive is smaller. */
const MAX_ARRAY_BYTES = 2 ** 30;

/**
 * Read some arrays of an `.npz` archive, deflated or not. Others are not read, however large.
 *
 * @param names - of arrays, without `.npy`.
 * @returns those that the archive has.
 * @throws RangeError when the file is no zip, or an array is damaged.
 */
export function readNpz(path: string, names: readonly string[]): Record<string, RawArray> {
  const file = new FileBytes(path);
  try {
    const archive = new ZipArchive(file, path);
    const found = names.flatMap((name) => {
      const entry = archive.entries.get(`${name}.npy`);
      return entry === undefined
        ? []
        : [[name, readNpy(archive.read(entry, MAX_ARRAY_BYTES), `${path}: ${name}`)]];
    });
    return Object.fromEntries(found);
  } finally {
    file.close();
  }
}

/** Numbers of an array as float64. @throws RangeError when it holds whole numbers. */
export function toFloat64(array: RawArray, name: string): Float64Array {
  if (array.type === "f8") return new Float64Array(new Uint8Array(array.bytes).buffer);
  return Float64Array.from(toFloat32(array, name));
}
