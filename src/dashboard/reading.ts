/**
 * Validation of a run's files for the report: they may come from an older version, a killed process or an editor. Unexpected
 * parts are omitted and named; no file makes a report fail.
 */
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import type { FreeVerdict, Standing, Verdict } from "../evaluation/frontier.js";
import type { ModelEvaluation } from "../evaluation/judge_models.js";
import type {
  Completion,
  Estimate,
  Estimates,
  EvalRow,
  Likelihood,
  Measures,
} from "../evaluation/options.js";
import type { Environment } from "../run/environment.js";

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
export const objectOf = (value: unknown): Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value)
    ? (value as Record<string, unknown>)
    : {};

/** Takes parts of a file that may have any shape, and keeps a list of those that had to be omitted. */
export class Parts {
  readonly #problems: string[] = [];

  /** A part as the schema says; undefined where it is missing, or where it is damaged, which is noted. */
  take<T>(schema: z.ZodType<T>, value: unknown, path: string): T | undefined {
    if (value === undefined) return undefined;
    const parsed = schema.safeParse(value);
    if (parsed.success) return parsed.data;
    const [issue] = parsed.error.issues;
    const where = [path, ...(issue?.path ?? [])].join(".");
    const message = issue?.message.replace(/^Invalid input: /, "") ?? "expected another value";
    this.note(where, message);
    return undefined;
  }

  /** The items of a list that can be read. */
  list<T>(value: unknown, path: string, read: (item: unknown, path: string) => T | undefined): T[] {
    const items = this.take(z.array(z.unknown()), value, path) ?? [];
    return items.flatMap((item, i) => {
      const one = read(item, `${path}[${i}]`);
      return one === undefined ? [] : [one];
    });
  }

  /** The entries of an object that can be read; no name in it is one that JavaScript gives to every object. */
  byName<T>(
    value: unknown,
    path: string,
    read: (item: unknown, path: string) => T | undefined,
  ): Record<string, T> {
    const found: Record<string, T> = Object.create(null);
    const entries = Object.entries(this.take(z.record(z.string(), z.unknown()), value, path) ?? {});
    for (const [name, item] of entries) {
      const one = read(item, `${path}.${name}`);
      if (one !== undefined) found[name] = one;
    }
    return found;
  }

  note(path: string, message: string): void {
    this.#problems.push(`${path}: ${message}`);
  }

  /** A sentence on the omitted parts; null if there are none. */
  text(file: string): string | null {
    const count = this.#problems.length;
    if (count === 0) return null;
    const named = this.#problems.slice(0, NAMED).join("; ");
    const rest = count > NAMED ? `; and ${count - NAMED} more` : "";
    const parts = count === 1 ? "1 part is damaged and omitted" : `${count} parts are damaged and omitted`;
    return `${file}: ${parts}: ${named}${rest}`;
  }
}

/** Any part of an `env.json`: an older one may lack some. */
export type SomeEnvironment = { readonly [K in keyof Environment]?: Environment[K] };

const ENVIRONMENT: Readonly<Record<string, z.ZodType>> = {
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
};

/** An `env.json` with those of its parts that can be read. Parts that this version does not know stay as they are. */
export function readEnvironment(value: unknown, parts: Parts): SomeEnvironment {
  const given = parts.take(z.record(z.string(), z.unknown()), plainTree(value), "env") ?? {};
  const entries = Object.entries(given).filter(
    ([name, of]) =>
      !Object.hasOwn(ENVIRONMENT, name) || parts.take(ENVIRONMENT[name] as z.ZodType, of, name) !== undefined,
  );
  return Object.fromEntries(entries) as SomeEnvironment;
}

/** What the report needs of an evaluation. An older file lacks some of it. */
export type SomeEvaluation = Pick<
  ModelEvaluation,
  "files" | "networks" | "real" | "reconstruction" | "likelihoods" | "rows" | "verdicts" | "pages" | "notes"
> & {
  readonly settings: Partial<ModelEvaluation["settings"]>;
  readonly data: Pick<ModelEvaluation["data"], "train" | "heldOut"> | null;
  readonly judged: ModelEvaluation["judged"];
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
      const parts = new Parts();
      try {
        const evaluation = readEvaluation(JSON.parse(readFileSync(path, "utf8")), parts);
        const damage = parts.text(file);
        if (damage !== null) unread.push(damage);
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

const POINT = { temperature: z.number().positive(), cfg: z.number() };
const FRONTIER_POINT = z.object({ ...POINT, fd: DISTANCE, value: number });
const STANDING: z.ZodType<Standing> = z.object({
  point: FRONTIER_POINT,
  rival: FRONTIER_POINT,
  gain: ESTIMATE,
  standing: z.enum(["beyond", "lower_fd", "even", "behind"]),
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
const FILE = z.object({
  role: z.string(),
  path: z.string(),
  sha256: z.string(),
  isRewarded: z.boolean().nullable().default(null),
});
const NETWORK = z.object({
  name: z.string(),
  featureSize: z.number().default(Number.NaN),
  numClasses: z.number().default(Number.NaN),
  isRewarded: z.boolean().nullable().default(null),
});
const IMAGES = z.object({
  images: z.number(),
  read: z.number(),
  unreadable: z.array(z.string()).default([]),
  fingerprint: z.string(),
});
const JUDGED = z.object({
  run: z.string(),
  checkpoint: z.string(),
  which: z.enum(["last", "best", "final"]),
  text: z.string(),
});
const SETTINGS: Readonly<Record<string, z.ZodType>> = {
  seeds: z.array(z.number()),
  resamples: z.number(),
  samples: z.number(),
  draws: z.number(),
  images: z.number(),
  prefixes: z.array(z.number()),
  temperatures: z.array(z.number()),
};

/** @throws RangeError for a file that is not an evaluation. */
function readEvaluation(value: unknown, parts: Parts): SomeEvaluation {
  const given = objectOf(plainTree(value));
  if (!Array.isArray(given.rows))
    throw new RangeError("expected what rlar eval --json writes, got other data.");
  const estimates = (of: unknown, path: string): Estimates =>
    parts.byName(of, path, (item, at) => parts.take(ESTIMATE, item, at));
  const measures = (of: unknown, path: string): Measures | undefined => {
    if (of === undefined || of === null) return undefined;
    const { images, plain, networks } = parts.take(z.record(z.string(), z.unknown()), of, path) ?? {};
    return {
      images: parts.take(z.number(), images, `${path}.images`) ?? Number.NaN,
      plain: estimates(plain, `${path}.plain`),
      networks: parts.byName(networks, `${path}.networks`, estimates),
    };
  };
  const completion = (of: unknown, path: string): Completion | undefined => {
    const { prefix, measures: found } = objectOf(of);
    const known = parts.take(z.number(), prefix ?? null, `${path}.prefix`);
    const numbers = measures(found, `${path}.measures`);
    return known === undefined || numbers === undefined ? undefined : { prefix: known, measures: numbers };
  };
  const row = (of: unknown, path: string): EvalRow | undefined => {
    const head = parts.take(z.looseObject({ policy: z.string(), ...POINT }), of, path);
    if (head === undefined) return undefined;
    const { policy, temperature, cfg, free, completions } = head;
    return {
      policy,
      temperature,
      cfg,
      free: measures(free, `${path}.free`) ?? null,
      completions: parts.list(completions ?? undefined, `${path}.completions`, completion),
    };
  };
  const verdict = (of: unknown, path: string): Verdict | undefined => {
    const schema = z.looseObject({ network: z.string(), measure: z.string(), prefix: z.number() });
    const head = parts.take(schema, of, path);
    if (head === undefined) return undefined;
    const { network, measure, prefix, standings } = head;
    const read = parts.list(standings, `${path}.standings`, (item, at) => parts.take(STANDING, item, at));
    return read.length === 0 ? undefined : { network, measure, prefix, standings: read };
  };
  const settings = parts.take(z.record(z.string(), z.unknown()), given.settings, "settings") ?? {};
  const real = objectOf(given.real);
  const verdicts = objectOf(given.verdicts);
  const data = objectOf(given.data);
  const train = parts.take(IMAGES, data.train, "data.train");
  const texts = (of: unknown, path: string): string[] =>
    parts.list(of, path, (item, at) => parts.take(z.string(), item, at));
  return {
    settings: Object.fromEntries(
      Object.entries(SETTINGS).flatMap(([name, schema]) => {
        const known = parts.take(schema, settings[name], `settings.${name}`);
        return known === undefined ? [] : [[name, known]];
      }),
    ) as SomeEvaluation["settings"],
    data:
      train === undefined
        ? null
        : { train, heldOut: parts.take(IMAGES.nullable(), data.heldOut, "data.heldOut") ?? null },
    judged: parts.take(JUDGED.nullable(), given.judged, "judged") ?? null,
    files: parts.list(given.files, "files", (item, at) => parts.take(FILE, item, at)),
    networks: parts.list(given.networks, "networks", (item, at) => networkOf(item, at, parts)),
    real: {
      training: measures(real.training, "real.training") ?? null,
      reconstructed: measures(real.reconstructed, "real.reconstructed") ?? null,
      heldOut: measures(real.heldOut, "real.heldOut") ?? null,
    },
    reconstruction: measures(given.reconstruction, "reconstruction") ?? null,
    likelihoods: parts.list(given.likelihoods, "likelihoods", (item, at) => parts.take(LIKELIHOOD, item, at)),
    rows: parts.list(given.rows, "rows", row),
    verdicts: {
      completion: parts.list(verdicts.completion, "verdicts.completion", verdict),
      free: parts.list(verdicts.free, "verdicts.free", (item, at) => parts.take(FREE_VERDICT, item, at)),
    },
    pages: texts(given.pages, "pages"),
    notes: texts(given.notes, "notes"),
  };
}

/** A network is known by its name; a damaged size of it is noted and does not cost its numbers. */
function networkOf(
  value: unknown,
  path: string,
  parts: Parts,
): ModelEvaluation["networks"][number] | undefined {
  const whole = NETWORK.safeParse(value);
  if (whole.success) return whole.data;
  const name = parts.take(z.string(), objectOf(value).name ?? null, `${path}.name`);
  if (name === undefined) return undefined;
  parts.take(NETWORK, value, path);
  return { name, featureSize: Number.NaN, numClasses: Number.NaN, isRewarded: null };
}
