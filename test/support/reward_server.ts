/**
 * A reward server in a process of its own: `node reward_server.js FAULTS TOGETHER`. Its one reward, `judge`, is the mean of a
 * picture's bytes divided by 255. FAULTS is a list in JSON of the faults of the first, second, ... request, over and over;
 * null answers as it should. The first TOGETHER requests are answered once all of them are there. It prints its address;
 * GET /stats tells of the requests so far.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import sharp from "sharp";

export type Fault =
  | "500"
  | "404"
  | "echo"
  | "redirect"
  | "cut"
  | "half"
  | "never"
  | "short"
  | "long"
  | "nan"
  | "infinite"
  | "null"
  | "text"
  | "html"
  | "empty"
  | "failed"
  | "endless"
  | "gzip"
  | "nan text"
  | "429"
  | null;

/** What a server has seen. */
export interface Stats {
  readonly requests: number;
  /** Most requests at once. */
  readonly most: number;
  /** Of the last request. */
  readonly authorization: string | null;
  readonly last: { readonly history: readonly object[]; readonly metadata: object } | null;
}

/** The reward of `judge` for 8-bit pixels. */
export function judgeOf(bytes: Uint8Array): number {
  let sum = 0;
  for (const byte of bytes) sum += byte;
  return sum / bytes.length / 255;
}

/** Start a server; it ends with the test. */
export async function startServer(
  t: { after(fn: () => void): void },
  faults: readonly Fault[] = [],
  together = 1,
): Promise<{ url: string; stats: () => Promise<Stats>; child: ChildProcess }> {
  const args = [fileURLToPath(import.meta.url), JSON.stringify(faults), `${together}`];
  const child = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "inherit"] });
  t.after(() => child.kill("SIGKILL"));
  const url = await new Promise<string>((resolve, reject) => {
    child.stdout?.once("data", (line) => resolve(String(line).trim()));
    child.once("exit", (code) => reject(new Error(`the server ended with ${code}`)));
  });
  return { url, child, stats: async () => (await (await fetch(`${url}/stats`)).json()) as Stats };
}

interface Body {
  readonly requests: readonly {
    readonly history: readonly { readonly text: string; readonly image_b64: string }[];
    readonly required_rewards: readonly string[];
    readonly metadata: object;
  }[];
}

const count = { requests: 0, now: 0, most: 0 };
let seen: Pick<Stats, "authorization" | "last"> = { authorization: null, last: null };

async function answer(
  faults: readonly Fault[],
  request: IncomingMessage,
  reply: ServerResponse,
): Promise<void> {
  if (request.url === "/stats") {
    reply.end(JSON.stringify({ ...count, ...seen }));
    return;
  }
  if (request.url !== "/score" || request.method !== "POST") {
    reply.writeHead(404).end("no such page");
    return;
  }
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk as Buffer);
  const { requests } = JSON.parse(Buffer.concat(chunks).toString("utf8")) as Body;
  seen = {
    authorization: request.headers.authorization ?? null,
    last: { history: requests[0]?.history ?? [], metadata: requests[0]?.metadata ?? {} },
  };
  const fault = faults.length === 0 ? null : (faults[count.requests % faults.length] as Fault);
  count.requests++;
  const results = await Promise.all(
    requests.map(async ({ history, required_rewards: [name = ""] }) => {
      const png = Buffer.from(history.at(-1)?.image_b64 ?? "", "base64");
      return { [name]: { [name]: judgeOf(await sharp(png).raw().toBuffer()) } };
    }),
  );
  const send = (body: unknown, status = 200): void => {
    reply.writeHead(status, { "content-type": "application/json" });
    reply.end(typeof body === "string" ? body : JSON.stringify(body));
  };
  const [first = {}, ...others] = results;
  const bad = (score: string): string => `{"results": [{"judge": {"judge": ${score}}}], "errors": [{}]}`;
  switch (fault) {
    case null:
      return send({ results, errors: results.map(() => ({})) });
    case "500":
      return send("a worker died", 500);
    case "404":
      return send("no such reward", 404);
    case "echo":
      return send(`not for ${request.headers.authorization}`, 500);
    case "redirect":
      reply.writeHead(302, { location: "http://127.0.0.1:1/score" });
      return void reply.end();
    case "cut":
      return void request.socket.destroy();
    case "half":
      reply.writeHead(200, { "content-length": 1000 });
      reply.write('{"results": [');
      return void setTimeout(() => request.socket.destroy(), 5);
    case "never":
      return;
    case "short":
      return send({ results: others, errors: [] });
    case "long":
      return send({ results: [...results, first], errors: [] });
    case "nan":
      return send(bad("NaN"));
    case "infinite":
      return send(bad("1e999"));
    case "null":
      return send(bad("null"));
    case "text":
      return send(bad('"0.5"'));
    case "html":
      return send("<html>gateway</html>");
    case "nan text":
      return send(bad('"NaN"'));
    case "429":
      reply.writeHead(429, { "retry-after": "1" });
      return void reply.end("slow down");
    case "endless": {
      const spaces = " ".repeat(2 ** 20);
      reply.writeHead(200, { "content-type": "application/json" });
      const more = (): void => {
        while (!reply.destroyed && reply.write(spaces));
      };
      reply.on("drain", more);
      return more();
    }
    case "gzip":
      reply.writeHead(200, { "content-encoding": "gzip" });
      return void reply.end(gzipSync(" ".repeat(2 ** 20)));
    case "empty":
      return send("");
    case "failed":
      return send({
        results: results.map(() => ({})),
        errors: results.map(() => ({ judge: "RuntimeError('no memory')" })),
      });
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const faults = JSON.parse(process.argv[2] ?? "[]") as Fault[];
  const together = Number(process.argv[3] ?? 1);
  const waiting: (() => void)[] = [];
  const server = createServer((request, reply) => {
    const isScore = request.url === "/score";
    if (isScore) {
      count.now++;
      count.most = Math.max(count.most, count.now);
      reply.once("close", () => count.now--);
    }
    const start = (): void => {
      answer(faults, request, reply).catch((error: Error) => reply.writeHead(500).end(error.message));
    };
    if (isScore) waiting.push(start);
    else start();
    if (count.most >= together) for (const next of waiting.splice(0)) next();
  });
  server.listen(0, "127.0.0.1", () => {
    process.stdout.write(`http://127.0.0.1:${(server.address() as AddressInfo).port}\n`);
  });
}
