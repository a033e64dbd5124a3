/** The thread of a ticker, see `ticker.ts`. */
import { writeSync } from "node:fs";
import { workerData } from "node:worker_threads";

import { duration } from "./console.js";
import { TICKER, type TickerOptions } from "./ticker.js";

const { fd, period, before, after, state } = workerData as TickerOptions & { state: Int32Array };
const { waiting, writing } = TICKER;
const started = performance.now();

while (Atomics.wait(state, 0, waiting, period) === "timed-out") {
  if (Atomics.compareExchange(state, 0, waiting, writing) !== waiting) break;
  try {
    writeSync(fd, `${before}${duration((performance.now() - started) / 1000)}${after}`);
  } catch {
    // A terminal that is not ready, or gone: the next sign may get through.
  }
  Atomics.compareExchange(state, 0, writing, waiting);
}
