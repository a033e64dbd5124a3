import assert from "node:assert/strict";
import { test } from "node:test";

import { aboutOf } from "../../src/dashboard/measures.js";

test("what a metric is follows from its whole name, then from its last part", () => {
  assert.equal(aboutOf("eval/l2/mean").better, "lower");
  assert.equal(aboutOf("reward/psnr/mean").better, "higher");
  assert.equal(aboutOf("loss/policy").title, "Policy");
  assert.equal(aboutOf("eval/new_thing/mean").title, "new thing");
});
