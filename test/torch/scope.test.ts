import assert from "node:assert/strict";
import { test } from "node:test";

import {
  call,
  customFunction,
  emptyCache,
  Generator,
  keep,
  memory,
  noGrad,
  ones,
  randn,
  saveRandomState,
  Tensor,
  tidy,
  zeros,
} from "../../src/torch/index.js";
import { noLeak } from "../support/leak.js";
import { collectGarbage, turn } from "../support/settle.js";

/** Collect until `count` handles are open, or as many as stay open after some rounds. */
async function collectUntil(count: () => number, wanted: number): Promise<number> {
  for (let round = 0; round < 20 && count() !== wanted; round++) {
    await turn();
    collectGarbage();
    await turn();
  }
  return count();
}

const live = (): number => memory().tensors;

test("tidy frees what was made inside and gives back what it returns, in any container", () => {
  const before = live();
  const got = tidy(() => {
    ones([2]).add(1).mul(2);
    const [a, b, c, d, e] = [ones([1]), ones([2]), ones([3]), ones([4]), ones([5])];
    ones([6]);
    return {
      a,
      list: [b, [c]],
      map: new Map([["d", d]]),
      set: new Set([e]),
      n: 3,
      text: "x",
      none: null,
      missing: undefined,
    };
  });
  assert.equal(live(), before + 5);
  const all = [
    got.a,
    got.list[0],
    (got.list[1] as Tensor[])[0],
    got.map.get("d"),
    [...got.set][0],
  ] as Tensor[];
  assert.deepEqual(
    all.map((each) => each.numel),
    [1, 2, 3, 4, 5],
  );
  for (const each of all) each.dispose();
  assert.equal(live(), before);
  assert.equal(
    tidy(() => 7),
    7,
  );
  assert.equal(
    tidy(() => undefined),
    undefined,
  );
  assert.equal(
    tidy(() => null),
    null,
  );
  const bare = tidy(() => Object.assign(Object.create(null), { x: ones([1]) }) as { x: Tensor });
  assert.equal(bare.x.item(), 1);
  bare.x.dispose();
  const likeness = tidy(() => ({ handle: 7, x: ones([1]) }));
  assert.equal(likeness.x.item(), 1, "a field may be called handle");
  likeness.x.dispose();
  assert.equal(live(), before);
});

test("an object of a class keeps its tensors only where they are kept: its fields are not walked", () => {
  class Holder {
    readonly x: Tensor = ones([1]);
  }
  const holder = tidy(() => new Holder());
  assert.equal(holder.x.isDisposed, true);
});

test("what escapes an inner tidy belongs to the outer one, and tensors from outside are left alone", () => {
  const before = live();
  const outside = ones([3]);
  tidy(() => {
    const x = tidy(() => ones([1]).add(1));
    assert.equal(x.item(), 2);
    const y = tidy(() => tidy(() => tidy(() => x.add(1))));
    assert.equal(y.item(), 3);
    assert.equal(
      tidy(() => outside),
      outside,
    );
    assert.equal(live(), before + 3);
  });
  assert.equal(live(), before + 1);
  assert.deepEqual(outside.toList(), [1, 1, 1]);
  outside.dispose();
  assert.equal(live(), before);
});

test("tidy frees everything when it throws, at every depth, and passes the error on", () => {
  const error = new RangeError("mine");
  noLeak(() => {
    assert.throws(
      () =>
        tidy(() => {
          ones([1]);
          tidy(() => {
            ones([1]);
            throw error;
          });
        }),
      (thrown) => thrown === error,
    );
    tidy(() => {
      assert.throws(() => tidy(() => ones([2]).matmul(ones([3]))));
      assert.equal(ones([1]).item(), 1, "the outer scope goes on");
    });
  });
});

test("tidy refuses a Promise or anything with then, and frees what was made", async () => {
  const message =
    "tidy: expected a function that returns its result, got a Promise. Await outside and tidy the parts.";
  let promise: Promise<unknown> | undefined;
  noLeak(() => {
    assert.throws(() => tidy(() => (promise = Promise.resolve(ones([1])))), { name: "TypeError", message });
    // biome-ignore lint/suspicious/noThenProperty: what the test is about
    assert.throws(() => tidy(() => ({ then: () => ones([1]) })), { name: "TypeError", message });
    assert.throws(() => tidy(() => [{ inner: Promise.resolve(1) }]), { name: "TypeError", message });
  });
  assert.equal(((await promise) as Tensor).isDisposed, true);
});

test("more tensors than the frame has slots are freed in one tidy", () => {
  noLeak(() =>
    tidy(() => {
      const x = zeros([65535]);
      call("aten::unbind.int", [x]);
      call("aten::unbind.int", [x]);
      ones([1]);
    }),
  );
});

test("keep takes a tensor out of every scope until dispose", () => {
  const before = live();
  let kept: Tensor | undefined;
  tidy(() => {
    tidy(() => {
      const x = ones([2]);
      kept = keep(x);
      assert.equal(kept, x);
      keep(kept);
    });
    assert.equal(kept?.isDisposed, false);
  });
  assert.deepEqual(kept?.toList(), [1, 1]);
  tidy(() => keep(kept as Tensor));
  kept?.dispose();
  assert.equal(kept?.isDisposed, true);
  assert.equal(live(), before);
});

test("dispose twice is no error, and using closes at the end of the block", () => {
  const before = live();
  const x = ones([2]);
  x.dispose();
  x.dispose();
  let inner: Tensor;
  {
    using y = ones([2]);
    inner = y;
    assert.equal(live(), before + 1);
  }
  assert.equal(inner.isDisposed, true);
  tidy(() => {
    using z = ones([2]);
    z.dispose();
  });
  assert.throws(() => {
    using _ = ones([2]);
    throw new Error("out");
  }, /out/);
  assert.equal(live(), before);
});

test("disposing inside a tidy and returning what was disposed do no harm", () => {
  noLeak(() => {
    const gone = tidy(() => {
      const x = ones([2]);
      x.dispose();
      return x;
    });
    assert.equal(gone.isDisposed, true);
  });
});

test("a handle that is used again by LibTorch's table is not the old tensor", () => {
  const a = ones([1]);
  a.dispose();
  const b = zeros([1]);
  a.dispose();
  assert.equal(b.item(), 0);
  b.dispose();
});

test("the collector frees tensors made outside scopes, kept ones and generators", async () => {
  const start = await collectUntil(live, 0);
  const generators = memory().generators;
  (() => {
    for (let i = 0; i < 3000; i++) ones([2]);
    tidy(() => keep(ones([2])));
    tidy(() => tidy(() => ones([2])));
    tidy(() => ones([2]));
    new Generator(1);
    saveRandomState();
  })();
  assert.ok(live() >= start + 3000, "nothing is collected while the work goes on");
  assert.equal(await collectUntil(live, start), start);
  assert.equal(await collectUntil(() => memory().generators, generators), generators);
});

test("what is disposed of outside scopes is not freed a second time by the collector", async () => {
  const start = await collectUntil(live, 0);
  const held: Tensor[] = [];
  await (async () => {
    const old = Array.from({ length: 50 }, () => ones([2])); // registered with the collector by the next turn
    await turn();
    for (const each of old) each.dispose();
    for (let i = 0; i < 50; i++) ones([2]).dispose(); // never registered
    for (let i = 0; i < 100; i++) held.push(ones([3])); // take over the freed slots
  })();
  assert.equal(await collectUntil(live, start + 100), start + 100);
  for (let i = 0; i < 5; i++) {
    collectGarbage();
    await turn();
  }
  for (const each of held) assert.deepEqual(each.toList(), [1, 1, 1]);
  for (const each of held) each.dispose();
  assert.equal(live(), start);
});

test("a handle that was taken over outlives the object it came from, and a single tensor is collected", async () => {
  const start = await collectUntil(live, 0);
  const taken = await (async () => {
    const old = ones([2]);
    await turn(); // now the collector knows of it
    const handle = old.take();
    assert.equal(old.isDisposed, true);
    old.dispose();
    return new Tensor(handle);
  })();
  assert.equal(await collectUntil(live, start + 1), start + 1);
  for (let i = 0; i < 5; i++) {
    collectGarbage();
    await turn();
  }
  assert.deepEqual(taken.toList(), [1, 1]);
  taken.dispose();
  (() => void ones([2]))();
  assert.equal(await collectUntil(live, start), start);
});

test("a generator that was disposed of is not released a second time by the collector", async () => {
  const start = await collectUntil(() => memory().generators, 0);
  await (async () => {
    const old = new Generator(1);
    await turn();
    old.dispose();
  })();
  using next = new Generator(2); // takes over the freed slot
  for (let i = 0; i < 5; i++) {
    collectGarbage();
    await turn();
  }
  assert.equal(memory().generators, start + 1);
  tidy(() => next.state());
});

test("a tensor that something still refers to is never collected", async () => {
  const x = ones([2]);
  const holder = { graph: noGrad(() => [x.add(1)]) };
  for (let i = 0; i < 5; i++) {
    await turn();
    collectGarbage();
  }
  assert.deepEqual(holder.graph[0]?.toList(), [2, 2]);
  assert.deepEqual(x.toList(), [1, 1]);
  x.dispose();
  holder.graph[0]?.dispose();
});

test("backward functions free what they were given, with or without a scope around", () => {
  noLeak(() => {
    using x = ones([2], { requiresGrad: true });
    const seen: Tensor[] = [];
    const [y] = customFunction(
      [x],
      () => ({ outputs: [x.mul(2)], saved: [x] }),
      ([gradient], [saved]) => {
        seen.push(gradient as Tensor, saved as Tensor);
        return [(gradient as Tensor).mul(2)];
      },
    ) as [Tensor];
    using total = y.sum();
    total.backward();
    y.dispose();
    assert.deepEqual(
      seen.map((each) => each.isDisposed),
      [true, true],
    );
    assert.deepEqual(
      tidy(() => x.grad?.toList()),
      [2, 2],
    );
  });
});

test("memory counts handles and bytes, and keeps the peak until it is reset", () => {
  emptyCache();
  const before = memory({ resetPeak: true });
  assert.equal(before.peakBytes, before.bytes);
  const x = zeros([1 << 18]); // 1 MiB
  const during = memory();
  assert.equal(during.tensors, before.tensors + 1);
  assert.ok(during.bytes - before.bytes >= 1 << 20 && during.bytes - before.bytes < (1 << 20) + 4096);
  const view = x.view(512, 512);
  assert.deepEqual(
    [memory().bytes, memory().tensors],
    [during.bytes, before.tensors + 2],
    "a view has no memory of its own",
  );
  x.dispose();
  assert.equal(memory().bytes, during.bytes, "the view holds it");
  view.dispose();
  const after = memory();
  assert.deepEqual(
    [after.bytes, after.tensors, after.peakBytes],
    [before.bytes, before.tensors, during.bytes],
  );
  assert.equal(memory({ resetPeak: true }).peakBytes, after.bytes);
});

test("large freed blocks are used again, never more than was live at once, and emptyCache gives them back", () => {
  emptyCache();
  assert.equal(memory().cachedBytes, 0);
  const MiB = 1 << 20;
  const make = (megabytes: number): Tensor => zeros([megabytes * (MiB / 4)]);
  const near = (bytes: number, megabytes: number): boolean => Math.abs(bytes - megabytes * MiB) < 0.1 * MiB;
  const cached = (): number => memory().cachedBytes;
  const small = zeros([1000]);
  small.dispose();
  assert.equal(cached(), 0, "small ones are the C library's");
  make(8).dispose();
  assert.ok(near(cached(), 8));
  const again = make(7);
  assert.ok(near(cached(), 0), "a block serves what is up to a fifth smaller");
  const other = make(2);
  again.dispose();
  assert.ok(near(cached(), 8));
  const third = make(3); // fits no block, and 2 live + 3 new + 8 waiting are more than the 10 that were live
  assert.ok(near(cached(), 0));
  third.dispose();
  assert.ok(near(cached(), 3));
  emptyCache();
  assert.equal(cached(), 0);
  const both = [make(8), make(8)]; // with `other`, 18 were live
  for (const each of both) each.dispose();
  assert.ok(near(cached(), 16));
  const fourth = make(3); // 2 live + 3 new leave room for one of 8 waiting
  assert.ok(near(cached(), 8));
  fourth.dispose();
  assert.deepEqual(
    tidy(() => other.sum().item()),
    0,
  );
  other.dispose();
  emptyCache();
  const filled = randn([512, 1024]);
  const copy = filled.toArray();
  make(2).dispose();
  make(4).dispose();
  assert.deepEqual(filled.toArray(), copy);
  filled.dispose();
  emptyCache();
});
