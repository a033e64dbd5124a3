/**
 * A GPU that is not there, so that whole commands can run with `device: "cuda"` where there is none. Its tensors lie in the
 * CPU's memory and are marked: they say `cuda:0`, and what a GPU refuses throws, such as an operator over tensors of both
 * devices, a generator of the wrong one, or bytes read without a copy. Values are those of the CPU. It cannot show what a
 * kernel of CUDA computes or lacks. The addon is as one that was built without CUDA's headers: no statistics, no graphs.
 */
import { ints, native, TAG, tags, values } from "../../src/torch/binding.js";

/** What crossed between the devices: errors, whose messages name operators and whose stacks say where they were called. */
export interface FakeGpu extends Disposable {
  /** Waits of the CPU for values of the GPU. */
  readonly reads: Error[];
  /** Copies from the CPU that the CPU waits for: not from pinned memory, or not asynchronous. */
  readonly blockingCopies: Error[];
  /** Copies from the CPU that it does not wait for. */
  readonly asyncCopies: Error[];
}

/** Copying between devices is what these are for. */
const COPIES = /^aten::(to\.dtype_layout|copy_)$/;
/** Operators whose operands may include a number on the CPU: those with one kernel for each element. */
const TAKES_NUMBERS =
  /^aten::(add|sub|rsub|mul|div|pow|remainder|fmod|floor_divide|atan2|eq|ne|lt|le|gt|ge|maximum|minimum|where|clamp|clamp_min|clamp_max|logical_\w+?|bitwise_\w+?|masked_fill|fill|copy|index_put)_?(\.|$)/;
/** Indices may lie on the CPU where the indexed tensor does not. */
const INDEXED = /^aten::(index|index_put_?)(\.|$)/;
/** Operators that must know values, or how many there are. */
const READS =
  /^aten::(item|_local_scalar_dense|equal|is_nonzero|nonzero|masked_select|unique\w*|_unique2|bincount)(\.|$)/;
/** Matrix products, which CUDA lacks for integers. */
const PRODUCTS = /^aten::(matmul|mm|bmm|addmm|baddbmm|linear|mv|dot|einsum)(\.|$)/;
const FLOATING = new Set([5, 6, 7, 9, 10, 15]);

/** Install the GPU until it is disposed of. */
export function fakeGpu(): FakeGpu {
  const real = { ...native };
  const there = new Set<number>();
  const pinned = new Set<number>();
  const generators = new Map<number, boolean>();
  const schemas = new Map<number, string>();
  const cpu = native.intern("cpu");
  const gpu = { reads: [] as Error[], blockingCopies: [] as Error[], asyncCopies: [] as Error[] };
  const isCuda = (device: string): boolean => /^cuda(:0)?$/.test(device);
  const asCpu = (device: string): string => (isCuda(device) ? "cpu" : device);
  const mark = (handle: number, isThere: boolean): void =>
    void (isThere ? there.add(handle) : there.delete(handle));
  const nameOf = (operator: number): string => {
    let schema = schemas.get(operator);
    if (schema === undefined) {
      schema = real.operatorSchema(operator);
      schemas.set(operator, schema);
    }
    return schema.slice(0, schema.indexOf("("));
  };
  /** Look at tensors without losing the frame. */
  const keepingFrame = <T>(count: number, look: () => T): T => {
    const [savedTags, saved] = [tags.slice(0, count), ints.slice(0, Math.max(count, 8))];
    const found = look();
    tags.set(savedTags);
    ints.set(saved);
    return found;
  };

  /** Refuse what a GPU does; gives the device of the results. */
  function check(name: string, count: number): boolean {
    const tensors: [slot: number, handle: number][] = [];
    let asked: boolean | undefined;
    let generator: boolean | undefined;
    for (let slot = 0; slot < count; slot++) {
      const value = values[slot] as number;
      if (tags[slot] === TAG.tensor) tensors.push([slot, value]);
      else if (tags[slot] === TAG.generator) generator = generators.get(value) ?? false;
      else if (tags[slot] === TAG.string) {
        const text = real.interned(value);
        if (isCuda(text)) values[slot] = cpu;
        if (isCuda(text) || text === "cpu") asked = isCuda(text);
      }
    }
    const isThere = tensors.map(([, handle]) => there.has(handle));
    const result = asked ?? isThere.includes(true);
    const refuse = (what: string): never => {
      throw new Error(`${name}: ${what}, as a GPU would say.`);
    };
    if (generator !== undefined && generator !== result)
      refuse("a generator of another device than the result's");
    if (!result && !isThere.includes(true)) return false;
    if (COPIES.test(name)) return result;
    if (/mkldnn/.test(name)) refuse("an operator of the CPU alone");
    if (READS.test(name)) gpu.reads.push(new Error(name));
    if (isThere.includes(true))
      for (const [i, [slot, handle]] of tensors.entries()) {
        if (isThere[i] || (slot > 0 && INDEXED.test(name))) continue;
        const rank = keepingFrame(count, () => real.shape(handle));
        const isNumber =
          rank === 0 && TAKES_NUMBERS.test(name) && !(slot === 0 && /_$/.test(name.split(".")[0] as string));
        if (!isNumber) refuse(`a tensor of the CPU beside one of the GPU, in slot ${slot}`);
      }
    if (PRODUCTS.test(name)) {
      const dtypes = keepingFrame(count, () =>
        tensors.map(([, handle]) => {
          real.info(handle);
          return values[0] as number;
        }),
      );
      if (!dtypes.every((dtype) => FLOATING.has(dtype)))
        refuse("a product of integers, which CUDA has no kernel for");
    }
    return result;
  }

  /** Copies: a change of device makes a new tensor, and waits unless it goes up from pinned memory. */
  function noteCopy(name: string, isUp: boolean): void {
    const [target, source] = name === "aten::copy_" ? [0, 1] : [undefined, 0];
    const from = values[source] as number;
    const to = target === undefined ? isUp : there.has(values[target] as number);
    if (there.has(from) === to) return;
    if (target === undefined) {
      tags[6] = TAG.bool; // copy
      values[6] = 1;
    }
    const asynchronous =
      tags[target === undefined ? 5 : 2] === TAG.bool && values[target === undefined ? 5 : 2] === 1;
    const list = to ? (asynchronous && pinned.has(from) ? gpu.asyncCopies : gpu.blockingCopies) : gpu.reads;
    list.push(new Error(name));
  }

  /** Mark the tensors among the results that stand in the frame at `slot`; gives the next slot. */
  function markResults(slot: number, isThere: boolean): number {
    const value = values[slot] as number;
    let next = slot + 1;
    if (tags[slot] === TAG.tensor) mark(value, isThere);
    if (tags[slot] === TAG.list) for (let i = 0; i < value; i++) next = markResults(next, isThere);
    return next;
  }

  const marksOf = (from: number, count: number): boolean[] =>
    Array.from(
      { length: count },
      (_, i) => tags[from + i] === TAG.tensor && there.has(values[from + i] as number),
    );
  const markAll = (from: number, marks: readonly boolean[]): void => {
    for (const [i, isThere] of marks.entries())
      if (tags[from + i] === TAG.tensor) mark(values[from + i] as number, isThere);
  };
  const mustBeOnCpu = (what: string, handle: number): void => {
    if (there.has(handle)) throw new Error(`${what}: a tensor of the GPU, whose bytes the CPU cannot reach.`);
  };

  Object.assign(native, {
    call(operator: number, count: number): number {
      const name = nameOf(operator);
      if (name === "aten::pin_memory") {
        const handle = real.call(real.findOperator("aten::clone", ""), 1);
        pinned.add(handle);
        return handle;
      }
      if (name === "aten::set_data") mark(values[0] as number, there.has(values[1] as number));
      const isThere = check(name, count);
      if (COPIES.test(name)) noteCopy(name, isThere);
      const handle = real.call(operator, count);
      if (handle !== 0) mark(handle, isThere);
      else markResults(0, isThere);
      return handle;
    },
    release(count: number): void {
      for (let i = 0; i < count; i++) {
        there.delete(values[i] as number);
        pinned.delete(values[i] as number);
      }
      real.release(count);
    },
    info(handle: number): void {
      real.info(handle);
      if (there.has(handle)) values[1] = 0;
    },
    writeBytes(handle: number, array: ArrayBufferView): void {
      mustBeOnCpu("writeBytes", handle);
      real.writeBytes(handle, array);
    },
    readBytes(handle: number, array: ArrayBufferView): void {
      mustBeOnCpu("readBytes", handle);
      real.readBytes(handle, array);
    },
    getGrad(handle: number): number {
      const grad = real.getGrad(handle);
      if (grad !== 0) mark(grad, there.has(handle));
      return grad;
    },
    setGrad(handle: number, grad: number): void {
      if (grad !== 0 && there.has(grad) !== there.has(handle))
        throw new Error("setGrad: a gradient of another device.");
      real.setGrad(handle, grad);
    },
    gradients(
      roots: number,
      grads: number,
      inputs: number,
      retain: boolean,
      create: boolean,
      unused: boolean,
    ): void {
      const marks = marksOf(roots + grads, inputs);
      real.gradients(roots, grads, inputs, retain, create, unused);
      markAll(0, marks);
    },
    attachBackward(
      inputs: number,
      outputs: number,
      saved: number,
      callback: (gradients: number, saved: number, isForAll: boolean) => void,
    ): void {
      const [ofInputs, ofOutputs] = [marksOf(0, inputs), marksOf(inputs, outputs)];
      const ofSaved = marksOf(inputs + outputs, saved);
      real.attachBackward(inputs, outputs, saved, (gradientCount, savedCount, isForAll) => {
        markAll(0, [...ofOutputs.slice(0, gradientCount), ...ofSaved.slice(0, savedCount)]);
        callback(gradientCount, savedCount, isForAll);
        for (const [i, isThere] of marksOf(0, inputs).entries())
          if (tags[i] !== TAG.none && isThere !== ofInputs[i])
            throw new Error(`customFunction: gradient ${i} of another device than the input.`);
      });
      markAll(0, ofOutputs);
    },
    newGenerator(device: string): number {
      const handle = real.newGenerator(asCpu(device));
      generators.set(handle, isCuda(device));
      return handle;
    },
    defaultGenerator(device: string): number {
      const handle = real.defaultGenerator(asCpu(device));
      generators.set(handle, isCuda(device));
      return handle;
    },
    releaseGenerator(handle: number): void {
      generators.delete(handle);
      real.releaseGenerator(handle);
    },
    enterAutocast: (device: string, dtype: string): string => real.enterAutocast(asCpu(device), dtype),
    leaveAutocast: (device: string, before: string): void => real.leaveAutocast(asCpu(device), before),
    whyNoCuda: (): string => "",
    cudaDeviceCount: (): number => 1,
    synchronize(): void {},
  } satisfies Partial<typeof native>);
  return {
    ...gpu,
    [Symbol.dispose]: () => void Object.assign(native, real),
  };
}
