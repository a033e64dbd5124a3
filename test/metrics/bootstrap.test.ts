import assert from "node:assert/strict";
import { test } from "node:test";

import { bootstrap, frechetDistance, frechetInterval, moments } from "../../src/metrics/index.js";
import { Generator, randint, randn, type Tensor, tensor, tidy } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";
import { goldens } from "./golden.js";

const golden = goldens("distribution");

const normal = (generator: Generator, shape: readonly number[]): Tensor => randn(shape, { generator });

test("the interval of a mean is that of its standard error", () => {
  using generator = new Generator(1);
  const x = normal(generator, [400]);
  const mean = x.mean().item();
  const error = x.std().item() / Math.sqrt(400);
  const { low, high } = bootstrap(400, (rows) => x.indexSelect(0, rows).mean().item(), { samples: 4000 });
  expectClose([low - mean, high - mean], [-1.96 * error, 1.96 * error], { rtol: 0, atol: 0.1 * error });
  const narrow = bootstrap(400, (rows) => x.indexSelect(0, rows).mean().item(), { level: 0.5 });
  expectClose(narrow.high - narrow.low, 2 * 0.6745 * error, { rtol: 0, atol: 0.2 * error });
});

test("resamples are drawn from the seed, with replacement, and percentiles are numpy's", () => {
  const drawn: number[][] = [];
  const statistic = (rows: Tensor): number => {
    drawn.push((rows.toList() as number[]).toSorted((a, b) => a - b));
    return [10, 40, 20, 30][(drawn.length - 1) % 4] as number;
  };
  // numpy.percentile([10, 20, 30, 40], [10, 90])
  const interval = bootstrap(6, statistic, { samples: 4, level: 0.8 });
  expectClose([interval.low, interval.high], [13, 37], { rtol: 1e-14, atol: 0 });
  assert.ok(drawn.every((rows) => rows.length === 6 && rows.every((row) => row >= 0 && row < 6)));
  assert.ok(drawn.some((rows) => new Set(rows).size < 6));
  const first = drawn.splice(0);
  bootstrap(6, statistic, { samples: 4 });
  assert.deepEqual(drawn.splice(0), first);
  bootstrap(6, statistic, { samples: 4, seed: 1 });
  assert.notDeepEqual(drawn, first);
});

for (const [name, real, fake] of [
  ["more samples than features", "real", "fake"],
  ["fewer", "few", "fewer"],
] as const) {
  test(`the interval of the Fréchet distance is that of its definition, ${name}`, () => {
    const [a, b] = [golden(real), golden(fake)];
    using generator = new Generator(4);
    const own = frechetDistance(a, b);
    // The same resamples, each measured by itself, and the interval of three by hand.
    const values = Array.from({ length: 3 }, () =>
      tidy(() => frechetDistance(a, b.indexSelect(0, randint(0, b.size(0), [b.size(0)], { generator })))),
    ).sort((x, y) => x - y) as [number, number, number];
    const excess = (values[0] + values[1] + values[2]) / 3 - own;
    const wanted = [values[0] * 0.5 + values[1] * 0.5 - excess, values[2] * 0.5 + values[1] * 0.5 - excess];
    const { low, high } = frechetInterval(a, b, { samples: 3, seed: 4, level: 0.5 });
    expectClose([low, high], wanted, { rtol: 1e-6, atol: 0 });
    assert.deepEqual(frechetInterval(moments(a), b, { samples: 3, seed: 4, level: 0.5 }), { low, high });
  });
}

test("the interval holds the distance as often as it says, and is not much wider than it need be", () => {
  using generator = new Generator(7);
  const real = moments(normal(generator, [400, 3]));
  const sets = Array.from({ length: 60 }, () => normal(generator, [100, 3]).mul(1.2).add(0.3));
  const distances = sets.map((fake) => frechetDistance(real, fake));
  const mean = distances.reduce((sum, value) => sum + value) / sets.length;
  const deviation = Math.sqrt(distances.reduce((sum, x) => sum + (x - mean) ** 2, 0) / sets.length);
  const intervals = sets.slice(0, 20).map((fake) => frechetInterval(real, fake, { samples: 40, level: 0.9 }));
  const held = intervals.filter(({ low, high }) => low <= mean && mean <= high).length;
  assert.ok(held >= 15, `${held} of 20`);
  const width = intervals.reduce((sum, { low, high }) => sum + high - low, 0) / intervals.length;
  const need = 2 * 1.645 * deviation;
  assert.ok(width > 0.75 * need && width < 1.5 * need, `${width}, need ${need}`);
});

test("what gives no interval is refused", () => {
  const one = (): number => 1;
  assert.throws(() => bootstrap(3, () => Number.NaN), {
    name: "RangeError",
    message: "bootstrap: expected a finite statistic, got NaN.",
  });
  assert.throws(() => bootstrap(0, one), /count: expected an integer of at least 1, got 0/);
  assert.throws(() => bootstrap(3, one, { samples: 1 }), /samples: expected an integer of at least 2, got 1/);
  assert.throws(() => bootstrap(3, one, { level: 95 }), /level: expected a number between 0 and 1, got 95/);
  assert.throws(() => frechetInterval(golden("real"), golden("few")), /fake: expected features of width 12/);
  assert.throws(() => frechetInterval(golden("real"), tensor([[1]])), /fake: expected features of width 12/);
});

test("nothing is left in memory", () => {
  noLeak(() => {
    frechetInterval(golden("real"), golden("fake"), { samples: 3 });
    bootstrap(4, (rows) => rows.double().mean().item(), { samples: 3 });
  });
});
