/**
 * Which LibTorch to build against: `LIBTORCH`, then the active Python's torch, then the project's cache, then
 * the pinned wheel (fetch_libtorch.mjs).
 */
import { homedir } from "node:os";
import { join, resolve } from "node:path";
import { fetchLibTorch } from "./fetch_libtorch.mjs";
import { inspectLibTorch, OLDEST } from "./libtorch.mjs";
import { findPythons, pythonCandidates } from "./python.mjs";
import { SetupError, say } from "./report.mjs";

/** The version that is fetched, and that the tests' reference numbers were made with. */
export const PINNED = "2.13.0";

/** Folder that holds what this project downloads, shared by all clones of a user. */
export function cacheFolder(env) {
  if (env.RLAR_CACHE) return resolve(env.RLAR_CACHE);
  return join(env.XDG_CACHE_HOME || join(env.HOME || homedir(), ".cache"), "rl-ar-finetune");
}

/**
 * Find a LibTorch, fetching the pinned one when there is none.
 *
 * @returns {Promise<{ libtorch: import("./libtorch.mjs").LibTorch, source: string, pythonPath: string[] }>}
 *   `pythonPath`: folders where an installed or removed torch would change the answer.
 * @throws SetupError when `LIBTORCH` is set and does not fit, or when none can be had.
 */
export async function findLibTorch(env) {
  const wantsCuda = env.RLAR_CUDA === "1";
  if (env.LIBTORCH) {
    return { libtorch: explicitLibTorch(env.LIBTORCH, wantsCuda), source: "LIBTORCH", pythonPath: [] };
  }
  const pythons = await findPythons(env);
  const pythonPath = [...new Set(pythons.flatMap((python) => python.path))];
  const lookedFor = ["LIBTORCH: not set"];
  for (const { program, torch } of pythons) {
    if (torch === null) {
      lookedFor.push(`torch of ${program}: not installed`);
      continue;
    }
    const libtorch = inspectLibTorch(torch, wantsCuda);
    if (libtorch.problem === undefined) return { libtorch, source: `torch of ${program}`, pythonPath };
    say(`not using torch of ${program} (${torch}): ${libtorch.problem}`);
    lookedFor.push(`torch of ${program}, ${torch}: ${libtorch.problem}`);
  }
  if (pythons.length === 0)
    lookedFor.push(`a Python's torch: none of ${pythonCandidates(env).join(", ")} runs`);

  const cache = cacheFolder(env);
  const kinds = wantsCuda ? ["cuda"] : env.RLAR_CUDA === "0" ? ["cpu"] : ["cuda", "cpu"];
  const folder = (kind) => join(cache, `libtorch-${PINNED}-${kind}`);
  for (const kind of kinds) {
    const libtorch = inspectLibTorch(join(folder(kind), "torch"), wantsCuda);
    if (libtorch.problem === undefined) return { libtorch, source: "cache", pythonPath };
    lookedFor.push(`the cache, ${folder(kind)}: ${libtorch.problem}`);
  }
  const kind = wantsCuda ? "cuda" : "cpu";
  const request = { folder: folder(kind), version: PINNED, kind, pythons, env, lookedFor };
  return { libtorch: await fetchLibTorch(request), source: "pip", pythonPath };
}

/** What was asked for by name is used or refused, never passed over. */
function explicitLibTorch(value, wantsCuda) {
  const path = resolve(value);
  const libtorch = inspectLibTorch(path, wantsCuda);
  if (libtorch.problem === undefined) return libtorch;
  const inner = join(path, "torch");
  const hint = inspectLibTorch(inner).problem === undefined ? [`set LIBTORCH=${inner}, which is one,`] : [];
  const wanted = `a folder with lib and include, LibTorch ${OLDEST.join(".")} or newer`;
  throw new SetupError("LIBTORCH does not name a LibTorch that fits.", {
    lookedFor: [`LIBTORCH=${value}: ${wanted}${wantsCuda ? ", with CUDA" : ""}`],
    found: [`${path}: ${libtorch.problem}`],
    toDo: [
      ...hint,
      "set LIBTORCH to an unpacked LibTorch or to the torch folder of a Python's site-packages,",
      `or unset it: then the active Python's torch is used, or LibTorch ${PINNED} is fetched through pip.`,
    ],
  });
}
