/** Frontiers and verdicts on rows whose answers are known. */
import assert from "node:assert/strict";
import { test } from "node:test";

import {
  type FrontierPoint,
  percentUnder,
  standingsOf,
  type Verdict,
} from "../../src/evaluation/frontier.js";
import { freeVerdictText, verdictText, warningsOf } from "../../src/evaluation/verdict.js";

const at = (temperature: number, fd: number, value: number): FrontierPoint => ({
  temperature,
  cfg: 1,
  fd: { value: fd, low: null, high: null },
  value,
});

/** A base over its temperatures, and a fine-tuned policy, in L2. */
const BASE = [at(1, 0.51, 0.1437), at(0.8, 0.62, 0.1398), at(0.6, 0.69, 0.1337), at(0.3, 0.79, 0.1337)];
const TUNED = [at(1, 0.52, 0.1373), at(0.8, 0.64, 0.1315)];

const gain =
  (low: number | null = null, high: number | null = null) =>
  (of: FrontierPoint, rival: FrontierPoint) => ({ value: percentUnder(of.value, rival.value), low, high });

test("a point stands against the best that the other has at a Fréchet distance no worse", () => {
  const standings = standingsOf(BASE, TUNED, gain());
  assert.deepEqual(
    standings.map(({ rival }) => rival),
    [BASE[0], BASE[1]],
  );
  assert.deepEqual(
    standings.map((each) => each.gain.value.toFixed(2)),
    ["4.45", "5.94"],
  );
  assert.deepEqual(
    standings.map(({ standing }) => standing),
    ["beyond", "beyond"],
  );
});

test("sharper is not better: what another temperature gives too is behind or even", () => {
  // At FD 0.70 the base has 0.1337 already.
  const [sharp] = standingsOf(BASE, [at(1, 0.7, 0.137)], gain());
  assert.equal(sharp?.standing, "behind");
  assert.equal(sharp?.rival, BASE[2]);
  assert.equal(sharp?.gain.value.toFixed(2), "-2.47");
  const [equal] = standingsOf(BASE, [at(1, 0.51, 0.1437)], gain());
  assert.equal(equal?.standing, "behind", "the same point is not beyond itself");
  const [even] = standingsOf(BASE, [at(1, 0.7, 0.133)], gain(-0.4, 1.5));
  assert.equal(even?.standing, "even", "its interval holds 0");
  const [sure] = standingsOf(BASE, [at(1, 0.7, 0.133)], gain(0.1, 1.5));
  assert.equal(sure?.standing, "beyond");
});

test("a point closer to the data than any of the other's stands against the closest of them", () => {
  const [both] = standingsOf(BASE, [at(1, 0.5, 0.1437 * 0.9)], gain(8, 12));
  assert.equal(both?.standing, "beyond", "A has nothing as good in either");
  assert.equal(both?.rival, BASE[0]);
  assert.equal(both?.gain.value.toFixed(2), "10.00");
  const standing = (value: number, low: number | null): string | undefined =>
    standingsOf(BASE, [at(1, 0.5, value)], gain(low, 12))[0]?.standing;
  assert.equal(standing(0.2, null), "lower_fd", "a greater value");
  assert.equal(standing(0.1437, null), "lower_fd", "the same value");
  assert.equal(standing(0.1437 * 0.9, -1), "lower_fd", "its interval holds 0");
  assert.deepEqual(standingsOf([], TUNED, gain()), []);
  assert.deepEqual(standingsOf(BASE, [], gain()), []);
});

test("where Fréchet intervals overlap, a rival counts although its own value is higher", () => {
  const known = (fd: number, half: number) => ({ value: fd, low: fd - half, high: fd + half });
  const a = [
    { ...at(1, 0, 0.15), fd: known(1.7, 0.1) },
    { ...at(0.6, 0, 0.14), fd: known(2.0, 0.2) },
    { ...at(0.4, 0, 0.13), fd: known(2.6, 0.1) },
  ];
  const b = { ...at(0.8, 0, 0.135), fd: known(1.8, 0.1) };
  // 2.0 ± 0.2 and 1.8 ± 0.1 overlap: the rival is 0.14, not 0.15. 2.6 is surely higher, so that 0.13 does not count.
  const [standing] = standingsOf(a, [b], gain(1, 5));
  assert.equal(standing?.rival, a[1]);
  assert.equal(standing?.standing, "beyond");
  const [tight] = standingsOf(
    a.map((point) => ({ ...point, fd: known(point.fd.value, 0.01) })),
    [{ ...b, fd: known(1.8, 0.01) }],
    gain(1, 5),
  );
  assert.equal(tight?.rival.value, 0.15);
  // Below all of A's values, but not told apart from the least: no lower FD is claimed.
  const [low] = standingsOf(a, [{ ...b, value: 0.2, fd: known(1.65, 0.1) }], gain());
  assert.equal(low?.standing, "behind");
  const [lower] = standingsOf(a, [{ ...b, value: 0.2, fd: known(1.4, 0.1) }], gain());
  assert.equal(lower?.standing, "lower_fd");
});

test("the verdict names where B is beyond A, at which temperature, and by how much", () => {
  const standings = standingsOf(BASE, [...TUNED, at(0.5, 0.5, 0.15), at(0.3, 0.9, 0.135)], gain(1, 8));
  const verdict: Verdict = { network: "second", measure: "l2", prefix: 32, standings };
  const [summary, ...points] = verdictText(verdict);
  assert.match(summary, /2 of 4 settings/);
  assert.match(summary, /At T 0\.8 B has L2 0\.1315, 5\.9 % \[1\.0, 8\.0\] below A's 0\.1398 at T 0\.8/);
  assert.match(summary, /1 with a lower FD.*1 not better/);
  assert.match(summary, /32 codes; network second/);
  assert.equal(points.length, 4);
  assert.match(
    points[0] as string,
    /B T 1: FD 0\.5200, L2 0\.1373, 4\.5 % .*below .*T 1: FD 0\.5100, 0\.1437/,
  );
  assert.match(points[2] as string, /T 0\.5.* 4\.4 % .*above .*higher/);
  const none: Verdict = {
    network: "second",
    measure: "perceptual",
    prefix: 32,
    standings: standingsOf(BASE, [at(1, 0.7, 0.133)], gain(-1, 2)),
  };
  const [short, point] = verdictText(none);
  assert.match(short, /at none of 1 setting\b.*\(1 /);
  assert.match(point as string, /T 0\.6.*interval \w+ 0/);
});

test("a network that the reward used is marked in every text", () => {
  const networks = [
    { name: "paid", isRewarded: true, sharesImages: true, featureSize: 2, numClasses: 2 },
    { name: "other", isRewarded: false, sharesImages: false, featureSize: 2, numClasses: 2 },
  ];
  const standings = standingsOf(BASE, TUNED, gain());
  const verdict = (network: string): Verdict => ({ network, measure: "l2", prefix: 1, standings });
  assert.match(verdictText(verdict("paid"), networks)[0], /\[1, rewarded\]/);
  assert.match(verdictText(verdict("other"), networks)[0], /network \[2\]/);
  assert.match(warningsOf({ reconstruction: null, rows: [], networks }).join(), /\[1, rewarded\]/);
  assert.deepEqual(warningsOf({ reconstruction: null, rows: [], networks: networks.slice(1) }), []);
  const kin = networks.map((network) => ({ ...network, isRewarded: false }));
  const [warning, ...others] = warningsOf({ reconstruction: null, rows: [], networks: kin });
  assert.match(warning as string, /same images.*: \[1\]\./);
  assert.equal(others.length, 0);
});

test("a tokenizer whose own error is near the base's is called too poor, in numbers", () => {
  const measures = (l2: number) => ({
    images: 4,
    plain: { l2: { value: l2, low: null, high: null } },
    networks: {},
  });
  const rows = [0.15, 0.12].map((l2, i) => ({
    policy: "A",
    temperature: 1 - i / 2,
    cfg: 1,
    free: null,
    completions: [{ prefix: 8, measures: measures(l2) }],
  }));
  const warnings = (ceiling: number) => warningsOf({ reconstruction: measures(ceiling), rows, networks: [] });
  assert.deepEqual(warnings(0.03), []);
  const [text] = warnings(0.09);
  // 0.09 of the base's best, 0.12 at T 0.5, leaves a quarter.
  assert.match(text as string, /0\.0900.*0\.1200 \(T 0\.5\).*at most 25 %/);
  assert.match(warnings(0.2)[0] as string, /cannot\b.*improve/);
});

test("free samples are compared where each policy is closest to the data; overlapping intervals are not told apart", () => {
  const a = { temperature: 1, cfg: 1, fd: { value: 0.63, low: 0.58, high: 0.68 } };
  const b = { temperature: 0.9, cfg: 1.5, fd: { value: 0.567, low: 0.52, high: 0.6 } };
  const text = freeVerdictText({ network: "first", a, b });
  assert.match(text, /0\.5670 \[0\.5200, 0\.6000\] at T 0\.9, cfg 1\.5.*0\.6300 .*at T 1: /);
  assert.doesNotMatch(text, /%/);
  const apart = { ...b, fd: { value: 0.7, low: 0.69, high: 0.71 } };
  assert.match(freeVerdictText({ network: "first", a, b: apart }), /11\.1 % higher/);
});
