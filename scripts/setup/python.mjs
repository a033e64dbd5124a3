/**
 * The Pythons on this machine, asked without importing torch: where is torch, is there pip. Python is needed
 * only to find or fetch LibTorch, never to run.
 */
import { join } from "node:path";
import { run, tail, which } from "./shell.mjs";

const PROBE = `
import importlib.util, json, os, sys
sys.path[:] = [p for p in sys.path if p]
def origin(name):
    spec = importlib.util.find_spec(name)
    return spec.origin if spec and spec.origin and os.path.exists(spec.origin) else None
print(json.dumps({
    "prefix": sys.prefix,
    "version": ".".join(map(str, sys.version_info[:3])),
    "torch": os.path.dirname(origin("torch") or "") or None,
    "hasPip": origin("pip") is not None,
    "path": [p for p in sys.path if os.path.isdir(p)],
}))
`;

/** Programs that could be the active Python, in the order in which they are asked. */
export function pythonCandidates(env) {
  const active = env.VIRTUAL_ENV ? [join(env.VIRTUAL_ENV, "bin", "python")] : [];
  return [...active, "python3", "python"];
}

/**
 * @typedef {{ program: string, prefix: string, version: string, torch: string | null, hasPip: boolean,
 *   path: string[] }} Python `torch` is the folder of its torch package; `path` is where it looks for packages.
 */

/**
 * Ask every Python 3 that runs, once each: `python` and `python3` are often the same.
 *
 * @returns {Promise<Python[]>}
 */
export async function findPythons(env) {
  const pythons = [];
  for (const candidate of pythonCandidates(env)) {
    const program = which(candidate, env);
    if (program === undefined) continue;
    const result = await run([program, "-c", PROBE], { env });
    if (!result.ok) continue; // such as a version manager's stand-in with no version behind it
    const python = { program, ...JSON.parse(tail(result.stdout, 1)) };
    if (pythons.every(({ prefix }) => prefix !== python.prefix)) pythons.push(python);
  }
  return pythons;
}
