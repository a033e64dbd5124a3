import assert from "node:assert/strict";
import { test } from "node:test";

import { numberClasses, oneClass, sortNames } from "../../src/data/labels.js";

test("names are numbered in their order, whole numbers by their values", () => {
  const { ids, names } = numberClasses("set", ["dog", "cat", "dog"]);
  assert.deepEqual([...ids], [1, 0, 1]);
  assert.deepEqual(names, ["cat", "dog"]);
  assert.deepEqual(sortNames(["10", "9", "2"]), ["2", "9", "10"]);
  assert.deepEqual(sortNames(["10", "9", "2a"]), ["10", "2a", "9"]);
});

test("numbers are class ids, and name themselves", () => {
  const { ids, names } = numberClasses("set", [2, 0]);
  assert.deepEqual([...ids], [2, 0]);
  assert.deepEqual(names, ["0", "1", "2"]);
});

test("given names decide the ids, so part of the classes keeps its numbers", () => {
  const all = ["ant", "bee", "cat"];
  assert.deepEqual([...numberClasses("set", ["cat", "ant"], all).ids], [2, 0]);
  assert.deepEqual([...numberClasses("set", [2, 1], all).ids], [2, 1]);
  assert.throws(() => numberClasses("set", ["dog"], all), {
    message: "set: expected a class among the 3 of classNames, got dog. Add it to classNames.",
  });
  assert.throws(() => numberClasses("set", [0, 3], all), {
    message: "set: expected class ids from 0 to 2, got 3.",
  });
});

test("numbers that are no class ids are refused", () => {
  for (const odd of [-1, 0.5, NaN, 2 ** 31]) {
    assert.throws(() => numberClasses("set", [0, odd]), {
      message: `set: expected class ids from 0 to 9999999, got ${odd}.`,
    });
  }
});

test("one class holds all", () => {
  assert.deepEqual(oneClass(3), { ids: new Int32Array(3), names: ["all"] });
});
