/** One tiny run's folder for all tests of a file. */
import { after, before } from "node:test";

import { tinyFolder } from "./train_run.js";

/**
 * Make the folder of {@link tinyFolder} before the tests of the file that calls this, and remove it after them.
 *
 * @param use - is given its path; what else it does is done before the tests too.
 */
export function folderOfFile(use: (folder: string) => void | Promise<void>): void {
  const cleanups: (() => void)[] = [];
  before(async () => use(await tinyFolder({ after: (fn) => cleanups.push(fn) })));
  after(() => {
    for (const cleanup of cleanups) cleanup();
  });
}
