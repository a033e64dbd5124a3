import assert from "node:assert/strict";
import { test } from "node:test";
import { frontierChart, placedLabels, staircase, undominated } from "../../src/dashboard/evaluations.js";
import { axisOf } from "../../src/dashboard/scale.js";

const at = (x: number, y: number, label = "1") => ({ x, y, label, group: 1 });

test("points that none is as good as in both", () => {
  const points = [at(3, 1), at(1, 3), at(2, 2), at(2, 2.5), at(4, 1), at(3, 3)];
  assert.deepEqual(
    undominated(points).map(({ x, y }) => [x, y]),
    [
      [1, 3],
      [2, 2],
      [3, 1],
    ],
  );
});

test("the edge of what they reach is a staircase from the top to the right", () => {
  const axis = axisOf([0, 4], { margin: 0 });
  assert.equal(staircase([at(3, 1), at(1, 3), at(2, 2)], axis, axis), "M250 0H250V100H500V200H750V300H1000");
  assert.equal(staircase([], axis, axis), "");
});

test("labels keep clear of points, of each other and of the frame", () => {
  const label = (text: string, x: number, y: number) => ({ text, color: 0, x, y });
  const sides = (...labels: ReturnType<typeof label>[]): (string | undefined)[] =>
    labels.map(({ text }) => placedLabels(labels).find((placed) => placed.text === text)?.side);
  assert.deepEqual(sides(label("0.8", 0.5, 0.5)), ["right"]);
  assert.deepEqual(sides(label("0.8", 0.99, 0.5)), ["left"]);
  // The point to the right leaves the first no room there.
  assert.deepEqual(sides(label("a", 0.5, 0.5), label("b", 0.56, 0.5)), ["left", "right"]);
  // Of many on one spot some find no place.
  const many = Array.from({ length: 12 }, (_, i) => label(`${i}`, 0.5, 0.5));
  assert.ok(placedLabels(many).length < 9);
});

test("a chart: what the base reaches is shaded, the other's points are joined", () => {
  const { markup } = frontierChart({
    title: "L2 against Fréchet distance",
    network: "net <1>",
    prefix: 8,
    across: "L2",
    series: [
      { label: "before", color: undefined, isBase: true, points: [at(1, 3, "0.8"), at(3, 1, "1")] },
      { label: "after", color: 0, isBase: false, points: [at(0.5, 2.5, "0.8"), at(2, 0.5, "1")] },
    ],
  });
  assert.equal(markup.match(/class="band"/g)?.length, 1);
  assert.equal(markup.match(/class="line thin"/g)?.length, 1);
  assert.equal(markup.match(/class="at /g)?.length, 4);
  assert.match(markup, /net &lt;1&gt;/);
});
