import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";

import sharp from "sharp";

import {
  listImages,
  pixelsToTensor,
  readImages,
  readPixels,
  tensorToPixels,
  writePng,
} from "../../src/data/images.js";
import { memory, tensor } from "../../src/torch/index.js";
import "../support/settle.js";

const folder = mkdtempSync(join(tmpdir(), "rlar-images-"));
after(() => rmSync(folder, { recursive: true }));
const at = (name: string): string => join(folder, name);

test("8-bit RGB survives the way to [-1, 1] and back, every level", () => {
  const data = Uint8Array.from({ length: 16 * 16 * 3 }, (_, i) => i % 256);
  const pixels = { width: 16, height: 16, channels: 3, data };
  using image = pixelsToTensor(pixels);
  assert.deepEqual(image.shape, [1, 3, 16, 16]);
  assert.equal(image.amin().item(), -1);
  assert.equal(image.amax().item(), 1);
  assert.deepEqual(tensorToPixels(image), pixels);
});

test("grey, alpha, palette, 16-bit and EXIF-turned images become upright 8-bit RGB", async () => {
  const raw = { width: 2, height: 1, channels: 4 as const };
  const rgba = Buffer.from([255, 0, 0, 255, 0, 0, 255, 0]);
  await sharp(rgba, { raw }).png().toFile(at("alpha.png"));
  assert.deepEqual([...(await readPixels(at("alpha.png"))).data], [255, 0, 0, 255, 255, 255]);

  await sharp(Buffer.from([7, 200]), { raw: { width: 2, height: 1, channels: 1 } })
    .png()
    .toFile(at("grey.png"));
  assert.deepEqual([...(await readPixels(at("grey.png"))).data], [7, 7, 7, 200, 200, 200]);

  await sharp(rgba, { raw }).flatten({ background: "#fff" }).png({ palette: true }).toFile(at("palette.png"));
  assert.deepEqual([...(await readPixels(at("palette.png"))).data], [255, 0, 0, 255, 255, 255]);

  const wide = Uint16Array.from([0, 65535, 257 * 128]);
  await sharp(wide, { raw: { width: 1, height: 1, channels: 3 } })
    .toColourspace("rgb16")
    .png()
    .toFile(at("wide.png"));
  const pixels = await readPixels(at("wide.png"));
  assert.equal(pixels.channels, 3);
  assert.deepEqual([...pixels.data], [0, 255, 128]);

  const tall = sharp(rgba, { raw }).flatten({ background: "#fff" }).withMetadata({ orientation: 6 });
  await tall.jpeg({ quality: 100 }).toFile(at("turned.jpg"));
  const turned = await readPixels(at("turned.jpg"));
  assert.deepEqual([turned.width, turned.height], [1, 2]);
});

test("a file that is no image is named, with what to do", async () => {
  writeFileSync(at("broken.png"), "not a picture");
  await assert.rejects(readPixels(at("broken.png")), (error: Error) => {
    assert.match(
      error.message,
      /broken\.png: expected an image, got .+\. Remove the file or convert it to PNG\.$/,
    );
    return true;
  });
  const whole = await sharp({ create: { width: 64, height: 64, channels: 3, background: "#123" } })
    .png()
    .toBuffer();
  writeFileSync(at("cut.png"), whole.subarray(0, whole.length - 30));
  await assert.rejects(readPixels(at("cut.png")), /cut\.png: expected an image/);
  rmSync(at("broken.png"));
  rmSync(at("cut.png"));
});

test("readImages gives squares; listImages their files in order; both say what is missing", async () => {
  const before = memory().tensors;
  const { files, notes } = await listImages(folder);
  assert.deepEqual(notes, []);
  assert.deepEqual(files, ["alpha.png", "grey.png", "palette.png", "turned.jpg", "wide.png"].map(at));
  using batch = await readImages(files, 8);
  assert.deepEqual(batch.shape, [5, 3, 8, 8]);
  assert.equal(memory().tensors, before + 1);
  const linked = mkdtempSync(join(tmpdir(), "rlar-linked-"));
  symlinkSync(folder, join(linked, "folder"));
  symlinkSync(at("grey.png"), join(linked, "z.png"));
  const { files: found } = await listImages(linked);
  rmSync(linked, { recursive: true });
  assert.deepEqual(found.slice(-2), [join(linked, "folder", "wide.png"), join(linked, "z.png")]);
  assert.equal(found.length, 6);
  const missing = at("nowhere");
  await assert.rejects(listImages(missing), {
    message: `images: expected a file or folder, got ${missing}. Check the path.`,
  });
});

test("writePng is read back to the same bytes and leaves nothing aside when it cannot write", async () => {
  using image = tensor([-1, 0, 1]).view(1, 3, 1, 1);
  await writePng(at("out.png"), image);
  assert.deepEqual([...(await readPixels(at("out.png"))).data], [0, 128, 255]);
  const before = readdirSync(folder);
  await assert.rejects(
    writePng(join(folder, "no", "such", "out.png"), image),
    /out\.png: expected a path that can be written, got ENOENT.+\. Make its folder first/,
  );
  assert.deepEqual(readdirSync(folder), before);
});
