/** Agreement of judges, on ranks and directions that can be worked out by hand. */
import assert from "node:assert/strict";
import { test } from "node:test";

import { agreementsOf } from "../../src/evaluation/agreement.js";
import type { Estimate, EvalRow } from "../../src/evaluation/options.js";
import { sharesImages } from "../../src/evaluation/shared_data.js";
import { agreementTexts } from "../../src/evaluation/verdict.js";

const near = (value: number, half: number | null = null): Estimate =>
  half === null ? { value, low: null, high: null } : { value, low: value - half, high: value + half };

const row = (policy: string, temperature: number, fd: Record<string, Estimate>): EvalRow => ({
  policy,
  temperature,
  cfg: 1,
  free: null,
  completions: [
    {
      prefix: 4,
      measures: {
        images: 9,
        plain: {},
        networks: Object.fromEntries(Object.entries(fd).map(([name, fd_train]) => [name, { fd_train }])),
      },
    },
  ],
});

const ROWS: readonly EvalRow[] = [
  row("A", 1, { inside: near(1.5, 0.1), outside: near(17.6, 0.5) }),
  row("A", 0.8, { inside: near(1.8, 0.1), outside: near(19.2, 0.5) }),
  row("B", 1, { inside: near(1.45, 0.1), outside: near(19.1, 0.5) }),
  row("B", 0.8, { inside: near(2.2, 0.1), outside: near(20.5, 0.5) }),
];

test("judges disagree where one sees a measure rise that another does not", () => {
  const [found, ...others] = agreementsOf(["inside", "outside"], ROWS);
  assert.equal(others.length, 0, "no perceptual distances, no free samples");
  assert.equal(found?.measure, "fd_train");
  assert.equal(found?.prefix, 4);
  assert.equal(found?.points, 4);
  // Ranks 2, 3, 1, 4 and 1, 3, 2, 4: 1 - 6 * 2 / 60
  assert.ok(Math.abs((found?.correlations[0]?.value as number) - 0.8) < 1e-12);
  assert.deepEqual(found?.changes, {
    settings: 2,
    agreed: 1,
    networks: [
      { network: "inside", lower: 0, even: 1, higher: 1 },
      { network: "outside", lower: 0, even: 0, higher: 2 },
    ],
  });
  const networks = ["inside", "outside"].map((name) => ({ name, isRewarded: false }));
  const [text] = agreementTexts([found as NonNullable<typeof found>], networks);
  assert.match(text as string, /disagree at 1 of 2 .*FD.*\[1\].*\[2\].*0\.80/);
});

test("one network, or one policy, has less to compare", () => {
  assert.deepEqual(agreementsOf(["inside"], ROWS), []);
  assert.deepEqual(agreementsOf(["inside", "outside"], []), [], "a tokenizer alone has no points");
  assert.deepEqual(
    agreementsOf(["inside", "outside"], ROWS.slice(0, 2)),
    [],
    "two points always agree or disagree",
  );
  const networks = ["inside", "outside"].map((name) => ({ name, isRewarded: false }));
  const pair = agreementsOf(["inside", "outside"], [ROWS[0], ROWS[2]] as EvalRow[]);
  assert.equal(pair[0]?.changes?.settings, 1);
  assert.equal(pair[0]?.correlations[0]?.value, null);
  assert.match(agreementTexts(pair, networks)[0] as string, /disagree at 1 of 1 .*finds it higher at 1\.$/);
  const even = [0.6, 0.8, 1].map((t) => row("A", t, { inside: near(1), outside: near(t) }));
  assert.equal(agreementsOf(["inside", "outside"], even)[0]?.correlations[0]?.value, null);
});

test("a judge shares images with the reward by the set's fingerprint or its classes", () => {
  const learnt = (fingerprint: string | null, classNames: string[] | null = null) => ({
    fingerprint,
    classNames,
  });
  assert.equal(sharesImages(learnt("a"), null), null, "the reward is not known");
  assert.equal(sharesImages(learnt("a"), []), false);
  assert.equal(sharesImages(learnt("a"), [learnt("b"), learnt("a")]), true);
  assert.equal(sharesImages(learnt("a"), [learnt("b")]), false);
  assert.equal(sharesImages(learnt("a", ["x", "y"]), [learnt("b", ["x", "y"])]), true, "another split");
  assert.equal(sharesImages(learnt("a"), [learnt(null)]), null);
  assert.equal(sharesImages(learnt(null), [learnt("b")]), null);
});
