/**
 * Every public function and class answers a value of the wrong type with a sentence of the package's own form, and
 * never with JavaScript's or LibTorch's text.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import * as api from "../src/index.js";

const WRONG: readonly unknown[] = [undefined, null, 3, "x", true, {}, [], () => 1];
const OWN_FORM = /^[^\n]+: (expected|unknown key|needs) |problems? in the configuration/;

/** Parameters beyond these are the package's own. */
const MOST: Readonly<Record<string, number>> = { addLora: 2 };

for (const [name, value] of Object.entries(api)) {
  if (typeof value !== "function" || value.prototype instanceof Error) continue;
  const isClass = Function.prototype.toString.call(value).startsWith("class");
  test(`${name} refuses values of the wrong type in the package's words`, async () => {
    for (const wrong of WRONG) {
      for (const count of [1, 3].filter((count) => count <= (MOST[name] ?? 5))) {
        const given = Array<unknown>(count).fill(wrong);
        try {
          await (isClass ? Reflect.construct(value, given) : Reflect.apply(value, undefined, given));
        } catch (error) {
          assert.match((error as Error).message, OWN_FORM, `${name} with ${count} times ${String(wrong)}`);
        }
      }
    }
  });
}
