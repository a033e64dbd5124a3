/** Conditions joined, repeated and checked. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { checkCondition, concatConditions, repeatCondition } from "../../src/policies/condition.js";
import type { Condition } from "../../src/policies/index.js";
import { randn, type Tensor, tensor, tidy } from "../../src/torch/index.js";

const ids = (...list: number[]): Tensor => tensor(list, { dtype: "int64" });
const bool = (data: number[] | number[][]): Tensor => tensor(data, { dtype: "bool" });
const lists = (condition: Condition): Record<string, unknown> =>
  Object.fromEntries(Object.entries(condition).map(([part, value]) => [part, value.toList()]));

test("conditions join row after row, and a mask that one lacks is filled in", () =>
  tidy(() => {
    const joined = concatConditions({ classes: ids(1, 2), isDropped: bool([1, 0]) }, { classes: ids(3) });
    assert.deepEqual(lists(joined), { classes: [1, 2, 3], isDropped: [1, 0, 0] });
    const features = tensor([[[1], [2]]]);
    const texts = concatConditions({ features }, { features: features.add(2), isReal: bool([[0, 1]]) });
    assert.deepEqual(lists(texts), {
      features: [
        [[1], [2]],
        [[3], [4]],
      ],
      isReal: [
        [1, 1],
        [0, 1],
      ],
    });
    assert.deepEqual(concatConditions({}, {}), {});
    assert.throws(() => concatConditions({ classes: ids(1) }, {}), {
      message: "concatConditions: expected classes in both conditions or in neither, got them in one.",
    });
    assert.throws(() => concatConditions({ isDropped: bool([1]) }, {}), {
      message: "concatConditions: expected isDropped in both conditions or in neither, got them in one.",
    });
  }));

test("a group's condition stands in a row", () =>
  tidy(() => {
    const repeated = repeatCondition(
      {
        classes: ids(1, 2),
        isReal: bool([
          [0, 1],
          [1, 1],
        ]),
      },
      2,
    );
    assert.deepEqual(lists(repeated), {
      classes: [1, 1, 2, 2],
      isReal: [
        [0, 1],
        [0, 1],
        [1, 1],
        [1, 1],
      ],
    });
  }));

test("parts of the wrong kind or shape are refused", () =>
  tidy(() => {
    const takes = { classes: true, features: true };
    const fails = (condition: object, message: string): void =>
      assert.throws(() => checkCondition("here", condition as Condition, takes, 2), {
        message: `here: ${message}`,
      });
    const features = randn([2, 3, 4]);
    checkCondition(
      "here",
      {
        classes: ids(1, 2),
        features,
        isReal: bool([
          [1, 1, 1],
          [0, 1, 1],
        ]),
      },
      takes,
      2,
    );
    fails({ classes: [1, 2] }, "expected a Tensor as condition.classes, got [1, 2].");
    fails({ classes: randn([2]) }, "expected int64 condition.classes, got Tensor float32[2] cpu.");
    fails(
      { classes: ids(1, 2).unsqueeze(1) },
      "expected condition.classes of shape [2], one row per sequence, got Tensor int64[2, 1] cpu.",
    );
    fails(
      { features: randn([3, 3, 4]) },
      "expected condition.features of shape [2, S, C], one row per sequence, got Tensor float32[3, 3, 4] cpu.",
    );
    fails(
      { features, isReal: randn([2, 3]) },
      "expected bool condition.isReal, got Tensor float32[2, 3] cpu.",
    );
    fails(
      { features, isReal: bool([[1], [1]]) },
      "expected condition.isReal of shape [2, 3], as the features, got Tensor bool[2, 1] cpu.",
    );
    fails({ isReal: bool([[1], [1]]) }, "expected features where isReal is given, got none.");
    fails({ isDropped: ids(1, 2) }, "expected bool condition.isDropped, got Tensor int64[2] cpu.");
  }));
