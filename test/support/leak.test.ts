import assert from "node:assert/strict";
import { test } from "node:test";
import { memory, tensor, tidy } from "../../src/torch/index.js";
import { noLeak } from "./leak.js";

test("work that frees what it makes gives its result", () => {
  assert.equal(
    noLeak(() => tidy(() => tensor([1, 2]).sum().item())),
    3,
  );
});

test("a tensor left behind is counted", () => {
  const before = memory().tensors;
  const left: { dispose(): void }[] = [];
  assert.throws(() => noLeak(() => left.push(tensor(1), tensor(2))), {
    message: `noLeak: expected ${before} live tensors after the work, as before it, got ${before + 2}.`,
  });
  for (const one of left) one.dispose();
});

test("so is one too few", () => {
  const one = tensor(1);
  assert.throws(() => noLeak(() => one.dispose()), /got \d+\.$/);
});
