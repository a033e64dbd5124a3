/** Ownership of things that are made one after another. */
import assert from "node:assert/strict";
import { test } from "node:test";

import { owning } from "../../src/torch/owning.js";

test("what was made is freed together, the last first and once", async () => {
  const freed: string[] = [];
  const whole = await owning(async (own) => {
    const tensor = own({ dispose: () => freed.push("tensor") });
    own({ [Symbol.dispose]: () => void freed.push("module") });
    return { tensor, none: own(null) };
  });
  assert.equal(whole.none, null);
  assert.deepEqual(freed, []);
  whole[Symbol.dispose]();
  whole[Symbol.dispose]();
  assert.deepEqual(freed, ["module", "tensor"]);
});

test("what was made is freed where a later part fails, with the error of that part", async () => {
  const freed: string[] = [];
  const failing = owning(async (own) => {
    own({ dispose: () => freed.push("first") });
    own({ dispose: () => freed.push("second") });
    throw new RangeError("no third");
  });
  await assert.rejects(failing, new RangeError("no third"));
  assert.deepEqual(freed, ["second", "first"]);
});
