/** Rotary positions of an image's grid, by hand. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { rotaryTable, rotate } from "../../src/policies/rotary.js";
import { callTensor, randn, type Tensor, tensor, tidy } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";

const real = (table: Tensor): Tensor => callTensor("aten::view_as_real", [table]);

test("the first half of the channels turns by the row, the second by the column; the condition has zeros", () =>
  tidy(() => {
    const table = rotaryTable("test", { blockSize: 9, headDim: 8, conditionTokens: 2, base: 10000 });
    assert.deepEqual([table.dtype, ...table.shape], ["complex64", 11, 1, 4]);
    expectClose(real(table).narrow(0, 0, 2), Array(2).fill([Array(4).fill([0, 0])]));
    // Frequencies 1 and 10000^(-2/4) = 0.01; code 5 is row 1, column 2.
    const angles = [1, 0.01, 2, 0.02];
    const wanted = angles.map((angle) => [Math.cos(angle), Math.sin(angle)]);
    expectClose(
      real(table)
        .select(0, 2 + 5)
        .squeeze(0),
      wanted,
      { rtol: 1e-6 },
    );
  }));

test("heads of 100 channels have 25 frequencies an axis", () =>
  tidy(() => {
    const table = rotaryTable("test", { blockSize: 4, headDim: 100, conditionTokens: 0, base: 10000 });
    const angles = Array.from({ length: 25 }, (_, i) => 10000 ** (-i / 25));
    const turned = angles.map((angle) => [Math.cos(angle), Math.sin(angle)]);
    const still = Array(25).fill([1, 0]);
    expectClose(real(table).select(0, 2).squeeze(0), [...turned, ...still], { rtol: 2e-6, atol: 1e-7 });
    expectClose(real(table).select(0, 1).squeeze(0), [...still, ...turned], { rtol: 2e-6, atol: 1e-7 });
  }));

test("neighbouring channels are the pairs that turn", () =>
  tidy(() => {
    const table = rotaryTable("test", { blockSize: 4, headDim: 4, conditionTokens: 1, base: 10000 });
    const x = tensor([[[[1, 2, 3, 4]], [[1, 2, 3, 4]], [[1, 2, 3, 4]]]]); // [1, 3, 1, 4]: condition, codes 0 and 1
    const [c, s] = [Math.cos(1), Math.sin(1)];
    const wanted = [[[[0, 0, 0, 0]], [[1, 2, 3, 4]], [[1, 2, 3 * c - 4 * s, 4 * c + 3 * s]]]];
    expectClose(rotate(x, table.narrow(0, 0, 3)), wanted, { rtol: 1e-6 });
  }));

test("bfloat16 turns in float32 and is rounded once; float64 stays", () =>
  tidy(() => {
    const table = rotaryTable("test", { blockSize: 16, headDim: 8, conditionTokens: 1, base: 10000 });
    const x = randn([2, 17, 3, 8]).bfloat16();
    const y = rotate(x, table);
    assert.equal(y.dtype, "bfloat16");
    assert.ok(y.equal(rotate(x.float(), table).bfloat16()));
    const wide = randn([2, 17, 3, 8]).double();
    const turns = real(table).double().select(2, 0).unsqueeze(1); // [17, 1, 1, 2], of the first pair
    const first = wide
      .select(3, 0)
      .mul(turns.select(3, 0).squeeze(1))
      .sub(wide.select(3, 1).mul(turns.select(3, 1).squeeze(1)));
    expectClose(rotate(wide, table).select(3, 0), first, { rtol: 1e-13, atol: 1e-13 });
  }));
