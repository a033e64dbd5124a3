/** Run a second time, in a process of its own, with backward on a thread of its own, as on a GPU. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";

import { native } from "../../src/torch/binding.js";
import {
  type AutocastState,
  arange,
  autocast,
  backward,
  call,
  callTensor,
  checkpoint,
  customFunction,
  enableGrad,
  functional as F,
  grad,
  isGradEnabled,
  loadSafetensors,
  manualSeed,
  memory,
  noGrad,
  ones,
  rand,
  randn,
  setNumThreads,
  type Tensor,
  tensor,
  tidy,
  zeros,
} from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { checkGradient } from "../support/gradcheck.js";
import { noLeak } from "../support/leak.js";

const THREADED = process.env.RLAR_TEST_THREADED_BACKWARD === "1";
if (THREADED) native.setThreadedBackward(true);
setNumThreads(1);

if (!THREADED) {
  test("all of this file holds where backward runs on a thread of its own", () => {
    const { NODE_TEST_CONTEXT: _, ...env } = process.env;
    const result = spawnSync(process.execPath, ["--test-reporter=tap", fileURLToPath(import.meta.url)], {
      env: { ...env, RLAR_TEST_THREADED_BACKWARD: "1" },
      encoding: "utf8",
      timeout: 120_000, // a deadlock would block the JavaScript thread for good
    });
    assert.equal(result.status, 0, `${result.error ?? ""}\n${result.stdout}\n${result.stderr}`);
    assert.match(result.stdout, /# pass [1-9]/);
  });
}

const leaf = (values: number[]): Tensor => tensor(values, { dtype: "float64", requiresGrad: true });
const gradOf = (x: Tensor): unknown => x.grad?.toList() ?? null;

test("backward adds to grad, and grad can be taken away", () => {
  noLeak(() =>
    tidy(() => {
      const x = leaf([1, 2, 3]);
      assert.equal(x.grad, null);
      x.pow(2).sum().backward();
      assert.deepEqual(gradOf(x), [2, 4, 6]);
      x.mul(2).backward(tensor([1, 10, 100], { dtype: "float64" }));
      assert.deepEqual(gradOf(x), [4, 24, 206]);
      x.grad = null;
      assert.equal(x.grad, null);
      x.grad = tensor([5, 5, 5], { dtype: "float64" });
      x.sum().backward();
      assert.deepEqual(gradOf(x), [6, 6, 6]);
      for (const [wrong, shown] of [
        [zeros([2], { dtype: "float64" }), "float64[2]"],
        [zeros([3]), "float32[3]"],
      ] as const) {
        assert.throws(
          () => {
            x.grad = wrong;
          },
          {
            name: "RangeError",
            message: `Tensor.grad: expected one like the Tensor float64[3] cpu, got Tensor ${shown} cpu.`,
          },
        );
      }
    }),
  );
});

test("leaves, graphs and retained gradients", () => {
  tidy(() => {
    const x = leaf([1, 2]);
    const y = x.mul(3);
    assert.deepEqual(
      [x.isLeaf, y.isLeaf, y.requiresGrad, y.detach().requiresGrad],
      [true, false, true, false],
    );
    assert.equal(y.retainGrad(), y);
    y.pow(2).sum().backward();
    assert.deepEqual(
      [gradOf(y), gradOf(x)],
      [
        [6, 12],
        [18, 36],
      ],
    );
    assert.equal(x.requiresGrad_(false), x);
    assert.equal(x.mul(2).requiresGrad, false);
    assert.equal(x.requiresGrad_().requiresGrad, true);
    assert.throws(() => y.requiresGrad_(false), /you can only change requires_grad flags of leaf variables/);
    assert.throws(
      () => tensor([1n]).requiresGrad_(),
      /Only Tensors of floating point and complex dtype can require gradients/,
    );
  });
});

test("grad returns gradients and leaves none behind", () => {
  noLeak(() =>
    tidy(() => {
      const [a, b, c] = [leaf([1, 2]), leaf([3, 4]), leaf([5])];
      const product = a.mul(b).sum();
      const [da, db] = grad([product], [a, b]) as [Tensor, Tensor];
      assert.deepEqual([da.toList(), db.toList(), a.grad, b.grad], [[3, 4], [1, 2], null, null]);
      const twice = grad([a.mul(b), a.sum()], [a], [tensor([1, 10], { dtype: "float64" }), null]) as [Tensor];
      assert.deepEqual(twice[0].toList(), [4, 41]);
      const unused = grad([a.sum()], [a, c], undefined, { allowUnused: true });
      assert.deepEqual([unused[0]?.toList(), unused[1]], [[1, 1], null]);
      assert.throws(
        () => grad([a.sum()], [a, c]),
        /of the differentiated Tensors appears to not have been used in the graph/,
      );
    }),
  );
});

test("backward of several roots, and into chosen leaves alone", () => {
  tidy(() => {
    const [a, b] = [leaf([1, 2]), leaf([3, 4])];
    backward([a.mul(b).sum(), a.mul(2)], [null, tensor([1, 1], { dtype: "float64" })]);
    assert.deepEqual(
      [gradOf(a), gradOf(b)],
      [
        [5, 6],
        [1, 2],
      ],
    );
    a.grad = null;
    b.grad = null;
    backward([a.mul(b).sum()], undefined, { inputs: [b] });
    assert.deepEqual([a.grad, gradOf(b)], [null, [1, 2]]);
  });
});

test("what cannot be differentiated says so", () => {
  tidy(() => {
    const x = leaf([1, 2]);
    assert.throws(() => x.mul(2).backward(), /grad can be implicitly created only for scalar outputs/);
    assert.throws(
      () => ones([1]).backward(),
      /element 0 of tensors does not require grad and does not have a grad_fn/,
    );
    const loss = x.pow(2).sum();
    loss.backward();
    assert.throws(() => loss.backward(), /Trying to backward through the graph a second time/);
    assert.throws(
      () => x.mul(2).backward(zeros([3], { dtype: "float64" })),
      /invalid gradient at index 0 - got \[3\] but expected shape compatible with \[2\]/,
    );
    const y = x.mul(2);
    const squared = y.pow(2);
    y.add_(1);
    assert.throws(() => squared.sum().backward(), /has been modified by an inplace operation/);
    assert.throws(() => grad(Array(40000).fill(x), Array(30000).fill(x)), {
      name: "RangeError",
      message: "autograd: expected at most 65536 tensors, got 80000.",
    });
  });
});

test("retainGraph allows a second backward, createGraph second derivatives", () => {
  noLeak(() =>
    tidy(() => {
      const x = leaf([2, 3]);
      const loss = x.pow(3).sum();
      loss.backward(undefined, { retainGraph: true });
      loss.backward();
      assert.deepEqual(gradOf(x), [24, 54]);
      const [first] = grad([x.pow(3).sum()], [x], undefined, { createGraph: true }) as [Tensor];
      assert.deepEqual([first.toList(), first.requiresGrad], [[12, 27], true]);
      const [second] = grad([first.sum()], [x]) as [Tensor];
      assert.deepEqual([second.toList(), second.requiresGrad], [[12, 18], false]);
      x.grad = null;
      x.pow(2).sum().backward(undefined, { createGraph: true });
      const graphed: Tensor | null = (x as Tensor).grad;
      assert.equal(graphed?.requiresGrad, true);
      x.grad = null; // the gradient refers to the leaf, which refers to the gradient
    }),
  );
});

test("noGrad and enableGrad nest, give back what fn returns and restore the mode when it throws", () => {
  tidy(() => {
    const x = leaf([1]);
    assert.equal(isGradEnabled(), true);
    noGrad(() => {
      assert.equal(isGradEnabled(), false);
      assert.equal(x.mul(2).requiresGrad, false);
      enableGrad(() => assert.equal(x.mul(2).requiresGrad, true));
      assert.throws(
        () =>
          enableGrad(() => {
            throw new Error("inside");
          }),
        /inside/,
      );
      assert.equal(isGradEnabled(), false);
    });
    assert.throws(() => noGrad(() => x.matmul(zeros([3]))));
    assert.equal(isGradEnabled(), true);
    assert.equal(
      noGrad(() => 5),
      5,
    );
  });
});

// ---- Functions with a backward of their own ----

/** x^2 with a gradient that is not x^2's, so that it is seen which one was used. */
function oddSquare(x: Tensor, log: Tensor[] = []): Tensor {
  const [y] = customFunction(
    [x],
    () => ({ outputs: [x.pow(2)], saved: [x] }),
    ([gradient], [saved]) => {
      log.push(gradient as Tensor, saved as Tensor);
      return [(gradient as Tensor).mul(saved as Tensor).mul(10)];
    },
  );
  return y as Tensor;
}

test("customFunction: values, gradients, and tensors freed on both ways", () => {
  noLeak(() =>
    tidy(() => {
      const x = leaf([1, 2]);
      const log: Tensor[] = [];
      const y = oddSquare(x.mul(1), log);
      assert.deepEqual([y.toList(), y.requiresGrad], [[1, 4], true]);
      y.sum().backward();
      assert.deepEqual(gradOf(x), [10, 20]);
      assert.deepEqual(
        log.map((each) => each.isDisposed),
        [true, true],
      );
      assert.equal(oddSquare(tensor([3])).requiresGrad, false);
      assert.equal(noGrad(() => oddSquare(x)).requiresGrad, false);
      oddSquare(oddSquare(x)).sum().backward();
      assert.deepEqual(gradOf(x), [110, 820]);
    }),
  );
});

test("customFunction: several inputs and outputs, unused outputs, null gradients", () => {
  noLeak(() =>
    tidy(() => {
      const [a, b, c] = [leaf([1, 2]), leaf([3, 4]), leaf([7, 7])];
      const seen: number[][] = [];
      const run = (): Tensor[] =>
        customFunction(
          [a, b, c],
          () => ({ outputs: [a.add(b), a.mul(b)], saved: [a, b] }),
          ([sum, product], [savedA, savedB]) => {
            seen.push(sum?.toList() as number[], product?.toList() as number[]);
            return [
              (sum as Tensor).add((product as Tensor).mul(savedB as Tensor)),
              (sum as Tensor).add((product as Tensor).mul(savedA as Tensor)),
              null,
            ];
          },
        );
      const [sum, product] = run() as [Tensor, Tensor];
      sum.add(product.mul(2)).sum().backward();
      assert.deepEqual([gradOf(a), gradOf(b), c.grad], [[7, 9], [3, 5], null]);
      assert.deepEqual(seen, [
        [1, 1],
        [2, 2],
      ]);
      (run()[0] as Tensor).sum().backward();
      assert.deepEqual(
        seen.slice(2),
        [
          [1, 1],
          [0, 0],
        ],
        "the gradient of an unused output is zero",
      );
    }),
  );
});

test("customFunction: the backward may give a tensor from outside, or the gradient itself", () => {
  noLeak(() =>
    tidy(() => {
      const x = leaf([1, 2]);
      const fixed = tensor([5, 6], { dtype: "float64" });
      for (const give of [() => fixed, () => fixed.detach(), () => fixed.view(1, 2).view(2)]) {
        const run = (): Tensor =>
          customFunction(
            [x],
            () => ({ outputs: [x.exp()], saved: [] }),
            () => [give()],
          )[0] as Tensor;
        run().sum().backward();
        run().sum().backward();
        assert.deepEqual(
          [gradOf(x), fixed.toList()],
          [
            [10, 12],
            [5, 6],
          ],
          "gradients are not added into others' memory",
        );
        x.grad = null;
      }
      const z = leaf([1, 2]);
      const both = customFunction(
        [x, z],
        () => ({ outputs: [x.add(z)], saved: [] }),
        ([g]) => {
          const one = (g as Tensor).mul(2);
          return [one, one];
        },
      );
      (both[0] as Tensor).mul(1).sum().backward();
      x.sum().backward();
      assert.deepEqual(
        [gradOf(x), gradOf(z)],
        [
          [3, 3],
          [2, 2],
        ],
      );
      x.grad = null;
      (
        customFunction(
          [x],
          () => ({ outputs: [x.exp()], saved: [] }),
          ([g]) => [g as Tensor],
        )[0] as Tensor
      )
        .sum()
        .backward();
      assert.deepEqual(gradOf(x), [1, 1]);
      x.grad = null;
      const identity = customFunction(
        [x],
        () => ({ outputs: [x], saved: [] }),
        ([g]) => [(g as Tensor).mul(3)],
      )[0] as Tensor;
      assert.deepEqual([x.isLeaf, identity.isLeaf], [true, false]);
      identity.sum().backward();
      assert.deepEqual(gradOf(x), [3, 3]);
    }),
  );
});

test("customFunction: an error in either direction comes out as the very object that was thrown", () => {
  noLeak(() =>
    tidy(() => {
      const x = leaf([1, 2]);
      const fail = (thrown: unknown): Tensor =>
        customFunction(
          [x],
          () => ({ outputs: [x.mul(2)], saved: [x] }),
          () => {
            throw thrown;
          },
        )[0] as Tensor;
      for (const thrown of [new RangeError("mine"), "a string", { code: 7 }, undefined, null, 0]) {
        const y = fail(thrown).sum();
        assert.equal(
          caught(() => y.backward()),
          thrown,
        );
        assert.equal(
          caught(() => grad([fail(thrown).sum()], [x])),
          thrown,
        );
      }
      const error = new Error("forward");
      assert.equal(
        caught(() =>
          customFunction(
            [x],
            () => {
              throw error;
            },
            () => [],
          ),
        ),
        error,
      );
      assert.equal(isGradEnabled(), true);
      assert.equal(x.grad, null);
      // A native error inside stays what it is, too.
      const inner = customFunction(
        [x],
        () => ({ outputs: [x.mul(2)], saved: [] }),
        ([g]) => [(g as Tensor).matmul(zeros([5]))],
      );
      assert.equal((caught(() => (inner[0] as Tensor).sum().backward()) as Error).name, "TorchError");
      x.sum().backward();
      assert.deepEqual(gradOf(x), [1, 1], "the next backward is whole");
    }),
  );
});

function caught(fn: () => unknown): unknown {
  try {
    fn();
  } catch (thrown) {
    return thrown;
  }
  throw new assert.AssertionError({ message: "expected something to be thrown", stackStartFn: caught });
}

test("customFunction: wrong gradients are refused", () => {
  noLeak(() =>
    tidy(() => {
      const x = leaf([1, 2]);
      const give = (gradients: readonly (Tensor | null)[]): Tensor =>
        (
          customFunction(
            [x],
            () => ({ outputs: [x.mul(2)], saved: [] }),
            () => gradients,
          )[0] as Tensor
        ).sum();
      assert.throws(() => give([]).backward(), {
        name: "RangeError",
        message: "customFunction: expected 1 gradients from the backward, got 0.",
      });
      assert.throws(() => give([null, null]).backward(), /expected 1 gradients from the backward, got 2\./);
      assert.throws(
        () => give([zeros([3], { dtype: "float64" })]).backward(),
        /returned an invalid gradient at index 0 - got \[3\] but expected shape compatible with \[2\]/,
      );
    }),
  );
});

test("customFunction: what it saved is freed by the first backward, kept by retainGraph", () => {
  noLeak(() =>
    tidy(() => {
      const x = leaf([1, 2]);
      const before = memory().bytes;
      const make = (): Tensor =>
        customFunction(
          [x],
          () => ({ outputs: [x.sum()], saved: [zeros([1 << 16])] }),
          () => [x.detach()],
        )[0] as Tensor;
      const y = make();
      assert.ok(memory().bytes > before + (1 << 18) - 1);
      y.backward();
      assert.ok(memory().bytes < before + (1 << 16));
      assert.throws(() => y.backward(), /Trying to backward through the graph a second time/);
      const z = make();
      z.backward(undefined, { retainGraph: true });
      z.backward();
      assert.deepEqual(gradOf(x), [3, 6]);
      const saved = x.mul(1);
      const changed = oddSquare(saved);
      saved.add_(1);
      assert.throws(() => changed.sum().backward(), /has been modified by an inplace operation/);
    }),
  );
});

test("customFunction: second derivatives go through the operators of its backward", () => {
  noLeak(() =>
    tidy(() => {
      const x = leaf([2, 3]);
      const modes: boolean[] = [];
      const cube = (): Tensor =>
        customFunction(
          [x],
          () => ({ outputs: [x.pow(3)], saved: [x] }),
          ([g], [saved]) => {
            modes.push(isGradEnabled());
            return [(g as Tensor).mul((saved as Tensor).pow(2).mul(3))];
          },
        )[0] as Tensor;
      const [first] = grad([cube().sum()], [x], undefined, { createGraph: true }) as [Tensor];
      assert.deepEqual((grad([first.sum()], [x])[0] as Tensor).toList(), [12, 18]);
      cube().sum().backward();
      assert.deepEqual(modes, [true, false]);
    }),
  );
});

test("customFunction: isForAll says whether every leaf gets its gradient", () => {
  tidy(() => {
    const x = leaf([2]);
    const seen: boolean[] = [];
    const run = (): Tensor =>
      customFunction(
        [x],
        () => ({ outputs: [x.mul(1)], saved: [] }),
        ([g], _, isForAll) => {
          seen.push(isForAll);
          return [g as Tensor];
        },
      )[0] as Tensor;
    run().backward();
    grad([run()], [x]);
    backward([run()], undefined, { inputs: [x] });
    assert.deepEqual(seen, [true, false, false]);
  });
});

// ---- Checkpoints ----

const width = 6;

function net(): { parameters: Tensor[]; block: (x: Tensor) => Tensor } {
  const [w1, w2] = [
    randn([width, width], { requiresGrad: true }),
    randn([width, width], { requiresGrad: true }),
  ];
  const block = (x: Tensor): Tensor =>
    tidy(() => F.dropout(x.matmul(w1).gelu(), 0.4, true).matmul(w2).softmax(-1).add(x.tanh()));
  return { parameters: [w1, w2], block };
}

/** Gradients of the input and the parameters, with and without checkpoints, from the same random state. */
function bothWays(
  run: (wrap: (x: Tensor) => Tensor, x: Tensor) => Tensor,
  autocastTo: AutocastState["dtype"] = null,
): void {
  noLeak(() =>
    tidy(() => {
      manualSeed(5);
      const { parameters, block } = net();
      const x = randn([4, width], { requiresGrad: true });
      const results = [block, (input: Tensor) => checkpoint(block, [input])].map((wrap) => {
        manualSeed(11);
        const output = autocast({ device: "cpu", dtype: autocastTo }, () => run(wrap, x));
        output.float().pow(2).sum().backward();
        const drawn = rand([3]);
        const gradients = [x, ...parameters].map((each) => each.grad?.clone() as Tensor);
        for (const each of [x, ...parameters]) each.grad = null;
        return [output, drawn, ...gradients];
      });
      const [plain, saved] = results as [Tensor[], Tensor[]];
      assert.equal(plain.length, 5);
      for (const [i, each] of plain.entries())
        assert.ok(each.equal(saved[i] as Tensor), `result ${i} differs`);
      assert.ok((plain[2] as Tensor).abs().sum().item() > 0);
    }),
  );
}

test("checkpoint: the same values, gradients and random numbers, bit for bit", () => {
  bothWays((wrap, x) => wrap(x));
  bothWays((wrap, x) => wrap(wrap(wrap(x)).mul(2)));
});

test("checkpoint: nested", () => {
  noLeak(() =>
    tidy(() => {
      manualSeed(5);
      const { parameters, block } = net();
      const x = randn([4, width], { requiresGrad: true });
      const inner = (input: Tensor): Tensor => checkpoint(block, [input]);
      const middle = (input: Tensor): Tensor => checkpoint((y) => inner(inner(y)), [input]);
      const gradients = [
        (y: Tensor) => block(block(block(block(y)))),
        (y: Tensor) => checkpoint((z) => middle(middle(z)), [y]),
      ].map((run) => {
        manualSeed(3);
        run(x).pow(2).sum().backward();
        const got = [x, ...parameters].map((each) => each.grad?.clone() as Tensor);
        for (const each of [x, ...parameters]) each.grad = null;
        return got;
      });
      for (const [i, each] of (gradients[0] as Tensor[]).entries())
        assert.ok(each.equal(gradients[1]?.[i] as Tensor), `gradient ${i}`);
    }),
  );
});

test("checkpoint: under autocast, whether backward is called inside it or not", () => {
  // One block: a weight that serves twice has one cast without checkpoints, and its gradients are added in bfloat16.
  bothWays((wrap, x) => wrap(x), "bfloat16");
  bothWays((wrap, x) => autocast({ device: "cpu", dtype: null }, () => wrap(x)), "bfloat16");
  tidy(() => {
    manualSeed(5);
    const { parameters, block } = net();
    const x = randn([4, width]);
    const w = parameters[0] as Tensor;
    const run = (wrap: (y: Tensor) => Tensor): Tensor => {
      manualSeed(1);
      const loss = wrap(x).sum();
      autocast({ device: "cpu", dtype: "bfloat16" }, () => loss.backward());
      const got = w.grad as Tensor;
      w.grad = null;
      return got;
    };
    assert.ok(
      run(block).equal(run((y) => checkpoint(block, [y]))),
      "computed again as it was, not as the backward is",
    );
  });
});

test("checkpoint: where only parameters require gradients, and where nothing does", () => {
  noLeak(() =>
    tidy(() => {
      const { parameters, block } = net();
      const tokens = tensor(
        [
          [0, 1],
          [2, 3],
        ],
        { dtype: "int64" },
      );
      const table = randn([4, width], { requiresGrad: true });
      const y = checkpoint((ids) => block(F.embedding(ids, table)), [tokens]);
      y.sum().backward();
      for (const each of [table, ...parameters])
        assert.ok((each.grad as Tensor).isfinite().all().item() === 1);
      assert.equal(noGrad(() => checkpoint(block, [randn([1, width])])).requiresGrad, false);
      const frozen = checkpoint((x) => x.mul(2), [ones([2])]);
      frozen.sum().backward();
      assert.deepEqual(frozen.toList(), [2, 2]);
    }),
  );
});

test("checkpoint: keeps its inputs alone", () => {
  tidy(() => {
    const x = randn([64, 64], { requiresGrad: true });
    const fn = (y: Tensor): Tensor => tidy(() => y.tanh().sin().exp().tanh().sum());
    const held = (run: () => Tensor): number => {
      const before = memory().bytes;
      const y = run();
      const after = memory().bytes;
      y.backward();
      return after - before;
    };
    const size = 64 * 64 * 4;
    assert.ok(held(() => fn(x)) > 3 * size);
    assert.ok(held(() => checkpoint(fn, [x])) < size);
  });
});

test("checkpoint: an error in the recomputation comes out whole and puts the random state back", () => {
  noLeak(() =>
    tidy(() => {
      const x = randn([2], { requiresGrad: true });
      const error = new Error("second time");
      let runs = 0;
      const y = checkpoint(
        (input) => {
          if (++runs === 2) throw error;
          return input.mul(rand([2]));
        },
        [x],
      );
      manualSeed(9);
      const wanted = rand([4]).toList();
      manualSeed(9);
      assert.equal(
        caught(() => y.sum().backward()),
        error,
      );
      assert.deepEqual(rand([4]).toList(), wanted);
      assert.equal(isGradEnabled(), true);
    }),
  );
});

test("checkpoint: refuses what it would get wrong: grad(), chosen inputs, second derivatives", () => {
  tidy(() => {
    const w = leaf([2]);
    const x = leaf([3]);
    const run = (): Tensor => checkpoint((input) => input.mul(w), [x]);
    const partial =
      "checkpoint: expected backward() into every leaf, got grad() or chosen inputs. Leave checkpoint out there.";
    assert.throws(() => grad([run()], [x]), { name: "Error", message: partial });
    assert.throws(() => backward([run()], undefined, { inputs: [x] }), { name: "Error", message: partial });
    assert.throws(() => run().backward(undefined, { createGraph: true }), {
      name: "Error",
      message: "checkpoint: expected first derivatives alone, got createGraph. Leave checkpoint out there.",
    });
    assert.deepEqual([x.grad, w.grad], [null, null]);
  });
});

test("a backward inside a backward, three deep, with functions of JavaScript in each", () => {
  noLeak(() =>
    tidy(() => {
      const x = leaf([1.5]);
      const deeper = (depth: number, input: Tensor): Tensor =>
        customFunction(
          [input],
          () => ({ outputs: [input.pow(2)], saved: [input] }),
          ([g], [saved]) => {
            if (depth > 0) {
              const own = (saved as Tensor).detach().requiresGrad_();
              enableGrad(() => deeper(depth - 1, own).mul(1)).backward();
              return [(own.grad as Tensor).mul(g as Tensor)];
            }
            return [(g as Tensor).mul((saved as Tensor).mul(2))];
          },
        )[0] as Tensor;
      deeper(3, x).add(deeper(2, x)).backward();
      assert.deepEqual(gradOf(x), [6]);
      const error = new Error("deep");
      const failing = (depth: number, input: Tensor): Tensor =>
        customFunction(
          [input],
          () => ({ outputs: [input.mul(2)], saved: [] }),
          () => {
            if (depth === 0) throw error;
            const own = leaf([1]);
            enableGrad(() => failing(depth - 1, own)).backward();
            return [null];
          },
        )[0] as Tensor;
      assert.equal(
        caught(() => failing(3, x).backward()),
        error,
      );
    }),
  );
});

// ---- Finite differences ----

/** One number that every element of `y` moves, each in its own way. */
const weigh = (y: Tensor): Tensor =>
  y
    .reshape(-1)
    .mul(arange(0, y.numel, 1, { dtype: "float64" }).cos())
    .sum();

test("gradients agree with finite differences", () => {
  manualSeed(21);
  const d = (...shape: number[]): Tensor => randn(shape, { dtype: "float64" });
  tidy(() => {
    const cases: [string, Tensor[], (...inputs: Tensor[]) => Tensor][] = [
      ["matmul", [d(2, 3), d(3, 2)], (a, b) => (a as Tensor).matmul(b as Tensor)],
      [
        "layerNorm",
        [d(2, 4), d(4), d(4)],
        (x, w, b) => F.layerNorm(x as Tensor, [4], w as Tensor, b as Tensor),
      ],
      ["rmsNorm", [d(2, 4), d(4)], (x, w) => F.rmsNorm(x as Tensor, [4], w as Tensor, 1e-5)],
      [
        "groupNorm",
        [d(1, 4, 2, 2), d(4), d(4)],
        (x, w, b) => F.groupNorm(x as Tensor, 2, w as Tensor, b as Tensor),
      ],
      [
        "conv2d",
        [d(1, 2, 4, 4), d(3, 2, 3, 3), d(3)],
        (x, w, b) => F.conv2d(x as Tensor, w as Tensor, b as Tensor, { stride: 2, padding: 1 }),
      ],
      [
        "convTranspose2d",
        [d(1, 2, 2, 2), d(2, 3, 3, 3)],
        (x, w) => F.convTranspose2d(x as Tensor, w as Tensor, null, { stride: 2 }),
      ],
      [
        "attention",
        [d(1, 2, 3, 4), d(1, 2, 3, 4), d(1, 2, 3, 4)],
        (q, k, v) => F.scaledDotProductAttention(q as Tensor, k as Tensor, v as Tensor, { isCausal: true }),
      ],
      [
        "grouped attention",
        [d(1, 2, 2, 4), d(1, 1, 3, 4), d(1, 1, 3, 4)],
        (q, k, v) => F.scaledDotProductAttention(q as Tensor, k as Tensor, v as Tensor, { enableGqa: true }),
      ],
      ["gelu", [d(6)], (x) => (x as Tensor).gelu("tanh")],
      ["silu", [d(6)], (x) => (x as Tensor).silu()],
      ["logsumexp", [d(2, 4)], (x) => (x as Tensor).logsumexp(-1)],
      ["logSoftmax", [d(2, 4)], (x) => (x as Tensor).logSoftmax(0)],
      ["normalize", [d(2, 4)], (x) => F.normalize(x as Tensor, { dim: -1 })],
      ["cosineSimilarity", [d(2, 4), d(2, 4)], (a, b) => F.cosineSimilarity(a as Tensor, b as Tensor, -1)],
      [
        "bilinear",
        [d(1, 1, 4, 4)],
        (x) => F.interpolate(x as Tensor, { size: [3, 7], mode: "bilinear", antialias: true }),
      ],
      ["bicubic", [d(1, 1, 4, 4)], (x) => F.interpolate(x as Tensor, { scale: 2, mode: "bicubic" })],
      [
        "max and topk",
        [d(3, 5)],
        (x) => (x as Tensor).topk(2, 1).values.add((x as Tensor).max(1, true).values),
      ],
      ["std", [d(3, 5)], (x) => (x as Tensor).std(0)],
      ["index", [d(3, 4)], (x) => (x as Tensor).index(tensor([0, 2, 2], { dtype: "int64" }))],
      ["einsum", [d(2, 3), d(3, 2)], (a, b) => callTensor("aten::einsum", ["ij,jk->ki", [a, b]])],
      ["clamp and where", [d(8)], (x) => (x as Tensor).clamp(-0.5, 0.5).mul((x as Tensor).relu())],
      ["smoothL1Loss", [d(6), d(6)], (a, b) => F.smoothL1Loss(a as Tensor, b as Tensor, "mean", 0.7)],
      ["maxPool2d", [d(1, 1, 4, 4)], (x) => F.maxPool2d(x as Tensor, 2)],
      [
        "batchNorm",
        [d(3, 2, 2), d(2), d(2)],
        (x, w, b) =>
          F.batchNorm(x as Tensor, { mean: null, var: null }, w as Tensor, b as Tensor, {
            training: true,
            momentum: 0.1,
            eps: 1e-5,
          }),
      ],
    ];
    for (const [name, inputs, fn] of cases) {
      const run = (): void => tidy(() => checkGradient((...xs) => weigh(fn(...xs)), inputs));
      assert.doesNotThrow(run, name);
    }
  });
});

test("a wrong gradient is seen by the comparison with finite differences", () => {
  tidy(() => {
    const x = leaf([1, 2]);
    assert.throws(
      () => checkGradient((y) => weigh(oddSquare(y as Tensor)), [x]),
      /input 0: expected 2 elements/,
    );
  });
});

// ---- Autocast ----

const golden = loadSafetensors(
  fileURLToPath(new URL("../../../test/golden/torch/autocast.safetensors", import.meta.url)),
).tensors as Record<string, Tensor>;
after(() => {
  for (const each of Object.values(golden)) each.dispose();
});

test("autocast: values, dtypes and gradients are PyTorch's, nested, switched off and in another dtype inside", () => {
  noLeak(() =>
    tidy(() => {
      const input = (name: string): Tensor => golden[name] as Tensor;
      const parameter = (name: string): Tensor => input(name).clone().requiresGrad_();
      const [x, image, w1, w2, filters] = [
        input("x"),
        input("image"),
        parameter("w1"),
        parameter("w2"),
        parameter("filters"),
      ];
      const results = autocast({ device: "cpu", dtype: "bfloat16" }, () => {
        const hidden = x.matmul(w1);
        const narrow = hidden.gelu();
        const normed = F.layerNorm(narrow, [8]);
        const probs = narrow.softmax(-1);
        const { exact, inner } = autocast({ device: "cpu", dtype: null }, () => ({
          exact: narrow.float().matmul(w2),
          inner: autocast({ device: "cpu", dtype: "float16" }, () => x.matmul(w2)),
        }));
        const again = x.matmul(w1);
        const convolved = F.conv2d(image, filters, null, { padding: 1 });
        const loss = F.mseLoss(narrow.matmul(w2), x)
          .add(again.float().square().mean())
          .add(convolved.float().square().mean());
        return { hidden, narrow, normed, probs, exact, inner, again, convolved, loss };
      });
      results.loss.backward();
      const all = { ...results, "w1.grad": w1.grad, "w2.grad": w2.grad, "filters.grad": filters.grad };
      for (const [name, each] of Object.entries(all)) {
        // One step of bfloat16 where kernels round at another place.
        expectClose(each as Tensor, input(name), { rtol: 8e-3, atol: 2e-2, where: name });
      }
      assert.equal(x.matmul(w1).dtype, "float32", "off outside");
    }),
  );
});

test("autocast: restored when fn throws; unknown devices and dtypes refused", () => {
  tidy(() => {
    const [x, w] = [randn([2, 2]), randn([2, 2], { requiresGrad: true })];
    const on = { device: "cpu", dtype: "bfloat16" } as const;
    assert.throws(
      () =>
        autocast(on, () =>
          autocast({ device: "cpu", dtype: null }, () => {
            throw new Error("x");
          }),
        ),
      /^Error: x$/,
    );
    assert.equal(x.matmul(w).dtype, "float32");
    autocast(on, () => {
      assert.throws(() => autocast({ device: "cpu", dtype: null }, () => x.matmul(zeros([3]))));
      assert.equal(x.matmul(w).dtype, "bfloat16");
      assert.equal(
        autocast({ device: "cuda", dtype: "float16" }, () => x.matmul(w)).dtype,
        "bfloat16",
        "devices are apart",
      );
    });
    assert.throws(() => autocast({ device: "tpu" as "cpu", dtype: null }, () => 0), {
      name: "RangeError",
      message: 'autocast: expected device "cpu" or "cuda", got tpu.',
    });
    assert.throws(() => autocast({ device: "cpu", dtype: "float32" as "float16" }, () => 0), {
      name: "RangeError",
      message: 'autocast: expected dtype "bfloat16", "float16" or null, got float32.',
    });
  });
});

test("autocast: a weight that changes between two autocasts is cast anew, and the cache keeps no memory", () => {
  const w = ones([64, 64], { requiresGrad: true });
  noLeak(() =>
    tidy(() => {
      const x = ones([1, 64]);
      const on = { device: "cpu", dtype: "bfloat16" } as const;
      const product = (): number =>
        tidy(() =>
          noGrad(() =>
            autocast(on, () => x.matmul(w))
              .amax()
              .item(),
          ),
        );
      assert.equal(product(), 64);
      noGrad(() => w.fill_(2));
      assert.equal(product(), 128);
      const before = memory().bytes;
      autocast(on, () => {
        tidy(() => x.matmul(w));
        assert.equal(
          memory().bytes - before >= 64 * 64 * 2,
          true,
          "the weight's cast waits for its next use",
        );
      });
      assert.ok(memory().bytes - before < 64 * 64);
    }),
  );
  w.dispose();
});

test("autocast: a weight first used without a graph still gets its gradient", () => {
  tidy(() => {
    const [x, w] = [ones([1, 2]), ones([2, 2], { requiresGrad: true })];
    autocast({ device: "cpu", dtype: "bfloat16" }, () => {
      noGrad(() => x.matmul(w));
      const shared = checkpoint((y) => y.matmul(w), [x]);
      x.matmul(w).add(shared).float().sum().backward();
    });
    assert.deepEqual(gradOf(w), [
      [2, 2],
      [2, 2],
    ]);
  });
});

test("call reaches operators that differentiate inside", () => {
  tidy(() => {
    const x = leaf([3]);
    const y = oddSquare(x);
    call("aten::_backward", [y, [x]]);
    assert.deepEqual(gradOf(x), [30]);
  });
});
