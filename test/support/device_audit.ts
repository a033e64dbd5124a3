/**
 * Finds code that only another device than the CPU would refuse: while a function runs on the meta device, an operator
 * that is given a tensor of the CPU beside one on meta, or a generator of another device than its tensors, throws.
 * LibTorch itself checks this for some operators alone.
 */
import { ints, native, TAG, tags, values } from "../../src/torch/binding.js";

/** Operators whose purpose is to copy from one device to another. */
const COPIES = /^aten::(copy_|_to_copy|to\.|_copy_from)/;

const META = -2;
const CPU = -1;

/** Run `fn` with every operator's devices checked. Tensors of one number may be anywhere, as on a GPU. */
export function auditDevices<T>(fn: () => T): T {
  const { call, newGenerator } = native;
  const generators = new Map<number, string>();
  native.newGenerator = (device) => {
    const handle = newGenerator(device);
    generators.set(handle, device);
    return handle;
  };
  native.call = (operator, count) => {
    const [savedTags, saved] = [tags.slice(0, count), ints.slice(0, Math.max(count, 8))];
    const frame = values.slice(0, count);
    const isOnCpu: number[] = [];
    let isOnMeta = false;
    let isDrawnOnCpu = false;
    for (let slot = 0; slot < count; slot++) {
      const handle = frame[slot] as number;
      if (savedTags[slot] === TAG.generator) isDrawnOnCpu ||= generators.get(handle) === "cpu";
      if (savedTags[slot] !== TAG.tensor) continue;
      const rank = native.shape(handle);
      native.info(handle);
      if (values[1] === META) isOnMeta = true;
      if (values[1] === CPU && rank > 0) isOnCpu.push(slot);
    }
    tags.set(savedTags);
    ints.set(saved);
    const schema = native.operatorSchema(operator);
    if (isOnMeta && !COPIES.test(schema)) {
      if (isOnCpu.length > 0) throw new Error(`${schema}: a tensor of the CPU, in slot ${isOnCpu.join()}.`);
      if (isDrawnOnCpu) throw new Error(`${schema}: a generator of the CPU.`);
    }
    return call(operator, count);
  };
  try {
    return fn();
  } finally {
    Object.assign(native, { call, newGenerator });
  }
}
