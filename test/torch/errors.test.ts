import assert from "node:assert/strict";
import { test } from "node:test";
import { describe } from "../../src/torch/errors.js";
import { expected, expectedMessage, expectedType, listed, ones, TorchError } from "../../src/torch/index.js";

test("messages say where, what was expected, what came, and what to do", () => {
  assert.equal(expectedMessage("f", "a number", "x"), "f: expected a number, got x.");
  assert.equal(expectedMessage("f", "a number", "x", "Give one"), "f: expected a number, got x. Give one.");
  const range = expected("f", "1 to 3", 4, "Lower it");
  assert.ok(range instanceof RangeError);
  assert.equal(range.message, "f: expected 1 to 3, got 4. Lower it.");
  const type = expectedType("f", "a list", null);
  assert.ok(type instanceof TypeError);
  assert.equal(type.message, "f: expected a list, got null.");
});

test("values are described in short, tensors without their elements", () => {
  using x = ones([2, 3]);
  const shown: [unknown, string][] = [
    ["text", "text"],
    [7n, "7n"],
    [1.5, "1.5"],
    [undefined, "undefined"],
    [true, "true"],
    [[], "[]"],
    [[1, "a", [x]], "[1, a, [Tensor float32[2, 3] cpu]]"],
    [[1, 2, 3, 4, 5, 6, 7, 8], "[1, 2, 3, 4, 5, 6, 7, 8]"],
    [[1, 2, 3, 4, 5, 6, 7, 8, 9], "[1, 2, 3, 4, 5, 6, 7, 8, ... 9 in all]"],
    [{ a: 1 }, "Object"],
    [Object.create(null), "object"],
    [(function* () {})(), "object"],
    [new Map([[1, 2]]), "Map"],
    [{ toString: () => "mine" }, "mine"],
    [x, "Tensor float32[2, 3] cpu"],
  ];
  for (const [value, text] of shown) assert.equal(describe(value), text);
});

test("a TorchError has the operator and its schema, and its stack opens with the caller", () => {
  const error = new TorchError("aten::f", "aten::f() -> ()", "it failed\n    at length");
  assert.deepEqual(
    [error.name, error.op, error.schema, error.message],
    ["TorchError", "aten::f", "aten::f() -> ()", "it failed\n    at length"],
  );
  const [first, second, frame] = (error.stack as string).split("\n");
  assert.deepEqual([first, second], ["TorchError: it failed", "    at length"]);
  assert.match(frame as string, /errors\.test\.[jt]s/);
});

test("a message that quotes a sentence has one full stop", () => {
  const quoted = expectedMessage("rank 1", "all to go on", "f: it failed.", "See g.");
  assert.equal(quoted, "rank 1: expected all to go on, got f: it failed. See g.");
  assert.equal(expectedMessage("a", "a file", "."), "a: expected a file, got ..");
  assert.equal(expectedMessage("a", "a file", "b..."), "a: expected a file, got b....");
});

test("listed names the first few and counts the others", () => {
  assert.equal(listed(["a", "b"], 2), "a, b");
  assert.equal(listed([3, 1, 2], 2), "3, 1 and 1 more");
  assert.equal(listed(["a", "b"], 1), "a and 1 more");
});

test("a name or value of any length is shown without its middle", () => {
  const message = expectedMessage("n".repeat(1e6), "a name", `${"a".repeat(9000)}z`);
  assert.ok(message.length < 1000, String(message.length));
  assert.match(message, /^n{200} \.\.\. n{200}: expected a name, got a{200} \.\.\. a{199}z\.$/);
});
