/** Attention against a softmax written out, its masks, and grouped heads. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { attend, attendTo, paddingMask, paddingRow, splitHeads } from "../../src/policies/attention.js";
import { randn, type Tensor, tensor, tidy, zeros } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";

const bool = (rows: number[][]): Tensor => tensor(rows, { dtype: "bool" });

/** softmax(q k^T / sqrt(c) + mask) v, `[B, n, H c]`. */
function byHand(q: Tensor, k: Tensor, v: Tensor, mask: Tensor): Tensor {
  const groups = q.size(1) / k.size(1);
  const [keys, values] = [k, v].map((x) => x.repeatInterleave(groups, 1)) as [Tensor, Tensor];
  const logits = q
    .matmul(keys.transpose(2, 3))
    .div(Math.sqrt(q.size(3)))
    .add(mask);
  return logits.softmax(-1).matmul(values).transpose(1, 2).flatten(2);
}

test("several queries are causal, one sees all, and heads come in groups", () =>
  tidy(() => {
    for (const keyHeads of [4, 2, 1]) {
      const [q, k, v] = [randn([2, 4, 5, 8]), randn([2, keyHeads, 5, 8]), randn([2, keyHeads, 5, 8])];
      const future = tensor(
        Array.from({ length: 5 }, (_, i) => Array.from({ length: 5 }, (_, j) => (j > i ? -Infinity : 0))),
      );
      expectClose(attend(q, k, v, { mask: null }), byHand(q, k, v, future), { atol: 1e-6 });
      if (keyHeads === 4) {
        expectClose(attendTo(q, k, v, null, 0), byHand(q, k, v, zeros([5, 5])), { atol: 1e-6 });
      }
    }
  }));

test("padding is seen by nobody but itself", () =>
  tidy(() => {
    const isReal = bool([
      [0, 0, 1],
      [1, 0, 1],
    ]);
    const o = -Infinity;
    const like = randn([1]);
    const wanted = [
      [
        [
          [0, o, o, o],
          [o, 0, o, o],
          [o, o, 0, o],
          [o, o, 0, 0],
        ],
      ],
      [
        [
          [0, o, o, o],
          [0, 0, o, o],
          [0, o, 0, o],
          [0, o, 0, 0],
        ],
      ],
    ];
    expectClose(paddingMask(isReal, 4, like), wanted);
    expectClose(
      paddingRow(isReal, 4, like),
      wanted.map(([rows]) => [[rows?.[3] as number[]]]),
    );
    assert.equal(paddingRow(isReal, 4, like.bfloat16()).dtype, "bfloat16");
    const [q, k, v] = [randn([2, 2, 4, 8]), randn([2, 2, 4, 8]), randn([2, 2, 4, 8])];
    const mask = tensor(wanted);
    expectClose(attend(q, k, v, { mask }), byHand(q, k, v, mask), { atol: 1e-6 });
  }));

test("splitting into heads is a view", () =>
  tidy(() => {
    const x = randn([2, 3, 8]);
    const heads = splitHeads(x, 2);
    assert.deepEqual(heads.shape, [2, 2, 3, 4]);
    assert.ok(heads.select(1, 1).equal(x.narrow(2, 4, 4)));
    x.zero_();
    assert.equal(heads.abs().amax().item(), 0);
  }));
