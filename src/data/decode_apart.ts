/**
 * Decoding of images that may take unlimited time or memory, such as SVG, in a separate process: a process can be killed, a
 * thread inside the decoder cannot. `decode_process.ts` is that process.
 */
import { type ChildProcess, fork } from "node:child_process";
import { fileURLToPath } from "node:url";

import type { ApartAnswer, ApartTask } from "./decode_process.js";
import type { Pixels } from "./resample.js";

/** Time that one image may take, waiting included. */
const SECONDS = 120;

/** Memory of the process, all included. */
const MEMORY_BYTES = 1.5 * 2 ** 30;

/** After this the process is ended; another image starts a new one. */
const IDLE_MS = 10_000;

let child: ChildProcess | undefined;
let idle: NodeJS.Timeout | undefined;
let last: Promise<unknown> = Promise.resolve();

/** Limits for one image. */
interface ApartLimits {
  readonly maxPixels: number;
  /** CPU time, without waiting. */
  readonly cpuSeconds: number;
}

/**
 * Decode an image in the process, one after the other.
 *
 * @throws Error with what is wrong in one line: the image cannot be decoded, or it took too much, which ends the process.
 */
export async function decodeApart(bytes: Buffer, limits: ApartLimits): Promise<Pixels> {
  const mine = last.then(async () => await ask({ bytes, ...limits, memoryBytes: MEMORY_BYTES }));
  last = mine.catch(() => undefined);
  return await mine;
}

async function ask(task: ApartTask): Promise<Pixels> {
  clearTimeout(idle);
  child ??= start();
  const own = child;
  own.ref();
  own.channel?.ref();
  return await new Promise<Pixels>((resolve, reject) => {
    let reason: string | undefined;
    const late = setTimeout(() => {
      reason = `one that takes more than ${SECONDS} s`;
      own.kill("SIGKILL");
    }, SECONDS * 1000);
    const end = (): void => {
      clearTimeout(late);
      own.off("message", onMessage).off("exit", onExit).off("error", onExit);
    };
    const onMessage = (answer: ApartAnswer): void => {
      end();
      if ("problem" in answer) reject(new Error(answer.problem));
      else resolve(answer.pixels);
      if ("isOver" in answer) forget(own);
      else rest(own);
    };
    const onExit = (how: unknown): void => {
      end();
      forget(own);
      const why = how instanceof Error ? how.message : `ended by ${own.signalCode ?? `code ${own.exitCode}`}`;
      reject(new Error(reason ?? `one that ended the process which decodes it (${why})`));
    };
    own.on("message", onMessage).on("exit", onExit).on("error", onExit);
    own.send(task, (error) => {
      if (error !== null) onExit(error);
    });
  });
}

function start(): ChildProcess {
  const program = fileURLToPath(new URL("./decode_process.js", import.meta.url));
  // Without the process's own options, some of which (such as --input-type) it would not take.
  return fork(program, [], {
    execArgv: [],
    serialization: "advanced",
    stdio: ["ignore", "ignore", "ignore", "ipc"],
  });
}

/** Keep the process for the next image, without keeping this one alive. */
function rest(own: ChildProcess): void {
  own.unref();
  own.channel?.unref();
  idle = setTimeout(() => forget(own), IDLE_MS);
  idle.unref();
}

/** End the process, if it has not ended. */
function forget(own: ChildProcess): void {
  if (child === own) child = undefined;
  own.unref();
  own.channel?.unref();
  if (own.connected) own.disconnect();
}
