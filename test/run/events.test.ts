/** Event files byte by byte as TensorBoard's own writer makes them. */
import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";

import { crc32c, EventWriter, frame } from "../../src/run/events.js";

const folder = mkdtempSync(join(tmpdir(), "rlar-events-"));
after(() => rmSync(folder, { recursive: true }));

const golden = (name: string): Buffer =>
  readFileSync(fileURLToPath(new URL(`../../../test/golden/events/${name}`, import.meta.url)));

test("CRC-32C of RFC 3720", () => {
  assert.equal(crc32c(new Uint8Array(32)), 0x8a9136aa);
  assert.equal(crc32c(new Uint8Array(32).fill(0xff)), 0x62a8ab43);
  assert.equal(crc32c(Uint8Array.from({ length: 32 }, (_, i) => i)), 0x46dd794e);
  assert.equal(crc32c(Buffer.from("123456789")), 0xe3069283);
});

test("a record is length, checksum, data, checksum", () => {
  assert.equal(frame(new Uint8Array(0)).toString("hex"), "000000000000000029039807d8ea82a2");
});

test("version, restart, scalars, images and text are what TensorBoard's writer makes", () => {
  using writer = new EventWriter(join(folder, "tb"), { resumeAt: 7, now: () => 1000.5 });
  assert.match(basename(writer.path), /^events\.out\.tfevents\.0000001000\./);
  writer.scalars(0, { "reward/mean": -0.03125, "kl/ref": 0 });
  writer.scalars(300, { "reward/mean": 0.1 });
  writer.scalars(301, {});
  writer.image(300, "samples", golden("pixel.png"));
  writer.text(2 ** 40, "config", "# Grüße");
  writer.flush();
  assert.deepEqual(readFileSync(writer.path), golden("run.tfevents"));
});

test("hyper-parameters are what TensorBoard's plugin makes, zeros and empty texts included", () => {
  using writer = new EventWriter(join(folder, "hparams"), { now: () => 1000.5 });
  // In the order of the golden file: that of a map in protocol buffers has no meaning.
  writer.hparams({
    "b.off": false,
    "c.name": "Grüße",
    "a.zero": 0,
    "a.lr": 0.001,
    "b.on": true,
    "c.empty": "",
  });
  assert.deepEqual(readFileSync(writer.path), golden("hparams.tfevents"));
});

test("each writer has a file of its own", () => {
  const where = join(folder, "two");
  for (let i = 0; i < 2; i++) new EventWriter(where, { now: () => 5 }).close();
  assert.equal(readdirSync(where).length, 2);
});

test("a new run has no restart in it", () => {
  using writer = new EventWriter(join(folder, "new"), { now: () => 1000.5 });
  assert.deepEqual(readFileSync(writer.path), golden("run.tfevents").subarray(0, 40));
});

test("what cannot be written is refused", () => {
  const writer = new EventWriter(join(folder, "bad"));
  assert.throws(() => writer.image(1, "x", Buffer.from("GIF89a")), {
    message: "EventWriter.image: expected a PNG, got 6 other bytes.",
  });
  assert.throws(() => writer.scalars(-1, { a: 1 }), {
    message: "EventWriter: expected a step of at least 0, got -1.",
  });
  writer.close();
  writer.close();
  assert.throws(() => writer.scalars(1, { a: 1 }), {
    message: `EventWriter: expected an open file, got ${writer.path}, which was closed.`,
  });
});
