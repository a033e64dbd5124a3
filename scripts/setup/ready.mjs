/**
 * Everything a command needs, made once: npm packages, LibTorch, the native addon, compiled TypeScript.
 * When all is there this only compares sizes and times, and prints nothing.
 */
import { join } from "node:path";
import { withLock } from "./lock.mjs";
import { buildNative, nativeReady } from "./native.mjs";
import { installPackages, packagesReady } from "./packages.mjs";
import { SetupError } from "./report.mjs";
import { compileTypescript, typescriptReady } from "./typescript.mjs";

const STEPS = [
  { isReady: packagesReady, make: installPackages },
  { isReady: nativeReady, make: buildNative },
  { isReady: typescriptReady, make: compileTypescript },
];

/**
 * @param {string} root the project's folder.
 * @throws SetupError with what was looked for, what was found and what to do.
 */
export async function makeReady(root, env = process.env) {
  if (STEPS.every(({ isReady }) => isReady(root, env))) return;
  try {
    await withLock(join(root, "build", ".lock"), async () => {
      for (const { isReady, make } of STEPS) {
        if (!isReady(root, env)) await make(root, env);
      }
    });
  } catch (error) {
    throw fileError(error, root) ?? error;
  }
}

/** What the system says when a folder cannot be written to, with what to do about it. */
function fileError(error, root) {
  const found = [error.message];
  if (["ENOSPC", "EDQUOT"].includes(error.code)) {
    return new SetupError("The disk is full.", {
      found,
      toDo: [`free space for ${root} and for the cache (RLAR_CACHE), then run the same command again.`],
    });
  }
  if (["EACCES", "EPERM", "EROFS", "ENOTDIR", "EEXIST"].includes(error.code)) {
    return new SetupError("A file or folder that set-up writes cannot be written.", {
      found,
      toDo: ["make it writable or move it out of the way, then run the same command again."],
    });
  }
  return undefined;
}
