/** The unpickler: Python's own files of every protocol, opcodes by hand, and bytes that mean harm. */
import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { test } from "node:test";
import fc from "fast-check";
import { MemoryBytes } from "../../src/torch/files.js";
import { unpickle } from "../../src/torch/pickle.js";
import {
  isDeeperThan,
  lookup,
  Opaque,
  PyComplex,
  PyGlobal,
  type PyValue,
} from "../../src/torch/python_values.js";
import { bytes, global, int, int64, num, pickle, reduce, sourceOf, str, tuple } from "../support/pickled.js";

const golden = (name: string): Buffer =>
  readFileSync(new URL(`../../../test/golden/checkpoints/${name}`, import.meta.url));

const load = (data: Uint8Array): unknown => unpickle(new MemoryBytes(data), { where: "p" }).value;

/** What an object's record holds, without the fields that are empty. */
function record(value: unknown): object {
  assert.ok(value instanceof Opaque);
  const { args, kwargs, state, items, entries } = value;
  const parts = { args, kwargs, state, items, entries };
  const isFull = (part: unknown): boolean =>
    part instanceof Map ? part.size > 0 : Array.isArray(part) ? part.length > 0 : part !== null;
  return {
    of: `${value.module}.${value.name}`,
    ...Object.fromEntries(Object.entries(parts).filter(([, part]) => isFull(part))),
  };
}

for (const protocol of [0, 1, 2, 3, 4, 5]) {
  test(`Python values of protocol ${protocol}`, () => {
    const data = golden(`values.p${protocol}.pkl`);
    const { value, end } = unpickle(new MemoryBytes(data), { where: "p" });
    assert.equal(end, data.length);
    assert.ok(value instanceof Map);
    const at = (...path: (string | number)[]): unknown => lookup(value as PyValue, ...path);

    assert.equal(at("none"), null);
    assert.deepEqual(at("bools"), [true, false]);
    assert.deepEqual(at("ints"), [
      ...[0, 1, 255, 256, 65535, 65536, -1, -129, 2147483647, -2147483648, 9007199254740991],
      ...[9007199254740992n, -9223372036854775808n, 1000000000000000000000000000000n],
    ]);
    assert.deepEqual(at("floats"), [0, -0, 1.5, -1e300, 5e-324, Infinity, -Infinity, NaN]);
    assert.deepEqual(at("complex"), new PyComplex(1.5, -2));
    const long = "x".repeat(300);
    assert.deepEqual(at("text"), ["", "plain", "é", "漢字", "\u{1f600}", "a\nb\\u0041\\", long]);
    assert.equal(at("surrogate"), "\ud83d");
    const many = new Uint8Array(300).fill(121);
    assert.deepEqual(at("bytes"), [new Uint8Array(), Uint8Array.of(0, 255), many]);
    assert.deepEqual(at("bytearray"), Uint8Array.of(1, 254));
    assert.deepEqual(at("tuples"), [[], [1], [1, 2], [1, 2, 3], [1, 2, 3, 4]]);
    assert.deepEqual(at("set"), new Set([1, 2]));
    assert.deepEqual(at("frozenset"), new Set([3]));
    assert.deepEqual(
      [...(at("ordered") as Map<string, number>)],
      [
        ["b", 1],
        ["a", 2],
      ],
    );
    assert.deepEqual(
      [...(at("counter") as Map<string, number>)],
      [
        ["a", 2],
        ["b", 1],
      ],
    );
    assert.deepEqual(at("keyed"), new Map([[3, [4]]]));
    const mixed = new Map<unknown, string>([
      [1, "int"],
      [[1, 2], "tuple"],
      [null, "none"],
    ]);
    assert.deepEqual([...(at("mixed_keys") as Map<unknown, unknown>)], [...mixed]);
    assert.deepEqual(
      [...(at("proto") as Map<string, number>)],
      [
        ["__proto__", 1],
        ["constructor", 2],
      ],
    );
    assert.deepEqual(at("shared"), [
      [1, 2],
      [1, 2],
    ]);
    assert.equal(at("shared", 0), at("shared", 1));
    assert.equal(at("ring", 0), at("ring"));
    assert.equal(at("path"), "/a/b/c.txt");
    assert.deepEqual(record(at("range")), { of: "builtins.range", args: [1, 10, 2] });
    assert.deepEqual(record(at("slice")), { of: "builtins.slice", args: [1, null, null] });
    assert.deepEqual(record(at("date")), { of: "datetime.date", args: [Uint8Array.of(7, 228, 1, 2)] });
    assert.deepEqual(record(at("mode")), { of: "a_package.config.Mode", args: ["fast"] });
    assert.deepEqual(at("class"), new PyGlobal("a_package.config", "Config"));
    assert.equal(at("config", "parent"), at("config"));
    assert.equal(at("config", "lr"), 1e-4);
    if (protocol >= 2) assert.equal(at("slotted", "b"), "two");
    assert.deepEqual(record(at("names")), { of: "a_package.config.Names", items: ["a", "b"] });
    assert.deepEqual(record(at("table")), { of: "a_package.config.Table", entries: new Map([["x", 1]]) });
    assert.equal(at("table", "x"), 1);
    const args = new Map<string, unknown>([
      ["gpt_model", "GPT-B"],
      ["vocab_size", 16384],
    ]);
    assert.deepEqual(record(at("namespace")), { of: "argparse.Namespace", state: args });
    assert.deepEqual(at("numpy"), [1.5, -2.5, -3, 200, true, 0.25]);
    assert.match(
      (at("numpy_array") as Opaque).toString(),
      /^numpy\._core\.(multiarray\._reconstruct|numeric\._frombuffer)\(/,
    );
    assert.deepEqual(at("dtype"), new PyGlobal("torch", "bfloat16"));
    assert.equal(at("device"), "cuda:1");
    assert.deepEqual(at("size"), [2, 3]);
    assert.equal(at("layout"), "torch.strided");
  });
}

test("opcodes that today's pickle does not write", () => {
  const cases: [string, Uint8Array, unknown][] = [
    ["DUP shares", bytes("]2\x86."), [[], []]],
    ["POP", bytes("K\x01K\x020."), 1],
    ["POP drops a MARK", bytes("K\x01(0."), 1],
    ["POP_MARK", bytes("K\x01(K\x02K\x031."), 1],
    ["LONG1 of no bytes", bytes(0x80, 2, 0x8a, 0, "."), 0],
    ["LONG1, negative", bytes(0x80, 2, 0x8a, 2, 0x00, 0x80, "."), -32768],
    ["LONG4", bytes(0x80, 2, 0x8b, int(9), int64(0n), 1, "."), 2n ** 64n],
    ["BINSTRING, text", bytes("T", int(2), "ab."), "ab"],
    ["SHORT_BINSTRING, not UTF-8", bytes("U\x02\xff\xfe."), Uint8Array.of(255, 254)],
    ["STRING", bytes(`S'a\\'\\x41\\n\\101\\\\'\n.`), "a'A\nA\\"],
    ["STRING, double quotes", bytes(`S"it's"\n.`), "it's"],
    ["INT with a sign", bytes("I+7\n."), 7],
    ["PUT and GET", bytes("K\x05p7\n0g7\n."), 5],
    ["LONG_BINPUT and LONG_BINGET", bytes("K\x05r", int(70000), "0j", int(70000), "."), 5],
    ["DICT and LIST", bytes("(K\x01(K\x02ld."), new Map([[1, [2]]])],
    ["BINUNICODE8", bytes(0x80, 4, 0x8d, int64(2n), "hi."), "hi"],
    ["BYTEARRAY8", bytes(0x80, 5, 0x96, int64(2n), "hi."), Uint8Array.of(104, 105)],
    ["BINBYTES8", bytes(0x80, 4, 0x8e, int64(1n), "h."), Uint8Array.of(104)],
    ["ADDITEMS", bytes(0x80, 4, 0x8f, "(K\x01K\x01K\x02", 0x90, "."), new Set([1, 2])],
    ["FRAME", bytes(0x80, 4, 0x95, int64(3n), "K\x07."), 7],
    ["Python 2 module names", bytes("c__builtin__\nset\n(K\x01l\x85R."), new Set([1])],
    ["CRLF after a text opcode", bytes("I12\r\n."), 12],
  ];
  for (const [name, data, want] of cases) assert.deepEqual(load(data), want, name);
  assert.deepEqual(record(load(bytes("(K\x01imod\ncls\n."))), { of: "mod.cls", args: [1] }, "INST");
  assert.deepEqual(record(load(bytes("(cmod\ncls\nK\x01o."))), { of: "mod.cls", args: [1] }, "OBJ");
  const keywords = bytes(0x80, 4, global("mod", "cls"), "(K\x01t}", str("k"), "K\x02s", 0x92, ".");
  assert.deepEqual(
    record(load(keywords)),
    { of: "mod.cls", args: [1], kwargs: new Map([["k", 2]]) },
    "NEWOBJ_EX",
  );
  const stacked = bytes(0x80, 4, 0x8c, 3, "mod", 0x8c, 5, "a.cls", 0x93, ".");
  assert.deepEqual(load(stacked), new PyGlobal("mod", "a.cls"));
});

test("calls become records, and nothing is run", () => {
  const exploit = pickle(reduce(global("os", "system"), str("touch pickle_was_run")));
  assert.deepEqual(record(load(exploit)), { of: "os.system", args: ["touch pickle_was_run"] });
  const viaEval = pickle(reduce(global("builtins", "eval"), str("1")), "}", str("a"), "K\x01sb");
  assert.deepEqual(record(load(viaEval)), { of: "builtins.eval", args: ["1"], state: new Map([["a", 1]]) });
  const chained = load(pickle(reduce(reduce(global("builtins", "getattr"), str("x")), num(2)))) as Opaque;
  assert.equal(`${chained}`, "builtins.getattr(...)");
  assert.deepEqual(chained.args, [2]);
  assert.ok(!existsSync("pickle_was_run"));
});

test("numpy scalars of either byte order", () => {
  const scalar = (code: string, order: string, data: Uint8Array): unknown => {
    const dtype = bytes(reduce(global("numpy", "dtype"), str(code)), tuple(num(3), str(order)), "b");
    return load(
      pickle(reduce(global("numpy.core.multiarray", "scalar"), dtype, bytes("U", data.length, data))),
    );
  };
  assert.equal(scalar("i2", "<", Uint8Array.of(1, 2)), 0x0201);
  assert.equal(scalar("i2", ">", Uint8Array.of(1, 2)), 0x0102);
  assert.equal(scalar("f2", "<", Uint8Array.of(0x01, 0x80)), -(2 ** -24));
  assert.equal(scalar("f2", "<", Uint8Array.of(0x00, 0x7c)), Infinity);
  assert.equal(scalar("f2", "<", Uint8Array.of(0xff, 0x7b)), 65504);
  assert.equal(scalar("u8", "<", new Uint8Array(8).fill(255)), 2n ** 64n - 1n);
  assert.ok(scalar("i2", "<", Uint8Array.of(1, 2, 3)) instanceof Opaque);
  assert.ok(scalar("U1", "<", Uint8Array.of(1, 0, 0, 0)) instanceof Opaque);
});

test("calls of plain data that are not as Python writes them stay records", () => {
  for (const call of [
    reduce(global("builtins", "set"), num(3)),
    reduce(global("collections", "OrderedDict"), bytes("(K\x01l")),
    reduce(global("_codecs", "encode"), str("漢"), str("latin1")),
    reduce(global("builtins", "complex"), str("1j")),
    reduce(global("numpy.core.multiarray", "scalar"), num(1), str("xxxx")),
    reduce(global("pathlib", "PosixPath"), num(1)),
    reduce(global("torch", "device"), num(1)),
  ]) {
    assert.ok(load(pickle(call)) instanceof Opaque);
  }
});

test("a stream of several pickles is read one by one", () => {
  const source = sourceOf(pickle("K\x01"), pickle("K\x02"), "rest");
  const first = unpickle(source, { where: "p" });
  assert.deepEqual(first, { value: 1, end: 5 });
  assert.deepEqual(unpickle(source, { where: "p", start: first.end }), { value: 2, end: 10 });
});

test("persistent ids and unknown calls are the caller's", () => {
  const data = pickle(tuple(str("storage"), num(1)), "Q", reduce(global("m", "f"), num(2)), 0x86);
  const seen: unknown[] = [];
  const { value } = unpickle(new MemoryBytes(data), {
    where: "p",
    persistentLoad: (id, where) => [seen.push(where), id],
    call: (callee, args) => (callee.name === "f" ? { called: args } : undefined),
  });
  assert.deepEqual(value, [[1, ["storage", 1]], { called: [2] }]);
  assert.deepEqual(seen, ["p, byte 21, BINPERSID"]);
});

test("damaged pickles are refused at the byte and opcode", () => {
  const end = "The file is damaged or hostile.";
  const cases: [Uint8Array, string][] = [
    [bytes(), "p, byte 0, opcode: expected 1 bytes, got 0 before the end."],
    [bytes("K"), "p, byte 0, BININT1: expected 1 bytes, got 0 before the end."],
    [bytes("K\x01"), "p, byte 2, opcode: expected 1 bytes, got 0 before the end."],
    [bytes("\xff."), "p, byte 0, opcode: expected a pickle opcode, got 0xff."],
    [bytes(0x80, 6, "."), "p, byte 0, PROTO: expected a pickle protocol from 0 to 5, got 6."],
    [bytes("."), "p, byte 0, STOP: expected an operand on the stack, got none."],
    [bytes("K\x01(."), "p, byte 3, STOP: expected an operand on the stack, got none."],
    [bytes("K\x01e."), "p, byte 2, APPENDS: expected a MARK on the stack, got none."],
    [bytes("K\x01K\x02a."), "p, byte 4, APPEND: expected a list or a set, got 1."],
    [bytes("}K\x02a."), "p, byte 3, APPEND: expected a list or a set, got a dict."],
    [bytes("]K\x01K\x02s."), "p, byte 5, SETITEM: expected a dict, got a list or tuple."],
    [bytes("}(K\x01u."), "p, byte 4, SETITEMS: expected pairs of key and value, got 1 values."],
    [bytes("h\x05."), "p, byte 0, BINGET: expected a memo entry that was stored before, got 5."],
    [bytes("gx\n."), 'p, byte 0, GET: expected a memo index, got "x".'],
    [bytes("I1.5\n."), 'p, byte 0, INT: expected an int of at most 4300 digits, got "1.5".'],
    [bytes("Fabc\n."), 'p, byte 0, FLOAT: expected a float, got "abc".'],
    [bytes("Sabc\n."), 'p, byte 0, STRING: expected a quoted string, got "abc".'],
    [bytes("I12"), "p, byte 0, INT: expected a line that ends, got the end of the file."],
    [bytes("X", int(2), "\xff\xfe."), "p, byte 0, BINUNICODE: expected UTF-8 text, got other bytes."],
    [bytes("K\x01K\x02R."), "p, byte 4, REDUCE: expected a tuple of arguments, got 2."],
    [bytes("K\x01)R."), "p, byte 3, REDUCE: expected a class or function to call, got 1."],
    [
      bytes("K\x01K\x02", 0x93, "."),
      "p, byte 4, STACK_GLOBAL: expected a name of 1 to 1024 characters, got 1.",
    ],
    [bytes("K\x01Nb."), "p, byte 3, BUILD: expected an object to give state to, got 1."],
    [bytes("NQ."), "p, byte 1, BINPERSID: expected a pickle without persistent ids, got None."],
    [
      bytes(0x82, 1, "."),
      "p, byte 0, EXT1: expected an opcode that needs nothing outside the file, got EXT1.",
    ],
    [
      bytes(0x97, "."),
      "p, byte 0, NEXT_BUFFER: expected an opcode that needs nothing outside the file, got NEXT_BUFFER.",
    ],
  ];
  for (const [data, message] of cases) {
    assert.throws(() => load(data), { name: "RangeError", message: `${message} ${end}` });
  }
});

test("lengths past the end, and ints too long to be honest, are refused before any memory is taken", () => {
  const refused = (data: Uint8Array, got: RegExp): void => assert.throws(() => load(data), got);
  refused(bytes("X", int(0x7fffffff), "a."), /BINUNICODE: expected 2147483647 bytes, got 2 before the end/);
  refused(bytes("T", int(-5), "a."), /BINSTRING: expected -5 bytes, got 2 before the end/);
  refused(bytes(0x8d, int64(2n ** 62n), "."), /BINUNICODE8: expected 4611686018427388000 bytes, got 1/);
  refused(bytes(0x8e, int64(-1n), "."), /BINBYTES8: expected 18446744073709552000 bytes/);
  refused(bytes(0x95, int64(100n), "."), /FRAME: expected 100 bytes, got 1 before the end/);
  refused(bytes(0x8b, int(-1), "."), /LONG4: expected an int of 0 to 4300 bytes, got -1 bytes/);
  refused(
    bytes(0x8b, int(5000), Buffer.alloc(5000, 1), "."),
    /LONG4: expected an int of 0 to 4300 bytes, got 5000 bytes/,
  );
  refused(bytes("L", "9".repeat(5000), "L\n."), /LONG: expected an int of at most 4300 digits/);
  refused(bytes("c", "m".repeat(2000), "\nf\n."), /GLOBAL: expected a name of 1 to 1024 characters/);
});

test("a bomb of copies is refused", () => {
  // One text of 10,000 characters, turned to bytes 1,000 times by way of the memo: 10 MB out of 20 kB.
  const first = bytes(
    global("_codecs", "encode"),
    "q\x01",
    str("a".repeat(10_000)),
    "q\x02",
    str("latin1"),
    "q\x03",
    "000",
  );
  const again = bytes("h\x01h\x02h\x03", 0x86, "R");
  const bomb = pickle(first, "(", ...Array<Buffer>(1000).fill(again), "l");
  assert.throws(() => load(bomb), /REDUCE: expected calls that copy no more than the file holds, got more/);
  assert.equal((load(pickle(first, "(", again, "l")) as Uint8Array[])[0]?.length, 10_000);
  const lists = bytes(
    global("builtins", "list"),
    "q\x01]q\x02(",
    ...Array<Buffer>(1000).fill(bytes("N")),
    "e",
  );
  const listBomb = pickle(lists, ...Array<Buffer>(9).fill(bytes("h\x01h\x02", 0x85, "R")));
  assert.throws(() => load(listBomb), /REDUCE: expected calls that copy no more than the file holds/);
});

test("shared parts may double at each level; rings end; depth is bounded", () => {
  // A million million leaves, if anyone were to count them: forty lists, each twice in the next.
  const laughs = load(pickle("]", ...Array<Buffer>(40).fill(bytes("2", 0x86)))) as unknown[];
  assert.equal(laughs[0], laughs[1]);
  const nested = (depth: number): Buffer => pickle("]".repeat(depth), "a".repeat(depth - 1));
  assert.ok(!isDeeperThan(load(nested(1000)), 1000));
  assert.throws(() => load(nested(1001)), {
    message:
      "p, byte 2003, STOP: expected at most 1000 containers inside each other, got more. The file is damaged or hostile.",
  });
  assert.throws(() => load(nested(200_000)), /at most 1000 containers/);
  const calls = pickle(global("m", "f"), ")R".repeat(5000));
  assert.throws(() => load(calls), /at most 1000 containers/);
});

type Tree = null | boolean | number | bigint | string | Uint8Array | Tree[] | Map<Tree, Tree> | Set<Tree>;

/** Opcodes for a value, in one of the ways that Python has for it. */
function encode(value: Tree, wide: boolean): Uint8Array {
  if (value === null) return bytes("N");
  if (typeof value === "boolean") return wide ? bytes(value ? 0x88 : 0x89) : bytes(value ? "I01\n" : "I00\n");
  if (typeof value === "bigint") {
    if (!wide) return bytes(`L${value}L\n`);
    const length = value.toString(16).length + 1;
    const hex = BigInt.asUintN(length * 8, value)
      .toString(16)
      .padStart(length * 2, "0");
    return bytes(0x8a, length, Buffer.from(hex, "hex").reverse());
  }
  if (typeof value === "number") {
    if (!wide)
      return bytes(
        `F${Object.is(value, -0) ? "-0.0" : value}\n`.replace("Infinity", "inf").replace("NaN", "nan"),
      );
    const float = Buffer.alloc(8);
    float.writeDoubleBE(value);
    return bytes("G", float);
  }
  if (typeof value === "string") return str(value);
  if (value instanceof Uint8Array) return bytes("B", int(value.length), value);
  if (value instanceof Set) return bytes(0x8f, "(", ...[...value].map((item) => encode(item, wide)), 0x90);
  if (Array.isArray(value)) {
    const items = value.map((item) => encode(item, wide));
    return wide ? bytes("](", ...items, "e") : bytes("(", ...items, "t");
  }
  const pairs = [...value].map(([key, item]) => bytes(encode(key, wide), encode(item, wide)));
  return wide ? bytes("}(", ...pairs, "u") : bytes("}", ...pairs.map((pair) => bytes(pair, "s")));
}

const { tree } = fc.letrec<{ tree: Tree }>((tie) => {
  const leaf = fc.oneof<fc.Arbitrary<Tree>[]>(
    fc.constant(null),
    fc.boolean(),
    fc.double(),
    fc.bigInt({ min: -(2n ** 300n), max: 2n ** 300n }).filter((n) => n > 2n ** 53n || n < -(2n ** 53n)),
    fc.string({ unit: "grapheme" }),
    fc.uint8Array({ maxLength: 20 }),
  );
  const node = tie("tree");
  return {
    tree: fc.oneof(
      { depthSize: "small", withCrossShrink: true },
      leaf,
      fc.array(node, { maxLength: 5 }),
      fc.array(fc.tuple(leaf, node), { maxLength: 5 }).map((pairs) => new Map(pairs)),
      fc.array(leaf, { maxLength: 5 }).map((items) => new Set(items)),
    ),
  };
});

test("random trees come back as they were", () => {
  fc.assert(
    fc.property(tree, fc.boolean(), (value, wide) => {
      assert.deepEqual(load(pickle(encode(value, wide))), value);
    }),
    { numRuns: 300 },
  );
});

/** Load, or fail with an error of ours: one of JavaScript's own has another shape. */
function loadOrRefuse(data: Uint8Array): void {
  try {
    load(data);
  } catch (error) {
    assert.match(String(error), /^RangeError: p, byte \d+, \w+: expected .+, got [\s\S]*\.$/);
  }
}

test("no change of bytes does more than be refused", () => {
  const files = [0, 2, 4, 5].map((protocol) => golden(`values.p${protocol}.pkl`));
  for (const file of files) for (let n = 0; n < file.length; n += 7) loadOrRefuse(file.subarray(0, n));
  const changes = fc.array(fc.tuple(fc.nat(), fc.nat(255)), { minLength: 1, maxLength: 6 });
  fc.assert(
    fc.property(fc.constantFrom(...files), changes, (file, list) => {
      const data = Buffer.from(file);
      for (const [at, value] of list) data[at % data.length] = value;
      loadOrRefuse(data);
    }),
    { numRuns: 2000 },
  );
  fc.assert(fc.property(fc.uint8Array({ maxLength: 60 }), loadOrRefuse), { numRuns: 2000 });
});
