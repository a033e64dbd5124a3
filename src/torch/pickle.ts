/**
 * Reader of Python pickles, protocols 0 to 5, that executes nothing: a class or function that is not on a short list of
 * plain data becomes an inert record (python_values.ts). The caller makes tensors, in `persistentLoad` and `call`.
 */
import { expected } from "./errors.js";
import type { ByteSource } from "./files.js";
import { callKnown, integer, isDeeperThan, kindOf, Opaque, PyGlobal, pyGlobal } from "./python_values.js";

interface UnpickleOptions {
  /** Named at the head of every error. */
  where: string;
  /** Byte where the pickle begins. */
  start?: number;
  /**
   * Give the object for a persistent id (storages, in PyTorch's files). Without it such an id is an error.
   */
  persistentLoad?: (id: unknown, where: string) => unknown;
  /** Give the result of a call that is not plain Python data, or undefined for an inert record of it. */
  call?: (callee: PyGlobal, args: readonly unknown[], where: string) => unknown;
}

/** Containers inside containers. Python's own pickler stops near this depth. */
const MAX_DEPTH = 1000;

/** Python's limit on the digits of an int in text; used for the bytes of a binary one as well. */
const MAX_DIGITS = 4300;

const EMPTY: ReadonlyMap<unknown, unknown> = new Map();

const DAMAGED = "The file is damaged or hostile";

/** Characters of a module or class name. */
const MAX_NAME = 1024;

/** Opcodes by byte, as CPython's pickletools names them. */
const OPCODES: readonly (string | undefined)[] = opcodeTable(
  "( MARK . STOP 0 POP 1 POP_MARK 2 DUP F FLOAT I INT J BININT K BININT1 L LONG M BININT2 N NONE P PERSID Q BINPERSID " +
    "R REDUCE S STRING T BINSTRING U SHORT_BINSTRING V UNICODE X BINUNICODE a APPEND b BUILD c GLOBAL d DICT } EMPTY_DICT " +
    "e APPENDS g GET h BINGET i INST j LONG_BINGET l LIST ] EMPTY_LIST o OBJ p PUT q BINPUT r LONG_BINPUT s SETITEM " +
    "t TUPLE ) EMPTY_TUPLE u SETITEMS G BINFLOAT B BINBYTES C SHORT_BINBYTES",
  // From 0x80: protocol 2, then 3 to 5 (0x8c on).
  "PROTO NEWOBJ EXT1 EXT2 EXT4 TUPLE1 TUPLE2 TUPLE3 NEWTRUE NEWFALSE LONG1 LONG4 SHORT_BINUNICODE BINUNICODE8 " +
    "BINBYTES8 EMPTY_SET ADDITEMS FROZENSET NEWOBJ_EX STACK_GLOBAL MEMOIZE FRAME BYTEARRAY8 NEXT_BUFFER READONLY_BUFFER",
);

function opcodeTable(printable: string, from0x80: string): (string | undefined)[] {
  const table: (string | undefined)[] = [];
  const words = printable.split(" ");
  for (let i = 0; i < words.length; i += 2) table[(words[i] as string).charCodeAt(0)] = words[i + 1];
  for (const [i, name] of from0x80.split(" ").entries()) table[0x80 + i] = name;
  return table;
}

/**
 * Read one pickle.
 *
 * A file may hold several, one after the other: `end` is the byte after this one.
 *
 * @throws RangeError naming the byte and the opcode when the pickle is damaged, cut short, hostile (a length
 *   past the end, a bomb of copies, nesting past 1,000) or asks for what cannot be served without running
 *   code (extension codes, out-of-band buffers).
 */
export function unpickle(source: ByteSource, options: UnpickleOptions): { value: unknown; end: number } {
  return new Unpickler(source, options).load();
}

/** That many values off the stack. */
interface Values {
  1: [unknown];
  2: [unknown, unknown];
  3: [unknown, unknown, unknown];
}

class Unpickler {
  readonly #options: UnpickleOptions;
  readonly #input: Input;
  readonly #stack: unknown[] = [];
  /** Heights of the stack at each open MARK. */
  readonly #marks: number[] = [];
  readonly #memo = new Map<number, unknown>();
  /** Bytes that calls may still copy. A regular pickle writes each value once, so its length is the limit. */
  #copyBudget: number;
  #at = 0;
  #op = "";

  constructor(source: ByteSource, options: UnpickleOptions) {
    this.#options = options;
    const start = options.start ?? 0;
    this.#input = new Input(source, start, (what, got) => this.#fail(what, got));
    this.#copyBudget = source.size - start;
  }

  load(): { value: unknown; end: number } {
    const input = this.#input;
    for (;;) {
      this.#at = input.position;
      this.#op = "opcode";
      const code = input.byte();
      const op = OPCODES[code];
      if (op === undefined) throw this.#fail("a pickle opcode", `0x${code.toString(16).padStart(2, "0")}`);
      this.#op = op;
      if (op === "STOP") break;
      const value = Unpickler.#values[op];
      if (value !== undefined) {
        this.#stack.push(value(this));
        continue;
      }
      const action = Unpickler.#actions[op];
      if (action === undefined) throw this.#fail("an opcode that needs nothing outside the file", op);
      action(this);
    }
    const value = this.#pop();
    if (isDeeperThan(value, MAX_DEPTH))
      throw this.#fail(`at most ${MAX_DEPTH} containers inside each other`, "more");
    return { value, end: input.position };
  }

  /** Opcodes that put one value on the stack. */
  static readonly #values: Readonly<Record<string, (u: Unpickler) => unknown>> = {
    NONE: () => null,
    NEWTRUE: () => true,
    NEWFALSE: () => false,
    BININT: (u) => u.#input.int32(),
    BININT1: (u) => u.#input.byte(),
    BININT2: (u) => u.#input.view(2).getUint16(0, true),
    LONG1: (u) => u.#long(u.#input.byte()),
    LONG4: (u) => u.#long(u.#input.int32()),
    INT: (u) => u.#intText(u.#input.line(), true),
    LONG: (u) => u.#intText(u.#input.line().replace(/L$/, ""), false),
    BINFLOAT: (u) => u.#input.view(8).getFloat64(0, false),
    FLOAT: (u) => u.#floatText(u.#input.line()),

    SHORT_BINUNICODE: (u) => u.#utf8(u.#input.take(u.#input.byte())),
    BINUNICODE: (u) => u.#utf8(u.#input.take(u.#input.uint32())),
    BINUNICODE8: (u) => u.#utf8(u.#input.take(u.#input.uint64())),
    UNICODE: (u) => unescapeUnicode(u.#input.line()),
    SHORT_BINSTRING: (u) => byteString(u.#input.take(u.#input.byte())),
    BINSTRING: (u) => byteString(u.#input.take(u.#input.int32())),
    STRING: (u) => u.#quoted(u.#input.line()),
    SHORT_BINBYTES: (u) => new Uint8Array(u.#input.take(u.#input.byte())),
    BINBYTES: (u) => new Uint8Array(u.#input.take(u.#input.uint32())),
    BINBYTES8: (u) => new Uint8Array(u.#input.take(u.#input.uint64())),
    BYTEARRAY8: (u) => new Uint8Array(u.#input.take(u.#input.uint64())),

    EMPTY_TUPLE: () => [],
    EMPTY_LIST: () => [],
    EMPTY_DICT: () => new Map(),
    EMPTY_SET: () => new Set(),
    TUPLE: (u) => u.#popMark(),
    LIST: (u) => u.#popMark(),
    TUPLE1: (u) => u.#popCount(1),
    TUPLE2: (u) => u.#popCount(2),
    TUPLE3: (u) => u.#popCount(3),
    DICT: (u) => u.#setItems(new Map(), u.#popMark()),
    FROZENSET: (u) => new Set(u.#popMark()),
    DUP: (u) => u.#top(),
    GET: (u) => u.#recall(u.#index(u.#input.line())),
    BINGET: (u) => u.#recall(u.#input.byte()),
    LONG_BINGET: (u) => u.#recall(u.#input.uint32()),

    GLOBAL: (u) => u.#global(u.#input.line(), u.#input.line()),
    STACK_GLOBAL: (u) => u.#global(...u.#popCount(2)),
    REDUCE: (u) => u.#call(...u.#popCount(2)),
    NEWOBJ: (u) => u.#call(...u.#popCount(2)),
    NEWOBJ_EX: (u) => u.#call(...u.#popCount(3)),
    INST: (u) => new Opaque<unknown>(u.#global(u.#input.line(), u.#input.line()), u.#popMark()),
    OBJ: (u) => {
      const [callee, ...args] = u.#popMark();
      return new Opaque<unknown>(callee, args);
    },
    PERSID: (u) => u.#persistent(u.#input.line()),
    BINPERSID: (u) => u.#persistent(u.#pop()),
  };

  /**
   * Opcodes that change the stack, the memo or an object. EXT and buffer opcodes are missing: they need data outside the file.
   */
  static readonly #actions: Readonly<Record<string, (u: Unpickler) => void>> = {
    PROTO: (u) => {
      const protocol = u.#input.byte();
      if (protocol > 5) throw u.#fail("a pickle protocol from 0 to 5", protocol);
    },
    // The frame's bytes follow as ordinary opcodes: only its length can be wrong.
    FRAME: (u) => u.#input.need(u.#input.uint64()),
    MARK: (u) => u.#marks.push(u.#stack.length),
    POP: (u) => (u.#stack.length === u.#marks.at(-1) ? u.#popMark() : u.#pop()),
    POP_MARK: (u) => u.#popMark(),
    APPEND: (u) => u.#addItems(u.#popCount(1)),
    APPENDS: (u) => u.#addItems(u.#popMark()),
    ADDITEMS: (u) => u.#addItems(u.#popMark()),
    SETITEM: (u) => u.#setTop(u.#popCount(2)),
    SETITEMS: (u) => u.#setTop(u.#popMark()),
    PUT: (u) => u.#memo.set(u.#index(u.#input.line()), u.#top()),
    BINPUT: (u) => u.#memo.set(u.#input.byte(), u.#top()),
    LONG_BINPUT: (u) => u.#memo.set(u.#input.uint32(), u.#top()),
    MEMOIZE: (u) => u.#memo.set(u.#memo.size, u.#top()),
    BUILD: (u) => u.#build(u.#pop()),
  };

  #fail(what: string, got: string | number): RangeError {
    return expected(this.#where(), what, got, DAMAGED);
  }

  #where(): string {
    return `${this.#options.where}, byte ${this.#at}, ${this.#op}`;
  }

  /** The top of the stack, above the last MARK: what lies below belongs to a container still open. */
  #top(): unknown {
    if (this.#stack.length <= (this.#marks.at(-1) ?? 0)) throw this.#fail("an operand on the stack", "none");
    return this.#stack.at(-1);
  }

  #pop(): unknown {
    const value = this.#top();
    this.#stack.pop();
    return value;
  }

  #popCount<N extends 1 | 2 | 3>(count: N): Values[N] {
    const values: unknown[] = [];
    for (let i = 0; i < count; i++) values.push(this.#pop());
    return values.reverse() as Values[N];
  }

  #popMark(): unknown[] {
    const mark = this.#marks.pop();
    if (mark === undefined) throw this.#fail("a MARK on the stack", "none");
    return this.#stack.splice(mark);
  }

  #addItems(items: unknown[]): void {
    const target = this.#top();
    const list = target instanceof Opaque ? target.items : target;
    if (list instanceof Set) for (const item of items) list.add(item);
    else if (Array.isArray(list)) for (const item of items) list.push(item);
    else throw this.#fail("a list or a set", kindOf(target));
  }

  #setTop(items: unknown[]): void {
    const target = this.#top();
    const map = target instanceof Opaque ? target.entries : target;
    if (!(map instanceof Map)) throw this.#fail("a dict", kindOf(target));
    this.#setItems(map, items);
  }

  #setItems(map: Map<unknown, unknown>, items: unknown[]): Map<unknown, unknown> {
    if (items.length % 2 !== 0) throw this.#fail("pairs of key and value", `${items.length} values`);
    for (let i = 0; i < items.length; i += 2) map.set(items[i], items[i + 1]);
    return map;
  }

  #recall(index: number): unknown {
    if (!this.#memo.has(index)) throw this.#fail("a memo entry that was stored before", index);
    return this.#memo.get(index);
  }

  #index(text: string): number {
    if (!/^\d{1,10}$/.test(text)) throw this.#fail("a memo index", kindOf(text));
    return Number(text);
  }

  #global(module: unknown, name: unknown): PyGlobal {
    return pyGlobal(this.#name(module), this.#name(name));
  }

  #name(value: unknown): string {
    if (typeof value === "string" && value !== "" && value.length <= MAX_NAME) return value;
    throw this.#fail(`a name of 1 to ${MAX_NAME} characters`, kindOf(value));
  }

  /** A record of the call, or its result when the callee is plain data. The file's code is never reached. */
  #call(callee: unknown, args: unknown, kwargs: unknown = EMPTY): unknown {
    if (!Array.isArray(args)) throw this.#fail("a tuple of arguments", kindOf(args));
    if (!(kwargs instanceof Map)) throw this.#fail("a dict of keyword arguments", kindOf(kwargs));
    if (!(callee instanceof PyGlobal || callee instanceof Opaque)) {
      throw this.#fail("a class or function to call", kindOf(callee));
    }
    const record = new Opaque<unknown>(callee, args);
    if (kwargs.size > 0) record.kwargs = kwargs;
    if (kwargs.size > 0 || callee instanceof Opaque) return record;
    // Protocols 0 and 1 spell NEWOBJ as a call: the class, a base of it, and what that base holds.
    if (callee.module === "copyreg" && callee.name === "_reconstructor") {
      const [cls, , content] = args;
      const object = new Opaque<unknown>(cls, []);
      if (Array.isArray(content)) object.items = content;
      else if (content instanceof Map) object.entries = content;
      else if (content !== null) object.args = [content];
      return object;
    }
    const known = callKnown(callee, args, (size) => this.#charge(size));
    return known ?? this.#options.call?.(callee, args, this.#where()) ?? record;
  }

  #charge(size: number): void {
    this.#copyBudget -= size;
    if (this.#copyBudget < 0) throw this.#fail("calls that copy no more than the file holds", "more");
  }

  /**
   * State goes to the record. On plain data it is dropped: `_metadata` on a state dict, attributes on a
   * tensor.
   */
  #build(state: unknown): void {
    const target = this.#top();
    if (target instanceof Opaque) target.state = state;
    else if (typeof target !== "object" || target === null || target instanceof PyGlobal) {
      throw this.#fail("an object to give state to", kindOf(target));
    }
  }

  #persistent(id: unknown): unknown {
    const load = this.#options.persistentLoad;
    if (load === undefined) throw this.#fail("a pickle without persistent ids", kindOf(id));
    return load(id, this.#where());
  }

  /** Two's complement, little-endian. */
  #long(length: number): number | bigint {
    if (length < 0 || length > MAX_DIGITS)
      throw this.#fail(`an int of 0 to ${MAX_DIGITS} bytes`, `${length} bytes`);
    if (length === 0) return 0;
    const bytes = Buffer.from(this.#input.take(length)).reverse();
    return integer(BigInt.asIntN(length * 8, BigInt(`0x${bytes.toString("hex")}`)));
  }

  #intText(text: string, mayBeBool: boolean): number | bigint | boolean {
    if (mayBeBool && (text === "00" || text === "01")) return text === "01";
    if (!/^\s*[+-]?\d+\s*$/.test(text) || text.length > MAX_DIGITS) {
      throw this.#fail(`an int of at most ${MAX_DIGITS} digits`, kindOf(text));
    }
    // BigInt takes no sign "+" on its text.
    return integer(BigInt(text.trim().replace(/^\+/, "")));
  }

  #floatText(text: string): number {
    const special = /^([+-]?)(inf|nan)$/.exec(text);
    if (special) return special[2] === "nan" ? NaN : special[1] === "-" ? -Infinity : Infinity;
    // The pattern is slow to refuse a long run of digits; Python writes at most 25 characters.
    if (text.length > 100 || !/^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text)) {
      throw this.#fail("a float", kindOf(text));
    }
    return Number(text);
  }

  #utf8(bytes: Uint8Array): string {
    const text = decodeUtf8(bytes);
    if (text === undefined) throw this.#fail("UTF-8 text", "other bytes");
    return text;
  }

  #quoted(line: string): string | Uint8Array {
    const text = line.trim();
    const quote = text[0];
    if (text.length < 2 || (quote !== "'" && quote !== '"') || text.at(-1) !== quote) {
      throw this.#fail("a quoted string", kindOf(text));
    }
    return byteString(Buffer.from(unescapeBytes(text.slice(1, -1)), "latin1"));
  }
}

/** Fails with the unpickler's place in the file. */
type Fail = (what: string, got: string | number) => RangeError;

/** Bytes in order, through a window: a legacy checkpoint has gigabytes of tensor data behind its pickle. */
class Input {
  position: number;
  readonly #source: ByteSource;
  readonly #fail: Fail;
  #window: Uint8Array = new Uint8Array();
  #windowStart: number;

  constructor(source: ByteSource, start: number, fail: Fail) {
    this.#source = source;
    this.#fail = fail;
    this.position = start;
    this.#windowStart = start;
  }

  /** Check a length before anything of that size is made. */
  need(length: number): void {
    const left = this.#source.size - this.position;
    if (length < 0 || length > left) throw this.#fail(`${length} bytes`, `${left} before the end`);
  }

  byte(): number {
    const inWindow = this.position - this.#windowStart;
    if (inWindow < this.#window.length) {
      this.position++;
      return this.#window[inWindow] as number;
    }
    return this.take(1)[0] as number;
  }

  /** The next bytes. They may be those of the window: a keeper copies them. */
  take(length: number): Uint8Array {
    this.need(length);
    let from = this.position - this.#windowStart;
    if (from + length > this.#window.length) {
      const size = Math.min(Math.max(length, WINDOW_BYTES), this.#source.size - this.position);
      this.#window = this.#source.read(this.position, size);
      this.#windowStart = this.position;
      from = 0;
    }
    this.position += length;
    return this.#window.subarray(from, from + length);
  }

  view(length: number): DataView {
    const bytes = this.take(length);
    return new DataView(bytes.buffer, bytes.byteOffset, length);
  }

  int32(): number {
    return this.view(4).getInt32(0, true);
  }

  uint32(): number {
    return this.view(4).getUint32(0, true);
  }

  uint64(): number {
    return Number(this.view(8).getBigUint64(0, true));
  }

  /** Text up to a newline, which is passed. Bytes are Latin-1 here: only escapes go beyond ASCII. */
  line(): string {
    const start = this.position;
    for (let size = 256; ; size *= 2) {
      const left = Math.min(size, this.#source.size - start);
      this.position = start;
      const bytes = this.take(left);
      const end = bytes.indexOf(10);
      this.position = start + (end < 0 ? left : end + 1);
      if (end >= 0) return Buffer.from(bytes.subarray(0, end)).toString("latin1").replace(/\r$/, "");
      if (left < size) throw this.#fail("a line that ends", "the end of the file");
    }
  }
}

const WINDOW_BYTES = 65536;

const strictUtf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** UTF-8; undefined when the bytes are not. */
function decodeUtf8(bytes: Uint8Array): string | undefined {
  try {
    return strictUtf8.decode(bytes);
  } catch {
    return decodeSurrogates(bytes);
  }
}

/** UTF-8 with the lone surrogates that Python lets through, as in file names that were not text. */
function decodeSurrogates(bytes: Uint8Array): string | undefined {
  let text = "";
  let start = 0;
  try {
    for (let i = 0; i + 2 < bytes.length; i++) {
      // A surrogate U+D800..U+DFFF is ED A0..BF 80..BF.
      if (bytes[i] !== 0xed || (bytes[i + 1] as number) < 0xa0) continue;
      text += strictUtf8.decode(bytes.subarray(start, i));
      text += String.fromCharCode(
        0xd000 | (((bytes[i + 1] as number) & 63) << 6) | ((bytes[i + 2] as number) & 63),
      );
      start = i + 3;
      i += 2;
    }
    return text + strictUtf8.decode(bytes.subarray(start));
  } catch {
    return undefined;
  }
}

/** A Python 2 `str`: text where it is UTF-8, else the bytes themselves. */
function byteString(bytes: Uint8Array): string | Uint8Array {
  return decodeUtf8(bytes) ?? new Uint8Array(bytes);
}

/** The raw-unicode-escape codec: only `\uXXXX` and `\UXXXXXXXX` mean anything. */
function unescapeUnicode(text: string): string {
  return text.replace(/\\u([0-9a-fA-F]{4})|\\U([0-9a-fA-F]{8})/g, (whole, short?: string, long?: string) => {
    const point = Number.parseInt(short ?? long ?? "", 16);
    return point <= 0x10ffff ? String.fromCodePoint(point) : whole;
  });
}

/** The escapes of a Python 2 string literal. */
function unescapeBytes(text: string): string {
  const named: Record<string, string> = { n: "\n", r: "\r", t: "\t", a: "\x07", b: "\b", f: "\f", v: "\v" };
  return text.replace(/\\(x[0-9a-fA-F]{2}|[0-7]{1,3}|[^x])/g, (_whole, code: string) => {
    if (/^x.{2}$/.test(code)) return String.fromCharCode(Number.parseInt(code.slice(1), 16));
    if (/^[0-7]/.test(code)) return String.fromCharCode(Number.parseInt(code, 8) & 255);
    return named[code] ?? code;
  });
}
