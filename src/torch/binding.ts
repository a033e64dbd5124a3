/**
 * Types of the native addon's functions, and loading it. Only `call.ts`, `scope.ts`, `autograd.ts`, `random.ts`,
 * `device.ts` and `process_group.ts` import this file; other files use those.
 */
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";

import { expected } from "./errors.js";

/** Exported functions of `native/*.cc`; handles are positive integers, 0 means none. */
interface Native {
  readonly values: ArrayBuffer;
  readonly tags: ArrayBuffer;
  intern(text: string): number;
  interned(id: number): string;
  release(count: number): void;
  shape(tensor: number): number;
  strides(tensor: number): number;
  info(tensor: number): void;
  writeBytes(tensor: number, array: ArrayBufferView): void;
  readBytes(tensor: number, array: ArrayBufferView): void;

  findOperator(name: string, overload: string): number;
  operatorSchema(operator: number): string;
  operatorArguments(operator: number): string[];
  operatorNames(): string[];
  call(operator: number, slots: number): number;

  adoptThread(): void;
  attachBackward(
    inputs: number,
    outputs: number,
    saved: number,
    callback: (gradients: number, saved: number, isForAll: boolean) => void,
  ): void;
  setThreadedBackward(on: boolean): void;
  backward(
    roots: number,
    gradients: number,
    inputs: number,
    retainGraph: boolean,
    createGraph: boolean,
  ): void;
  gradients(
    roots: number,
    gradients: number,
    inputs: number,
    retainGraph: boolean,
    createGraph: boolean,
    allowUnused: boolean,
  ): void;
  requiresGrad(tensor: number): boolean;
  isLeaf(tensor: number): boolean;
  setRequiresGrad(tensor: number, on: boolean): void;
  getGrad(tensor: number): number;
  setGrad(tensor: number, grad: number): void;
  setGradEnabled(on: boolean): boolean;
  isGradEnabled(): boolean;
  enterAutocast(device: string, dtype: string): string;
  leaveAutocast(device: string, before: string): void;

  memory(resetPeak: boolean): void;
  emptyCache(): void;
  newGenerator(device: string): number;
  defaultGenerator(device: string): number;
  seedGenerator(generator: number): void;
  generatorState(generator: number): number;
  setGeneratorState(generator: number, state: number): void;
  releaseGenerator(generator: number): void;
  setNumThreads(count: number): void;
  getNumThreads(): number;
  torchVersion(): string;
  torchConfig(): string;
  whyNoCuda(): string;
  hasCudaGraphs(): boolean;
  cudaDeviceCount(): number;
  synchronize(device: string): void;
  tf32(flags: number): number;
  cudaMemory(device: string, resetPeak: boolean): void;
  cudaEmptyCache(): void;
  graphBegin(): number;
  graphEnd(graph: number): void;
  graphAbort(graph: number): void;
  graphReplay(graph: number): void;
  graphRelease(graph: number): void;

  /** Names with commas; empty where LibTorch has no c10d, and then none of the functions below is there. */
  distributedBackends(): string;
  openStore(
    host: string,
    portOrFile: string,
    prefix: string,
    processes: number,
    isServer: boolean,
    timeout: number,
  ): number;
  closeStore(store: number): void;
  storeSet(store: number, key: string, value: string, timeout: number): void;
  storeSetFirst(store: number, key: string, value: string, timeout: number): string;
  storeGet(store: number, key: string, timeout: number): string | null;
  storeAdd(store: number, key: string, amount: number, timeout: number): number;
  startHeartbeat(
    host: string,
    portOrFile: string,
    prefix: string,
    processes: number,
    key: string,
    timeout: number,
  ): void;
  stopHeartbeat(): void;
  openGroup(
    store: number,
    name: string,
    rank: number,
    size: number,
    timeout: number,
    address: string,
    networkInterface: string,
    usesNccl: boolean,
  ): void;
  closeGroup(name: string): void;
  openReducer(group: string, sizes: string): number;
  closeReducer(reducer: number): void;
  armReducer(reducer: number, early: string): void;
  submitReducer(reducer: number, early: string): string;
  waitReducer(reducer: number): void;
  countCollective(): void;
}

/** Libraries that LibTorch loads end the process where there is none. */
function requireWorkingFolder(): void {
  try {
    process.cwd();
  } catch {
    const remedy = "Change to another folder, or to this one again if it was made anew";
    throw expected("working folder", "one that is there", "one that was removed", remedy);
  }
}

/** The addon that set-up built; `RLAR_ADDON` names another build of it, such as one under a sanitizer. */
function load(): Native {
  const built = fileURLToPath(new URL("../../../build/native/rlar_torch.node", import.meta.url));
  const path = process.env.RLAR_ADDON ?? built;
  if (!existsSync(path) && path === built) setUp();
  // Of a store that is gone LibTorch prints C++ frames; src/distributed/ says it in a sentence.
  const isOneOfMany = ["WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"].some(
    (name) => name in process.env,
  );
  if (isOneOfMany) process.env.TORCH_CPP_LOG_LEVEL ??= "ERROR";
  requireWorkingFolder();
  let native: Native;
  try {
    native = createRequire(import.meta.url)(path) as Native;
  } catch (error) {
    const { message } = error as Error;
    if (message.startsWith("rl-ar-finetune:")) throw error; // the addon's own sentence
    throw new Error(
      `rl-ar-finetune: expected an addon that loads from ${path}, got: ${message}. ` +
        "Run rlar doctor as the user who runs this: it repairs the set-up.",
    );
  }
  native.adoptThread();
  return native;
}

/** Find or fetch LibTorch and build the addon, once: an installed package comes without them. Takes about a minute. */
function setUp(): void {
  const script = fileURLToPath(new URL("../../../scripts/run.mjs", import.meta.url));
  const { status, signal, error } = spawnSync(process.execPath, [script, "build"], {
    stdio: ["ignore", 2, 2], // the set-up's messages must not mix with a program's own output
  });
  if (status === 0) return;
  const got = error?.message ?? signal ?? `exit code ${status}`;
  throw new Error(
    `rl-ar-finetune: expected set-up to end well, got ${got}. Its lines above say what was looked for and what to do.`,
  );
}

export const native: Native = load();

/** Tags of the values in the frame; the same numbers stand in `native/addon.h`. */
export const TAG = {
  default: 0,
  none: 1,
  tensor: 2,
  int: 3,
  bigint: 4,
  double: 5,
  bool: 6,
  string: 7,
  generator: 8,
  list: 9,
  argument: 10,
} as const;

/** Slots of the frame: the most values one call can take or give. */
export const SLOTS: number = 65536;

/** The frame: slot i holds a tag and eight bytes, read as a double or as an int64. */
export const tags: Uint8Array = new Uint8Array(native.tags);
export const values: Float64Array = new Float64Array(native.values);
export const ints: BigInt64Array = new BigInt64Array(native.values);
