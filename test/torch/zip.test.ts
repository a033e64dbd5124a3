/** The zip reader: archives of every kind that torch.save and zip tools write, and archives that lie. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import fc from "fast-check";
import { MemoryBytes } from "../../src/torch/files.js";
import { ZipArchive, type ZipEntry } from "../../src/torch/zip.js";
import { bytes, int, int64, patched, type ZipPart, zipOf } from "../support/pickled.js";

const golden = (name: string): Buffer =>
  readFileSync(new URL(`../../../test/golden/checkpoints/${name}`, import.meta.url));

const open = (data: Uint8Array): ZipArchive => new ZipArchive(new MemoryBytes(data), "z");

const entryOf = (zip: ZipArchive, name: string): ZipEntry => {
  const entry = zip.entries.get(name);
  assert.ok(entry !== undefined, name);
  return entry;
};

const read = (data: Uint8Array, name: string, limit?: number): string => {
  const zip = open(data);
  return Buffer.from(zip.read(entryOf(zip, name), limit)).toString("latin1");
};

const text = (name: string, content: string, isDeflated = false): ZipPart => ({
  name,
  data: Buffer.from(content),
  isDeflated,
});

const DAMAGED = "The file is damaged or was cut short; fetch it again.";

test("an archive of torch.save", () => {
  const data = golden("odd.pt");
  const zip = open(data);
  const names = ["data.pkl", ".format_version", ".storage_alignment", "byteorder"];
  assert.deepEqual(
    [...zip.entries.keys()].slice(0, 4),
    names.map((name) => `odd/${name}`),
  );
  assert.equal(read(data, "odd/byteorder"), "little");
  assert.equal(read(data, "odd/version"), "3\n");
  // The padding of torch.save puts every storage on a multiple of 64 bytes.
  for (const entry of zip.entries.values()) {
    if (/\/data\/\d/.test(entry.name)) assert.equal(zip.dataOffset(entry) % 64, 0);
  }
});

test("stored, deflated and zip64 entries", () => {
  const parts = [text("a/x", "stored"), text("a/漢", "deflated ".repeat(50), true), text("a/empty", "")];
  for (const data of [zipOf(parts), zipOf(parts, true)]) {
    assert.deepEqual([...open(data).entries.keys()], ["a/x", "a/漢", "a/empty"]);
    assert.equal(read(data, "a/x"), "stored");
    assert.equal(read(data, "a/漢"), "deflated ".repeat(50));
    assert.equal(read(data, "a/empty"), "");
  }
  assert.equal(open(zipOf([])).entries.size, 0);
});

test("a comment behind the directory, and a comment that looks like one", () => {
  const data = zipOf([text("a", "x")]);
  const tail = data.length - 22;
  const comment = bytes("PK\x05\x06", Buffer.alloc(18), "more");
  const commented = bytes(patched(data, tail + 20, int(comment.length, 2)), comment);
  assert.equal(read(commented, "a"), "x");
});

test("a directory that lies is refused", () => {
  const data = zipOf([text("aa", "12345"), text("bb", "67")]);
  const first = data.indexOf("PK\x01\x02");
  const second = data.indexOf("PK\x01\x02", first + 4);
  const end = data.indexOf("PK\x05\x06");
  const cases: [string, Uint8Array, string][] = [
    ["no archive", Buffer.alloc(100), "z: expected a zip directory at the end, got none."],
    ["empty", Buffer.alloc(0), "z: expected a zip directory at the end, got none."],
    ["cut short", data.subarray(0, -1), "z: expected a zip directory at the end, got none."],
    [
      "directory past the end",
      patched(data, end + 12, int(200)),
      `z: expected a directory that ends by byte ${end}, got ${first} + 200.`,
    ],
    [
      "directory elsewhere",
      patched(data, end + 16, int(1)),
      "z: expected a directory entry, got other bytes.",
    ],
    [
      "too many entries",
      patched(data, end + 8, bytes(int(9, 2), int(9, 2))),
      "z: expected 9 entries in 96 bytes of directory, got 2 in 96.",
    ],
    [
      "too few entries",
      patched(data, end + 8, bytes(int(1, 2), int(1, 2))),
      "z: expected 1 entries in 96 bytes of directory, got 1 in 48.",
    ],
    [
      "entry cut short",
      patched(data, second + 28, int(900, 2)),
      "z: expected a directory entry, got one cut short.",
    ],
    [
      "longer than stored",
      patched(data, first + 24, int(6)),
      "z, entry aa: expected 5 bytes, as stored, got 6.",
    ],
    [
      "into the next entry",
      patched(data, first + 20, bytes(int(30), int(30))),
      "z, entry aa: expected data that ends by byte 37, got 62.",
    ],
    [
      "past the end",
      patched(data, second + 42, int(1 << 30)),
      `z, entry bb: expected data that ends by byte ${first}, got ${(1 << 30) + 34}.`,
    ],
    [
      "two entries of one place",
      patched(data, second + 42, int(0)),
      "z, entry aa: expected data that ends by byte 0, got 37.",
    ],
    [
      "two of one name",
      patched(data, second + 46, Buffer.from("aa")),
      "z: expected one entry of each name, got two named aa.",
    ],
    [
      "no zip64 field",
      patched(data, first + 20, Buffer.alloc(8, 0xff)),
      "z, entry aa: expected its size in a zip64 field, got none.",
    ],
    [
      "no zip64 directory",
      patched(data, end + 12, Buffer.alloc(4, 0xff)),
      "z: expected a zip64 directory, got none.",
    ],
  ];
  for (const [name, file, message] of cases) {
    assert.throws(() => open(file), { name: "RangeError", message: `${message} ${DAMAGED}` }, name);
  }
  assert.throws(() => open(patched(data, first + 8, int(1, 2))), {
    message: "z, entry aa: expected no encryption, got an encrypted entry.",
  });
  assert.throws(() => open(patched(data, first + 10, int(14, 2))), {
    message: "z, entry aa: expected data stored or deflated, got compression 14.",
  });
});

test("zip64 records that lie are refused", () => {
  const data = zipOf([text("aa", "12345")], true);
  const record = data.indexOf("PK\x06\x06");
  const locator = data.indexOf("PK\x06\x07");
  const lie = (at: number, value: bigint): Buffer => patched(data, at, int64(value));
  assert.throws(
    () => open(lie(locator + 8, 10n ** 15n)),
    /expected a zip64 record before byte \d+, got 1000000000000000/,
  );
  assert.throws(() => open(lie(locator + 8, 0n)), /expected a zip64 record, got other bytes/);
  assert.throws(
    () => open(lie(record + 40, -1n)),
    /expected a directory that ends by byte \d+, got \d+ \+ 18446744073709552000/,
  );
  assert.throws(
    () => open(lie(record + 32, 2n ** 40n)),
    /expected 1099511627776 entries in \d+ bytes of directory, got 1/,
  );
  const field = data.indexOf("PK\x01\x02") + 46 + 2 + 4;
  assert.throws(
    () => open(lie(field, 2n ** 50n)),
    /entry aa: expected 5 bytes, as stored, got 1125899906842624/,
  );
});

test("an entry whose own header disagrees is refused when it is read", () => {
  const data = zipOf([text("aa", "12345"), text("bb", "67"), text("cc", "deflate ".repeat(9), true)]);
  const refused = (file: Uint8Array, name: string, message: string): void =>
    assert.throws(() => read(file, name), {
      name: "RangeError",
      message: `z, entry ${name}: ${message} ${DAMAGED}`,
    });
  refused(patched(data, 0, Buffer.from("XX")), "aa", "expected a local header, got other bytes.");
  refused(patched(data, 30, Buffer.from("zz")), "aa", "expected the same name in its local header, got zz.");
  refused(patched(data, 28, int(40, 2)), "aa", "expected data that ends by byte 37, got 77.");
  refused(patched(data, 8, int(8, 2)), "aa", "expected the same compression in its local header, got 8.");
  refused(patched(data, 18, int(4)), "aa", "expected 5 bytes in its local header, got 4.");
  refused(patched(data, 22, int(4)), "aa", "expected 5 bytes in its local header, got 4.");
  assert.equal(read(patched(data, 18, Buffer.alloc(8)), "aa"), "12345", "sizes not yet known are zero");
  const at = data.lastIndexOf("PK\x01\x02");
  const header = data.indexOf("PK\x03\x04", data.indexOf("67PK"));
  const resized = (size: number): Buffer =>
    patched(patched(data, at + 24, int(size)), header + 22, int(size));
  refused(resized(73), "cc", "expected 73 bytes, got 72.");
  assert.throws(
    () => read(resized(71), "cc"),
    /entry cc: expected 71 deflated bytes, got Cannot create a Buffer larger than 71/,
  );
  const broken = patched(data, header + 32, Buffer.from([0xff, 0xff, 0xff]));
  assert.throws(() => read(broken, "cc"), /entry cc: expected 72 deflated bytes, got invalid/);
});

test("a limit on what is unpacked", () => {
  const data = zipOf([{ name: "zeros", data: Buffer.alloc(1 << 20), isDeflated: true }]);
  assert.ok(data.length < 2000);
  assert.throws(() => read(data, "zeros", 1000), {
    message: "z, entry zeros: expected at most 1000 bytes, got 1048576.",
  });
});

test("no change of bytes does more than be refused", () => {
  const files = [golden("odd.pt"), zipOf([text("a", "xyz"), text("b", "12".repeat(9), true)], true)];
  const changes = fc.array(fc.tuple(fc.nat(), fc.nat(255)), { minLength: 1, maxLength: 4 });
  fc.assert(
    fc.property(fc.constantFrom(...files), changes, fc.boolean(), (file, list, isDirectoryOnly) => {
      const data = Buffer.from(file);
      const from = isDirectoryOnly ? data.indexOf("PK\x01\x02") : 0;
      for (const [at, value] of list) data[from + (at % (data.length - from))] = value;
      try {
        const zip = open(data);
        for (const entry of zip.entries.values()) zip.read(entry);
      } catch (error) {
        assert.match(String(error), /^RangeError: z(, entry [\s\S]*)?: expected [\s\S]+, got [\s\S]+\.$/);
      }
    }),
    { numRuns: 2000 },
  );
});
