/** Reading by position, and files that appear whole or not at all. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import {
  FileBytes,
  forTensorData,
  MemoryBytes,
  makeFolder,
  readTensorData,
  replaceFile,
  writeAll,
  writing,
} from "../../src/torch/files.js";
import { tensor, tidy, zeros } from "../../src/torch/index.js";
import { noLeak } from "../support/leak.js";

const folder = mkdtempSync(join(tmpdir(), "rlar-files-"));
after(() => rmSync(folder, { recursive: true }));

test("a file is read at any place, and not past its end", () => {
  const path = join(folder, "digits");
  writeFileSync(path, "0123456789");
  const file = new FileBytes(path);
  assert.equal(file.size, 10);
  assert.equal(Buffer.from(file.read(3, 4)).toString(), "3456");
  assert.equal(file.read(10, 0).length, 0);
  truncateSync(path, 5);
  assert.throws(() => file.read(3, 4), {
    name: "RangeError",
    message: `${path}: expected 4 bytes at byte 3, got 2 before the end of the file. The file was cut short.`,
  });
  file.close();
  file.close();
  assert.throws(() => file.read(0, 1), {
    message: `${path}: expected an open file, got a closed one. Read before closing it.`,
  });
});

test("what is no file is refused", () => {
  const missing = join(folder, "missing");
  assert.throws(() => new FileBytes(missing), {
    message: `${missing}: expected a file that can be read, got ENOENT: no such file or directory, open '${missing}'.`,
  });
  assert.throws(() => new FileBytes(folder), {
    message: `${folder}: expected a regular file, got a folder.`,
  });
});

test("bytes in memory are bounded too", () => {
  const source = new MemoryBytes(Buffer.from("abc"));
  assert.throws(() => source.read(2, 2), {
    message: "MemoryBytes.read: expected a range inside 3 bytes, got 2 + 2.",
  });
});

test("tensor data goes to a file and comes back into part of a storage", () => {
  const path = join(folder, "tensor");
  noLeak(() => {
    const written = tidy(() => tensor([1, 2, 3, 4, 5, 6]).view(2, 3));
    const fd = openSync(path, "w");
    writeAll(fd, Buffer.from("head"));
    forTensorData(written, 4, (bytes) => writeAll(fd, bytes));
    closeSync(fd);
    const storage = zeros([8]);
    const part = storage.asStrided([3], [1], 2);
    const file = new FileBytes(path);
    readTensorData(file, 8, part, 4);
    file.close();
    assert.deepEqual(storage.toList(), [0, 0, 2, 3, 4, 0, 0, 0]);
    for (const made of [written, storage, part]) made.dispose();
  });
});

test("a file is replaced whole", () => {
  const path = join(folder, "whole");
  replaceFile(path, (fd) => writeAll(fd, Buffer.from("one")));
  assert.equal(readFileSync(path, "utf8"), "one");
  replaceFile(path, (fd) => writeAll(fd, Buffer.from("two")));
  assert.equal(readFileSync(path, "utf8"), "two");
});

test("when writing fails, what stood there stays and nothing is left behind", () => {
  const path = join(folder, "kept");
  writeFileSync(path, "old");
  const before = readdirSync(folder);
  const failWith = (error: Error): void =>
    replaceFile(path, (fd) => {
      writeAll(fd, Buffer.from("half"));
      throw error;
    });
  const own = new Error("of the caller");
  assert.throws(() => failWith(own), own);
  const full = Object.assign(new Error("ENOSPC: no space left on device, write"), {
    code: "ENOSPC",
    syscall: "write",
  });
  assert.throws(() => failWith(full), {
    message: `${path}: expected room on the disk, got ENOSPC: no space left on device, write. Free some; what stood there before is untouched.`,
  });
  assert.equal(readFileSync(path, "utf8"), "old");
  const nowhere = join(folder, "none", "file");
  assert.throws(
    () => replaceFile(nowhere, () => assert.fail("not reached")),
    /: expected a path that can be written, got ENOENT.+\. Make its folder first, .+\.$/,
  );
  assert.throws(
    () => writing(join(path, "below"), () => mkdirSync(join(path, "below"))),
    /below: expected a path that can be written, got ENOTDIR: not a directory\. A part of it is a file: .+\.$/,
  );
  const asFolder = join(folder, "a folder");
  symlinkSync(folder, asFolder);
  assert.deepEqual(
    readdirSync(folder).filter((name) => name !== "a folder"),
    before,
  );
});

test("makeFolder makes the folders above, and says at once where none can be made", () => {
  const [own, file] = [`${folder}/x/../y/z/`, join(folder, "a file")];
  makeFolder(own);
  makeFolder(own);
  assert.ok(existsSync(join(folder, "y", "z")));
  writeFileSync(file, "");
  for (const below of [file, join(file, "b", "c")]) {
    assert.throws(() => makeFolder(below), /: expected a path that can be written, got E(EXIST|NOTDIR): /);
  }
  if (process.platform !== "linux") return;
  for (const path of ["/proc/x", "/proc/x/y/z"]) {
    assert.throws(() => makeFolder(path), {
      name: "RangeError",
      message: `${path}: expected a folder that can be made, got a place where none can be made. Choose another.`,
    });
  }
});

test("a named pipe is refused, and nothing waits for it", { timeout: 10_000 }, () => {
  const path = join(folder, "pipe");
  execFileSync("mkfifo", [path]);
  assert.throws(() => new FileBytes(path), {
    message: `${path}: expected a regular file, got a device or pipe.`,
  });
});
