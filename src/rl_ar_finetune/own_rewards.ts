/**
 * Rewards of the user's own: functions of a program and default exports of modules, which may return a promise. Waits for
 * the scores of all such terms and checks them; when one fails, the batch is written to the run's folder. Servers are in
 * `reward_server.ts`.
 */
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { pathToFileURL } from "node:url";

import type { RewardContext, RewardFunction, TrainConfig } from "../config/resolve.js";
import { writePng } from "../data/index.js";
import { rank, size } from "../distributed/index.js";
import { describe } from "../torch/errors.js";
import { makeFolder, replaceFile } from "../torch/files.js";
import { call, expected, expectedType, known, noGrad, Tensor } from "../torch/index.js";
import { tidyAwait } from "../torch/scope.js";
import { generationsOf, type Judged, keyOf, type Term } from "./rewards.js";

/** Options of {@link customTerm}. */
export interface OwnTermOptions extends Pick<Term, "weight" | "normalize" | "clamp"> {
  /** Seconds that one call may take. */
  readonly timeout?: number;
}

/** A reward of the user: higher is better. The name `custom` is that of the one function under `reward.custom.fn`. */
export function customTerm(
  name: string,
  reward: RewardFunction,
  { timeout = 600, ...options }: Partial<OwnTermOptions> = {},
): Term {
  const key = name === "custom" ? "custom" : `custom.${name}`;
  return {
    name,
    key,
    weight: 1,
    sign: 1,
    ...options,
    // Where nothing was waited for: ste, which needs a gradient and has no codes, and programs.
    measure: (judged) => {
      const { images, samples, context } = judged;
      if (context !== undefined || reward.length < 3)
        return reward(images, samples, context as RewardContext) as Tensor;
      const remedy = "Use another algorithm than ste, which draws no codes to tell of";
      throw expected(`reward.${key}`, "a function of images and samples alone", "one with a context", remedy);
    },
    call: async (judged) => {
      const begun = performance.now();
      const written = writesOf(judged);
      const scores = await inTime(
        tidyAwait(
          () => noGrad(() => callWithOwn(reward, judged)),
          (value) => numbersOf(`reward.${key}`, value, judged.samples.size(0)),
        ),
        timeout,
      );
      if (writesOf(judged) !== written) {
        const remedy =
          "Other terms and the update use them too: compute with add, not with add_, or clone them first";
        throw expected(
          `reward.${key}`,
          "images, samples and codes left as they are",
          "a change in place",
          remedy,
        );
      }
      const seconds = (performance.now() - begun) / 1000;
      if (scores === undefined || seconds > timeout) {
        const remedy = `Make it faster, or raise reward.custom.${name}.timeout`;
        throw expected(`reward.${key}`, `scores within ${timeout} s`, `none within ${timeout} s`, remedy);
      }
      return scores;
    },
  };
}

/** Call with tensors of its own on the same memory, so that a function may dispose of what it is given. */
function callWithOwn(
  reward: RewardFunction,
  { images, samples, context }: Judged,
): ReturnType<RewardFunction> {
  const { codes, trueCodes, ...plain } = context as RewardContext;
  const own = { ...plain, codes: codes.detach(), trueCodes: trueCodes?.detach() ?? null };
  return reward(images.detach(), samples.detach(), own);
}

/** How often the tensors that a function is given were written to in place. */
function writesOf({ images, samples, context }: Judged): number {
  const all = [images, samples, context?.codes, context?.trueCodes];
  const counts = all.map((tensor) => (tensor ? (call("aten::_version", [tensor]) as number) : 0));
  return counts.reduce((sum, count) => sum + count, 0);
}

/** The result of a promise, undefined where it takes longer. */
async function inTime<T>(promise: Promise<T>, seconds: number): Promise<T | undefined> {
  const timer = new AbortController();
  const late = sleep(seconds * 1000, undefined, { signal: timer.signal }).catch(() => undefined);
  try {
    return await Promise.race([promise, late]);
  } finally {
    timer.abort();
    promise.catch(() => undefined); // nobody waits for it any more
  }
}

/** @throws TypeError or RangeError for anything but one number per sample. */
function numbersOf(where: string, value: unknown, n: number): readonly number[] {
  const what = `one score per sample, a Tensor [${n}] or a list of ${n} numbers`;
  if (value instanceof Tensor) {
    const remedy = "Average over all dimensions but the first, for example mean([1, 2, 3])";
    if (value.shape.join() !== `${n}`) throw expected(where, what, value, remedy);
    if (/^complex/.test(value.dtype)) throw expected(where, what, value, "Take abs() or real()");
    return value.double().toList() as number[];
  }
  const isList = Array.isArray(value) || value instanceof Float32Array || value instanceof Float64Array;
  if (!isList) throw expectedType(where, what, value);
  if (value.length !== n) throw expected(where, what, `a list of ${value.length}`);
  const odd = [...value].find((score) => typeof score !== "number");
  if (odd !== undefined) throw expectedType(where, what, `a list with ${describe(odd)}`);
  return [...value] as number[];
}

/**
 * The reward of a module: its default export.
 *
 * @param path - a file, relative to the working directory.
 * @param seconds - longest time that it may take to load.
 * @returns the function, and the SHA-256 of the file.
 * @throws RangeError when there is no such file, when it fails, or has no function as its default export.
 */
async function openRewardModule(
  key: string,
  path: string,
  seconds: number,
): Promise<{ reward: RewardFunction; hash: string }> {
  const file = resolve(path);
  const failed = (got: string, remedy: string, cause?: unknown): RangeError =>
    Object.assign(expected(key, "a JavaScript module with a reward", got, remedy), { cause });
  let hash: string;
  try {
    hash = createHash("sha256").update(readFileSync(file)).digest("hex");
  } catch (error) {
    throw failed(
      `${path}, which cannot be read (${(error as NodeJS.ErrnoException).code})`,
      "Check the path",
    );
  }
  let loaded: { readonly default?: unknown } | undefined;
  try {
    // With the hash in its address, a file that was changed is loaded anew.
    loaded = await inTime(import(`${pathToFileURL(file).href}?${hash}`) as Promise<typeof loaded>, seconds);
  } catch (error) {
    throw failed(`${path}, which fails: ${messageOf(error)}`, remedyOf(error), error);
  }
  if (loaded === undefined)
    throw failed(
      `${path}, which does not end within ${seconds} s`,
      "Something at its top level waits for ever",
    );
  // What TypeScript makes of a default export in CommonJS.
  const inner = (loaded.default as typeof loaded | undefined)?.default;
  const reward = typeof inner === "function" ? inner : loaded.default;
  const isClass = typeof reward === "function" && /^class\b/.test(Function.prototype.toString.call(reward));
  if (typeof reward === "function" && !isClass) return { reward: reward as RewardFunction, hash };
  const got = `${path}, whose default export is ${isClass ? "a class" : describe(loaded.default)}`;
  throw failed(got, "Write export default function (images, samples, context) { ... }");
}

function remedyOf(error: unknown): string {
  const { code } = (error ?? {}) as NodeJS.ErrnoException;
  if (code === "ERR_UNKNOWN_FILE_EXTENSION")
    return "Give JavaScript, .mjs; compile TypeScript first, with npx tsc, or use Node 22.18 or newer";
  return "Name it .mjs, and try it with: node FILE";
}

/** The functions and modules of `reward.custom`; `hashes` is given the SHA-256 of each module. */
export async function openCustomTerms(
  { reward }: Pick<TrainConfig, "reward">,
  hashes: Record<string, string>,
): Promise<Term[]> {
  const terms: Term[] = [];
  for (const [name, { fn, module, weight, ...options }] of Object.entries(reward.custom)) {
    if (weight === 0) continue;
    let own = fn;
    if (own === null && module !== null) {
      const opened = await openRewardModule(`reward.custom.${name}.module`, module, options.timeout);
      hashes[`module of reward.custom.${name}`] = opened.hash;
      own = opened.reward;
    }
    if (own !== null) terms.push(customTerm(name, own, { weight, ...known(options) }));
  }
  return terms;
}

/** When samples were judged, and where to write those that a reward failed on. */
export interface JudgedAt {
  /** The run's folder; without one nothing is written. */
  readonly folder?: string;
  readonly isEvaluation?: boolean;
}

/**
 * Wait for the scores of all terms that have to be waited for.
 *
 * @param sent - requests that are under way, by the term's name.
 * @throws RangeError or TypeError that names the first term that failed or gave a number that is not finite, and the
 *   folder that the batch was written to.
 */
export async function scoresOf(
  terms: readonly Term[],
  judged: Judged,
  sent: Readonly<Record<string, readonly Promise<readonly number[]>[]>>,
  at: JudgedAt,
): Promise<Judged> {
  const own = terms.filter(({ call, send }) => call !== undefined || send !== undefined);
  if (own.length === 0) return judged;
  const results = await Promise.allSettled(
    own.map(async (term) => {
      const requests = sent[term.name];
      const scores =
        requests === undefined ? await term.call?.(judged) : (await Promise.all(requests)).flat();
      const odd = scores?.findIndex((score) => !Number.isFinite(score)) ?? -1;
      if (odd < 0) return scores as readonly number[];
      throw expected(keyOf(term), "finite scores", `${scores?.[odd]} for sample ${odd}`);
    }),
  );
  const scores: Record<string, readonly number[]> = {};
  for (const [i, result] of results.entries()) {
    const term = own[i] as Term;
    if (result.status === "rejected") throw await failure(term, result.reason, judged, at);
    scores[term.name] = result.value;
  }
  return { ...judged, scores };
}

/** What went wrong, with the term's name and the folder of the batch. */
async function failure(term: Term, reason: unknown, judged: Judged, at: JudgedAt): Promise<Error> {
  const where = keyOf(term);
  const step = judged.context?.step ?? 0;
  const isTold = reason instanceof Error && reason.message.startsWith(`${where}:`);
  const when = at.isEvaluation === true ? `the evaluation after step ${step}` : `step ${step}`;
  const error = isTold
    ? (reason as Error)
    : Object.assign(expected(where, "scores", `an error: ${messageOf(reason).replace(/\.$/, "")}`), {
        cause: reason,
      });
  const told = await dumped(term, error.message, judged, at);
  error.message = `${error.message.replace(/\.$/, "")}. This was in ${when}${told}`;
  return error;
}

const messageOf = (error: unknown): string => (error instanceof Error ? error.message : describe(error));

/** Write a batch for inspection. @returns where it is, in words. */
async function dumped(
  term: Term,
  problem: string,
  judged: Judged,
  { folder, isEvaluation = false }: JudgedAt,
): Promise<string> {
  if (folder === undefined || judged.context === undefined) return ".";
  const { step } = judged.context;
  const process = size() === 1 ? "" : `_rank${rank()}`;
  const name = `${isEvaluation ? "eval" : "step"}_${String(step).padStart(6, "0")}_${term.name}${process}`;
  const path = join(folder, "dumps", name);
  try {
    await writeBatch(path, term.name, problem, judged);
    return `. Its images and codes are in ${path}. Mend the reward, then resume the run.`;
  } catch (error) {
    return `. Its images could not be written: ${messageOf(error)}`;
  }
}

/** Samples and images as PNG, and codes, classes, captions as JSON: `batch.json`, which is written last. */
async function writeBatch(path: string, term: string, problem: string, judged: Judged): Promise<void> {
  const { images, samples } = judged;
  const { codes, trueCodes, imageIds, classIds, classNames, captions, ...about } =
    judged.context as RewardContext;
  makeFolder(path);
  const rowsOf = (tensor: Tensor): number[][] => tensor.toList() as number[][];
  const drawn = rowsOf(codes);
  const given = trueCodes === null ? null : rowsOf(trueCodes);
  const g = generationsOf(judged);
  const write = async (name: string, batch: Tensor, at: number): Promise<string> => {
    const image = batch.narrow(0, at, 1);
    await writePng(join(path, name), image);
    image.dispose();
    return name;
  };
  const batch: object[] = [];
  for (const [i, id] of imageIds.entries()) {
    const own: object[] = [];
    for (let k = 0; k < g; k++) {
      const file = await write(`sample_${i}_${k}.png`, samples, i * g + k);
      own.push({ file, codes: drawn[i * g + k] });
    }
    batch.push({
      id,
      ...(images.size(0) > 0 && { file: await write(`image_${i}.png`, images, i) }),
      ...(classIds !== null && { classId: classIds[i], className: classNames?.[i] }),
      ...(captions !== null && { caption: captions[i] }),
      ...(given !== null && { codes: given[i] }),
      samples: own,
    });
  }
  replaceFile(join(path, "batch.json"), `${JSON.stringify({ term, problem, ...about, images: batch })}\n`);
}
