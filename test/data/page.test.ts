import assert from "node:assert/strict";
import { test } from "node:test";
import { givenPart, labelledPage } from "../../src/data/page.js";
import { full, memory, tidy } from "../../src/torch/index.js";

/** Five images of 20 pixels, each of one grey. */
const rowOf = (value: number, count = 5) => ({ label: "", images: full([count, 3, 20, 20], value) });

test("rows stand side by side, enlarged by a whole factor, and keep their pixels", () => {
  const before = memory().tensors;
  tidy(() => {
    // Three rows of five images of at least 64 pixels fit side by side; 1,000 / (15 * 22) is 3.
    const page = labelledPage([rowOf(-1), rowOf(0), rowOf(0.5, 2)]);
    assert.deepEqual(page.shape, [1, 3, 62 + 2, 3 * (5 * 62 + 8)]);
    const at = (y: number, x: number): number => page.select(2, y).select(2, x).select(1, 1).item();
    assert.deepEqual([at(1, 5), at(2, 2), at(61, 61), at(2, 62), at(2, 64)], [1, -1, -1, 1, -1]);
    assert.deepEqual([at(30, 318 + 2), at(30, 636 + 2)], [0, 0.5]);
    assert.equal(at(30, 636 + 2 + 2 * 62), 1, "a short row ends in white");
  });
  assert.equal(memory().tensors, before);
});

test("labels and columns take a line each; a page of wide images has one row after another", () => {
  tidy(() => {
    const wide = { label: "a", images: full([3, 3, 256, 200], 0) };
    const page = labelledPage([wide, { ...wide, label: "" }], ["input", "sampled"]);
    assert.deepEqual(page.shape, [1, 3, 11 + 2 * (2 * 256 + 2 + 11) + 2, 3 * (2 * 200 + 2) + 8]);
    assert.equal(page.narrow(2, 0, 11).amin().item(), -1, "the columns' names");
    assert.equal(page.narrow(2, 13, 11).amin().item(), -1, "the first row's label");
    assert.equal(
      page
        .narrow(2, 13 + 525, 11)
        .amin()
        .item(),
      1,
      "no label of the second",
    );
  });
});

test("a caption is below the rows, on as many lines as it needs", () => {
  tidy(() => {
    // Words of three letters with spaces between them: as many as fit on a line of letters of 6 pixels, and one more.
    const row = { label: "", images: full([5, 3, 120, 120], 0) };
    const plain = labelledPage([row]);
    const [height, width] = [plain.size(2), plain.size(3)];
    const words = Math.floor((Math.floor((width - 4) / 6) + 1) / 4);
    for (const [count, lines] of [
      [words, 1],
      [words + 1, 2],
    ] as const) {
      const page = labelledPage([row], [], Array(count).fill("abc").join(" "));
      assert.equal(page.size(2), height + lines * 11);
      assert.equal(
        page
          .narrow(2, height + (lines - 1) * 11, 11)
          .amin()
          .item(),
        -1,
      );
      assert.ok(page.narrow(2, 0, height).equal(plain));
    }
  });
});

test("of a given part the first codes stay, the rest is grey", () => {
  tidy(() => {
    const shown = givenPart(full([2, 3, 4, 6], 1), 4, 2)
      .select(0, 1)
      .select(0, 2);
    // Two rows of three codes of 2 x 2 pixels: the first row and one more.
    assert.deepEqual(shown.toList(), [
      [1, 1, 1, 1, 1, 1],
      [1, 1, 1, 1, 1, 1],
      [1, 1, 0, 0, 0, 0],
      [1, 1, 0, 0, 0, 0],
    ]);
  });
});
