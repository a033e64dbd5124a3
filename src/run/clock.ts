/** Where the time and the memory of a step go. */
import { memory } from "../torch/index.js";

/** Seconds since the last mark, by name. */
export class Clock {
  readonly #start: number = performance.now();
  #last: number = this.#start;
  readonly #times: Record<string, number> = {};

  /** What was done since the last mark; a name that comes again adds up. */
  mark(name: string): void {
    const now = performance.now();
    this.#times[name] = (this.#times[name] ?? 0) + (now - this.#last) / 1000;
    this.#last = now;
  }

  /** Since the beginning. */
  seconds(): number {
    return (performance.now() - this.#start) / 1000;
  }

  /** All marks, and what lies after the last, so that they sum to the step's seconds. */
  times(): Record<string, number> {
    const rest = (performance.now() - this.#last) / 1000;
    return { ...this.#times, "time/other": (this.#times["time/other"] ?? 0) + rest };
  }
}

/** Most CPU bytes that tensors held since the last call. */
export function takePeakBytes(): number {
  const { peakBytes } = memory();
  memory({ resetPeak: true });
  return peakBytes;
}
