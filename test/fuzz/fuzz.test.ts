/** A short form of `npm run fuzz`: the first tries of each format. */
import assert from "node:assert/strict";
import { test } from "node:test";

import { faultOf } from "./child.js";
import { FORMATS } from "./formats.js";
import { changeBytes, Dice } from "./mutate.js";
import { fuzz, fuzzOptions } from "./run.js";

test("a seed and a number make the same file, another number another", () => {
  const bytes = Buffer.from("some bytes of a file");
  const made = (number: number): string =>
    changeBytes(bytes, new Dice(3, "tar", number), [bytes]).toString("hex");
  assert.equal(made(5), made(5));
  assert.ok(new Set(Array.from({ length: 20 }, (_, i) => made(i))).size > 15);
});

test("messages of ours are told from others", () => {
  assert.equal(faultOf(new RangeError("f.tar: expected a tar file, got 3 bytes. Copy it again.")), undefined);
  assert.match(faultOf(new TypeError("x is not a function")) ?? "", /not a message of ours/);
  const ofCode = new RangeError("f: expected data, got Cannot read properties of undefined (reading 'map').");
  assert.match(faultOf(ofCode) ?? "", /not about the file/);
  assert.match(faultOf("text") ?? "", /no Error/);
});

for (const format of Object.keys(FORMATS)) {
  test(`${format}: no crash, no hang, no memory, no message that is not ours`, async () => {
    const { faults, read, refused } = await fuzz(format, 60, 0);
    assert.deepEqual(faults, []);
    assert.equal(read + refused, 60);
  });
}

test("a wrong option of the fuzzer is a sentence with the usage", () => {
  assert.deepEqual(fuzzOptions(["--tries", "5", "--format", "tar", "--from", "2"]), {
    formats: ["tar"],
    tries: 5,
    seed: 0,
    from: 2,
  });
  for (const args of [["--unknown"], ["extra"], ["--format", "nope"], ["--tries", "x"], ["--seed"]]) {
    const said = fuzzOptions(args);
    assert.ok(typeof said === "string", args.join(" "));
    assert.match(said, /^fuzz: [^\n]+\. Usage: npm run fuzz[^\n]+$/);
  }
});
