/** Frontiers and verdicts on rows whose answers are known. */
import assert from "node:assert/strict";
import { test } from "node:test";

import {
  type FrontierPoint,
  freeVerdictText,
  percentUnder,
  standingsOf,
  type Verdict,
  verdictText,
} from "../../src/evaluation/verdict.js";

const at = (temperature: number, fd: number, value: number): FrontierPoint => ({
  temperature,
  cfg: 1,
  fd,
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

test("the verdict says plainly where B is beyond A, and by how much", () => {
  const standings = standingsOf(BASE, [...TUNED, at(0.5, 0.5, 0.15), at(0.3, 0.9, 0.135)], gain(1, 8));
  const verdict: Verdict = { network: "second", measure: "l2", prefix: 32, standings };
  assert.deepEqual(verdictText(verdict), [
    "B lies beyond A's frontier in l2 at 2 of 4 points, by up to 5.9 %; 1 at a lower FD than any of A's, 1 behind it. (completions after 32 codes; FD of second)",
    "  B T 1 cfg 1: FD 0.5200, l2 0.1373, 4.5 % [1.0, 8.0] under A's best with FD no worse (T 1 cfg 1: FD 0.5100, 0.1437)",
    "  B T 0.8 cfg 1: FD 0.6400, l2 0.1315, 5.9 % [1.0, 8.0] under A's best with FD no worse (T 0.8 cfg 1: FD 0.6200, 0.1398)",
    "  B T 0.5 cfg 1: FD 0.5000, l2 0.1500, 4.4 % [1.0, 8.0] over A's point of least FD, a worse one (T 1 cfg 1: FD 0.5100, 0.1437)",
    "  B T 0.3 cfg 1: FD 0.9000, l2 0.1350, 1.0 % [1.0, 8.0] over A's best with FD no worse (T 0.6 cfg 1: FD 0.6900, 0.1337)",
  ]);
  const none: Verdict = {
    network: "second",
    measure: "perceptual",
    prefix: 32,
    standings: standingsOf(BASE, [at(1, 0.7, 0.133)], gain(-1, 2)),
  };
  assert.deepEqual(verdictText(none), [
    "B does not lie beyond A's frontier in perceptual distance, at 0 of 1 point; 1 not told apart from it. (completions after 32 codes; FD of second)",
    "  B T 1 cfg 1: FD 0.7000, perceptual distance 0.1330, 0.5 % [-1.0, 2.0] under A's best with FD no worse (T 0.6 cfg 1: FD 0.6900, 0.1337); the interval holds 0",
  ]);
});

test("free samples are compared where each policy is closest to the data", () => {
  const a = { temperature: 1, cfg: 1, fd: { value: 0.63, low: 0.58, high: 0.68 } };
  const b = { temperature: 0.9, cfg: 1.5, fd: { value: 0.567, low: 0.52, high: 0.6 } };
  assert.equal(
    freeVerdictText({ network: "first", a, b }),
    "Free samples: B's least FD is 0.5670 (T 0.9 cfg 1.5), 10.0 % under A's, 0.6300 (T 1 cfg 1); their intervals overlap. (FD of first)",
  );
  const apart = { ...b, fd: { value: 0.7, low: 0.69, high: 0.71 } };
  assert.match(freeVerdictText({ network: "first", a, b: apart }), /11\.1 % over A's.+intervals are apart/);
});
