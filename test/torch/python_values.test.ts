/** Python values: finding one's way in them, and the walks that hostile shapes must not hang. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { isDeeperThan, kindOf, lookup, Opaque, PyComplex, PyGlobal } from "../../src/torch/python_values.js";

const namespace = new PyGlobal("argparse", "Namespace");

test("lookup goes through dicts, lists and objects", () => {
  const object = new Opaque(namespace, []);
  object.state = new Map([["lr", 0.1]]);
  object.entries.set("key", "entry");
  const slotted = new Opaque(namespace, []);
  slotted.state = [null, new Map([["slot", 1]])];
  const tree = new Map<string, unknown>([
    ["a", [10, new Map([[3, "three"]])]],
    ["object", object],
    ["slotted", slotted],
  ]);
  const at = (...path: (string | number)[]): unknown => lookup(tree as Parameters<typeof lookup>[0], ...path);
  assert.equal(at(), tree);
  assert.equal(at("a", 0), 10);
  assert.equal(at("a", 1, 3), "three");
  assert.equal(at("object", "lr"), 0.1);
  assert.equal(at("object", "key"), "entry");
  assert.equal(at("slotted", "slot"), 1);
  for (const path of [
    ["b"],
    ["a", "0"],
    ["a", 2],
    ["a", 0, "x"],
    ["object", "callee"],
    ["toString"],
    ["a", "length"],
  ]) {
    assert.equal(at(...path), undefined, path.join("."));
  }
});

test("kinds are named as Python names them", () => {
  const long = "y".repeat(100);
  const cases: [unknown, string][] = [
    [null, "None"],
    ["a", '"a"'],
    [long, `"${long.slice(0, 80)}..."`],
    [1.5, "1.5"],
    [true, "true"],
    [3n, "a long int"],
    [[1], "a list or tuple"],
    [new Map(), "a dict"],
    [new Set(), "a set"],
    [new Uint8Array(2), "bytes"],
    [namespace, "argparse.Namespace"],
    [new Opaque(namespace, []), "argparse.Namespace(...)"],
    [new PyComplex(1, 2), "PyComplex"],
    [undefined, "nothing"],
  ];
  for (const [value, want] of cases) assert.equal(kindOf(value), want);
});

test("objects that are calls of each other in a ring have a name and an end", () => {
  const a = new Opaque(null, []);
  const b = new Opaque(a, []);
  a.callee = b;
  assert.equal(`${a}`, ".(...)");
  assert.ok(!isDeeperThan(a, 20));
});

test("depth counts containers, shared ones once", () => {
  let nested: unknown[] = [];
  for (let i = 1; i < 50; i++) nested = [nested, nested];
  assert.ok(isDeeperThan(nested, 49));
  assert.ok(!isDeeperThan(nested, 50));
  const map = new Map<unknown, unknown>([[["key"], 1]]);
  assert.ok(isDeeperThan([map], 2));
  const ring: unknown[] = [];
  ring.push(ring);
  assert.ok(!isDeeperThan(ring, 1));
});
