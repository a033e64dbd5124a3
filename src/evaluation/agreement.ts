/**
 * Whether the networks that judge an evaluation agree: how alike they rank all points, and whether each of them sees a measure
 * rise or fall from A to B. A reward can please one network and not another, so a result counts where all agree. Plain
 * numbers in and out.
 */
import { rankCorrelation } from "../metrics/ranks.js";
import { isApart } from "./frontier.js";
import { type Estimate, type EvalRow, isSamePoint, type Measures } from "./options.js";

/** How two networks rank the same points. */
export interface Correlation {
  /** The networks' names. */
  readonly networks: readonly [string, string];
  /** Spearman's rank correlation, -1 to 1; null for fewer than 3 points, or where a network finds all of them equal. */
  readonly value: number | null;
}

/** What a network sees at the settings that A and B share: counts of settings. */
export interface Change {
  readonly network: string;
  readonly lower: number;
  /** The intervals overlap. */
  readonly even: number;
  readonly higher: number;
}

/** The agreement of all networks on one measure. */
export interface Agreement {
  /** `perceptual` or `fd_train`. */
  readonly measure: string;
  /** Given codes of the completions; null for free samples. */
  readonly prefix: number | null;
  /** Policies at their settings, which are ranked. */
  readonly points: number;
  readonly correlations: readonly Correlation[];
  /** From A to B at equal settings; null without B. */
  readonly changes: {
    readonly settings: number;
    /** Settings at which all networks see the same: lower, even or higher. */
    readonly agreed: number;
    readonly networks: readonly Change[];
  } | null;
}

/** Points from which ranks say something: two always agree or disagree. */
export const LEAST_RANKED = 3;

/** The measures that networks are compared by. */
const COMPARED = ["perceptual", "fd_train"] as const;

/**
 * Compare the networks of an evaluation.
 *
 * @param names - of the networks; of fewer than two there is nothing to compare.
 * @returns one entry a measure and set of images of which at least two networks have numbers,
 *   where there are points enough for ranks, or settings of both policies.
 */
export function agreementsOf(names: readonly string[], rows: readonly EvalRow[]): Agreement[] {
  const prefixes = [...new Set(rows.flatMap(({ completions }) => completions.map(({ prefix }) => prefix)))];
  return COMPARED.flatMap((measure) =>
    [...prefixes, null].flatMap((prefix): Agreement[] => {
      const setOf = ({ free, completions }: EvalRow): Measures | null =>
        prefix === null ? free : (completions.find((each) => each.prefix === prefix)?.measures ?? null);
      const judges = names.flatMap((name) => {
        const values = rows.map((row) => setOf(row)?.networks[name]?.[measure]);
        return values.every((value) => value !== undefined) ? [{ name, values }] : [];
      });
      const changes = changesOf(judges, rows);
      if (judges.length < 2 || (changes === null && rows.length < LEAST_RANKED)) return [];
      const correlations = judges.flatMap((a, i) =>
        judges.slice(i + 1).map(
          (b): Correlation => ({
            networks: [a.name, b.name],
            value: correlationOf(a.values, b.values),
          }),
        ),
      );
      return [{ measure, prefix, points: rows.length, correlations, changes }];
    }),
  );
}

function correlationOf(a: readonly Estimate[], b: readonly Estimate[]): number | null {
  const valuesOf = (estimates: readonly Estimate[]): number[] => estimates.map(({ value }) => value);
  const correlation = rankCorrelation(valuesOf(a), valuesOf(b));
  return a.length < LEAST_RANKED || Number.isNaN(correlation) ? null : correlation;
}

function changesOf(
  judges: readonly { readonly name: string; readonly values: readonly Estimate[] }[],
  rows: readonly EvalRow[],
): Agreement["changes"] {
  const pairs = rows.flatMap((row, b) => {
    const a = rows.findIndex((other) => other.policy === "A" && isSamePoint(other, row));
    return row.policy === "B" && a >= 0 ? [[a, b] as const] : [];
  });
  if (pairs.length === 0) return null;
  const seen = judges.map(({ values }) =>
    pairs.map(([a, b]) => directionOf(values[a] as Estimate, values[b] as Estimate)),
  );
  return {
    settings: pairs.length,
    agreed: pairs.filter((_, p) => seen.every((own) => own[p] === seen[0]?.[p])).length,
    networks: judges.map(({ name }, k) => {
      const count = (wanted: Direction): number => seen[k]?.filter((each) => each === wanted).length ?? 0;
      return { network: name, lower: count("lower"), even: count("even"), higher: count("higher") };
    }),
  };
}

type Direction = "lower" | "even" | "higher";

function directionOf(before: Estimate, after: Estimate): Direction {
  if (!isApart(before, after)) return "even";
  return after.value < before.value ? "lower" : "higher";
}
