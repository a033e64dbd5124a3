/**
 * Whether one policy lies beyond another's frontier. A lower temperature or more guidance trades the variety of samples
 * for closeness; a policy is better only where it gives what no setting of the other gives. Plain numbers in and out.
 */
import type { Estimate, Point } from "./types.js";

/** A policy at a point, in the two measures of a frontier; less is better in both. */
export interface FrontierPoint extends Point {
  /** Fréchet distance. */
  readonly fd: number;
  readonly value: number;
}

/** A point of B and what A has against it. */
export interface Standing {
  readonly point: FrontierPoint;
  /** The best of A's points among those with a Fréchet distance no worse; where A has none, that of its least. */
  readonly rival: FrontierPoint;
  /** Percent by which the point's value lies under the rival's. */
  readonly gain: Estimate;
  /**
   * `beyond`: the value is lower than the rival's. `even`: the same, but the gain's interval holds 0. `behind`: A has as
   * low a value, or lower. `lower_fd`: no point of A has as low a Fréchet distance, and the value is not beyond either.
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

/**
 * Set each of B's points against the best of A's in `value` among those with an FD no worse, or, where B's FD is lower
 * than any, against the one of A's least FD.
 *
 * @param a - at least one point, or nothing is compared.
 * @param gainOf - percent by which a point of B lies under one of A, with the interval over the images.
 */
export function standingsOf(
  a: readonly FrontierPoint[],
  b: readonly FrontierPoint[],
  gainOf: (of: FrontierPoint, rival: FrontierPoint) => Estimate,
): Standing[] {
  const least = leastBy(a, ({ fd }) => fd);
  if (least === undefined) return [];
  return b.map((point): Standing => {
    const among = leastBy(
      a.filter(({ fd }) => fd <= point.fd),
      ({ value }) => value,
    );
    const rival = among ?? least;
    const gain = gainOf(point, rival);
    const isUnder = gain.value > 0;
    const isSure = isUnder && !(gain.low !== null && gain.low <= 0);
    const rest = among === undefined ? "lower_fd" : isUnder ? "even" : "behind";
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

/** The least Fréchet distance of free samples that each policy reaches, and at which point. */
export interface FreeVerdict {
  readonly network: string;
  readonly a: Point & { readonly fd: Estimate };
  readonly b: Point & { readonly fd: Estimate };
}

/** Percent by which `value` lies under `rival`. */
export const percentUnder = (value: number, rival: number): number => (1 - value / rival) * 100;

/** `T 0.8 cfg 1.5`. */
export const pointText = ({ temperature, cfg }: Point): string => `T ${temperature} cfg ${cfg}`;

const NAMES: Readonly<Record<string, string>> = { l2: "l2", perceptual: "perceptual distance" };

/** A verdict in words, a line a point and one that sums up. */
export function verdictText({ network, measure, prefix, standings }: Verdict): string[] {
  const name = NAMES[measure] ?? measure;
  const lines = standings.map(({ point, rival, gain, standing }) => {
    const own = `B ${pointText(point)}: FD ${short(point.fd)}, ${name} ${short(point.value)}`;
    const { value, low, high } = gain;
    const interval = low === null || high === null ? "" : ` [${low.toFixed(1)}, ${high.toFixed(1)}]`;
    const side = value > 0 ? "under" : "over";
    const which = rival.fd > point.fd ? "A's point of least FD, a worse one" : "A's best with FD no worse";
    const of = `${which} (${pointText(rival)}: FD ${short(rival.fd)}, ${short(rival.value)})`;
    const end = standing === "even" ? "; the interval holds 0" : "";
    return `  ${own}, ${Math.abs(value).toFixed(1)} %${interval} ${side} ${of}${end}`;
  });
  const count = (...kinds: Standing["standing"][]): number =>
    standings.filter(({ standing }) => kinds.includes(standing)).length;
  const beyond = count("beyond");
  const most = Math.max(
    ...standings.filter(({ standing }) => standing === "beyond").map(({ gain }) => gain.value),
  );
  const others = [
    count("lower_fd") > 0 ? `${count("lower_fd")} at a lower FD than any of A's` : "",
    count("even") > 0 ? `${count("even")} not told apart from it` : "",
    count("behind") > 0 ? `${count("behind")} behind it` : "",
  ].filter((text) => text !== "");
  const rest = others.length === 0 ? "" : `; ${others.join(", ")}`;
  const points = standings.length === 1 ? "1 point" : `${standings.length} points`;
  const sum =
    beyond > 0
      ? `B lies beyond A's frontier in ${name} at ${beyond} of ${points}, by up to ${most.toFixed(1)} %${rest}.`
      : `B does not lie beyond A's frontier in ${name}, at 0 of ${points}${rest}.`;
  return [`${sum} (completions after ${prefix} codes; FD of ${network})`, ...lines];
}

/** The free samples' verdict in words. */
export function freeVerdictText({ network, a, b }: FreeVerdict): string {
  const percent = percentUnder(b.fd.value, a.fd.value);
  const side = percent >= 0 ? "under" : "over";
  const isApart =
    a.fd.low !== null && a.fd.high !== null && b.fd.low !== null && b.fd.high !== null
      ? b.fd.high < a.fd.low || b.fd.low > a.fd.high
        ? "; their intervals are apart"
        : "; their intervals overlap"
      : "";
  return (
    `Free samples: B's least FD is ${short(b.fd.value)} (${pointText(b)}), ${Math.abs(percent).toFixed(1)} % ${side} ` +
    `A's, ${short(a.fd.value)} (${pointText(a)})${isApart}. (FD of ${network})`
  );
}

/** Four digits that count. */
export function short(value: number): string {
  if (!Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  if (size >= 1000) return value.toFixed(0);
  return size >= 100
    ? value.toFixed(1)
    : size >= 10
      ? value.toFixed(2)
      : size >= 1
        ? value.toFixed(3)
        : value.toFixed(4);
}
