/**
 * TensorBoard's event files: scalars, images, text and hyper-parameters, written record by record. The caller decides
 * what there is. The format is TensorFlow's: records framed by lengths and checksums, each an `Event` in the wire format
 * of protocol buffers.
 */
import { closeSync, fsyncSync, openSync } from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";

import { makeFolder, writeAll, writing } from "../torch/files.js";
import { expected } from "../torch/index.js";

/** CRC-32C of each byte, for the reflected polynomial. */
const CRC_TABLE: Uint32Array = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
  return crc;
});

/** CRC-32C (Castagnoli, as in RFC 3720, appendix B.4) of bytes. */
export function crc32c(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = (crc >>> 8) ^ (CRC_TABLE[(crc ^ byte) & 0xff] as number);
  return ~crc >>> 0;
}

/** The checksum as records store it: rotated and shifted, so that checksums of checksums stay apart. */
function maskedCrc(bytes: Uint8Array): Buffer {
  const crc = crc32c(bytes);
  const mask = Buffer.alloc(4);
  mask.writeUInt32LE((((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0);
  return mask;
}

/** A record: length, its checksum, data, its checksum. */
export function frame(data: Uint8Array): Buffer {
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(data.length));
  return Buffer.concat([length, maskedCrc(length), data, maskedCrc(data)]);
}

function varint(value: number): Buffer {
  const bytes: number[] = [];
  let rest = value;
  for (; rest >= 0x80; rest = Math.floor(rest / 0x80)) bytes.push((rest % 0x80) | 0x80);
  bytes.push(rest);
  return Buffer.from(bytes);
}

/** Field numbers come first, with the kind of what follows: 0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes. */
const tag = (field: number, kind: number): Buffer => varint(field * 8 + kind);

const NOTHING = Buffer.alloc(0);

/** An integer; 0 is the default, which is not written. */
function integer(field: number, value: number): Buffer {
  return value === 0 ? NOTHING : Buffer.concat([tag(field, 0), varint(value)]);
}

function bytes(field: number, value: Uint8Array): Buffer {
  return Buffer.concat([tag(field, 2), varint(value.length), value]);
}

const text = (field: number, value: string): Buffer => bytes(field, Buffer.from(value));

const message = (field: number, ...parts: Buffer[]): Buffer => bytes(field, Buffer.concat(parts));

function float(field: number, value: number): Buffer {
  const data = Buffer.alloc(4);
  data.writeFloatLE(value);
  return Buffer.concat([tag(field, 5), data]);
}

function double(field: number, value: number): Buffer {
  const data = Buffer.alloc(8);
  data.writeDoubleLE(value);
  return Buffer.concat([tag(field, 1), data]);
}

/** A `google.protobuf.Value`. Its zero, false and empty text are written: without them it would have no value. */
function value(of: number | boolean | string): Buffer {
  if (typeof of === "number") return double(2, of);
  return typeof of === "string" ? text(3, of) : Buffer.concat([tag(4, 0), varint(of ? 1 : 0)]);
}

/** An `Event`: seconds since 1970, step, and what happened. */
function event(seconds: number, step: number, what: Buffer): Buffer {
  return Buffer.concat([double(1, seconds), integer(2, step), what]);
}

const FIELD = { fileVersion: 3, summary: 5, sessionLog: 7 } as const;

/** TensorFlow's numbers for tensors of float32 and of texts. */
const DT_FLOAT = 1;
const DT_STRING = 7;

/** How {@link EventWriter} begins. */
export interface EventWriterOptions {
  /** First step after resuming: TensorBoard discards what it has from this step on. */
  readonly resumeAt?: number;
  /** Seconds since 1970. */
  readonly now?: () => number;
}

let files = 0;

/** An event file, of which a folder may hold several: TensorBoard joins them. Close it, or hold it with `using`. */
export class EventWriter implements Disposable {
  readonly path: string;
  readonly #now: () => number;
  #fd: number | null;

  /** @param folder - created where absent. */
  constructor(folder: string, options: EventWriterOptions = {}) {
    const { resumeAt, now = () => Date.now() / 1000 } = options;
    this.#now = now;
    makeFolder(folder);
    const seconds = String(Math.floor(now())).padStart(10, "0");
    this.path = join(folder, `events.out.tfevents.${seconds}.${hostname()}.${process.pid}.${files++}`);
    this.#fd = writing(this.path, () => openSync(this.path, "wx"));
    this.#write(0, text(FIELD.fileVersion, "brain.Event:2"));
    if (resumeAt !== undefined) this.#write(resumeAt, message(FIELD.sessionLog, integer(1, 1))); // status START
  }

  /** Numbers by name, such as `{ "reward/mean": -0.03 }`; single precision. */
  scalars(step: number, values: Readonly<Record<string, number>>): void {
    const entries = Object.entries(values);
    if (entries.length === 0) return;
    const parts = entries.map(([name, value]) => message(1, text(1, name), float(2, value)));
    this.#write(step, message(FIELD.summary, ...parts));
  }

  /**
   * A PNG of any size.
   *
   * @throws RangeError for bytes that are not a PNG.
   */
  image(step: number, name: string, png: Uint8Array): void {
    const { width, height, colors } = headerOf(png);
    const image = message(4, integer(1, height), integer(2, width), integer(3, colors), bytes(4, png));
    this.#write(step, message(FIELD.summary, message(1, text(1, name), image)));
  }

  /** Text, which TensorBoard shows as Markdown. */
  text(step: number, name: string, value: string): void {
    const shape = message(2, message(2, integer(1, 1)));
    const tensor = message(8, integer(1, DT_STRING), shape, text(8, value));
    const plugin = message(9, message(1, text(1, "text")));
    this.#write(step, message(FIELD.summary, message(1, text(1, name), tensor, plugin)));
  }

  /**
   * The hyper-parameters of the run, for TensorBoard's tab of that name, which sets all runs below its folder side by side
   * and finds their metrics itself.
   */
  hparams(values: Readonly<Record<string, number | boolean | string>>): void {
    const entries = Object.entries(values).map(([name, one]) =>
      message(1, text(1, name), message(2, value(one))),
    );
    const start = message(3, ...entries, double(5, this.#now())); // session_start_info
    const plugin = message(9, message(1, text(1, "hparams"), bytes(2, start)));
    const nothing = message(8, integer(1, DT_FLOAT), message(2, message(2))); // float32 [0]
    const name = text(1, "_hparams_/session_start_info");
    this.#write(0, message(FIELD.summary, message(1, name, nothing, plugin)));
  }

  /** Wait until all is on the disk. */
  flush(): void {
    if (this.#fd !== null) fsyncSync(this.#fd);
  }

  close(): void {
    if (this.#fd !== null) closeSync(this.#fd);
    this.#fd = null;
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #write(step: number, what: Buffer): void {
    if (this.#fd === null) throw expected("EventWriter", "an open file", `${this.path}, which was closed`);
    if (!Number.isSafeInteger(step) || step < 0) throw expected("EventWriter", "a step of at least 0", step);
    const fd = this.#fd;
    writing(this.path, () => writeAll(fd, frame(event(this.#now(), step, what))));
  }
}

const PNG_START = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);

/** Channels of PNG's colour types: grey, colours, palette, grey with transparency, colours with it. */
const COLORS: Readonly<Record<number, number>> = { 0: 1, 2: 3, 3: 3, 4: 2, 6: 4 };

function headerOf(png: Uint8Array): { width: number; height: number; colors: number } {
  const data = Buffer.from(png.buffer, png.byteOffset, png.length);
  const colors =
    data.length < 33 || !data.subarray(0, 8).equals(PNG_START) ? undefined : COLORS[data[25] as number];
  if (colors === undefined) throw expected("EventWriter.image", "a PNG", `${data.length} other bytes`);
  return { width: data.readUInt32BE(16), height: data.readUInt32BE(20), colors };
}
