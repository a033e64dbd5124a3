import assert from "node:assert/strict";
import { test } from "node:test";
import { mapStart, startParts } from "../../src/rl_ar_finetune/start.js";
import { arange, ones, type Tensor, tensor } from "../../src/torch/index.js";

const LONG = { dtype: "int64" } as const;
const lists = (parts: Readonly<Record<string, Tensor | undefined>>): unknown =>
  Object.fromEntries(Object.entries(parts).map(([name, value]) => [name, value?.toList()]));

test("every form of a start is codes and a condition", () => {
  const given = tensor(
    [
      [1, 2],
      [3, 4],
    ],
    LONG,
  );
  const classes = tensor([5, 6], LONG);
  const pair = startParts("here", [given, classes]);
  assert.deepEqual(
    [pair.given.toList(), lists({ ...pair.condition })],
    [
      [
        [1, 2],
        [3, 4],
      ],
      { classes: [5, 6] },
    ],
  );
  assert.deepEqual(startParts("here", given).condition, {});
  const condition = startParts("here", { classes });
  assert.deepEqual([condition.given.shape, condition.given.dtype], [[2, 0], "int64"]);
  assert.deepEqual(startParts("here", {}, given).given.shape, [2, 0]);
  const features = ones([2, 3, 4]);
  assert.equal(startParts("here", [given, { features }]).condition.features, features);
});

test("starts that do not say how many, or say two numbers, are refused", () => {
  assert.throws(() => startParts("here", {}), {
    name: "TypeError",
    message:
      "here: expected start codes or a condition, got neither. Pass int64 codes [B, S], S = 0 for none, or { classes }.",
  });
  assert.throws(() => startParts("here", { classes: tensor([1, 2], LONG), features: ones([3, 1, 1]) }), {
    name: "RangeError",
    message: "here: expected 2 rows in the start's features, got Tensor float32[3, 1, 1] cpu.",
  });
  assert.throws(() => startParts("here", tensor([1, 2], LONG)), {
    message: "here: expected start codes int64 [B, S], got Tensor int64[2] cpu.",
  });
});

test("rows of a start go together", () => {
  const start = startParts("here", [
    arange(0, 6).reshape(3, 2),
    { classes: tensor([7, 8, 9], LONG), isDropped: ones([3]).bool() },
  ]);
  const some = mapStart(start, (rows) => rows.narrow(0, 1, 2));
  assert.deepEqual(
    [some.given.toList(), lists({ ...some.condition })],
    [
      [
        [2, 3],
        [4, 5],
      ],
      { classes: [8, 9], isDropped: [1, 1] },
    ],
  );
});
