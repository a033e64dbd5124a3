/**
 * Signals during a run: the first ends the run after the current step, with a checkpoint; a second one ends it at once. This
 * holds for Ctrl-C, SIGTERM (container and batch systems), SIGHUP (a closed terminal), SIGUSR1 and SIGUSR2 (batch systems
 * before their time limit; Node.js would open a debugger on SIGUSR1).
 */
import { constants } from "node:os";
import { isSpeaker } from "../distributed/index.js";
import { print } from "../run/console.js";
import { describe, expectedMessage } from "../torch/errors.js";
import { SIGNALS } from "./signals.js";

/**
 * Signals within this many milliseconds of the first count as one, since npm, its shell and launchers pass on the signals
 * that they get.
 */
const TOGETHER_MS = 1000;

let first: { readonly code: number; isOver: boolean } | null = null;
let running: AbortController | null = null;
let isListening = false;

/** The exit code that shells use for a process ended by a signal: 130 after Ctrl-C, 143 after SIGTERM. */
export function interruptionCode(): number {
  return first?.code ?? 130;
}

/** Run `fn` with an AbortSignal that is aborted by a signal to the process. */
export async function interruptible<T>(fn: (signal: AbortSignal) => Promise<T>): Promise<T> {
  if (!isListening) {
    for (const name of SIGNALS) process.on(name, () => onSignal(name));
    process.on("unhandledRejection", onStray);
    process.on("uncaughtException", onStray);
  }
  isListening = true;
  running = new AbortController();
  tellStarter(true);
  try {
    return await fn(running.signal);
  } finally {
    tellStarter(false);
    // The listeners stay, so that a signal passed on late does not end the process while it writes the report.
    running = null;
  }
}

/** The exit code after an error that no code catches. */
const STRAY_CODE = 3;

/**
 * An error that no code catches: of a promise that the user's module does not await, or of a timer. The run ends as after a
 * signal, with a checkpoint.
 */
function onStray(reason: unknown): void {
  const found = reason instanceof Error ? reason : new Error(describe(reason));
  const text = process.env.RLAR_DEBUG ? (found.stack ?? found.message) : found.message;
  const remedy =
    "In code of your own, await every promise and catch errors in timers; RLAR_DEBUG=1 prints the stack";
  const message = expectedMessage("run", "every error to be caught", `one that is not: ${text}`, remedy);
  print(process.stderr, `\nrlar: ${message}\n`);
  if (running === null) process.exit(STRAY_CODE);
  first ??= { code: STRAY_CODE, isOver: true };
  running.abort();
}

function onSignal(name: (typeof SIGNALS)[number]): void {
  const code = 128 + constants.signals[name];
  if (first?.isOver === false) return;
  if (first !== null || running === null) process.exit(code);
  const noted = { code, isOver: false };
  first = noted;
  // A signal that came while a step computed is handled after this timer: only what comes after one more turn of the event
  // loop is a second one.
  setTimeout(() => setImmediate(() => (noted.isOver = true)), TOGETHER_MS).unref();
  running.abort();
  if (!process.connected && isSpeaker())
    print(process.stderr, "\nending after this step, with a checkpoint; repeat to end at once\n");
}

/**
 * Tell the process that started this one (scripts/tasks.mjs) whether the first signal lets the step end. It hears signals
 * while this one computes, so it prints what will happen, and ends this one on the second.
 */
function tellStarter(endsAfterStep: boolean): void {
  if (process.connected) process.send?.({ endsAfterStep });
}
