import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { test } from "node:test";
import { promisify } from "node:util";

import type { DecodeTask } from "../../src/data/decode.js";
import { DecodePool, DecodePoolError } from "../../src/data/decode_pool.js";
import { grey } from "../support/data_files.js";

const taskOf = (bytes: Uint8Array): DecodeTask => {
  return { id: "x.png", image: { bytes }, size: 4, crop: "center", isFlipped: false };
};

test("results do not depend on the number of threads, and the caller keeps its bytes", async () => {
  const encoded = await Promise.all(Array.from({ length: 12 }, (_, i) => grey(i)));
  // Each in the middle of other memory, as in a page of a parquet file.
  const files = encoded.map((png) =>
    new Uint8Array(Buffer.concat([Buffer.alloc(9), png, Buffer.alloc(9)])).subarray(9, -9),
  );
  for (const workers of [0, 1, 2]) {
    using pool = new DecodePool(workers);
    const decoded = await Promise.all(files.map((bytes) => pool.decode(taskOf(bytes))));
    assert.deepEqual(
      decoded.map(({ data }) => data[0]),
      [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
    );
    const data = new Uint8Array(64).subarray(1, 49).fill(5);
    const image = { pixels: { width: 4, height: 4, channels: 3, data } };
    assert.equal((await pool.decode({ ...taskOf(data), image })).data[0], 5);
    assert.equal(data.length, 48);
    assert.ok(files.every((bytes, i) => bytes.length === encoded[i]?.length));
  }
});

test("an image that cannot be decoded fails alone", async () => {
  using pool = new DecodePool(1);
  const bad = pool.decode(taskOf(Uint8Array.of(1, 2, 3)));
  const good = pool.decode(taskOf(await grey(9)));
  await assert.rejects(bad, {
    name: "RangeError",
    message: /^x\.png: expected an image, got .+\. Remove the file or/,
  });
  assert.equal((await good).data[0], 9);
});

test("a reader that is left open does not keep the process alive", async () => {
  const pool = new URL("../../src/data/decode_pool.js", import.meta.url);
  const script = `
    const { DecodePool } = await import(${JSON.stringify(pool.href)});
    const pixels = { width: 1, height: 1, channels: 3, data: new Uint8Array(3) };
    const task = { id: "x", image: { pixels }, size: 1, crop: "center", isFlipped: false };
    const { data } = await new DecodePool(1).decode(task);
    console.log(data.length);`;
  const { stdout } = await promisify(execFile)(process.execPath, ["--input-type=module", "--eval", script], {
    timeout: 60_000,
  });
  assert.equal(stdout, "3\n");
});

test("closing ends what is waited for, and nothing more can be asked", async () => {
  for (const workers of [1, 0]) {
    const pool = new DecodePool(workers);
    const waited = workers > 0 ? pool.decode(taskOf(await grey(1))) : undefined;
    pool.close();
    const closed = { name: "DecodePoolError", message: "decode: expected an open reader, got a closed one." };
    if (waited !== undefined) await assert.rejects(waited, closed);
    await assert.rejects(pool.decode(taskOf(await grey(1))), closed);
    assert.ok(new DecodePoolError("x") instanceof Error);
  }
  assert.throws(() => new DecodePool(-1), { message: "DecodePool: expected 0 to 64 workers, got -1." });
});
