/** Labels on pages: letters by hand, what does not fit, what has no glyph. */
import assert from "node:assert/strict";
import { test } from "node:test";

import { drawText, fitted } from "../../src/data/letters.js";
import { full, type Tensor } from "../../src/torch/index.js";

/** The first channel as rows of text: `#` is ink. */
const seen = (page: Tensor): string[] =>
  (page.select(0, 0).select(0, 0).toList() as number[][]).map((row) =>
    row.map((value) => (value < 0 ? "#" : ".")).join(""),
  );

test("a letter is drawn in ink where it belongs, in all channels, and the page around it stays", () => {
  const page = full([1, 3, 10, 8], 1);
  drawText(page, "L", 1, 0);
  const rows = [
    "........",
    ".#......",
    ".#......",
    ".#......",
    ".#......",
    ".#......",
    ".#......",
    ".#####..",
    "........",
    "........",
  ];
  assert.deepEqual(seen(page), rows);
  assert.ok(page.select(1, 2).equal(page.select(1, 0)));
});

test("accents are dropped, what is unknown becomes a question mark, what does not fit is cut off", () => {
  const draw = (text: string): string => {
    const page = full([1, 3, 9, 14], 1);
    drawText(page, text, 0, 0);
    return seen(page).join("\n");
  };
  assert.equal(draw("äé"), draw("ae"));
  assert.equal(draw("漢"), draw("?"));
  assert.equal(draw("ß"), draw("ss"));
  assert.equal(draw("abc"), draw("ab"));
  assert.ok(!draw("").includes("#"));
  assert.equal(fitted("reconstruction", 60), "reconstr..");
  assert.equal(fitted("input", 60), "input");
  assert.equal(fitted("input", 5), "");
});
