/** Files of lines are read in pieces, whatever a piece cuts. */
import assert from "node:assert/strict";
import {
  closeSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";

import { fileLines, replaceLines } from "../../src/run/lines.js";

const root = mkdtempSync(join(tmpdir(), "rlar-lines-"));
after(() => rmSync(root, { recursive: true }));

test("lines are the same whatever the size of the pieces, also where one cuts a character", () => {
  const path = join(root, "a.txt");
  for (const text of ["", "\n", "\n\n", "ä\n日本 é\r\n\0\0\n{}", "a\n", "a", "\ufeffé\n😀"]) {
    writeFileSync(path, text);
    const wanted = text.split(/(?<=\n)/).filter((line) => line !== "");
    for (const bytes of [1, 2, 3, 5, 64]) assert.deepEqual([...fileLines(path, bytes)], wanted, `${bytes}`);
  }
});

test("a file longer than the longest string is read; so is a line of damage that long, as an empty one", {
  skip: process.platform !== "linux",
}, () => {
  const path = join(root, "long.txt");
  // A hole of 600 MB takes no room on the disk.
  const fd = openSync(path, "w");
  writeSync(fd, '\n{"step":1}\n', 6e8);
  closeSync(fd);
  assert.throws(() => readFileSync(path, "utf8"), { code: "ERR_STRING_TOO_LONG" });
  assert.deepEqual([...fileLines(path)], ["\n", '{"step":1}\n']);
});

test("a file is replaced by lines that are read from it, or stays as it was", () => {
  const path = join(root, "b.txt");
  writeFileSync(path, "1\n2\n3\n");
  replaceLines(path, [...fileLines(path)].slice(1));
  const read = fileLines(path, 1);
  replaceLines(path, read);
  assert.equal(readFileSync(path, "utf8"), "2\n3\n");
  const failing = (function* () {
    yield "4\n";
    throw new RangeError("no more");
  })();
  assert.throws(() => replaceLines(path, failing), /^RangeError: no more$/);
  assert.deepEqual(
    [readFileSync(path, "utf8"), readdirSync(root).filter((name) => name.startsWith("."))],
    ["2\n3\n", []],
  );
});
