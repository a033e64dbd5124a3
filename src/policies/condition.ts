/** Checks, joins and repeats conditions. How a condition is used is in each policy. */
import { cat, expected, expectedType, onesLike, Tensor } from "../torch/index.js";
import type { Condition } from "./policy.js";

const PARTS = ["classes", "features", "isReal", "isDropped"] as const;

/** Check the parts of a condition against what a policy was built for and against the batch. */
export function checkCondition(
  where: string,
  condition: Condition,
  takes: { classes: boolean; features: boolean },
  batch: number,
): void {
  const { classes, features, isReal } = condition;
  if (classes !== undefined && !takes.classes) {
    throw expected(where, "a condition without classes", classes, "This policy has no class embedding");
  }
  if (features !== undefined && !takes.features) {
    throw expected(
      where,
      "a condition without features",
      features,
      "Build the policy for features to give it some",
    );
  }
  if (isReal !== undefined && features === undefined) {
    throw expected(where, "features where isReal is given", "none");
  }
  for (const part of PARTS) {
    const value = condition[part];
    if (value === undefined) continue;
    const rank = part === "features" ? 3 : part === "isReal" ? 2 : 1;
    if (!(value instanceof Tensor)) throw expectedType(where, `a Tensor as condition.${part}`, value);
    if (value.ndim !== rank || value.shape[0] !== batch) {
      const shape = rank === 1 ? `[${batch}]` : rank === 2 ? `[${batch}, S]` : `[${batch}, S, C]`;
      throw expected(where, `condition.${part} of shape ${shape}, one row per sequence`, value);
    }
    const dtype = value.dtype;
    if (part.startsWith("is") && dtype !== "bool") throw expectedType(where, `bool condition.${part}`, value);
    if (part === "classes" && dtype !== "int64" && dtype !== "int32") {
      throw expectedType(where, "int64 condition.classes", value);
    }
  }
  if (isReal !== undefined && features !== undefined && isReal.shape[1] !== features.shape[1]) {
    throw expected(
      where,
      `condition.isReal of shape [${batch}, ${features.shape[1]}], as the features`,
      isReal,
    );
  }
}

/**
 * Concatenate two batches: the rows of `a`, then those of `b`. If only one of them has a mask, `isReal` is all true,
 * and `isDropped` all false, for the other.
 *
 * @throws RangeError when one has classes or features and the other has none.
 */
export function concatConditions(a: Condition, b: Condition): Condition {
  const joined: Condition = {};
  for (const part of PARTS) {
    const [x, y] = [a[part], b[part]];
    if (x === undefined && y === undefined) continue;
    const joinedPart = x !== undefined && y !== undefined ? [x, y] : filled(part, a, b);
    joined[part] = cat(joinedPart);
  }
  return joined;
}

function filled(part: (typeof PARTS)[number], a: Condition, b: Condition): [Tensor, Tensor] {
  const [x, y] = [a[part], b[part]];
  const other = x === undefined ? a : b;
  const rows = (part === "isReal" ? other.features : (other.classes ?? other.features))?.shape[0];
  const known = x ?? y;
  if (rows === undefined || known === undefined || part === "classes" || part === "features") {
    throw expected("concatConditions", `${part} in both conditions or in neither`, "them in one");
  }
  const like = known.narrow(0, 0, 1).expand(rows, ...known.shape.slice(1));
  const fill = part === "isReal" ? onesLike(like) : onesLike(like).logicalNot();
  return x === undefined ? [fill, known] : [known, fill];
}

/** Repeat each row `times` times in succession: the conditions of all generations of a group. */
export function repeatCondition(condition: Condition, times: number): Condition {
  const repeated: Condition = {};
  for (const part of PARTS) {
    const value = condition[part];
    if (value !== undefined) repeated[part] = value.repeatInterleave(times, 0);
  }
  return repeated;
}
