/**
 * Whether one policy lies beyond another's frontier: a lower temperature or more guidance trades variety for closeness, so a
 * policy is better only where it reaches what no setting of the other reaches. Plain numbers in and out.
 */
import type { Estimate, Point } from "./options.js";

/** A policy at a point, in the two measures of a frontier; less is better in both. */
export interface FrontierPoint extends Point {
  /** Fréchet distance, with its interval where there is one. */
  readonly fd: Estimate;
  readonly value: number;
}

/** A point of B and what A has against it. */
export interface Standing {
  readonly point: FrontierPoint;
  /**
   * The best of A's points among those whose Fréchet distance is lower or not told apart; where A has none, that of its
   * least.
   */
  readonly rival: FrontierPoint;
  /** Percent by which the point's value lies below the rival's. */
  readonly gain: Estimate;
  /**
   * `beyond`: the value is lower than the rival's. `even`: the same, but the gain's interval holds 0. `behind`: A has as
   * low a value, or lower. `lower_fd`: A reaches no Fréchet distance as low, and the value is not beyond either.
   */
  readonly standing: "beyond" | "lower_fd" | "even" | "behind";
}

/** How B stands against A's frontier in one measure. */
export interface Verdict {
  /** The network that Fréchet distances, and a perceptual distance, are of. */
  readonly network: string;
  /** `l2` or `perceptual`. */
  readonly measure: string;
  /** Given codes of the completions. */
  readonly prefix: number;
  readonly standings: readonly Standing[];
}

/** Whether the interval of an estimate, or its value where it has none, lies above that of another. */
export function isAbove(a: Estimate, b: Estimate): boolean {
  return (a.low ?? a.value) > (b.high ?? b.value);
}

/** Whether two estimates are told apart: their intervals, where they have some, do not overlap. */
export const isApart = (a: Estimate, b: Estimate): boolean => isAbove(a, b) || isAbove(b, a);

/**
 * Set each of B's points against the best of A's in `value` among those whose FD is lower or not told apart, or, where
 * B's FD is below all of A's, against the one of A's least FD.
 *
 * @param a - at least one point, or nothing is compared.
 * @param gainOf - percent by which a point of B lies below one of A, with the interval over the images.
 */
export function standingsOf(
  a: readonly FrontierPoint[],
  b: readonly FrontierPoint[],
  gainOf: (of: FrontierPoint, rival: FrontierPoint) => Estimate,
): Standing[] {
  const least = leastBy(a, ({ fd }) => fd.value);
  if (least === undefined) return [];
  return b.map((point): Standing => {
    const among = leastBy(
      a.filter(({ fd }) => !isAbove(fd, point.fd)),
      ({ value }) => value,
    );
    const rival = among ?? least;
    const gain = gainOf(point, rival);
    const isBelow = gain.value > 0;
    const isSure = isBelow && !(gain.low !== null && gain.low <= 0);
    const rest = among === undefined ? "lower_fd" : isBelow ? "even" : "behind";
    return { point, rival, gain, standing: isSure ? "beyond" : rest };
  });
}

/** The point with the least of something, the first of several. */
export function leastBy<P>(points: readonly P[], of: (point: P) => number): P | undefined {
  return points.reduce<P | undefined>(
    (best, point) => (best === undefined || of(point) < of(best) ? point : best),
    undefined,
  );
}

/** The standing that a verdict is summed up by: the greatest gain, of those beyond the frontier where there are some. */
export function bestStanding({ standings }: Verdict): Standing | undefined {
  const beyond = standings.filter(({ standing }) => standing === "beyond");
  return leastBy(beyond.length > 0 ? beyond : standings, ({ gain }) => -gain.value);
}

/** The least Fréchet distance of free samples that each policy reaches, and at which point. */
export interface FreeVerdict {
  readonly network: string;
  readonly a: Point & { readonly fd: Estimate };
  readonly b: Point & { readonly fd: Estimate };
}

/** Percent by which `value` lies below `rival`. */
export const percentUnder = (value: number, rival: number): number => (1 - value / rival) * 100;
