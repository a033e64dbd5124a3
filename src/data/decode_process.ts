/**
 * The process that decodes images for `decode_apart.ts`, one at a time. It ends itself when an image exceeds its limits, and
 * when the process that started it has ended.
 */
import { decodePixels } from "./pixels.js";
import type { Pixels } from "./resample.js";

/** An image and its limits. */
export interface ApartTask {
  readonly bytes: Buffer;
  readonly maxPixels: number;
  readonly cpuSeconds: number;
  readonly memoryBytes: number;
}

/** The image or its problem; `isOver` means that the process ends. */
export type ApartAnswer =
  | { readonly pixels: Pixels }
  | { readonly problem: string }
  | { readonly problem: string; readonly isOver: true };

const WATCH_MS = 25;

const end = (): void => void process.kill(process.pid, "SIGKILL");

// Ctrl-C goes to all processes of a terminal; the one that started this decides what it means.
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"] as const)
  process.on(signal, () => {});
// A decoder that is busy would keep the process from ending by itself.
process.on("disconnect", end);

process.on("message", async ({ bytes, maxPixels, cpuSeconds, memoryBytes }: ApartTask) => {
  const before = process.cpuUsage();
  const watch = setInterval(() => {
    const { user, system } = process.cpuUsage(before);
    const isLate = user + system > cpuSeconds * 1e6;
    if (!isLate && process.memoryUsage.rss() < memoryBytes) return;
    clearInterval(watch);
    const limit = isLate ? `${cpuSeconds} s` : `${(memoryBytes / 2 ** 30).toFixed(1)} GiB`;
    const problem = `one that takes more than ${limit} to decode`;
    process.send?.({ problem, isOver: true } satisfies ApartAnswer, end);
  }, WATCH_MS);
  let answer: ApartAnswer;
  try {
    answer = { pixels: await decodePixels(Buffer.from(bytes), maxPixels) };
  } catch (error) {
    answer = { problem: (error as Error).message };
  }
  clearInterval(watch);
  process.send?.(answer);
});
