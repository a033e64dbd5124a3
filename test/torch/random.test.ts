import assert from "node:assert/strict";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";

import fc from "fast-check";

import {
  bernoulli,
  deriveSeed,
  functional as F,
  full,
  Generator,
  loadSafetensors,
  manualSeed,
  memory,
  multinomial,
  ones,
  rand,
  randint,
  randn,
  randperm,
  restoreRandomState,
  saveRandomState,
  stream,
  type Tensor,
  tensor,
  tidy,
} from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";

const golden = loadSafetensors(
  fileURLToPath(new URL("../../../test/golden/torch/random.safetensors", import.meta.url)),
).tensors as Record<string, Tensor>;
after(() => {
  for (const each of Object.values(golden)) each.dispose();
});

/** Seeds of scripts/golden/tensors.py, by their names there. */
const SEEDS: Readonly<Record<string, number | bigint>> = {
  "0": 0,
  "7": 7,
  "2_32": 2 ** 32 + 7,
  "2_63": (1n << 63n) + 11n,
  minus: -3,
};

const draws = (count = 4): unknown =>
  tidy(() => [rand([count]).toList(), randn([3]).toList(), randperm(5).toList()]);

test("the default generator and one of one's own draw PyTorch's numbers after every seed, in any order of calls", () => {
  const seen = new Set<string>();
  const expectGolden = (name: string, got: Tensor): void => {
    seen.add(name);
    assert.ok(golden[name], name);
    // Uniform and whole numbers are the generator's bits; the logarithms of normal ones are a library's.
    const isExact = !name.includes("randn");
    expectClose(got, golden[name], { rtol: isExact ? 0 : 1e-5, atol: isExact ? 0 : 1e-7, where: name });
  };
  noLeak(() =>
    tidy(() => {
      const weights = tensor([
        [0.1, 0.2, 0.3, 0.4],
        [4, 1, 0, 5],
      ]);
      for (const [name, seed] of Object.entries(SEEDS)) {
        manualSeed(seed);
        expectGolden(`${name}.rand`, rand([5]));
        expectGolden(`${name}.randDouble`, rand([3], { dtype: "float64" }));
        expectGolden(`${name}.randn`, randn([5]));
        expectGolden(`${name}.randnLong`, randn([20]));
        expectGolden(`${name}.randint`, randint(-3, 1000, [6]));
        expectGolden(`${name}.randperm`, randperm(9));
        expectGolden(`${name}.multinomial`, multinomial(weights, 3));
        expectGolden(`${name}.multinomialReplaced`, multinomial(weights, 6, { replacement: true }));
        expectGolden(`${name}.bernoulli`, bernoulli(full([12], 0.3)));
        expectGolden(`${name}.dropout`, F.dropout(ones([12]), 0.4, true));
        using generator = new Generator(seed);
        expectGolden(`${name}.own.rand`, rand([5], { generator }));
        expectGolden(`${name}.own.randn`, randn([20], { generator }));
        expectGolden(`${name}.own.randint`, randint(0, 10, [4], { generator }));
        expectGolden(`${name}.own.randperm`, randperm(6, { generator }));
        expectGolden(`${name}.own.multinomial`, multinomial(weights, 2, { generator }));
        expectGolden(`${name}.own.bernoulli`, bernoulli(full([5], 0.5), { generator }));
      }
    }),
  );
  assert.deepEqual(
    Object.keys(golden).filter((name) => !seen.has(name)),
    [],
  );
});

test("seeds of 64 bits, negative ones modulo 2^64; others are refused", () => {
  const before = memory().generators;
  tidy(() => {
    using a = new Generator(-1);
    using b = new Generator((1n << 64n) - 1n);
    assert.ok(rand([3], { generator: a }).equal(rand([3], { generator: b })));
    for (const [seed, what, got] of [
      [0.5, "an integer within 2^53, or a bigint, as the seed", "0.5"],
      [2 ** 53, "an integer within 2^53, or a bigint, as the seed", "9007199254740992"],
      [NaN, "an integer within 2^53, or a bigint, as the seed", "NaN"],
      [1n << 64n, "a seed of 64 bits", "18446744073709551616n"],
      [-(1n << 63n) - 1n, "a seed of 64 bits", "-9223372036854775809n"],
    ] as const) {
      assert.throws(() => new Generator(seed), {
        name: "RangeError",
        message: `Generator: expected ${what}, got ${got}.`,
      });
      assert.throws(() => a.seed(seed), {
        name: "RangeError",
        message: `Generator.seed: expected ${what}, got ${got}.`,
      });
      assert.throws(() => manualSeed(seed), {
        name: "RangeError",
        message: `manualSeed: expected ${what}, got ${got}.`,
      });
    }
  });
  assert.equal(memory().generators, before);
});

test("the saved state of the default generators replays every draw, as often as wanted", () => {
  const generators = memory().generators;
  noLeak(() =>
    tidy(() => {
      manualSeed(3);
      draws();
      const state = saveRandomState();
      assert.deepEqual(Object.keys(state).slice(0, 1), ["cpu"]);
      const first = draws();
      const later = draws();
      assert.notDeepEqual(first, later);
      for (let i = 0; i < 3; i++) {
        restoreRandomState(state);
        assert.deepEqual(draws(), first);
        assert.deepEqual(draws(), later);
      }
      // The state is a copy: drawing does not change it, and half a pair of normal numbers is part of it.
      restoreRandomState(state);
      randn([1]);
      const between = saveRandomState();
      const rest = randn([3]).toList();
      restoreRandomState(between);
      assert.deepEqual(randn([3]).toList(), rest);
      assert.throws(
        () => restoreRandomState({ cpu: tensor([1, 2]) }),
        /RNG state must be a torch\.ByteTensor/,
      );
      assert.throws(
        () => restoreRandomState({ cpu: tensor(new Uint8Array(3)) }),
        /Expected a CPUGeneratorImplState of size 5056 but found the input RNG state size to be 3/,
      );
      manualSeed(4);
      const wanted = rand([2]).toList();
      manualSeed(4);
      assert.deepEqual(rand([2]).toList(), wanted);
    }),
  );
  assert.equal(memory().generators, generators);
});

test("a generator's own state replays, and moves to another generator", () => {
  noLeak(() =>
    tidy(() => {
      using a = new Generator(5);
      rand([7], { generator: a });
      const state = a.state();
      assert.deepEqual([state.dtype, state.device], ["uint8", "cpu"]);
      const wanted = randn([5], { generator: a }).toList();
      a.setState(state);
      assert.deepEqual(randn([5], { generator: a }).toList(), wanted);
      using b = new Generator(6);
      b.setState(state);
      assert.deepEqual(randn([5], { generator: b }).toList(), wanted);
      b.seed(5);
      a.seed(5);
      assert.deepEqual(rand([2], { generator: a }).toList(), rand([2], { generator: b }).toList());
    }),
  );
});

test("generators and the default one do not touch each other", () => {
  tidy(() => {
    manualSeed(1);
    const wanted = draws();
    manualSeed(1);
    using a = new Generator(2);
    using b = new Generator(2);
    rand([100], { generator: a });
    assert.deepEqual(draws(), wanted, "a generator's draws leave the default one alone");
    const own = rand([3], { generator: b }).toList();
    b.seed(2);
    manualSeed(77);
    draws();
    rand([50], { generator: a });
    assert.deepEqual(rand([3], { generator: b }).toList(), own);
  });
});

test("a disposed generator is refused, disposing twice is no error, and using disposes", () => {
  const before = memory().generators;
  const generator = new Generator(1);
  assert.equal(memory().generators, before + 1);
  generator.dispose();
  generator.dispose();
  assert.equal(memory().generators, before);
  const message = "Generator: expected a live generator, got one that was disposed of.";
  const uses: (() => unknown)[] = [
    () => generator.seed(1),
    () => generator.state(),
    () => rand([1], { generator }),
    () => multinomial(ones([2]), 1, { generator }),
  ];
  for (const use of uses) assert.throws(use, { name: "Error", message });
  {
    using _ = new Generator(2);
    assert.equal(memory().generators, before + 1);
  }
  assert.equal(memory().generators, before);
});

test("streams depend on seed, name and step alone", () => {
  tidy(() => {
    const first = (seed: number | bigint, name: string, step: number | bigint): unknown => {
      using generator = stream(seed, name, step);
      return rand([4], { generator }).toList();
    };
    const wanted = first(1, "rollout", 10);
    manualSeed(5);
    draws();
    first(1, "data", 3);
    assert.deepEqual(first(1, "rollout", 10), wanted);
    assert.deepEqual(first(1n, "rollout", 10n), wanted);
    for (const other of [
      first(2, "rollout", 10),
      first(1, "rollouts", 10),
      first(1, "rollout", 11),
      first(1, "rollout/1", 0),
    ]) {
      assert.notDeepEqual(other, wanted);
    }
    assert.deepEqual(
      first(1, "rollout", 0),
      (() => {
        using generator = stream(1, "rollout");
        return rand([4], { generator }).toList();
      })(),
    );
  });
});

test("derived seeds: fixed for good, 63 bits, apart for different arguments", () => {
  // SHA-256 of "1/rollout/10", "0/data/0" and "18446744073709551615/x/5", first 8 bytes, little-endian, top bit off.
  assert.equal(deriveSeed(1, "rollout", 10), 8716905903641691753n);
  assert.equal(deriveSeed(0, "data"), 4852053179476217420n);
  assert.equal(deriveSeed((1n << 64n) - 1n, "x", 5), 5525175745853243168n);
  const seeds = new Set<bigint>();
  for (let step = 0; step < 1000; step++)
    for (const name of ["a", "b", "c"]) seeds.add(deriveSeed(7, name, step));
  assert.equal(seeds.size, 3000);
  fc.assert(
    fc.property(fc.bigInt(), fc.string(), fc.nat(), (seed, name, step) => {
      const derived = deriveSeed(seed, name, step);
      return derived >= 0n && derived < 1n << 63n && derived === deriveSeed(seed, name, BigInt(step));
    }),
  );
});
