/** The cache's memory: taken once, in the dtype of the keys, and not copied as it fills. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { packLinears } from "../../src/nn/index.js";
import { GPT, IbqAr, LlamaGen } from "../../src/policies/index.js";
import { KvCache } from "../../src/policies/kv_cache.js";
import {
  autocast,
  manualSeed,
  memory,
  noGrad,
  randint,
  randn,
  setNumThreads,
  type Tensor,
  tensor,
  tidy,
  zeros,
} from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";

setNumThreads(1); // Everything here is small.

const COMMON = { vocabSize: 20, blockSize: 256, nLayer: 2, nHead: 2 };
const SIZE = { ...COMMON, dim: 64, ffnDim: 64, numClasses: 6 };
const ids = (...list: number[]): Tensor => tensor(list, { dtype: "int64" });
const none = (batch: number): Tensor => zeros([batch, 0], { dtype: "int64" });

/** Keys and values of 2 layers, 8 sequences, 256 positions, 64 channels. */
const CACHE_ELEMENTS = 2 * 2 * 8 * 256 * 64;

test("memory is taken once, used again after reset, and given back", () =>
  noLeak(() => {
    using model = new LlamaGen(SIZE).eval();
    const before = memory().bytes;
    const cache = model.openCache(8);
    const classes = ids(0, 1, 2, 3, 4, 5, 6, 0);
    for (let round = 0; round < 3; round++) {
      cache.reset();
      tidy(() => model.prefill(cache, none(8), { classes }).dispose());
      const used = memory().bytes - before;
      assert.ok(used >= 4 * CACHE_ELEMENTS && used < 4.1 * CACHE_ELEMENTS, `${used} bytes in round ${round}`);
    }
    classes.dispose();
    cache.dispose();
    assert.equal(memory().bytes, before);
  }));

test("what was there before is written over, in the same memory", () =>
  noLeak(() =>
    tidy(() => {
      using cache = new KvCache({ batch: 2, capacity: 5, heads: 2, headDim: 4 });
      const write = (n: number): { keys: Tensor; values: Tensor; k: Tensor; v: Tensor } => {
        const [k, v] = [randn([2, 2, n, 4]), randn([2, 2, n, 4])];
        const all = cache.append(0, k, v);
        cache.advance(n);
        return { ...all, k, v };
      };
      const first = write(3);
      const second = write(1);
      assert.deepEqual(second.keys.shape, [2, 2, 4, 4]);
      assert.ok(second.keys.narrow(2, 0, 3).equal(first.k) && second.keys.narrow(2, 3, 1).equal(second.k));
      assert.ok(
        second.values.narrow(2, 0, 3).equal(first.v) && second.values.narrow(2, 3, 1).equal(second.v),
      );
      cache.reset();
      const third = write(2);
      assert.ok(second.keys.narrow(2, 0, 2).equal(third.k) && second.values.narrow(2, 0, 2).equal(third.v));
      // A condition's tensors live until the next ones come.
      cache.hold(null, [randn([2])]);
      const [held] = cache.extra;
      cache.hold(randn([2, 1, 1, 5]), []);
      assert.ok(held?.isDisposed);
      assert.deepEqual(cache.stepMask()?.shape, [2, 1, 1, 3]);
    }),
  ));

test("keys and values that record a graph are refused: the cache outlives it", () =>
  tidy(() => {
    using cache = new KvCache({ batch: 1, capacity: 4, heads: 1, headDim: 2 });
    const [plain, traced] = [randn([1, 1, 1, 2]), randn([1, 1, 1, 2]).requiresGrad_()];
    for (const [k, v] of [
      [traced, plain],
      [plain, traced],
    ] as const)
      assert.throws(() => cache.append(0, k, v), { name: "RangeError", message: /KvCache\.append.*noGrad/ });
    const { keys, values } = noGrad(() => cache.append(0, traced, traced));
    assert.deepEqual([keys.requiresGrad, values.requiresGrad], [false, false]);
    cache.append(0, plain, plain); // records nothing
  }));

test("a step takes no memory that grows with what is filled, under autocast either", () =>
  tidy(() => {
    using model = new LlamaGen(SIZE).eval();
    using cache = model.openCache(8);
    const token = ids(0, 1, 2, 3, 4, 5, 6, 0);
    const peakAfter = (filled: number): number => {
      cache.reset();
      model.prefill(cache, randint(0, 20, [8, filled]), { classes: token.clamp(0, 5) }).dispose();
      model.decode(cache, token).dispose();
      const { bytes } = memory({ resetPeak: true });
      model.decode(cache, token).dispose();
      return memory().peakBytes - bytes;
    };
    for (const dtype of [null, "bfloat16"] as const) {
      noGrad(() =>
        autocast({ device: "cpu", dtype }, () => {
          const [early, late] = [peakAfter(0), peakAfter(250)];
          assert.ok(early < 0.05 * 4 * CACHE_ELEMENTS, `${early} bytes, autocast ${dtype}`);
          assert.ok(
            late < early + 0.05 * 4 * CACHE_ELEMENTS,
            `${late} bytes after ${early}, autocast ${dtype}`,
          );
        }),
      );
    }
  }));

for (const [how, build] of Object.entries({
  GPT: () => new GPT({ ...COMMON, nEmbd: 64, nHead: 2, classNum: 6 }),
  LlamaGen: () => new LlamaGen(SIZE),
  IbqAr: () => new IbqAr({ ...COMMON, ffnDim: 64, nEmbd: 64, classNum: 6, alng: 1 }),
})) {
  test(`${how}: bfloat16 weights, autocast and packed weights agree with teacher forcing, from a float32 cache`, () =>
    tidy(() => {
      manualSeed(4);
      using model = build().eval();
      for (const [key, parameter] of model.namedParameters()) {
        if (/^(head|output)/.test(key)) parameter.detach().copy_(randn(parameter.shape).mul(0.2));
      }
      const tokens = randint(0, 20, [8, 12]);
      const classes = ids(0, 1, 2, 3, 4, 5, 6, 0);
      const exact = model.forward(tokens, { classes });
      const scale = exact.std().item();
      const check = (where: string): void => {
        const cache = model.openCache(8);
        tidy(() => {
          const logits = model.prefill(cache, tokens.narrow(1, 0, 11), { classes });
          assert.equal(logits.dtype, "float32");
          const last = model.decode(cache, tokens.select(1, 11));
          const error = last.sub(exact.select(1, 12)).abs().amax().item() / scale;
          assert.ok(error > 1e-5 && error < 0.1, `${where}: ${error}`);
          expectClose(last, model.forward(tokens, { classes }).select(1, 12), {
            rtol: 1e-2,
            atol: 0.03 * scale,
            where,
          });
        });
        // IBQ keeps the class's scales and shifts besides.
        const { bytes } = memory();
        cache.dispose();
        const used = bytes - memory().bytes;
        assert.ok(used >= 4 * CACHE_ELEMENTS && used < 4.1 * CACHE_ELEMENTS, `${where}: ${used} bytes`);
      };
      autocast({ device: "cpu", dtype: "bfloat16" }, () => check("autocast"));
      {
        using _packed = packLinears(model, { dtype: "bfloat16" });
        // No graph is built while rolling out, so the packed layers are what runs.
        const parameters = model.parameters().filter((parameter) => parameter.requiresGrad_(false));
        check("packed");
        for (const parameter of parameters) parameter.requiresGrad_();
      }
      model.to({ dtype: "bfloat16" });
      check("weights");
    }));
}

test("decoding builds no graph", () =>
  tidy(() => {
    using model = new GPT({ ...COMMON, nEmbd: 64, classNum: 6 });
    using cache = model.openCache(1);
    assert.ok(!model.prefill(cache, none(1), {}).requiresGrad);
    assert.ok(!model.decode(cache, ids(1)).requiresGrad);
    assert.ok(model.forward(none(1), {}).requiresGrad);
  }));

test("what does not fit is refused", () =>
  tidy(() => {
    using model = new GPT({ ...COMMON, nEmbd: 64, classNum: 6 });
    const fails = (fn: () => unknown, message: string): void => assert.throws(fn, { message });
    fails(() => model.openCache(0), "openCache: expected an integer of at least 1 as batch, got 0.");
    using cache = model.openCache(2);
    fails(
      () => model.prefill(cache, none(3), {}),
      "GPT.prefill: expected tokens of 2 sequences, as the cache, got Tensor int64[3, 0] cpu.",
    );
    model.prefill(cache, none(2), {});
    fails(
      () => model.repeatCache(cache, 0),
      "GPT.repeatCache: expected an integer of at least 1 as times, got 0.",
    );
    using four = model.openCache(4);
    fails(
      () => model.repeatCache(cache, 3, four),
      "GPT.repeatCache: expected a cache of 6 sequences, got 4.",
    );
    using small = new KvCache({ batch: 4, capacity: 0, heads: 2, headDim: 32 });
    fails(
      () => model.repeatCache(cache, 2, small),
      "GPT.repeatCache: expected a cache of at least 1 positions, got 0.",
    );
    const other = { batch: 2, capacity: 9, length: 1 } as unknown as KvCache;
    fails(() => model.decode(other, ids(1, 2)), "GPT.decode: expected a cache of openCache, got Object.");
  }));
