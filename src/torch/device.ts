/**
 * LibTorch's memory, threads and version, and CUDA devices.
 */
import { readFileSync } from "node:fs";
import { native, values } from "./binding.js";
import { callTensor } from "./call.js";
import { expected } from "./errors.js";
import { tidy } from "./scope.js";
import type { Device, Tensor } from "./tensor.js";

/** Tensors and memory in use. */
export interface MemoryInfo {
  /** Tensor handles that are open. */
  tensors: number;
  generators: number;
  /** CPU memory that LibTorch has allocated, graphs and temporaries included. */
  bytes: number;
  /** The most `bytes` there have been since the last reset. */
  peakBytes: number;
  /** Freed CPU memory that is kept for the next tensor of its size; see {@link emptyCache}. */
  cachedBytes: number;
}

/** Live handles and CPU bytes; `resetPeak` starts the peak again from what is alive. */
export function memory(options: { resetPeak?: boolean } = {}): MemoryInfo {
  native.memory(options.resetPeak ?? false);
  const [tensors = 0, generators = 0, bytes = 0, peakBytes = 0, cachedBytes = 0] = values;
  return { tensors, generators, bytes, peakBytes, cachedBytes };
}

/**
 * Give freed CPU memory back to the system. Otherwise blocks of 1 MiB and more are kept and used again, because new memory
 * costs a page fault for every 4 KiB. Kept and used memory together never exceed the largest amount that was in use.
 */
export function emptyCache(): void {
  native.emptyCache();
}

/** Threads that one operator may use. */
export function getNumThreads(): number {
  return native.getNumThreads();
}

export function setNumThreads(count: number): void {
  if (!Number.isInteger(count) || count < 1 || count > 1024) {
    throw expected("setNumThreads", "an integer from 1 to 1024", count);
  }
  native.setNumThreads(count);
}

/**
 * Whether the processor multiplies bfloat16 in hardware, where products take half the time of float32. Elsewhere LibTorch
 * emulates it. False where the system does not tell.
 */
export function hasFastBfloat16(): boolean {
  try {
    return /\b(avx512_bf16|amx_bf16|bf16)\b/.test(readFileSync("/proc/cpuinfo", "utf8"));
  } catch {
    return false;
  }
}

/** Version of LibTorch, for example `2.13.0`, and how it was built. */
export function version(): { torch: string; config: string } {
  return { torch: native.torchVersion(), config: native.torchConfig() };
}

/** Whether the loaded LibTorch was built with CUDA and sees a device. */
export function isCudaAvailable(): boolean {
  return native.cudaDeviceCount() > 0;
}

export function cudaDeviceCount(): number {
  return native.cudaDeviceCount();
}

/** Why CUDA cannot be used; empty where it can. */
export function whyNoCuda(): string {
  return native.whyNoCuda();
}

/** Whether {@link cudaMemory}, {@link cudaEmptyCache} and {@link captureGraph} work: the addon was built with CUDA's headers. */
export function hasCudaStatistics(): boolean {
  return isCudaAvailable() && native.hasCudaGraphs();
}

/** Throw where CUDA cannot be used, and say why. */
function requireCuda(where: string): void {
  const why = native.whyNoCuda();
  if (why !== "") throw expected(where, "a CUDA device", `none: ${why}`);
}

/**
 * Check that a device can be used, before any work is given to it.
 *
 * @param where - who asks, for the message.
 * @throws RangeError that says what the loaded LibTorch and the machine have.
 */
export function requireDevice(device: Device, where = "device"): void {
  if (device === "cpu" || device === "meta") return;
  if (!/^cuda(:\d+)?$/.test(device)) throw expected(where, '"cpu", "cuda" or "cuda:0"', device);
  requireCuda(where);
  const index = device === "cuda" ? 0 : Number(device.slice("cuda:".length));
  const count = native.cudaDeviceCount();
  if (!(index < count)) throw expected(where, `one of ${count} CUDA devices`, device, "Check nvidia-smi");
}

/**
 * A CPU tensor's values on a device; the tensor itself if it is there already. A copy to CUDA is asynchronous: it reads pinned
 * memory, so that the CPU does not wait for it, and kernels submitted later see its values.
 */
export function toDevice(tensor: Tensor, device: Device): Tensor {
  if (!device.startsWith("cuda") || tensor.device !== "cpu") return tensor.to({ device });
  requireDevice(device);
  return tidy(() => callTensor<Tensor>("aten::pin_memory", [tensor]).to({ device, nonBlocking: true }));
}

/** Wait until the device has finished all submitted work. */
export function synchronize(device: Device): void {
  requireDevice(device, "synchronize");
  native.synchronize(device);
}

/**
 * Let matrix products and convolutions of float32 on CUDA round their inputs to TF32, which has 10 bits of mantissa and is
 * several times as fast, or forbid it. LibTorch's own default allows it in convolutions alone. No effect on other devices.
 *
 * @returns sets what was set before when it is disposed of.
 */
export function allowTf32(on: boolean): Disposable {
  const before = native.tf32(on ? 3 : 0);
  return { [Symbol.dispose]: () => void native.tf32(before) };
}

/** CUDA memory in bytes: by tensors, and reserved from the driver. */
export interface CudaMemory {
  allocated: number;
  peakAllocated: number;
  reserved: number;
  peakReserved: number;
}

/** Statistics of the caching allocator; `resetPeak` starts the peaks again. */
export function cudaMemory(device: Device = "cuda", options: { resetPeak?: boolean } = {}): CudaMemory {
  requireCuda("cudaMemory");
  native.cudaMemory(device, options.resetPeak ?? false);
  const [allocated = 0, peakAllocated = 0, reserved = 0, peakReserved = 0] = values;
  return { allocated, peakAllocated, reserved, peakReserved };
}

/** Give cached memory that no tensor uses back to the driver. */
export function cudaEmptyCache(): void {
  requireCuda("cudaEmptyCache");
  native.cudaEmptyCache();
}

/** A captured sequence of kernels that runs again with one launch. */
export class CudaGraph {
  #handle: number;

  /** @internal */
  constructor(handle: number) {
    this.#handle = handle;
  }

  /** Run the captured kernels again on the current stream, over the same memory. */
  replay(): void {
    native.graphReplay(this.#handle);
  }

  dispose(): void {
    if (this.#handle !== 0) native.graphRelease(this.#handle);
    this.#handle = 0;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/**
 * Record what `fn` launches on the current CUDA device, for {@link CudaGraph.replay}.
 *
 * `fn` runs once, recorded and not computed: read inputs from tensors that live on, write results with `copy_`
 * into tensors that live on, and read no value. Run it a few times before, so that libraries set themselves up.
 * When `fn` throws, the capture ends, work goes to the stream that it went to before, and nothing is kept.
 */
export function captureGraph(fn: () => void): CudaGraph {
  requireCuda("captureGraph");
  const handle = native.graphBegin();
  try {
    tidy(fn);
  } catch (error) {
    native.graphAbort(handle);
    throw error;
  }
  native.graphEnd(handle);
  return new CudaGraph(handle);
}
