/**
 * A sign of life while this thread is busy for long, such as while it loads a large model: another thread writes how long
 * it has been, straight to a file descriptor, as nothing of this thread's would be written meanwhile.
 */
import { Worker } from "node:worker_threads";

/** What the thread of a {@link Ticker} is told. */
export interface TickerOptions {
  /** Where to write; 1 is standard output. */
  readonly fd: number;
  /** Milliseconds between two signs. */
  readonly period: number;
  /** Stand before and after the time, such as `12s`. */
  readonly before: string;
  readonly after: string;
}

/** Values of the number that both threads share. */
export const TICKER = { waiting: 0, ended: 1, writing: 2 } as const;

/** Writes until it is disposed of. A process does not wait for it. */
export class Ticker implements Disposable {
  readonly #state = new Int32Array(new SharedArrayBuffer(4));

  constructor(options: TickerOptions) {
    const workerData = { ...options, state: this.#state };
    const worker = new Worker(new URL("./ticker_worker.js", import.meta.url), { workerData });
    worker.on("error", () => {}); // a sign of life is not worth a run
    worker.unref();
  }

  /** After this nothing more is written. */
  [Symbol.dispose](): void {
    const { waiting, ended, writing } = TICKER;
    while (Atomics.compareExchange(this.#state, 0, waiting, ended) === writing); // it takes microseconds
    Atomics.notify(this.#state, 0);
  }
}
