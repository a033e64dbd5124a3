/**
 * A thread that decodes images for `decode_pool.ts` while a training step occupies the main thread.
 */
import { parentPort } from "node:worker_threads";

import { type Decoded, type DecodeTask, decodeFewAtOnce } from "./decode.js";

/** The thread's answer: the image or its problem. */
export type Answer = { readonly key: number } & (
  | { readonly decoded: Decoded }
  | { readonly problem: string }
);

const decode = decodeFewAtOnce();

parentPort?.on("message", async ({ key, task }: { key: number; task: DecodeTask }) => {
  try {
    const decoded = await decode(task);
    const memory = [decoded.data.buffer, ...(decoded.features ? [decoded.features.data.buffer] : [])];
    parentPort?.postMessage({ key, decoded } satisfies Answer, memory as ArrayBuffer[]);
  } catch (error) {
    parentPort?.postMessage({ key, problem: (error as Error).message } satisfies Answer);
  }
});
