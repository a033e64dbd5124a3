/** The processes of a run: how a training loop opens their group. */
import { ConfigError } from "../config/resolve.js";
import { size, withGroup } from "../distributed/index.js";
import type { Device } from "../torch/index.js";

/**
 * Run a loop with the group of the run's processes open.
 *
 * @param batch.key - of the configuration that says how many images a step has.
 * @throws ConfigError for fewer images than processes. LostRankError when a process ends or does not come.
 */
export function byProcesses<T>(
  where: { readonly timeout: number; readonly device: Device },
  batch: { readonly key: string; readonly images: number },
  loop: () => Promise<T>,
): Promise<T> {
  return withGroup(where, async () => {
    const { key, images } = batch;
    if (images >= size()) return await loop();
    throw new ConfigError([
      `${key}: expected at least ${size()}, an image for each process, got ${images}. Raise it.`,
    ]);
  });
}
