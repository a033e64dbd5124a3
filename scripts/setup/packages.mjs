/**
 * npm packages: installed with `npm ci` when what lies in node_modules is not what package-lock.json asks for.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { SetupError, step } from "./report.mjs";
import { readJson, run, saysDiskFull, tail } from "./shell.mjs";

/**
 * Compare the lock with npm's own record of what it installed, which it writes last: so an install that was
 * cut short counts as none, and one made by hand counts. A package that npm installed has no lock: npm has
 * installed its dependencies as well.
 */
export function packagesReady(root) {
  if (!existsSync(join(root, "package-lock.json"))) return true;
  const wanted = readJson(join(root, "package-lock.json"))?.packages;
  const installed = readJson(join(root, "node_modules", ".package-lock.json"))?.packages;
  if (wanted === undefined || installed === undefined) return false;
  return Object.entries(wanted).every(([path, entry]) => {
    if (path === "") return true;
    if (installed[path] === undefined) return entry.optional === true; // another platform's binary
    const { version, integrity } = installed[path];
    if (version !== entry.version || integrity !== (entry.integrity ?? integrity)) return false;
    return existsSync(join(root, path, "package.json"));
  });
}

export async function installPackages(root, env) {
  const npm = env.npm_execpath ? [process.execPath, env.npm_execpath] : ["npm"];
  const command = [...npm, "ci", "--include=dev", "--no-audit", "--no-fund"];
  await step("installing npm packages", async () => {
    const result = await run(command, { cwd: root, env });
    if (result.ok && packagesReady(root)) return;
    throw new SetupError("npm could not install the packages that package-lock.json names.", {
      lookedFor: [`npm ci, run in ${root}`],
      found: [
        npmErrors(result.output) || "npm ended well, but node_modules does not hold what the lock names",
      ],
      toDo: [remedy(result.output, root)],
    });
  });
}

/** npm's reasons: its first errors, without the usage that may follow them. */
function npmErrors(output) {
  const lines = output.split("\n").filter((line) => /^npm (error|ERR!) ./.test(line));
  return lines.length > 0 ? lines.slice(0, 6).join("\n") : tail(output, 6);
}

function remedy(output, root) {
  if (saysDiskFull(output)) return `free disk space for ${root} and run the same command again.`;
  if (/in sync/.test(output))
    return "run `npm install`, which brings package-lock.json in line with package.json.";
  return "check the network and npm's settings (`npm config list`), then run the same command again.";
}
