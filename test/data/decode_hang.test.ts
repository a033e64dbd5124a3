/** A decoder that hangs, as a fault in a codec makes it: the image is named, and the others are read all the same. */
import assert from "node:assert/strict";
import { test } from "node:test";

import { readPixels } from "../../src/data/decode.js";
import { grey } from "../support/data_files.js";

test("an image that the decoder hangs on is named after the limit; later ones are decoded in another process", async () => {
  const png = await grey(7);
  const wanted = await readPixels(png, "before.png");
  const hanging = readPixels(png, "stuck.png", () => new Promise(() => {}), 0.05);
  await assert.rejects(hanging, {
    message:
      /^stuck\.png: expected an image, got one that the decoder hangs on for 0\.05 s\. Remove the file/,
  });
  const notHere = (): never => assert.fail("decoded in this process");
  assert.deepEqual(await readPixels(png, "after.png", notHere), wanted);
});
