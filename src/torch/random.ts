/**
 * Reproducible random numbers: generators, their states, and streams that depend only on a seed, a name and a step, not on
 * other draws.
 */
import { createHash } from "node:crypto";

import { ints, native } from "./binding.js";
import { GeneratorHandle } from "./call.js";
import { requireDevice } from "./device.js";
import { expected } from "./errors.js";
import { type Device, Tensor } from "./tensor.js";

const collected = new FinalizationRegistry<number>((handle) => native.releaseGenerator(handle));

/** A source of random numbers on one device, to be disposed of: `using generator = new Generator(7)`. */
export class Generator extends GeneratorHandle {
  /** Operators accept it only for tensors on this device. */
  readonly device: Device;

  /** @param seed - an integer of up to 64 bits; LibTorch's CPU generator uses the lower 32. */
  constructor(seed: number | bigint, device: Device = "cpu") {
    const bits = seedBits("Generator", seed);
    requireDevice(device, "Generator");
    super(native.newGenerator(device));
    this.device = device;
    collected.register(this, this.handle, this);
    seedHandle(this.handle, bits);
  }

  /** Start again from a seed. */
  seed(seed: number | bigint): void {
    seedHandle(this.live, seedBits("Generator.seed", seed));
  }

  /** Everything that decides the numbers to come: uint8, on the CPU, of the generator's own layout. */
  state(): Tensor {
    return new Tensor(native.generatorState(this.live));
  }

  /** Continue from a {@link Generator.state}. */
  setState(state: Tensor): void {
    native.setGeneratorState(this.live, state.live);
  }

  dispose(): void {
    if (this.handle === 0) return;
    collected.unregister(this);
    native.releaseGenerator(this.handle);
    this.handle = 0;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** The 64 bits of a seed; a negative one is taken modulo 2^64, as PyTorch does. */
function seedBits(where: string, seed: number | bigint): bigint {
  if (typeof seed === "number" && !Number.isSafeInteger(seed)) {
    throw expected(where, "an integer within 2^53, or a bigint, as the seed", seed);
  }
  const bits = BigInt.asIntN(64, BigInt(seed));
  if (bits !== BigInt(seed) && BigInt.asUintN(64, bits) !== BigInt(seed)) {
    throw expected(where, "a seed of 64 bits", seed);
  }
  return bits;
}

function seedHandle(handle: number, bits: bigint): void {
  ints[0] = bits;
  native.seedGenerator(handle);
}

function withDefaultGenerator<T>(device: Device, use: (handle: number) => T): T {
  requireDevice(device, "random state");
  const handle = native.defaultGenerator(device);
  try {
    return use(handle);
  } finally {
    native.releaseGenerator(handle);
  }
}

function devices(): Device[] {
  const cuda = Array.from({ length: native.cudaDeviceCount() }, (_, i): Device => `cuda:${i}`);
  return ["cpu", ...cuda];
}

/** Seed the default generator of every device, which operators use where none is given. */
export function manualSeed(seed: number | bigint): void {
  const bits = seedBits("manualSeed", seed);
  for (const device of devices()) withDefaultGenerator(device, (handle) => seedHandle(handle, bits));
}

/** State of every device's default generator, by device. */
export type RandomState = Readonly<Record<string, Tensor>>;

/** Save the default generators. */
export function saveRandomState(): RandomState {
  const state: Record<string, Tensor> = {};
  for (const device of devices()) {
    state[device] = withDefaultGenerator(device, (handle) => new Tensor(native.generatorState(handle)));
  }
  return state;
}

/** Put the default generators back to a saved state. */
export function restoreRandomState(state: RandomState): void {
  for (const [device, tensor] of Object.entries(state)) {
    withDefaultGenerator(device as Device, (handle) => native.setGeneratorState(handle, tensor.live));
  }
}

/**
 * A seed for the stream `name` at `step`: the first 63 bits of SHA-256 over the three.
 *
 * Streams are independent, and a run that resumes at a step needs no saved state.
 */
export function deriveSeed(seed: number | bigint, name: string, step: number | bigint = 0): bigint {
  const digest = createHash("sha256").update(`${seed}/${name}/${step}`).digest();
  return digest.readBigUInt64LE(0) & 0x7fffffffffffffffn;
}

/** A generator for the stream `name` at `step`; see {@link deriveSeed}. */
export function stream(
  seed: number | bigint,
  name: string,
  step: number | bigint = 0,
  device: Device = "cpu",
): Generator {
  return new Generator(deriveSeed(seed, name, step), device);
}
