/** Guidance: its strength along a sequence, and what the null half of a batch is. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { concatConditions, type Guidance, guidanceScale } from "../../src/policies/index.js";
import { tensor } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { guidedLogits, withGolden } from "./support.js";

const scales = (guidance: Guidance, n: number): number[] =>
  Array.from({ length: n }, (_, i) => guidanceScale(guidance, i, n));

test("strength is constant, grows, or holds in an interval", () => {
  assert.deepEqual(scales({ scale: 4 }, 3), [4, 4, 4]);
  // 1 + (1 - cos(pi i / 4)) / 2 * 3
  const half = Math.SQRT1_2;
  expectClose(scales({ scale: 4, schedule: "power_cosine" }, 4), [
    1,
    1 + 1.5 * (1 - half),
    2.5,
    1 + 1.5 * (1 + half),
  ]);
  // (2 / 4)^2 is a quarter of the way.
  assert.ok(
    Math.abs(guidanceScale({ scale: 4, schedule: "power_cosine", power: 2 }, 2, 4) - 2.5 + 1.5 * half) <
      1e-12,
  );
  assert.deepEqual(scales({ scale: 4, interval: [1, 3] }, 4), [1, 4, 4, 1]);
  const schedule = "cosine" as unknown as "constant";
  assert.throws(() => guidanceScale({ scale: 4, schedule }, 0, 4), {
    message: "guidance.schedule: expected constant or power_cosine, got cosine.",
  });
});

test("an interval guides its codes and no other", () =>
  withGolden("gpt", ({ policy, tokens, condition, tensors }) => {
    const context = tokens.narrow(1, 0, 15);
    const logits = guidedLogits(policy, context, condition, { scale: 2.5, interval: [3, 5] });
    for (let i = 0; i < 16; i++) {
      const wanted = i === 3 || i === 4 ? tensors.guided : tensors.logits;
      if (wanted)
        expectClose(logits.select(1, i), wanted.select(1, i), { rtol: 1e-5, atol: 2e-5, where: `code ${i}` });
    }
  }));

test("the null half is not dropped twice, and an empty condition has an empty null half", () =>
  withGolden("gpt", ({ policy, condition }) => {
    const isDropped = tensor([1, 0], { dtype: "bool" });
    const given = { ...condition, isDropped };
    const both = concatConditions(given, policy.nullCondition(given));
    assert.deepEqual(
      [both.classes?.toList(), both.isDropped?.toList()],
      [
        [4, 1, 6, 6],
        [1, 0, 0, 0],
      ],
    );
    assert.deepEqual(concatConditions({}, policy.nullCondition({})), {});
  }));
