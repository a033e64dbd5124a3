/** A pool of threads that decode images. Results do not depend on the number of threads. `decode.ts` does the work. */
import { availableParallelism } from "node:os";
import { Worker } from "node:worker_threads";

import { expected, expectedMessage } from "../torch/index.js";
import { type Decoded, type DecodeTask, decodeFewAtOnce, type ImageBytes } from "./decode.js";
import type { Answer } from "./decode_worker.js";

/** One thread for each processor but one, at least 1 and at most 8. */
const DEFAULT_WORKERS: number = Math.min(Math.max(availableParallelism() - 1, 1), 8);

/** A decoding thread failed, not an image. */
export class DecodePoolError extends Error {
  override readonly name = "DecodePoolError";
}

/** The error for a reader or its threads that are used after they were closed. */
export function closedError(): DecodePoolError {
  return new DecodePoolError(expectedMessage("decode", "an open reader", "a closed one"));
}

interface Pending {
  readonly resolve: (decoded: Decoded) => void;
  readonly reject: (error: Error) => void;
}

interface Thread {
  readonly worker: Worker;
  readonly pending: Map<number, Pending>;
}

/** A pool of threads. Idle threads do not keep the process alive. */
export class DecodePool {
  readonly #workers: number;
  #threads: Thread[] = [];
  readonly #decodeHere = decodeFewAtOnce();
  #nextKey = 0;
  #failure: DecodePoolError | undefined;

  /** @param workers - threads, which start with the first image; 0 decodes on the calling thread, between other work. */
  constructor(workers: number = DEFAULT_WORKERS) {
    if (!Number.isInteger(workers) || workers < 0 || workers > 64) {
      throw expected("DecodePool", "0 to 64 workers", workers);
    }
    this.#workers = workers;
  }

  /**
   * Decode one image. Concurrent calls run in parallel.
   *
   * @throws Error that names the image; {@link DecodePoolError} when the threads failed or are closed.
   */
  async decode(task: DecodeTask): Promise<Decoded> {
    if (this.#failure !== undefined) throw this.#failure;
    if (this.#threads.length < this.#workers) {
      this.#threads = Array.from({ length: this.#workers }, () => this.#start());
    }
    const [first] = this.#threads;
    if (first === undefined) return await this.#decodeHere(task);
    const thread = this.#threads.reduce((a, b) => (b.pending.size < a.pending.size ? b : a), first);
    const key = this.#nextKey++;
    return await new Promise((resolve, reject) => {
      if (thread.pending.size === 0) thread.worker.ref();
      thread.pending.set(key, { resolve, reject });
      const { image, memory } = ownMemory(task.image);
      thread.worker.postMessage({ key, task: { ...task, image } }, memory);
    });
  }

  /** Stop the threads. Images that are still being decoded are abandoned. */
  close(): void {
    this.#fail(closedError());
    for (const { worker } of this.#threads) void worker.terminate();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #start(): Thread {
    // Without the process's own options, some of which (such as --input-type) a thread refuses.
    const worker = new Worker(new URL("./decode_worker.js", import.meta.url), { execArgv: [] });
    const thread: Thread = { worker, pending: new Map() };
    worker.unref();
    worker.on("message", (answer: Answer) => {
      const pending = thread.pending.get(answer.key);
      thread.pending.delete(answer.key);
      if (thread.pending.size === 0) worker.unref();
      if ("decoded" in answer) pending?.resolve(answer.decoded);
      else pending?.reject(new RangeError(answer.problem));
    });
    worker.on("error", (error: Error) => {
      const message = expectedMessage("decode", "a decoding thread to run", error.message);
      this.#fail(new DecodePoolError(message, { cause: error }));
    });
    worker.on("exit", (code) => {
      this.#fail(
        new DecodePoolError(expectedMessage("decode", "a decoding thread to run", `its end, code ${code}`)),
      );
    });
    return thread;
  }

  /** Only the first reason counts: closing makes every thread exit. */
  #fail(error: DecodePoolError): void {
    this.#failure ??= error;
    for (const { pending } of this.#threads) {
      for (const { reject } of pending.values()) reject(this.#failure);
      pending.clear();
    }
  }
}

/** The image with memory that can be handed over: a view would go with all around it, such as a page of parquet. */
function ownMemory(image: ImageBytes): { image: ImageBytes; memory: ArrayBuffer[] } {
  if ("path" in image) return { image, memory: [] };
  const bytes = new Uint8Array("bytes" in image ? image.bytes : image.pixels.data);
  const own = "bytes" in image ? { bytes } : { pixels: { ...image.pixels, data: bytes } };
  return { image: own, memory: [bytes.buffer] };
}
