import assert from "node:assert/strict";
import { test } from "node:test";
import { schedules } from "../../src/nn/index.js";
import { expectClose } from "../support/close.js";
import { golden } from "./golden.js";

test("factors are those of PyTorch's schedulers", () => {
  const wanted = golden("schedules");
  const made: Record<string, schedules.Schedule> = {
    constant: schedules.constant({ warmup: 10 }),
    linear: schedules.linear({ total: 30, warmup: 10, final: 0.1 }),
    cosine: schedules.cosine({ total: 30, warmup: 10, final: 0.1 }),
    cosine_cold: schedules.cosine({ total: 30 }),
  };
  for (const [name, factors] of Object.entries(wanted)) {
    const schedule = made[name] as schedules.Schedule;
    expectClose(
      Array.from({ length: 40 }, (_, step) => schedule(step)),
      factors,
      {
        rtol: 1e-12,
        atol: 1e-12,
        where: name,
      },
    );
  }
});

test("worked by hand: rise, peak, middle, end", () => {
  const schedule = schedules.cosine({ total: 7, warmup: 3, final: 0.5 });
  const factors = [0, 1, 2, 3, 5, 7, 100].map(schedule);
  expectClose(factors, [0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.5], { rtol: 1e-12 });
  expectClose([0, 5].map(schedules.constant()), [1, 1]);
});

test("options without a meaning are refused", () => {
  assert.throws(() => schedules.cosine({ total: 10, warmup: 10 }), {
    name: "RangeError",
    message: "cosine: expected total above warmup 10, got 10.",
  });
  assert.throws(() => schedules.linear({ total: 10, final: 1.5 }), {
    message: "linear: expected final in [0, 1], got 1.5.",
  });
  assert.throws(() => schedules.constant({ warmup: 0.5 }), {
    message: "constant: expected warmup to be an integer of at least 0, got 0.5.",
  });
  assert.throws(() => schedules.linear({ total: Number.NaN }), RangeError);
});
