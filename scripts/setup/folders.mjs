/** Making folders. This file needs Node.js alone, since set-up uses it before any package is installed. */
import { mkdirSync, statSync } from "node:fs";
import { dirname, normalize } from "node:path";

/**
 * Make a folder, and those that it lies in, where they are absent. Node.js's own `recursive` never ends where the system
 * makes no folders, such as in /proc, and gives other reasons than the system does.
 *
 * @throws the system's error.
 */
export function makeFolders(given) {
  const path = normalize(given);
  try {
    mkdirSync(path);
  } catch (error) {
    if (isFolder(path)) return;
    const parent = dirname(path);
    if (error.code !== "ENOENT" || isFolder(parent)) throw error;
    makeFolders(parent);
    makeFolders(path);
  }
}

function isFolder(path) {
  return statSync(path, { throwIfNoEntry: false })?.isDirectory() ?? false;
}
