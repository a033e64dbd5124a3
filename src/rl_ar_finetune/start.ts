/**
 * What a sequence starts from: codes that are given, and a condition. Selecting and repeating them by rows;
 * what a condition means is the policy's affair.
 */
import type { Condition } from "../policies/policy.js";
import { empty, expected, expectedType, Tensor } from "../torch/index.js";

/**
 * Where sequences start: codes int64 `[B, S]`, a condition of B images, or the pair of both, in which a tensor stands
 * for classes int64 `[B]`. Given codes are read and never scored.
 */
export type Start = Tensor | Condition | readonly [tokens: Tensor, condition: Tensor | Condition];

/** A {@link Start} in one form. */
export interface StartParts {
  /** int64 `[B, S]`, S >= 0. */
  readonly given: Tensor;
  readonly condition: Condition;
}

/**
 * A start in one form.
 *
 * @param like - says how many rows there are, and on which device, when the start is `{}`.
 * @throws TypeError when neither codes nor a condition say how many sequences there are. RangeError when codes and
 *   condition have different numbers of rows.
 */
export function startParts(where: string, start: Start, like?: Tensor): StartParts {
  const [tokens, second] = splitStart(start);
  const condition: Condition = second instanceof Tensor ? { classes: second } : second;
  const tensors = Object.entries(condition).filter(([, value]) => value !== undefined) as [string, Tensor][];
  const first = tokens ?? tensors[0]?.[1] ?? like;
  if (first === undefined) {
    throw expectedType(
      where,
      "start codes or a condition",
      "neither",
      "Pass int64 codes [B, S], S = 0 for none, or { classes }",
    );
  }
  const batch = first.size(0);
  for (const [name, value] of tensors) {
    if (value.size(0) !== batch) throw expected(where, `${batch} rows in the start's ${name}`, value);
  }
  if (tokens === undefined) {
    const device = first.device as "cpu";
    return { given: empty([batch, 0], { dtype: "int64", device }), condition };
  }
  if (tokens.ndim !== 2) throw expected(where, "start codes int64 [B, S]", tokens);
  return { given: tokens, condition };
}

function splitStart(start: Start): readonly [Tensor | undefined, Tensor | Condition] {
  if (start instanceof Tensor) return [start, {}];
  if (Array.isArray(start)) return start as readonly [Tensor, Tensor | Condition];
  return [undefined, start as Condition];
}

/** The start with `fn` applied to each of its tensors, all of which have a row an image. */
export function mapStart(start: StartParts, fn: (rows: Tensor) => Tensor): StartParts {
  return { given: fn(start.given), condition: mapCondition(start.condition, fn) };
}

/** The condition with `fn` applied to each of its tensors. */
export function mapCondition(condition: Condition, fn: (rows: Tensor) => Tensor): Condition {
  const fields = Object.entries(condition).filter(([, value]) => value !== undefined) as [string, Tensor][];
  return Object.fromEntries(fields.map(([name, value]) => [name, fn(value)]));
}
