/**
 * The tasks behind npm's scripts, each done in a project that has been made ready.
 */
import { spawn } from "node:child_process";
import { existsSync, statSync } from "node:fs";
import { availableParallelism, constants } from "node:os";
import { dirname, join, relative, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { buildSanitized } from "./setup/native.mjs";
import { SetupError } from "./setup/report.mjs";
import { listFiles } from "./setup/shell.mjs";

export const root = dirname(dirname(fileURLToPath(import.meta.url)));

/** Task by name: takes the command line's arguments, resolves to the exit code. */
export const tasks = {
  build: async () => 0,
  check: async () => biome("check"),
  format: async () => biome("check", "--write"),
  test,
  asan,
  bench,
  fuzz: async (args) => node(compiled("test/fuzz/run.ts"), ...args),
  start: async (args) => rlar("demo", ...args),
  rlar: async (args) => rlar(...args),
};

/** Commands that write their results at the end. Others end after a step, and say so. */
const AT_THE_END = ["eval", "sample", "reconstruct", "embed", "convert", "report", "plan"];

/** The command line, in the caller's folder: npm's scripts run in the project's. */
async function rlar(...args) {
  const { RLAR_STARTED_AS, npm_command, INIT_CWD } = process.env;
  if (RLAR_STARTED_AS === undefined && npm_command !== undefined && INIT_CWD) process.chdir(INIT_CWD);
  // Of glibc: with a heap for each thread, freed memory that no other thread can use adds up.
  process.env.MALLOC_ARENA_MAX ??= "2";
  const code = await started([compiled("src/cli/main.ts"), ...args], (signal) => {
    if (AT_THE_END.includes(args[0])) {
      process.stderr.write(
        `\nrlar ${args[0]}: ended by ${signal} before it was done. Its results were not written, and no file is half-written.\n`,
      );
    }
  });
  if (code === 128 + constants.signals.SIGKILL) {
    process.stderr.write(
      "rlar: expected the command to end by itself, got SIGKILL. If nobody sent it, the system ran out of memory: lower " +
        "rollout.microBatch and update.microBatch, or train.batch. A run goes on from its last checkpoint with run.ifExists=resume.\n",
    );
  }
  return code;
}

/** All tests after the style check, or only those of the files and folders named. */
async function test(args) {
  const options = args.filter((arg) => arg.startsWith("--"));
  const named = args.filter((arg) => !arg.startsWith("--"));
  if (named.length === 0) {
    const code = await biome("check");
    if (code !== 0) return code;
  }
  const files = (named.length > 0 ? named : ["test"]).flatMap(testFiles);
  // One more than cores: some files wait for processes and timeouts.
  const concurrency = `--test-concurrency=${Math.min(4, availableParallelism() + 1)}`;
  return await node("--test", "--test-reporter=spec", concurrency, ...options, ...files);
}

/** The tests of the tensor floor with the addon under the address sanitizer: a bad access ends them with its report. */
async function asan(args) {
  const { addon, preload } = await buildSanitized(root, process.env);
  Object.assign(process.env, {
    RLAR_ADDON: addon,
    LD_PRELOAD: preload.join(":"),
    // What lives until the process ends is meant to; Node.js and LibTorch are not built for the other checks.
    ASAN_OPTIONS:
      "detect_leaks=0:detect_odr_violation=0:alloc_dealloc_mismatch=0:allocator_may_return_null=1",
  });
  return await test(args.length > 0 ? args : ["test/torch", "test/native"]);
}

/** Test files of a source file or folder, as Node runs them: TypeScript compiled, test/setup as it is. */
function testFiles(name) {
  const path = resolve(name);
  const isFolder = statSync(path, { throwIfNoEntry: false })?.isDirectory();
  const files = isFolder ? listFiles(path, [".test.ts", ".test.mjs"]) : existsSync(path) ? [path] : [];
  if (files.length === 0) {
    throw new SetupError(`${name}: expected a test file or a folder of tests, got neither.`, {
      toDo: ["name sources, such as test/torch/tensor.test.ts or test/nn."],
    });
  }
  return files.map((file) => (file.endsWith(".ts") ? compiled(relative(root, file)) : file));
}

async function bench([name, ...args]) {
  const files = listFiles(join(root, "bench"), [".ts"])
    .map((path) => relative(join(root, "bench"), path).slice(0, -3))
    .filter((file) => file !== "peer"); // what others compare themselves with
  if (name !== undefined && files.includes(name)) return await node(compiled(`bench/${name}.ts`), ...args);
  const known = files.join(", ") || "(none yet)";
  throw new SetupError(`bench: expected one of ${known}, got ${name ?? "nothing"}.`, {
    toDo: ["npm run bench -- NAME"],
  });
}

function compiled(source) {
  return join(root, "dist", source.replace(/\.ts$/, ".js"));
}

async function biome(...args) {
  const program = join(root, "node_modules", "@biomejs", "biome", "bin", "biome");
  return await node(program, ...args, `--config-path=${root}`, root);
}

/** Signals within this many milliseconds of the first count as one: npm and its shell pass on those that they get. */
const TOGETHER_MS = 1000;

/** How long a program that was told twice to end may still live. */
const GRACE_MS = 1000;

/** How long a program may still live that has said that it is done. */
const DONE_MS = 5000;

/**
 * Run Node with the terminal's own streams; resolves to the exit code a shell would show.
 *
 * A signal is the child's to handle. But a child that computes hears it only when the computation ends, so this process
 * says what will happen, where the child has told that it ends after a step, and ends a child that was told twice.
 */
function node(...args) {
  return started(args);
}

/** @param onEnded - is told the signal that ended the program, such as SIGINT. */
function started(args, onEnded = () => {}) {
  return new Promise((resolve, reject) => {
    // Test files run side by side: with more threads each, LibTorch's would wait for each other.
    const side = { OMP_NUM_THREADS: "1", OMP_WAIT_POLICY: "PASSIVE" };
    const env = args[0] === "--test" ? { ...side, ...process.env } : process.env;
    const child = spawn(process.execPath, args, { stdio: ["inherit", "inherit", "inherit", "ipc"], env });
    let endsAfterStep = false;
    let done; // exit code
    child.on("message", (message) => {
      endsAfterStep = message?.endsAfterStep === true;
      if (message?.done === undefined) return;
      done = message.done;
      // A thread that hangs in a library, such as an image decoder, would keep it from ending.
      setTimeout(() => child.kill("SIGKILL"), DONE_MS).unref();
    });
    process.stderr.on("error", () => {}); // a terminal that was closed: the child still ends its step
    let first; // signal: its name and when it came
    const onSignal = (name) => {
      const now = performance.now();
      if (first === undefined) {
        first = { name, time: now };
        if (endsAfterStep)
          process.stderr.write("\nending after this step, with a checkpoint; repeat to end at once\n");
      } else if (now - first.time >= TOGETHER_MS) {
        setTimeout(() => child.kill("SIGKILL"), GRACE_MS).unref();
      }
    };
    for (const name of ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"]) {
      process.on(name, () => {
        child.kill(name);
        onSignal(name);
      });
    }
    process.on("SIGINT", () => onSignal("SIGINT")); // the terminal sends Ctrl-C to the child as well
    child.on("error", reject);
    child.on("close", (code, signal) => {
      const name = signal === "SIGKILL" && first !== undefined ? first.name : signal;
      if (name !== null && name !== "SIGKILL") onEnded(name);
      resolve(code ?? done ?? 128 + (constants.signals[name] ?? 0));
    });
  });
}
