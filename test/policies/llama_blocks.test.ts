/** Widths and heads of LLaMA blocks. Their numbers are in the tests of the models that they make up. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { checkHeads } from "../../src/policies/layers.js";
import { gatedWidth } from "../../src/policies/llama_blocks.js";

test("the gated feed-forward of each published width is as wide as published", () => {
  const published = [
    [768, 2048],
    [1024, 2816],
    [1280, 3584],
    [1536, 4096],
    [2048, 5632],
    [2560, 6912],
    [3200, 8704],
    [4096, 11008],
  ] as const;
  for (const [dim, width] of published) assert.equal(gatedWidth(dim, 256), width);
  assert.equal(gatedWidth(16, 8), 48);
});

test("heads divide the width, and key heads divide heads", () => {
  checkHeads("here", 768, 12, 4);
  assert.throws(() => checkHeads("here", 768, 10, 10), {
    message: "here: expected a number of heads that divides 768, got 10.",
  });
  assert.throws(() => checkHeads("here", 768, 12, 5), {
    message: "here: expected a number of key heads that divides 12, got 5.",
  });
});
