/**
 * For files whose asynchronous tests count tensors: before each of their tests, what earlier ones left to the collector is
 * freed. Otherwise the collector may free it in the middle of a count. Importing this file is all.
 */
import { beforeEach } from "node:test";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { memory } from "../../src/torch/index.js";

setFlagsFromString("--expose-gc");
export const collectGarbage = runInNewContext("gc") as () => void;
/** Lets what waits in the event loop run, such as callbacks of the collector. */
export const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

beforeEach(async () => {
  let before: number;
  do {
    before = memory().tensors + memory().generators;
    collectGarbage();
    await turn(); // the registry's callbacks are a task of their own
    await turn();
  } while (memory().tensors + memory().generators < before);
});
