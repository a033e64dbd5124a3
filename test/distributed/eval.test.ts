/** An evaluation by 2 and 3 processes: every file is that of one process, byte for byte. */
import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { writeCells } from "../support/eval_toys.js";
import { type Ended, start } from "../support/processes.js";

const folder = mkdtempSync(join(tmpdir(), "several-eval-"));
const images = join(folder, "images");
before(async () => {
  await writeCells(images, 60);
  writeFileSync(join(images, "a", "010.png"), "no image");
});
after(() => rmSync(folder, { recursive: true, force: true }));

async function evaluateBy(size: number, set: string): Promise<Ended[]> {
  mkdirSync(join(folder, set));
  const running = await start("distributed/eval_child.js", size, [images, join(folder, set)]);
  return [...(await running.ended)];
}

test("several processes find what one finds", async () => {
  for (const size of [1, 3]) {
    for (const { code, out, err } of await evaluateBy(size, `by-${size}`)) {
      assert.equal(code, 0, err);
      assert.match(out, /^4 rows/m, "every process has the numbers");
    }
  }
  const names = readdirSync(join(folder, "by-1")).sort();
  assert.equal(names.filter((name) => name.endsWith(".png")).length > 2, true);
  assert.equal(names.filter((name) => name.endsWith(".npz")).length, 4);
  for (const size of [3]) {
    assert.deepEqual(readdirSync(join(folder, `by-${size}`)).sort(), names);
    for (const name of names) {
      const [one, several] = ["by-1", `by-${size}`].map((set) => readFileSync(join(folder, set, name)));
      assert.ok(one?.equals(several as Buffer), `${name} by ${size}`);
    }
  }
});

test("an error of the process that writes ends the others with it", async () => {
  writeFileSync(join(folder, "taken"), "");
  const ended = await (await start("distributed/eval_child.js", 2, [images, join(folder, "taken")])).ended;
  const [first, other] = ended as [Ended, Ended];
  assert.equal(first.code, 1);
  assert.match(first.err, /eval: out/);
  assert.equal(other.code, 5, other.err);
  assert.match(other.err, /an error of rank 0|rank 0 .* ended or/);
});
