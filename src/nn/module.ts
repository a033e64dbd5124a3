/**
 * Base class of networks. It finds parameters, buffers and modules among the fields of an object, also in arrays; the names
 * of the fields are the keys of the state dict.
 */
import {
  call,
  type Device,
  DTYPES,
  type DType,
  expected,
  expectedType,
  keep,
  type MemoryFormat,
  noGrad,
  Tensor,
  tidy,
  withDefaults,
} from "../torch/index.js";

/** Tensors by their state-dict keys, in the order of the fields. */
export type StateDict = Record<string, Tensor>;

/** A tensor that is still in a file: its shape is known, and `read` gives a new tensor on the CPU. */
export interface Readable {
  readonly shape: readonly number[];
  /** PyTorch's name, where it is known before reading. */
  readonly dtype?: string;
  read(): Tensor;
}

/** A tensor that is trained: a leaf that requires a gradient. It lives until its module is disposed of. */
export class Parameter extends Tensor {
  /** @param data - initial values, whose memory the parameter shares: nothing else may write it. */
  constructor(data: Tensor, options: { requiresGrad?: boolean } = {}) {
    super((call("aten::detach", [data]) as Tensor).take());
    keep(this);
    this.requiresGrad_(options.requiresGrad ?? true);
  }
}

/** A tensor of a module that is not trained. */
export class Buffer extends Tensor {
  /** Whether the state dict holds it; one that is not is computed anew when the module is built. */
  readonly isPersistent: boolean;

  /** @param data - initial values, whose memory the buffer shares. */
  constructor(data: Tensor, options: { persistent?: boolean } = {}) {
    super((call("aten::detach", [data]) as Tensor).take());
    keep(this);
    this.isPersistent = options.persistent ?? true;
  }
}

/** Keys that were missing in a load, and keys that the module does not have. */
export interface LoadReport {
  missing: string[];
  unexpected: string[];
}

type Part = Module | Parameter | Buffer;

const isPart = (value: unknown): value is Part =>
  value instanceof Module || value instanceof Parameter || value instanceof Buffer;

export abstract class Module {
  /** Whether dropout and batch statistics behave as in training; see {@link train} and {@link eval}. */
  training = true;

  *#parts(): Generator<[string, Part]> {
    for (const [name, value] of Object.entries(this)) yield* partsOf(this, name, value);
  }

  /** Direct children by field name: `"conv_in"`, or `"layers.0"` for an array's element. */
  *namedChildren(): Generator<[string, Module]> {
    for (const [name, part] of this.#parts()) if (part instanceof Module) yield [name, part];
  }

  /** This module as `""` and all below it by path; a shared module is listed once, under its first path. */
  *namedModules(prefix = "", seen: Set<Module> = new Set()): Generator<[string, Module]> {
    if (seen.has(this)) return;
    seen.add(this);
    yield [prefix, this];
    for (const [name, child] of this.namedChildren()) {
      yield* child.namedModules(prefix === "" ? name : `${prefix}.${name}`, seen);
    }
  }

  /** This module and all below it, each once. */
  modules(): Module[] {
    return [...this.namedModules()].map(([, module]) => module);
  }

  /** Every tensor under every key, own ones before the children's. */
  *#named(prefix = "", above: readonly Module[] = []): Generator<[string, Parameter | Buffer]> {
    if (above.includes(this)) {
      const path = `${above[0]?.constructor.name}.${prefix.slice(0, -1)}`;
      throw expected(path, "a module that does not contain itself", this.constructor.name, HIDE);
    }
    for (const [name, part] of this.#parts()) if (!(part instanceof Module)) yield [prefix + name, part];
    for (const [name, child] of this.namedChildren()) {
      yield* child.#named(`${prefix}${name}.`, [...above, this]);
    }
  }

  /** Each tensor once, under its first key. */
  #unique(): [string, Parameter | Buffer][] {
    const seen = new Set<Tensor>();
    return [...this.#named()].filter(([, tensor]) => seen.size < seen.add(tensor).size);
  }

  /** Parameters with their state-dict keys; one that two modules share comes once, under its first key. */
  namedParameters(): [string, Parameter][] {
    return this.#unique().filter((named): named is [string, Parameter] => named[1] instanceof Parameter);
  }

  parameters(): Parameter[] {
    return this.namedParameters().map(([, parameter]) => parameter);
  }

  /** Buffers, persistent or not, each once. */
  buffers(): Buffer[] {
    return this.#unique().flatMap(([, tensor]) => (tensor instanceof Buffer ? [tensor] : []));
  }

  /** Parameters and persistent buffers themselves, not copies; a shared one stands under each of its keys. */
  stateDict(): StateDict {
    const state: StateDict = {};
    for (const [name, tensor] of this.#named()) {
      if (tensor instanceof Parameter || tensor.isPersistent) state[name] = tensor;
    }
    return state;
  }

  /**
   * Copy values into parameters and persistent buffers, converting dtype and device. Integer and complex tensors are refused as
   * floating-point weights.
   *
   * Nothing is copied unless everything fits. Values that are still in a file are read one at a time.
   *
   * @param options.strict - whether missing and unexpected keys are an error (default), or only reported.
   * @throws Error that lists keys whose shapes differ, missing keys and unexpected keys. Shapes that differ,
   *   and a state dict that has none of the keys, are errors even when `strict` is off.
   */
  loadStateDict(
    state: Readonly<Record<string, Tensor | Readable>>,
    options: { strict?: boolean } = {},
  ): LoadReport {
    const where = `${this.constructor.name}.loadStateDict`;
    const { strict } = withDefaults(where, options, { strict: true });
    const own = Object.entries(this.stateDict());
    const given = new Map(Object.entries(state));
    const differing: string[] = [];
    const missing: string[] = [];
    for (const [name, tensor] of own) {
      const { shape } = tensor;
      const value = given.get(name);
      if (value === undefined) missing.push(name);
      else if (!("shape" in value) || (value instanceof Tensor && value.isDisposed)) {
        throw expectedType(`${where}: ${name}`, "a live tensor", value);
      } else if (value.shape.join() !== shape.join()) {
        differing.push(`${name} ([${shape.join(", ")}] here, [${value.shape.join(", ")}] there)`);
      } else if (value.dtype !== undefined) {
        checkKind(`${where}: ${name}`, tensor.dtype, value.dtype);
      }
    }
    const known = new Set(own.map(([name]) => name));
    const unexpected = [...given.keys()].filter((name) => !known.has(name));
    const problems = some("another shape", differing);
    const hasNone = missing.length === own.length && own.length > 0;
    if (hasNone || strict) {
      problems.push(...some("missing", missing), ...some("unexpected", unexpected));
    }
    if (problems.length > 0) throw new Error(`${where}: ${problems.join("; ")}.`);
    noGrad(() => {
      for (const [name, tensor] of own) {
        const value = given.get(name);
        if (value === undefined) continue;
        tidy(() => {
          const given = value instanceof Tensor ? value : value.read();
          checkKind(`${where}: ${name}`, tensor.dtype, given.dtype);
          tensor.copy_(given);
        });
      }
    });
    return { missing, unexpected };
  }

  /**
   * Change floating-point parameters and buffers to a dtype, all of them to a device, and the layout of those
   * of four dimensions. The objects stay, so that an optimizer goes on with them.
   */
  to(options: { dtype?: DType; device?: Device; memoryFormat?: MemoryFormat }): this {
    const { dtype, device, memoryFormat } = withDefaults("Module.to", options, {
      dtype: undefined,
      device: undefined,
      memoryFormat: undefined,
    });
    if (dtype !== undefined && !DTYPES[dtype].isFloat) {
      throw expected("Module.to", "a floating-point dtype", dtype);
    }
    for (const [, tensor] of this.#unique()) {
      const target = {
        ...(dtype !== undefined && DTYPES[tensor.dtype].isFloat ? { dtype } : {}),
        ...(device !== undefined ? { device } : {}),
        ...(memoryFormat !== undefined && tensor.ndim === 4 ? { memoryFormat } : {}),
      };
      noGrad(() =>
        tidy(() => {
          const { grad, requiresGrad } = tensor;
          const moved = tensor.to(target);
          // LibTorch gives a tensor other data, but none of meta in place of values.
          if (moved.device === "meta" && tensor.device !== "meta") {
            tensor.become(call("aten::detach", [moved]) as Tensor);
            tensor.requiresGrad_(requiresGrad);
          } else call("aten::set_data", [tensor, moved]);
          if (grad !== null) tensor.grad = grad.to(target);
        }),
      );
    }
    return this;
  }

  /** Training behaviour on, or off, for this module and all below it. */
  train(on = true): this {
    for (const module of this.modules()) module.training = on;
    return this;
  }

  eval(): this {
    return this.train(false);
  }

  /** Make every parameter trained, or frozen. */
  requiresGrad_(on = true): this {
    for (const parameter of this.parameters()) parameter.requiresGrad_(on);
    return this;
  }

  /** Drop the gradients. */
  zeroGrad(): void {
    for (const parameter of this.parameters()) parameter.grad = null;
  }

  /** Free parameters and buffers; the module cannot be used afterwards. */
  dispose(): void {
    for (const [, tensor] of this.#unique()) tensor.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Integers are not valid weights, and complex numbers would lose their imaginary part. */
function checkKind(where: string, here: DType, there: string): void {
  if (!DTYPES[here].isFloat || there.includes("float")) return;
  throw expected(where, `floating-point numbers, as ${here}`, there, "Convert them where they were written");
}

const HIDE = "Hold what is no part of the network in a #private field";

function* partsOf(owner: Module, name: string, value: unknown): Generator<[string, Part]> {
  if (typeof value !== "object" || value === null) return;
  if (isPart(value)) {
    yield [name, value];
  } else if (Array.isArray(value)) {
    for (const [i, item] of value.entries()) yield* partsOf(owner, `${name}.${i}`, item);
  } else if (itemsOf(value).some((item) => (Array.isArray(item) ? item.some(isPart) : isPart(item)))) {
    // Otherwise it would silently not be trained, saved or moved.
    const what = "parameters, buffers and modules in fields and arrays alone";
    const kind = value.constructor === Object ? "a plain object" : `a ${value.constructor.name}`;
    throw expected(`${owner.constructor.name}.${name}`, what, `${kind} that holds one`, HIDE);
  }
}

/** What a plain object, a Map or a Set holds; other classes' fields are their own. */
function itemsOf(value: object): unknown[] {
  if (value instanceof Map || value instanceof Set) return [...value.values()];
  const prototype = Object.getPrototypeOf(value);
  return prototype === Object.prototype || prototype === null ? Object.values(value) : [];
}

function some(what: string, names: readonly string[]): string[] {
  if (names.length === 0) return [];
  const more = names.length > 5 ? ` (+${names.length - 5} more)` : "";
  return [`${what} ${names.slice(0, 5).join(", ")}${more}`];
}

/** A layer, or a function without weights, which takes a place in the numbering as it does in PyTorch. */
export type Step = (Module & { forward(x: Tensor): Tensor }) | ((x: Tensor) => Tensor);

/** Steps one after another, with state-dict keys `0.weight`, `1.weight`, ... */
export class Sequential extends Module {
  readonly #steps: readonly Step[];

  constructor(...steps: Step[]) {
    super();
    this.#steps = steps;
  }

  get steps(): readonly Step[] {
    return this.#steps;
  }

  override *namedChildren(): Generator<[string, Module]> {
    for (const [i, step] of this.#steps.entries()) if (step instanceof Module) yield [String(i), step];
    yield* super.namedChildren();
  }

  forward(x: Tensor): Tensor {
    let y = x;
    for (const step of this.#steps) y = step instanceof Module ? step.forward(y) : step(y);
    return y;
  }
}

/** @throws TypeError unless the value is a {@link Module}. */
export function requireModule(where: string, value: unknown): void {
  if (!(value instanceof Module)) throw expectedType(where, "a Module, such as a policy", value);
}
