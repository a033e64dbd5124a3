/** Signs of life while the main thread is blocked. */
import assert from "node:assert/strict";
import { closeSync, fstatSync, mkdtempSync, openSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout } from "node:timers/promises";

import { Ticker } from "../../src/run/ticker.js";

test("it writes while this thread does nothing, and never after it was ended", async () => {
  const folder = mkdtempSync(join(tmpdir(), "rlar-ticker-"));
  const path = join(folder, "out");
  const fd = openSync(path, "w");
  try {
    const ticker = new Ticker({ fd, period: 5, before: "[", after: "]" });
    while (fstatSync(fd).size < 8); // blocked: no event of this thread is handled
    ticker[Symbol.dispose]();
    const written = readFileSync(path, "utf8");
    assert.match(written, /^(\[\d+s\])+$/);
    await setTimeout(50);
    assert.equal(readFileSync(path, "utf8"), written);
  } finally {
    closeSync(fd);
    rmSync(folder, { recursive: true });
  }
});
