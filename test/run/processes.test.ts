/** The heap of a run. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { test } from "node:test";

const PROCESSES = new URL("../../src/run/processes.js", import.meta.url).href;

/** MiB of the heap at its largest, while 400 MiB become old and are dropped, 1 MiB at a time, of which 64 are alive. */
function largestHeap(before: string): number {
  const program = `
    const { keepHeapSmall } = await import(${JSON.stringify(PROCESSES)});
    ${before}
    let largest = 0;
    for (let i = 0, some = []; i < 400; i++) {
      some.push(Array.from({ length: 1 << 14 }, (_, at) => ({ at })));
      if (some.length > 64) some.shift();
      largest = Math.max(largest, process.memoryUsage().heapTotal);
    }
    console.log(largest / 2 ** 20);`;
  // On a busy machine a collector with threads of its own, or one that marks in small steps, comes late, and the heap grows meanwhile.
  const collector = ["--single-threaded-gc", "--no-incremental-marking"];
  const flags = [...collector, "--input-type=module", "-e", program];
  const { stdout } = spawnSync(process.execPath, flags, { encoding: "utf8" });
  return Number(stdout);
}

test("keepHeapSmall collects the heap before it has grown by much", () => {
  const [small, usual] = [largestHeap("keepHeapSmall();"), largestHeap("")];
  assert.ok(small < 0.7 * usual, `${small} MiB, ${usual} MiB without it`);
});
