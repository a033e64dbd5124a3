/**
 * One POST request over HTTP or HTTPS, for `reward_server.ts`: no redirect, proxy, compression or hidden time limit, and an
 * answer of limited size. `fetch` gives up after five minutes whatever its caller allows.
 */
import * as http from "node:http";
import * as https from "node:https";

/** Connections that stay open between requests. */
export type Connections = http.Agent;

/** At most so many connections to one server. */
export function openConnections(address: URL, maxSockets: number): Connections {
  const { Agent } = address.protocol === "https:" ? https : http;
  return new Agent({ keepAlive: true, maxSockets });
}

/** A server's answer. */
export interface Answer {
  readonly status: number;
  readonly text: string;
  /** Seconds that it asks to wait before another request; undefined where it does not say. */
  readonly retryAfter: number | undefined;
  /** Where it redirects to; undefined where it does not. */
  readonly location: string | undefined;
}

/** An answer that cannot be read: too long, or compressed. */
export class UnreadableAnswer extends Error {}

/** Most bytes of an answer: those of a thousand samples are below 1 MiB. */
const MAX_BYTES = 2 ** 24;

/**
 * Send a body, and read the whole answer.
 *
 * @param headers - beside those of the length and encoding.
 * @param signal - ends the request.
 * @throws UnreadableAnswer; the error of the connection, whose `code` says which, where there is none.
 */
export async function post(
  address: URL,
  body: string,
  options: { headers: Readonly<Record<string, string>>; connections: Connections; signal: AbortSignal },
): Promise<Answer> {
  const { headers, connections: agent, signal } = options;
  const length = String(Buffer.byteLength(body));
  const all = { ...headers, "content-length": length, "accept-encoding": "identity" };
  const { request } = address.protocol === "https:" ? https : http;
  const answer = await new Promise<http.IncomingMessage>((go, fail) => {
    request(address, { method: "POST", headers: all, agent, signal }, go).on("error", fail).end(body);
  });
  const encoding = answer.headers["content-encoding"] ?? "identity";
  if (encoding !== "identity") {
    answer.destroy();
    throw new UnreadableAnswer(`an answer in the encoding ${encoding}, which was not asked for`);
  }
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of answer as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > MAX_BYTES) throw new UnreadableAnswer(`an answer of more than ${MAX_BYTES} bytes`);
    chunks.push(chunk);
  }
  return {
    status: answer.statusCode ?? 0,
    text: Buffer.concat(chunks).toString("utf8"),
    retryAfter: secondsOf(answer.headers["retry-after"]),
    location: answer.headers.location,
  };
}

/** `Retry-After`: seconds, or a date. */
function secondsOf(value: string | undefined): number | undefined {
  if (value === undefined) return undefined;
  const seconds = /^\d+$/.test(value) ? Number(value) : (Date.parse(value) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.max(seconds, 0) : undefined;
}
