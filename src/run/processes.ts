/** The processes of a run: how a training loop opens their group, and how large their heaps may grow. */
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { ConfigError } from "../config/resolve.js";
import { requireSame, size, withGroup } from "../distributed/index.js";
import type { Device } from "../torch/index.js";
import { versions } from "./environment.js";

/** Run `fn` with the group of the processes open, which are all of one version. */
export function withProcesses<T>(
  where: { readonly timeout?: number; readonly device: Device },
  fn: () => Promise<T>,
): Promise<T> {
  const { package: own, libtorch } = versions();
  return withGroup({ ...where, versions: `rl-ar-finetune ${own} with LibTorch ${libtorch}` }, fn);
}

/**
 * Run a loop with the group of the run's processes open.
 *
 * @param batch.key - of the configuration that says how many images a step has.
 * @param config - that all processes must have.
 * @throws ConfigError for fewer images than processes. RangeError for processes whose configurations differ. LostRankError
 *   when a process ends or does not come.
 */
export function byProcesses<T>(
  where: { readonly timeout: number; readonly device: Device },
  batch: { readonly key: string; readonly images: number },
  config: Readonly<Record<string, unknown>>,
  loop: () => Promise<T>,
): Promise<T> {
  return withProcesses(where, async () => {
    requireSame(config); // before anything that only some of them may do
    keepHeapSmall();
    const { key, images } = batch;
    if (images >= size()) return await loop();
    throw new ConfigError([
      `${key}: expected at least ${size()}, an image for each process, got ${images}. Raise it.`,
    ]);
  });
}

/**
 * Let the heap grow by a fifth of what is alive before it is collected, so that the memory of a run is flat. V8's own limit is
 * up to four times what is alive, and higher before the first collection: the handles of a step's tensors would fill it.
 */
export function keepHeapSmall(): void {
  setFlagsFromString("--heap-growing-percent=20");
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as () => void;
  collect(); // the next collection's limit follows from this one
}
