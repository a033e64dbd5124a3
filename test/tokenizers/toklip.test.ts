import assert from "node:assert/strict";
import { test } from "node:test";
import { toklipGrid } from "../../src/tokenizers/toklip.js";

test("the position embedding tells the grid, with or without a class token", () => {
  assert.deepEqual(toklipGrid({ "visual.trunk.pos_embed": [1, 256, 1152] }), [16, 16]);
  assert.deepEqual(toklipGrid({ "visual.trunk.pos_embed": [1, 576, 1152] }), [24, 24]);
  assert.deepEqual(toklipGrid({ "visual.positional_embedding": [256, 768] }), [16, 16]);
  assert.deepEqual(toklipGrid({ "visual.positional_embedding": [577, 1024] }), [24, 24]);
  assert.equal(toklipGrid({ "visual.trunk.pos_embed": [1, 300, 1152] }), undefined);
  assert.equal(toklipGrid({ "text.positional_embedding": [64, 1152] }), undefined);
});
