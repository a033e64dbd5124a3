/** Ctrl-C while a run goes on: the first ends it after the step that is under way, the second at once. */

/** Run `fn` with a signal that is aborted by an interruption. */
export async function interruptible<T>(fn: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController();
  const stop = (): void => {
    if (controller.signal.aborted) process.exit(130);
    controller.abort();
    process.stderr.write("\nending after this step; once more ends at once\n");
  };
  process.on("SIGINT", stop).on("SIGTERM", stop);
  try {
    return await fn(controller.signal);
  } finally {
    process.off("SIGINT", stop).off("SIGTERM", stop);
  }
}
