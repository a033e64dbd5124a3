/**
 * The one entry behind npm's scripts: make everything ready (scripts/setup), then do the task (tasks.mjs).
 *
 *   node scripts/run.mjs build|check|format|test|asan|bench|fuzz|start|rlar [arguments]
 */
import { requireNode, SetupError } from "./setup/report.mjs";

async function main(name, args) {
  requireNode();
  // Imported only now: an older Node.js cannot even load these.
  const { makeReady } = await import("./setup/ready.mjs");
  const { root, tasks } = await import("./tasks.mjs");
  if (!Object.hasOwn(tasks, name)) {
    throw new SetupError(`run: expected one of ${Object.keys(tasks).join(", ")}, got ${name}.`);
  }
  await makeReady(root);
  return await tasks[name](args);
}

const [name = "nothing", ...args] = process.argv.slice(2);
main(name, args).then(
  (code) => {
    process.exitCode = code;
  },
  (error) => {
    process.exitCode = 1;
    process.stderr.write(`${error instanceof SetupError ? error.message : error.stack}\n`);
  },
);
