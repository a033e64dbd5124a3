import assert from "node:assert/strict";
import { test } from "node:test";

import {
  checkClassIds,
  classCounts,
  describeClasses,
  numberClasses,
  oneClass,
  requireText,
  sortNames,
} from "../../src/data/labels.js";

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
  const names = ["ant", "bee", "cat"];
  assert.deepEqual([...numberClasses("set", ["cat", "ant"], { names }).ids], [2, 0]);
  assert.deepEqual([...numberClasses("set", [2, 1], { names }).ids], [2, 1]);
  const rowOf = (i: number): string => `set#${i}`;
  assert.throws(() => numberClasses("set", ["ant", "dog"], { names, rowOf }), {
    name: "RangeError",
    message: /^set#1: expected a class among the 3 .*, got dog\. .*data\.classNames/,
  });
  assert.throws(() => numberClasses("set", [0, 3], { names, rowOf }), {
    message: /^set#1: expected a class id from 0 to 2, got 3\. .*data\.label=none/,
  });
});

test("a class that is listed twice is refused", () => {
  assert.throws(() => numberClasses("set", ["a"], { names: ["a", "b", "a"] }), {
    name: "RangeError",
    message: /classNames: expected each class once, got a twice/,
  });
});

test("labels that are no classes are refused with their row and the way to train without labels", () => {
  const rowOf = (i: number): string => `set#${i}`;
  for (const odd of [-1, 0.5, NaN, 2 ** 31, null, undefined, true]) {
    assert.throws(() => numberClasses("set", [0, odd], { rowOf }), {
      message: new RegExp(`^set#1: expected a class.*, got ${odd}\\. .*data\\.label=none`),
    });
  }
});

test("names that are numbers with gaps are said, for their ids are others", () => {
  assert.deepEqual(numberClasses("set", ["2", "0", "1"]).notes, []);
  const { names, ids, notes } = numberClasses("set", ["10", "0", "2", "1"]);
  assert.deepEqual(
    [names, [...ids]],
    [
      ["0", "1", "2", "10"],
      [3, 0, 2, 1],
    ],
  );
  assert.match(notes.join(), /10 has id 3.*data\.classNames/);
  assert.deepEqual(numberClasses("set", ["10"], { names: ["0", "10"] }).notes, []);
});

const sourceOf = (classNames: string[], ids: number[]) => ({
  length: ids.length,
  classNames,
  idOf: (i: number) => `set#${i}`,
  classOf: (i: number) => ids[i] as number,
});

test("classes are counted, and listed on one line with those that have no image", () => {
  const source = sourceOf(["cat", "dog", "eel"], [0, 2, 0]);
  assert.deepEqual(classCounts(source), [
    { id: 0, name: "cat", images: 2 },
    { id: 1, name: "dog", images: 0 },
    { id: 2, name: "eel", images: 1 },
  ]);
  assert.equal(describeClasses(source), "3 classes: 0 cat (2 images), 1 dog (0), 2 eel (1); no image of dog");
  const many = Array.from({ length: 1000 }, (_, i) => `n${i}`);
  const text = describeClasses(sourceOf(many, [0]));
  assert.match(text, /^1000 classes: 0 n0 \(1 image\), .*, \.\.\., 999 n999 \(0\); no image of n1,/);
  assert.ok(text.length < 300);
});

test("a class that a model does not know is refused with its image; so is the one that means none", () => {
  const source = sourceOf(["cat", "dog", "eel"], [0, 1, 2]);
  checkClassIds(source, 3);
  assert.throws(() => checkClassIds(source, 2), {
    message: /^set#2: expected a class id from 0 to 1, .*got 2 \(eel\), which stands for no class\./,
  });
  assert.throws(() => checkClassIds(source, 1), { message: /^set#1: .* from 0 to 0, .*got 1 \(dog\)/ });
});

test("one class holds all", () => {
  assert.deepEqual(oneClass(3), { ids: new Int32Array(3), names: ["all"], notes: [] });
});

test("numbers among names, empty names and names of bytes that are not UTF-8 are refused with their row", () => {
  const rowOf = (i: number): string => `set#${i}`;
  assert.throws(() => numberClasses("set", ["cat", 1], { rowOf }), {
    message: /^set#1: expected a name, .*, got the number 1\. .*data\.label=none/,
  });
  assert.throws(() => numberClasses("set", ["cat", ""], { rowOf }), {
    message: /^set#1: .*got an empty text\./,
  });
  assert.equal(requireText("set#0", "\u00e9"), "\u00e9");
  assert.throws(() => requireText("set#0", "a\ufffd"), {
    message: /^set#0: expected .*UTF-8, got other bytes\./,
  });
});

test("names that are hard to tell apart are said; so are folders -1, 0, 1, whose ids are others", () => {
  for (const pair of [
    ["Cat", "cat"],
    ["cat", " cat"],
    ["\u00e9t\u00e9", "e\u0301te\u0301"],
  ] as const) {
    assert.match(numberClasses("set", pair).notes.join(), /differ only in .*case, spaces or Unicode form/);
  }
  const names = ["b", "\u00e9"];
  assert.throws(() => numberClasses("set", ["e\u0301"], { names }), {
    message: /differs from \u00e9 only in .*Unicode/,
  });
  assert.match(numberClasses("set", ["0", "-1", "1"]).notes.join(), /-1 has id 0.*of their values/);
  assert.match(numberClasses("set", ["0.5", "1", "10", "2"]).notes.join(), /0\.5 has id 0.*names as text/);
});
