/**
 * Validation of a run's files for the report: they may come from an older version, a killed process or an editor. Unexpected
 * parts are omitted and named; no file makes a report fail.
 */
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import type { Agreement } from "../evaluation/agreement.js";
import type { FreeVerdict, Standing, Verdict } from "../evaluation/frontier.js";
import type { ModelEvaluation } from "../evaluation/judge_models.js";
import type { Estimate, Estimates, EvalRow, Likelihood, Measures } from "../evaluation/options.js";
import type { Environment } from "../run/environment.js";
import { isObject } from "../torch/json.js";

/** Values that a file may hold; more come from an alias that repeats itself. */
const MOST_VALUES = 1_000_000;

/** Levels of lists and objects that a file may hold. */
const MOST_LEVELS = 64;

/** Parts that are named when a file is damaged; the others are counted. */
const NAMED = 4;

/**
 * Parsed JSON or YAML as a tree of plain values: without loops, not too deep, big integers as text.
 *
 * @throws RangeError for what is larger or deeper than any file of a run.
 */
export function plainTree(value: unknown): unknown {
  let left = MOST_VALUES;
  const copy = (of: unknown, level: number): unknown => {
    left--;
    if (left < 0)
      throw new RangeError(`expected at most ${MOST_VALUES.toLocaleString("en")} values, got more.`);
    if (typeof of === "bigint") return String(of);
    if (typeof of !== "object" || of === null) return of;
    if (level > MOST_LEVELS) throw new RangeError(`expected at most ${MOST_LEVELS} levels, got more.`);
    if (Array.isArray(of)) return of.map((item) => copy(item, level + 1));
    return Object.fromEntries(Object.entries(of).map(([key, item]) => [key, copy(item, level + 1)]));
  };
  return copy(value, 0);
}

/** A value as an object with keys; an empty object for other values. */
export const objectOf = (value: unknown): Record<string, unknown> => (isObject(value) ? value : {});

/** Stands for an item of a list that is removed. */
const REMOVED = Symbol("removed");

/**
 * A file's value as the schema says. Where a part is damaged, the smallest part around it that may be missing is omitted.
 *
 * @param value - a tree of its own, see {@link plainTree}; it is changed.
 * @param unread - given a sentence that names the damaged parts.
 * @throws RangeError where nothing of it can be read.
 */
function readable<T>(schema: z.ZodType<T>, value: unknown, file: string, unread: string[]): T {
  const damaged: string[] = [];
  for (;;) {
    const parsed = schema.safeParse(value);
    if (parsed.success) {
      if (damaged.length > 0) unread.push(damageText(file, damaged));
      return parsed.data;
    }
    const isFirst = damaged.length === 0;
    for (const { path, message } of parsed.error.issues) {
      // What follows from the omission of a part is not told again.
      if (isFirst) damaged.push(`${placeText(path)}: ${message.replace(/^Invalid input: /, "")}`);
      const isMissing = path.reduce<unknown>((at, key) => partOf(at, key), value) === undefined;
      const place = isMissing ? path.slice(0, -1) : path;
      const key = place.at(-1);
      if (key === undefined) throw new RangeError(`${message.replace(/^Invalid input: /, "")}.`);
      const parent = place.slice(0, -1).reduce<unknown>((at, name) => partOf(at, name), value);
      if (Array.isArray(parent)) parent[key as number] = REMOVED;
      else if (parent !== undefined) delete (parent as Record<PropertyKey, unknown>)[key];
    }
    withoutRemoved(value);
  }
}

const partOf = (value: unknown, key: PropertyKey): unknown =>
  typeof value === "object" && value !== null ? (value as Record<PropertyKey, unknown>)[key] : undefined;

function withoutRemoved(value: unknown): void {
  if (typeof value !== "object" || value === null) return;
  if (Array.isArray(value)) value.splice(0, value.length, ...value.filter((item) => item !== REMOVED));
  for (const item of Object.values(value)) withoutRemoved(item);
}

/** `rows[0].policy`. */
const placeText = (path: readonly PropertyKey[]): string =>
  path.reduce<string>(
    (text, key) => text + (typeof key === "number" ? `[${key}]` : `${text === "" ? "" : "."}${String(key)}`),
    "",
  );

function damageText(file: string, damaged: readonly string[]): string {
  const count = damaged.length;
  const rest = count > NAMED ? `; and ${count - NAMED} more` : "";
  const parts = count === 1 ? "1 part is damaged and omitted" : `${count} parts are damaged and omitted`;
  return `${file}: ${parts}: ${damaged.slice(0, NAMED).join("; ")}${rest}`;
}

/** Any part of an `env.json`: an older one may lack some. */
export type SomeEnvironment = { readonly [K in keyof Environment]?: Environment[K] };

const ENVIRONMENT = z
  .looseObject({
    versions: z.looseObject({ package: z.string() }),
    libtorchConfig: z.string(),
    commit: z.looseObject({ id: z.string(), isDirty: z.boolean() }).nullable(),
    host: z.string(),
    cpu: z.looseObject({ model: z.string(), cores: z.number() }),
    memoryBytes: z.number(),
    cudaDevices: z.number(),
    threads: z.number(),
    command: z.array(z.string()),
    startedAt: z.string(),
  })
  .partial() as unknown as z.ZodType<SomeEnvironment>;

/** An `env.json` with those of its parts that can be read. Parts that this version does not know stay as they are. */
export const readEnvironment = (value: unknown, file: string, unread: string[]): SomeEnvironment =>
  readable(ENVIRONMENT, plainTree(value), file, unread);

/** What the report needs of an evaluation. An older file lacks some of it. */
export type SomeEvaluation = Pick<
  ModelEvaluation,
  | "files"
  | "judged"
  | "networks"
  | "real"
  | "reconstruction"
  | "likelihoods"
  | "rows"
  | "verdicts"
  | "agreements"
  | "pages"
  | "notes"
> & {
  readonly settings: Partial<ModelEvaluation["settings"]>;
  readonly data:
    | (Pick<ModelEvaluation["data"], "train" | "heldOut"> & { readonly codes?: number | undefined })
    | null;
};

/** An evaluation in a run's folder. */
export interface EvalFile {
  readonly file: string;
  /** Milliseconds since 1970 when it was written. */
  readonly writtenAt: number;
  readonly evaluation: SomeEvaluation;
}

/** Evaluations in the files `eval*.json` of a folder; damaged ones and damaged parts are named in `unread`. */
export function readEvaluations(folder: string, unread: string[]): EvalFile[] {
  return readdirSync(folder)
    .filter((name) => /^eval.*\.json$/.test(name))
    .sort()
    .flatMap((file): EvalFile[] => {
      const path = join(folder, file);
      try {
        const value = objectOf(plainTree(JSON.parse(readFileSync(path, "utf8"))));
        if (!Array.isArray(value.rows))
          throw new RangeError("expected what rlar eval --json writes, got other data.");
        const evaluation = readable(EVALUATION, value, file, unread);
        return [{ file, writtenAt: statSync(path).mtimeMs, evaluation }];
      } catch (error) {
        unread.push(`${file}: ${(error as Error).message}`);
        return [];
      }
    });
}

/** JSON has no word for NaN and the infinities, and null stands for them. */
const number = z
  .number()
  .nullable()
  .transform((value) => value ?? Number.NaN);

const list = <T>(item: z.ZodType<T>) => z.array(item).default([]);

/** A part that may be missing, which is null then. */
const orNull = <T>(part: z.ZodType<T>) => part.nullish().transform((value) => value ?? null);

const ESTIMATE: z.ZodType<Estimate> = z
  .object({
    value: number,
    low: z.number().nullable().default(null),
    high: z.number().nullable().default(null),
    seeds: z.array(number).optional(),
  })
  .transform(({ seeds, ...rest }) => (seeds === undefined ? rest : { ...rest, seeds }));

/** Older files hold a Fréchet distance of a frontier's point without its interval. */
const DISTANCE: z.ZodType<Estimate> = z.union([
  ESTIMATE,
  z.number().transform((value) => ({ value, low: null, high: null })),
]);

const ESTIMATES: z.ZodType<Estimates> = z.record(z.string(), ESTIMATE);
const MEASURES: z.ZodType<Measures> = z.object({
  images: z.number().default(Number.NaN),
  plain: ESTIMATES.default({}),
  networks: z.record(z.string(), ESTIMATES).default({}),
});
const POINT = { temperature: z.number().positive(), cfg: z.number() };
const ROW: z.ZodType<EvalRow> = z.object({
  policy: z.string(),
  ...POINT,
  free: orNull(MEASURES),
  completions: list(z.object({ prefix: z.number(), measures: MEASURES })),
});
const FRONTIER_POINT = z.object({ ...POINT, fd: DISTANCE, value: number });
const STANDING: z.ZodType<Standing> = z.object({
  point: FRONTIER_POINT,
  rival: FRONTIER_POINT,
  gain: ESTIMATE,
  standing: z.enum(["beyond", "lower_fd", "even", "behind"]),
});
const VERDICT: z.ZodType<Verdict> = z.object({
  network: z.string(),
  measure: z.string(),
  prefix: z.number(),
  standings: z.array(STANDING).min(1),
});
const BEST = z.object({ ...POINT, fd: ESTIMATE });
const FREE_VERDICT: z.ZodType<FreeVerdict> = z.object({ network: z.string(), a: BEST, b: BEST });
const LIKELIHOOD: z.ZodType<Likelihood> = z.object({
  policy: z.string(),
  images: z.number(),
  natsPerToken: ESTIMATE,
  perplexity: ESTIMATE,
  top1: ESTIMATE,
});
const IMAGES = z.object({
  images: z.number(),
  read: z.number(),
  unreadable: list(z.string()),
  fingerprint: z.string(),
});
const isRewarded = z.boolean().nullable().default(null);
const SETTINGS = z
  .object({
    seeds: z.array(z.number()),
    resamples: z.number(),
    samples: z.number(),
    classes: z.enum(["data", "balanced"]),
    draws: z.number(),
    images: z.number(),
    prefixes: z.array(z.number()),
    temperatures: z.array(z.number()),
  })
  .partial() as unknown as z.ZodType<SomeEvaluation["settings"]>;
const AGREEMENT: z.ZodType<Agreement> = z.object({
  measure: z.string(),
  prefix: z.number().nullable(),
  points: z.number(),
  correlations: list(z.object({ networks: z.tuple([z.string(), z.string()]), value: z.number().nullable() })),
  changes: orNull(
    z.object({
      settings: z.number(),
      agreed: z.number(),
      networks: list(
        z.object({ network: z.string(), lower: z.number(), even: z.number(), higher: z.number() }),
      ),
    }),
  ),
});
const EVALUATION: z.ZodType<SomeEvaluation> = z.object({
  settings: SETTINGS.default({}),
  data: orNull(z.object({ train: IMAGES, heldOut: orNull(IMAGES), codes: z.number().optional() })),
  judged: orNull(
    z.object({
      run: z.string(),
      checkpoint: z.string(),
      which: z.enum(["last", "best", "final"]),
      text: z.string(),
    }),
  ),
  files: list(z.object({ role: z.string(), path: z.string(), sha256: z.string(), isRewarded })),
  networks: list(
    z.object({
      name: z.string(),
      featureSize: z.number().default(Number.NaN),
      numClasses: z.number().default(Number.NaN),
      isRewarded,
      sharesImages: z.boolean().nullable().default(null),
    }),
  ),
  real: z
    .object({
      training: orNull(MEASURES),
      reconstructed: orNull(MEASURES),
      heldOut: orNull(MEASURES),
    })
    .default({ training: null, reconstructed: null, heldOut: null }),
  reconstruction: orNull(MEASURES),
  likelihoods: list(LIKELIHOOD),
  rows: list(ROW),
  verdicts: z
    .object({ completion: list(VERDICT), free: list(FREE_VERDICT) })
    .default({ completion: [], free: [] }),
  agreements: list(AGREEMENT),
  pages: list(z.string()),
  notes: list(z.string()),
});
