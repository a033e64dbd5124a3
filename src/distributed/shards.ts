/**
 * Division of parameters among the processes of a run, so that each keeps the optimizer's state of its own ones alone: stage
 * 1 of Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models". Gradients are still
 * added up whole, so that clipping and the step give exactly what they give without.
 */
import { cat, type Device, type DType, empty, noGrad, type Tensor, tidy } from "../torch/index.js";
import { broadcast, bucketsOf, gatherValues } from "./collectives.js";
import { rank, size } from "./group.js";

/** The process that steps each parameter: the largest first, each to the process that has the least. */
export function ownersOf(parameters: readonly Tensor[]): number[] {
  const load = Array<number>(size()).fill(0);
  const owners = Array<number>(parameters.length).fill(0);
  const sizes = parameters.map(({ numel }) => numel);
  const bySize = [...sizes.keys()].sort((a, b) => (sizes[b] as number) - (sizes[a] as number) || a - b);
  for (const i of bySize) {
    const least = load.indexOf(Math.min(...load));
    owners[i] = least;
    load[least] = (load[least] as number) + (sizes[i] as number);
  }
  return owners;
}

/** Give every process the values of each parameter that its owner has. */
export function shareOwned(parameters: readonly Tensor[], owners: readonly number[]): void {
  if (size() === 1) return;
  for (let owner = 0; owner < size(); owner++) {
    for (const bucket of bucketsOf(parameters.filter((_, i) => owners[i] === owner))) {
      noGrad(() => tidy(() => sendBucket(bucket, owner)));
    }
  }
}

function sendBucket(bucket: readonly Tensor[], owner: number): void {
  const sizes = bucket.map(({ numel }) => numel);
  const { dtype, device } = bucket[0] as Tensor;
  const isOwn = rank() === owner;
  const total = sizes.reduce((sum, count) => sum + count, 0);
  const flat = isOwn
    ? cat(bucket.map((parameter) => parameter.flatten()))
    : empty([total], { dtype, device: device as Device });
  broadcast([flat], owner);
  if (isOwn) return;
  let from = 0;
  for (const [i, parameter] of bucket.entries()) {
    const count = sizes[i] as number;
    parameter.copy_(flat.narrow(0, from, count).view(...parameter.shape));
    from += count;
  }
}

/**
 * The tensors of all processes under their names, on the first process and on the CPU, for a checkpoint; nothing on the
 * others. Every name is one process's.
 */
export function gatherOwned(own: Readonly<Record<string, Tensor>>): Record<string, Tensor> {
  if (size() === 1) return own;
  const about = gatherValues(
    Object.entries(own).map(([name, { shape, dtype, device }]) => ({
      name,
      shape: [...shape],
      dtype,
      device,
    })),
  );
  const all: Record<string, Tensor> = {};
  for (const [owner, list] of about.entries()) {
    for (const { name, shape, dtype, device } of list) {
      const whole = tidy(() => {
        const here = own[name] ?? empty(shape, { dtype: dtype as DType, device: deviceLike(own, device) });
        const sent = here.contiguous();
        broadcast([sent], owner);
        return rank() === 0 ? sent.cpu() : null;
      });
      if (whole !== null) all[name] = whole;
    }
  }
  return all;
}

/** This process's device for another's tensor: each has its own GPU. */
function deviceLike(own: Readonly<Record<string, Tensor>>, device: string): Device {
  if (!device.startsWith("cuda")) return device as Device;
  return (Object.values(own).find((tensor) => tensor.device.startsWith("cuda"))?.device ?? "cuda") as Device;
}
