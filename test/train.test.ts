/** The functions that train, as a program imports them from the package. */
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { trainRlLoop } from "../src/index.js";
import { Shown, tinyFolder, tinyRun } from "./support/train_run.js";

test("a program's run ends with its page, as one from the command line does", async (t) => {
  const folder = await tinyFolder(t);
  const { dir, end } = await trainRlLoop(tinyRun(folder), { screen: new Shown() });
  assert.equal(end, "done");
  assert.ok(existsSync(join(dir, "report.html")));
});
