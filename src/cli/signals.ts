/** The signals that end a run after its step. It loads no LibTorch, since `launch.ts` does not either. */
export const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"] as const;
