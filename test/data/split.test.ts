import assert from "node:assert/strict";
import { test } from "node:test";

import { epochOrder } from "../../src/data/order.js";
import type { Block, ImageSource } from "../../src/data/source.js";
import { splitSource, subset } from "../../src/data/split.js";

/** A source of names alone. */
function sourceOf(ids: readonly string[], blocks?: readonly Block[]): ImageSource {
  return {
    kind: "images",
    length: ids.length,
    classNames: ["even", "odd"],
    fingerprint: "f",
    variants: 1,
    ...(blocks !== undefined && { blocks }),
    idOf: (i) => ids[i] as string,
    classOf: (i) => i % 2,
    locate: async (i) => ({ image: { path: ids[i] as string } }),
  };
}

const idsOf = (source: ImageSource): string[] =>
  Array.from({ length: source.length }, (_, i) => source.idOf(i));

/** 500 designs in two styles. */
const designs = ["flat", "round"].flatMap((style) =>
  Array.from({ length: 500 }, (_, i) => `${style}/${i}.png`),
);
const groupOf = (id: string): string => id.split("/")[1] as string;

test("a group's side is that of the first 48 bits of its hash: a set is split the same for ever", () => {
  const ids = Array.from({ length: 12 }, (_, i) => `${"abc"[i % 3]}/${String(i).padStart(3, "0")}.png`);
  // Worked out apart: SHA-256 of "<seed>/split/<id>", its first 6 bytes over 2 ** 48, below 0.25.
  for (const [seed, held] of [
    [0, [3, 5, 6, 7, 10]],
    [7, [2, 3, 6, 8, 9]],
  ] as const) {
    const { heldOut } = splitSource(sourceOf(ids), { heldOut: 0.25, seed });
    assert.deepEqual(
      idsOf(heldOut),
      held.map((i) => ids[i]),
    );
  }
});

test("no group is on both sides, nothing is lost, and the share is about what was asked", () => {
  const { train, heldOut } = splitSource(sourceOf(designs), { heldOut: 0.2, groupOf });
  const sides = [train, heldOut].map((side) => new Set(idsOf(side).map(groupOf)));
  assert.deepEqual(
    [...(sides[0] as Set<string>)].filter((group) => sides[1]?.has(group)),
    [],
  );
  assert.deepEqual([...idsOf(train), ...idsOf(heldOut)].sort(), [...designs].sort());
  // 100 of 500, with a standard deviation of 8.9.
  assert.ok(Math.abs((sides[1] as Set<string>).size - 100) < 45);
  assert.equal(heldOut.length, 2 * (sides[1] as Set<string>).size);
});

test("a split is a function of the seed and the names, and grows without moving anything", () => {
  const split = (ids: readonly string[], seed?: number): string[] => {
    return idsOf(
      splitSource(sourceOf(ids), { heldOut: 0.2, groupOf, ...(seed !== undefined && { seed }) }).heldOut,
    );
  };
  assert.deepEqual(split(designs), split(designs, 0));
  assert.notDeepEqual(split(designs), split(designs, 1));
  const half = designs.slice(0, 500);
  assert.deepEqual(
    split(designs).filter((id) => half.includes(id)),
    split(half),
  );
});

test("a side that would be empty, and a share that is none, are refused", () => {
  assert.throws(() => splitSource(sourceOf(["a"]), { heldOut: 0.5 }), {
    message:
      /^splitSource: expected images to (hold out|train on), got none of 1 groups\. Use more images, hold out another share \(data\.evalPart; 0 for none\), /,
  });
  for (const heldOut of [0, 1, NaN]) {
    assert.throws(() => splitSource(sourceOf(["a", "b"]), { heldOut }), {
      message: `splitSource: expected a share heldOut between 0 and 1, got ${heldOut}.`,
    });
  }
});

test("a subset keeps names, classes and files, and has a fingerprint of its own", async () => {
  const whole = sourceOf(["a", "b", "c", "d"]);
  const part = subset(whole, [1, 2]);
  assert.deepEqual(idsOf(part), ["b", "c"]);
  assert.deepEqual([part.classOf(0), part.classOf(1)], [1, 0]);
  assert.deepEqual(await part.locate(1, 0), { image: { path: "c" } });
  const prints = [whole, part, subset(whole, [1, 3]), subset({ ...whole, fingerprint: "g" }, [1, 2])];
  assert.equal(new Set(prints.map((source) => source.fingerprint)).size, 4);
  assert.throws(() => subset(whole, [2, 1]), {
    message: "subset: expected ascending indices below 4, got 1 after 2.",
  });
  assert.throws(() => subset(whole, [4]), {
    message: "subset: expected ascending indices below 4, got 4 after -1.",
  });
  assert.throws(() => subset(whole, []), { message: "subset: expected at least one index, got none." });
});

test("a subset's blocks are what is left of the whole's", () => {
  const blocks = [
    { length: 2, bytes: 2 ** 29 },
    { length: 3, bytes: 2 ** 28 },
    { length: 1, bytes: 9 },
  ];
  const part = subset(sourceOf(["a", "b", "c", "d", "e", "f"], blocks), [0, 3, 5]);
  assert.deepEqual(part.blocks, [
    { length: 1, bytes: 2 ** 29 },
    { length: 1, bytes: 2 ** 28 },
    { length: 1, bytes: 9 },
  ]);
  assert.deepEqual([...epochOrder(part, 0, 0)].sort(), [0, 1, 2]);
  const last = subset(sourceOf(["a", "b", "c", "d", "e", "f"], blocks), [5]);
  assert.deepEqual(last.blocks, [{ length: 1, bytes: 9 }]);
});
