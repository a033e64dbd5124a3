/** Codes that nobody uses move to where features are; the others stay. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { IBQ, VQModel } from "../../src/tokenizers/index.js";
import {
  arange,
  Generator,
  memory,
  noGrad,
  ones,
  type Tensor,
  tensor,
  zeros,
} from "../../src/torch/index.js";
import { CodeRestarts } from "../../src/trainers/code_restarts.js";
import { expectClose } from "../support/close.js";
import "../support/settle.js";

const SIZES = { ch: 4, chMult: [1, 2], numResBlocks: 1, zChannels: 4, normGroups: 2 };
const vq = (): VQModel => new VQModel({ ...SIZES, codebookSize: 4, codebookEmbedDim: 2 });

/** Features float `[2, 2, 1, 2]` of two images: (3, 4) and (-3, 4), then (0, 5) and (0, -5). */
const LATENTS = tensor([
  [[[3, -3]], [[4, 4]]],
  [[[0, 0]], [[5, -5]]],
]);
const latentsOf = (indices: Tensor): Tensor => LATENTS.indexSelect(0, indices);
const ROWS = [
  [0.6, 0.8],
  [-0.6, 0.8],
  [0, 1],
  [0, -1],
];

const isNear = (row: number[], wanted: number[]): boolean =>
  row.every((value, i) => Math.abs(value - (wanted[i] as number)) < 1e-6);

test("a code is moved after so many updates without use, to a feature that is normalised", () => {
  using model = vq();
  using restarts = new CodeRestarts(model, 3);
  using generator = new Generator(1);
  const table = model.quantize.embedding.weight;
  const before = table.toList() as number[][];
  const average = zeros([4, 2]);
  const codes = tensor([
    [0, 1],
    [1, 0],
  ]).long();
  let asked = 0;
  const counted = (indices: Tensor): Tensor => {
    asked++;
    return latentsOf(indices);
  };
  for (let step = 0; step < 2; step++) {
    assert.equal(restarts.update(codes, counted, generator, [average]), 0);
  }
  assert.equal(asked, 0);
  assert.deepEqual(table.toList(), before);
  assert.equal(restarts.update(codes, counted, generator, [average]), 2);
  const after = table.toList() as number[][];
  assert.deepEqual(after.slice(0, 2), before.slice(0, 2));
  // Each place serves once.
  const places = after.slice(2).map((row) => ROWS.findIndex((wanted) => isNear(row, wanted)));
  assert.ok(!places.includes(-1) && places[0] !== places[1], places.join());
  expectClose(average, [[0, 0], [0, 0], ...after.slice(2)], { rtol: 0 });
  // Both begin anew.
  assert.equal(restarts.update(codes, counted, generator, []), 0);
  assert.equal(restarts.update(codes, counted, generator, []), 0);
  assert.equal(restarts.update(codes, counted, generator, []), 2);
});

test("features that have a code already get no other one", () => {
  using model = vq();
  using restarts = new CodeRestarts(model, 1);
  const codes = tensor([[0, 1]]).long();
  const own = tensor([ROWS[0] as number[], ROWS[1] as number[], [1, 0], [-1, 0]]);
  for (let seed = 0; seed < 20; seed++) {
    using generator = new Generator(seed);
    noGrad(() => model.quantize.embedding.weight.copy_(own));
    // One image is of codes 0 and 1 as they are, the other one of neither.
    const both = (): Tensor => LATENTS;
    assert.equal(restarts.update(codes, both, generator, []), 2);
    const moved = (model.quantize.embedding.weight.toList() as number[][]).slice(2);
    const places = moved.map((row) => ROWS.findIndex((wanted) => isNear(row, wanted)));
    assert.deepEqual(places.toSorted(), [2, 3]);
  }
});

test("a code in use is as young as its last use", () => {
  using model = vq();
  using restarts = new CodeRestarts(model, 2);
  using generator = new Generator(1);
  const all = arange(0, 4).long().unsqueeze(0);
  const some = tensor([[3, 3, 3, 3]]).long();
  for (const [codes, moved] of [
    [some, 0],
    [all, 0],
    [some, 0],
    [all, 0],
    [some, 0],
    [some, 2],
  ] as const) {
    // Of three due codes only the two that one image has places for move.
    assert.equal(restarts.update(codes, latentsOf, generator, []), moved);
  }
  assert.deepEqual(restarts.stateDict().ages?.toList(), [0, 0, 2, 0]);
  assert.equal(restarts.update(some, latentsOf, generator, []), 1);
});

test("rows of other codebooks are the features as they are", () => {
  const { normGroups, ...sizes } = SIZES;
  using model = new IBQ({
    ddconfig: { ...sizes, resolution: 4, attnResolutions: [] },
    nEmbed: 3,
    embedDim: 2,
    normGroups,
  });
  using restarts = new CodeRestarts(model, 1);
  using generator = new Generator(1);
  const codes = tensor([[0], [0]]).long();
  const same = (indices: Tensor): Tensor => ones([indices.numel, 2, 1, 1]).mul(7);
  assert.equal(restarts.update(codes, same, generator, []), 2);
  expectClose(
    model.quantize.embedding.weight.narrow(0, 1, 2),
    [
      [7, 7],
      [7, 7],
    ],
    { rtol: 0 },
  );
});

test("the same state and generator restart the same codes, and nothing stays behind", () => {
  using model = vq();
  using restarts = new CodeRestarts(model, 1);
  const codes = tensor([[0, 0]]).long();
  const run = (): unknown => {
    using generator = new Generator(3);
    assert.equal(restarts.update(codes, latentsOf, generator, []), 2);
    return model.quantize.embedding.weight.toList();
  };
  const table = noGrad(() => model.quantize.embedding.weight.clone());
  const state = { ages: (restarts.stateDict().ages as Tensor).clone() };
  const first = run();
  const count = memory().tensors;
  noGrad(() => model.quantize.embedding.weight.copy_(table));
  restarts.loadStateDict(state);
  assert.deepEqual(run(), first);
  assert.equal(memory().tensors, count);
});
