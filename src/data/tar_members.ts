/**
 * The members of a tar file, from its headers alone: unlike tar-stream's own extraction it skips the contents. `tar.ts`
 * interprets the members.
 */
import headers from "tar-stream/headers.js";

import { FileBytes } from "../torch/files.js";
import { expected } from "../torch/index.js";

/** A file in a tar. */
export interface Member {
  /** Its name for messages and identities. Bytes that are not UTF-8 are written as `\xE9`. */
  readonly name: string;
  /** Its name byte by byte (latin-1), by which members are told apart. */
  readonly key: string;
  readonly offset: number;
  readonly length: number;
  /** Contents of a member that can be a label: a short one. */
  readonly text?: string;
}

/** The files in a tar, and notes for the user. */
export interface Members {
  readonly list: readonly Member[];
  readonly notes: readonly string[];
}

const BLOCK = 512;

/** How compressed files begin, as latin-1 text, and what unpacks them. */
const COMPRESSED: readonly (readonly [magic: string, got: string, program: string])[] = [
  ["\x1f\x8b", "a compressed one", "gunzip"],
  ["BZh", "a compressed one", "bunzip2"],
  ["\xfd7zXZ", "a compressed one", "unxz"],
  ["\x28\xb5\x2f\xfd", "a compressed one", "unzstd"],
  ["PK\x03\x04", "a zip archive", "unzip"],
];

/** Longest member that is read as a label. */
const LABEL_BYTES = 256;

/** Longest list of attributes or long name of a member. */
const MAX_ATTRIBUTE_BYTES = 2 ** 20;

/** Attributes from the pax and GNU headers before a member, which replace those of its own header. */
type Attributes = Readonly<Record<string, string>>;

/**
 * List the files in a tar. Hard links are the files that they link to. Where the archive ends is judged as GNU tar does:
 * at the end of the file, or at a block of zeros that no other archive follows.
 *
 * @param labelEnding - members with this ending are read, where they are short.
 * @throws RangeError for a file that is compressed, cut short, damaged, or holds other members than files and folders.
 */
export function membersOf(path: string, labelEnding: string): Members {
  using file = new FileBytes(path);
  const { size } = file;
  const start = bytesAt(file, 0, Math.min(size, 6)).toString("latin1");
  const packed = COMPRESSED.find(([magic]) => start.startsWith(magic));
  if (packed !== undefined) {
    const [, got, program] = packed;
    throw expected(path, "a tar file", got, `Unpack it with ${program}: images are read by position`);
  }
  if (size < BLOCK) throw expected(path, "a tar file", `${size} bytes`, "Copy it again");
  const byKey = new Map<string, Member>();
  const list: Member[] = [];
  let shared: Attributes = {};
  let own: Attributes = {};
  let hasEnd = false;
  for (let at = 0; at < size; ) {
    const header = headerAt(file, at, hasEnd);
    if (header === undefined) break;
    at += BLOCK;
    // Zeros end an archive; another may follow, where shards were joined by cat.
    hasEnd = header === null;
    if (header === null) continue;
    const { type } = header;
    const isAttribute = /^(pax|gnu)-/.test(type ?? "");
    const about = isAttribute ? {} : { ...shared, ...own };
    const key = plainPath(about.path ?? header.name);
    const name = memberName(key);
    // A link has no contents of its own, whatever its header says.
    const length = type === "link" ? 0 : lengthOf(path, name, header.size, about.size);
    if (isAttribute) {
      if (length > MAX_ATTRIBUTE_BYTES) {
        throw expected(path, "a sound tar", `a name of ${length} bytes at byte ${at}`);
      }
      const data = bytesAt(file, at, length).toString("latin1");
      if (type === "pax-global-header") shared = { ...shared, ...paxOf(path, data, at) };
      else if (type === "pax-header") own = { ...own, ...paxOf(path, data, at) };
      else own = { ...own, [type === "gnu-long-path" ? "path" : "linkpath"]: data.replace(/\0.*$/s, "") };
    } else {
      own = {};
      const member = memberOf(file, { type, key, name, at, length, about, link: header.linkname }, byKey);
      if (member !== undefined) {
        const isLabel = key.toLowerCase().endsWith(labelEnding) && member.length <= LABEL_BYTES;
        const text = isLabel
          ? bytesAt(file, member.offset, member.length).toString("utf8").trim()
          : undefined;
        const whole = { ...member, ...(text !== undefined && { text }) };
        byKey.set(key, whole);
        list.push(whole);
      }
    }
    // Contents are padded to whole blocks.
    const next = at + Math.ceil(length / BLOCK) * BLOCK;
    if (next > size) throw cut(path, `the padding after ${name}`, `${next - size} bytes less`);
    at = next;
  }
  const note = `${path} lacks the zeros that end a tar: if it was cut short, copy it again`;
  return { list, notes: hasEnd ? [] : [note] };
}

/** A name without the `./`, `/` and `../` before it, which tar drops too. */
const plainPath = (name: string): string => name.replace(/^(?:\.{0,2}\/)+/, "");

type Header = NonNullable<ReturnType<typeof headers.decode>>;

/** Kinds of GNU tar that tar-stream does not know. */
const OTHER_KINDS: Readonly<Record<string, string>> = { V: "volume label", D: "directory", S: "sparse file" };

/** The header of a member, with the attributes from the headers before it. */
interface Head {
  readonly type: string | null;
  readonly key: string;
  readonly name: string;
  readonly at: number;
  readonly length: number;
  readonly about: Attributes;
  readonly link: string | null;
}

/** The file of a header; undefined for a folder. */
function memberOf(file: FileBytes, head: Head, before: ReadonlyMap<string, Member>): Member | undefined {
  const { path, size } = file;
  const { type, key, name, at, length, about, link } = head;
  if (type === "sparse file" || Object.keys(about).some((one) => one.startsWith("GNU.sparse"))) {
    throw expected(path, "whole files", `${name}, a sparse one`, "Write the tar without --sparse");
  }
  switch (type) {
    case "file":
    case "contiguous-file":
      if (at + length > size) throw cut(path, `${length} bytes of ${name}`, `${size - at}`);
      return { name, key, offset: at, length };
    case "link": {
      const target = plainPath(about.linkpath ?? link ?? "");
      const found = before.get(target);
      if (found === undefined) {
        const got = `${name}, a hard link to ${memberName(target)}`;
        throw expected(path, "links to files before them", got, "Write the tar with tar --hard-dereference");
      }
      return { name, key, offset: found.offset, length: found.length };
    }
    case "directory":
    case "volume label":
      return undefined;
    case "symlink": {
      const remedy = "Write the tar with tar --dereference";
      throw expected(path, "files and folders alone", `${name}, a symlink`, remedy);
    }
    default: {
      const what = `${name}, a ${type ?? "member of unknown kind"}`;
      const remedy = "Write the tar with tar --format=pax, of files and folders alone";
      throw expected(path, "files and folders alone", what, remedy);
    }
  }
}

/** The header at a place; null for zeros, undefined where the archive is over. */
function headerAt(file: FileBytes, at: number, isAfterEnd: boolean): Header | null | undefined {
  const { path, size } = file;
  if (at + BLOCK > size) {
    const rest = bytesAt(file, at, size - at);
    if (isAfterEnd || rest.every((byte) => byte === 0)) return undefined;
    throw cut(path, `${BLOCK} bytes at byte ${at}`, `a file of ${size} bytes`);
  }
  const block = bytesAt(file, at, BLOCK);
  try {
    // A right checksum is enough: tars of 1979 have no other mark.
    const header = headers.decode(block, "latin1", true);
    return (
      header && {
        ...header,
        type: header.type ?? OTHER_KINDS[String.fromCharCode(block[156] as number)] ?? null,
      }
    );
  } catch {
    // Anything may follow the zeros, as where a tar was written over a longer file.
    if (isAfterEnd) return undefined;
    throw expected(path, "a tar file", `no header at byte ${at}`, "It is damaged or not a tar");
  }
}

/** Bytes of a member's contents. @throws RangeError where that is no whole number from 0. */
function lengthOf(path: string, name: string, size: number, pax: string | undefined): number {
  const length = pax === undefined ? size : /^\d+$/.test(pax) ? Number(pax) : Number.NaN;
  if (Number.isSafeInteger(length) && length >= 0) return length;
  throw expected(path, `a whole number of bytes from 0 in ${name}`, pax ?? size, "The tar is damaged");
}

/** Attributes of a pax header: records `length key=value`, each ended by a new line. */
function paxOf(path: string, data: string, at: number): Record<string, string> {
  const found: Record<string, string> = {};
  for (let start = 0; start < data.length; ) {
    const length = Number(/^(\d{1,7}) /.exec(data.slice(start, start + 8))?.[1] ?? Number.NaN);
    const record = data.slice(start, start + length);
    const [, key, value] = /^\d+ ([^=]+)=(.*)\n$/s.exec(record) ?? [];
    if (record.length !== length || key === undefined || value === undefined) {
      throw expected(path, "sound attributes", `others at byte ${at + start}`, "The tar is damaged");
    }
    // An empty value takes back what was said for all members.
    if (value === "") delete found[key];
    else found[key] = value;
    start += length;
  }
  return found;
}

/** A name's bytes as text. Names that are not UTF-8 stay distinct. */
function memberName(key: string): string {
  const bytes = Buffer.from(key, "latin1");
  const text = bytes.toString("utf8");
  if (Buffer.from(text, "utf8").equals(bytes)) return text;
  return key.replace(/[\x80-\xff]/g, (one) => `\\x${one.charCodeAt(0).toString(16).toUpperCase()}`);
}

const cut = (path: string, what: string, got: string): RangeError =>
  expected(path, what, got, "The tar was cut short: copy it again");

/** Bytes of a tar. @throws RangeError where the file ends before. */
function bytesAt(file: FileBytes, at: number, length: number): Buffer {
  const { path, size } = file;
  if (at + length > size) throw cut(path, `${length} bytes at byte ${at}`, `a file of ${size} bytes`);
  const bytes = Buffer.alloc(length);
  file.readInto(at, bytes);
  return bytes;
}
