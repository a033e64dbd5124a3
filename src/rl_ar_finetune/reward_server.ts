/**
 * Rewards of a server over HTTP: samples go out as PNG, scores come back as JSON. `docs/reward_servers.md` has the
 * protocol. Requests run while later samples are decoded; a failed one is sent again, with growing pauses, before the run
 * ends. `own_rewards.ts` waits for the scores.
 */
import { setMaxListeners } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";

import type { RewardContext, TrainConfig } from "../config/resolve.js";
import { encodePng, tensorToPixels } from "../data/index.js";
import { expected, isPlainObject, known, type Tensor, tidy } from "../torch/index.js";
import type { OwnTermOptions } from "./own_rewards.js";
import { openConnections, post, UnreadableAnswer } from "./post.js";
import type { Term } from "./rewards.js";

/** Options of {@link serverTerm}; `docs/configuration.md` describes them. */
export interface ServerOptions extends OwnTermOptions {
  readonly url: string;
  readonly reward?: string;
  readonly metric?: string;
  /** Samples in one request. */
  readonly batch: number;
  readonly concurrency: number;
  /** Of one request, in seconds. */
  readonly timeout: number;
  readonly retries: number;
  readonly token?: string;
  /** Seconds before a request is sent again for the first time; twice that each further time, at most 30. Default 0.5. */
  readonly pause?: number;
}

/** Longest pause before a request is sent again, in seconds, and the longest that a server may ask for. */
const LONGEST_PAUSE = 30;
const LONGEST_ASKED = 300;

/** Answers of a server that is busy or restarting. */
const IS_BUSY = (status: number): boolean => status >= 500 || [408, 425, 429].includes(status);

/** A failure that another try may mend. */
class Transient extends Error {
  /** Seconds that the server asks to wait before it. */
  readonly retryAfter: number | undefined;

  constructor(message: string, retryAfter?: number) {
    super(message);
    this.retryAfter = retryAfter;
  }
}

/**
 * Codes of failures that no other try mends: a certificate that is expired, of another host, or of an authority that this
 * machine does not know; and a server that does not speak TLS.
 */
const IS_TLS = /CERT|SIGNATURE|HOSTNAME|INVALID_CA|ERR_TLS|ERR_SSL|EPROTO/;

/** A failure with such a code. */
class NotSecure extends Error {}

/** The servers of `reward.http`. @throws RangeError when the variable of `tokenEnv` is not set. */
export function openServerTerms({ reward }: Pick<TrainConfig, "reward">): Term[] {
  return Object.entries(reward.http).flatMap(([name, section]) => {
    const { url, tokenEnv, batch, concurrency, timeout, retries, weight, ...others } = section;
    if (url === null || weight === 0) return [];
    const token = tokenEnv === null ? undefined : process.env[tokenEnv];
    if (tokenEnv !== null && (token === undefined || token === "")) {
      const remedy = `Set it before the run: export ${tokenEnv}=...`;
      const key = `reward.http.${name}.tokenEnv`;
      throw expected(
        key,
        "the name of an environment variable with a token",
        `${tokenEnv}, which is not set`,
        remedy,
      );
    }
    // Node.js sends no other characters in a header; one at the end comes of a file's line break.
    const clean = token?.trim();
    if (clean !== undefined && !/^[\x21-\x7e]+$/.test(clean)) {
      const what = "a token of letters, digits and signs in the variable";
      const got = `${tokenEnv}, whose value has other characters`;
      throw expected(
        `reward.http.${name}.tokenEnv`,
        what,
        got,
        "Look for line breaks, spaces and quotes in it",
      );
    }
    const required = { url, batch, concurrency, timeout, retries, weight };
    return [
      serverTerm(name, { ...required, ...known(others), ...(clean !== undefined && { token: clean }) }),
    ];
  });
}

/** A reward that a server gives: higher is better. Dispose of it to end requests that are under way. */
export function serverTerm(name: string, options: ServerOptions): Term {
  const { weight, normalize, clamp, batch } = options;
  const key = `http.${name}`;
  const closing = new AbortController();
  setMaxListeners(0, closing.signal); // one for each request under way
  const ask = askerOf(key, options.reward ?? name, options, closing.signal);
  const taken = limited(options.concurrency);
  const send = async (samples: Tensor, first: number, context: RewardContext): Promise<readonly number[]> => {
    // Pixels are copied now: the samples are freed later.
    const pixels = tidy(() => samples.split(1).map(tensorToPixels));
    const requests: Promise<readonly number[]>[] = [];
    for (let from = 0; from < pixels.length; from += batch) {
      const some = pixels.slice(from, from + batch);
      requests.push(
        taken(async () => {
          const images = await Promise.all(some.map(encodePng));
          return await ask(images.map((png, i) => requestOf(png, first + from + i, context)));
        }),
      );
    }
    return (await Promise.all(requests)).flat();
  };
  return {
    name,
    key,
    weight,
    sign: 1,
    ...(normalize !== undefined && { normalize }),
    ...(clamp !== undefined && { clamp }),
    measure: () => {
      const remedy = "Use another algorithm than ste, or set the weight to 0";
      throw expected(`reward.${key}`, "scores that were waited for", "none", remedy);
    },
    send,
    dispose: () => closing.abort(),
  };
}

/** What a server is told of one sample. */
interface Asked {
  readonly text: string;
  readonly image: string;
  readonly metadata: Readonly<Record<string, unknown>>;
}

function requestOf(png: Buffer, sample: number, context: RewardContext): Asked {
  const { numGenerations, imageIds, classIds, classNames, captions, step } = context;
  const image = Math.floor(sample / numGenerations);
  const [caption, className] = [captions?.[image], classNames?.[image]];
  return {
    text: caption ?? className ?? "",
    image: png.toString("base64"),
    metadata: {
      id: imageIds[image],
      sample: sample % numGenerations,
      step,
      ...(classIds !== null && { class_id: classIds[image], class_name: className }),
      ...(caption !== undefined && { caption }),
    },
  };
}

/** Runs at most so many tasks at once; the others wait in the order in which they came. */
function limited(most: number): <T>(task: () => Promise<T>) => Promise<T> {
  let running = 0;
  const waiting: (() => void)[] = [];
  return async (task) => {
    if (running >= most) await new Promise<void>((go) => waiting.push(go));
    else running++;
    try {
      return await task();
    } finally {
      const next = waiting.shift(); // it takes the place of this task
      if (next === undefined) running--;
      else next();
    }
  };
}

/** Asks for the scores of some samples until it gets them, or has tried often enough. */
function askerOf(
  key: string,
  reward: string,
  { url, metric, concurrency, timeout, retries, token, pause = 0.5 }: ServerOptions,
  closed: AbortSignal,
): (asked: readonly Asked[]) => Promise<readonly number[]> {
  const address = scoreAddress(url);
  const target = new URL(address);
  const connections = openConnections(target, concurrency);
  closed.addEventListener("abort", () => connections.destroy(), { once: true });
  const headers = {
    "content-type": "application/json",
    accept: "application/json",
    ...(token !== undefined && { authorization: `Bearer ${token}` }),
  };
  /** A server's own words, on one line, without the token. */
  const quoted = (text: string): string => {
    const plain = token === undefined ? text : text.replaceAll(token, "(the token)");
    const line = plain.replace(/[\s\p{Cc}]+/gu, " ").trim();
    return line.length > 200 ? `${line.slice(0, 200)}...` : line;
  };
  const once = async (body: string, count: number): Promise<readonly number[]> => {
    const limit = new AbortController();
    const stop = (): void => limit.abort();
    const timer = setTimeout(stop, timeout * 1000);
    closed.addEventListener("abort", stop, { once: true });
    try {
      const { status, text, retryAfter, location } = await post(target, body, {
        headers,
        connections,
        signal: limit.signal,
      });
      if (status !== 200) {
        const words = location === undefined ? text : `it redirects to ${location}; give that address`;
        const problem = `status ${status}${words === "" ? "" : `: ${quoted(words)}`}`;
        throw IS_BUSY(status) ? new Transient(problem, retryAfter) : new Error(problem);
      }
      return scoresIn(text, { count, reward, quoted, ...(metric !== undefined && { metric }) });
    } catch (error) {
      if (closed.aborted) throw new Error("the end of the run");
      if (limit.signal.aborted) throw new Transient(`no answer within ${timeout} s`);
      if (error instanceof UnreadableAnswer) throw new Transient(error.message);
      const { code } = error as NodeJS.ErrnoException;
      if (code === undefined) throw error;
      if (IS_TLS.test(code)) throw new NotSecure(`no secure connection (${code})`);
      throw new Transient(`no connection (${code})`);
    } finally {
      clearTimeout(timer);
      closed.removeEventListener("abort", stop);
    }
  };
  return async (asked) => {
    const requests = asked.map(({ text, image, metadata }) => {
      return { history: [{ text, image_b64: image }], required_rewards: [reward], metadata };
    });
    const body = JSON.stringify({ requests });
    for (let tries = 1; ; tries++) {
      try {
        return await once(body, asked.length);
      } catch (error) {
        const { message } = error as Error;
        if (error instanceof Transient && tries <= retries) {
          const usual = Math.min(pause * 2 ** (tries - 1), LONGEST_PAUSE);
          const seconds = Math.max(usual, Math.min(error.retryAfter ?? 0, LONGEST_ASKED));
          await sleep(seconds * 1000, undefined, { signal: closed }).catch(() => undefined);
          continue;
        }
        const times = tries === 1 ? "" : `, ${tries} times`;
        const remedy =
          error instanceof NotSecure
            ? "See that the server speaks https and its certificate is valid; set NODE_EXTRA_CA_CERTS for one of your own authority"
            : "See that the server is up and gives such scores (docs/reward_servers.md)";
        throw expected(`reward.${key}`, `scores from ${address}`, `${message}${times}`, remedy);
      }
    }
  };
}

/** Where requests go: `/score` below the address of the server. */
export function scoreAddress(url: string): string {
  const address = new URL(url);
  const path = address.pathname.replace(/\/+$/, "");
  address.pathname = path.endsWith("/score") ? path : `${path}/score`;
  return address.href;
}

/** The scores in a server's answer. @throws Transient for anything but a finite number for each sample. */
function scoresIn(
  text: string,
  from: { count: number; reward: string; metric?: string; quoted: (text: string) => string },
): number[] {
  const { count, reward, metric, quoted } = from;
  const refuse = (got: string): Transient => new Transient(quoted(got));
  let answer: unknown;
  try {
    answer = JSON.parse(text.replace(/^\ufeff/, ""));
  } catch {
    throw refuse(text === "" ? "an empty answer" : `an answer that is not JSON: ${text}`);
  }
  const { results, errors } = isPlainObject(answer) ? (answer as Record<string, unknown>) : {};
  if (!Array.isArray(results)) throw refuse(`an answer without a list of results: ${text}`);
  if (results.length !== count) throw refuse(`${results.length} results for ${count} samples`);
  return results.map((result: unknown, i) => {
    const at = (value: unknown, name: string): unknown =>
      isPlainObject(value) && Object.hasOwn(value, name)
        ? (value as Record<string, unknown>)[name]
        : undefined;
    const problem = Array.isArray(errors) ? at(errors[i], reward) : undefined;
    if (problem !== undefined && problem !== null) throw refuse(`an error of ${reward}: ${String(problem)}`);
    const given = at(result, reward);
    const names = isPlainObject(given) ? Object.keys(given) : [];
    const name = metric ?? (names.length === 1 ? (names[0] as string) : reward);
    const score = typeof given === "number" && metric === undefined ? given : at(given, name);
    if (typeof score === "number" && Number.isFinite(score)) return score;
    const what =
      metric === undefined && names.length > 1 && score === undefined ? "; set metric to one of them" : "";
    throw refuse(`no finite number as ${reward} of a sample: ${JSON.stringify(result)}${what}`);
  });
}
