/**
 * Freeing of tensors. `tidy` frees tensors that were made inside it, except those given to `keep`. A tensor that was made
 * outside any `tidy` is freed by `dispose()`, or when JavaScript collects the object.
 *
 * LibTorch counts references itself: views, autograd graphs and modules stay valid when a handle closes.
 */
import { native, SLOTS, values } from "./binding.js";
import { expectedType } from "./errors.js";

/** What a scope can own: a tensor's handle, 0 once it is closed. */
export interface Owned {
  /** @internal */
  handle: number;
  /** @internal Whether the collector closes it: set outside scopes and by {@link keep}. */
  isKept: boolean;
  /** @internal Whether the collector knows of it already. */
  isRegistered: boolean;
}

const collected = new FinalizationRegistry<number>((handle) => {
  values[0] = handle;
  native.release(1);
});

let current: Owned[] | undefined;

/** @internal Give a new handle its owner: the innermost scope, or the collector. */
export function adopt(owned: Owned): void {
  if (current === undefined) release(owned);
  else current.push(owned);
}

// Registering costs as much as a small operator, and nothing is collected before the current work is done: those
// closed by then are never registered.
const YOUNG = 1024;
let young: Owned[] = [];

function release(owned: Owned): void {
  owned.isKept = true;
  const count = young.push(owned);
  if (count === 1) void Promise.resolve().then(register);
  else if (count === YOUNG) register();
}

function register(): void {
  for (const owned of young) {
    if (owned.handle === 0 || owned.isRegistered) continue;
    owned.isRegistered = true;
    collected.register(owned, owned.handle, owned);
  }
  young = [];
}

/** @internal Close one handle now; closing twice is no error. */
export function close(owned: Owned): void {
  if (owned.handle === 0) return;
  if (owned.isRegistered) collected.unregister(owned);
  values[0] = owned.handle;
  owned.handle = 0;
  native.release(1);
}

/** @internal Hold another handle in place of the present one, which closes. */
export function exchange(owned: Owned, handle: number): void {
  close(owned);
  owned.handle = handle;
  owned.isRegistered = false;
  if (owned.isKept) release(owned);
}

/** @internal Forget a handle that native code takes over and closes. */
export function surrender(owned: Owned): void {
  if (owned.isRegistered) collected.unregister(owned);
  owned.handle = 0;
}

/**
 * Run `fn` and free every tensor made inside, except those it returns (found in arrays, plain objects, Maps and
 * Sets) and those given to {@link keep}. Freed too when `fn` throws.
 *
 * @throws TypeError when `fn` returns a Promise: the scope would close before the work is done.
 */
export function tidy<T>(fn: () => T): T {
  return tidyInto(adopt, fn);
}

/** @internal Like {@link tidy}, with `receive` for what was made inside and is returned. */
export function tidyInto<T>(receive: (owned: Owned) => void, fn: () => T): T {
  const outer = current;
  const made: Owned[] = [];
  current = made;
  const escaped = new Set<Owned>();
  try {
    const result = fn();
    collect(result, escaped);
    return result;
  } finally {
    current = outer;
    closeAll(made, escaped, receive);
  }
}

/**
 * @internal Run a user's `fn` and `read` its result. Tensors that `fn` made are freed after `read`; where it returns a
 * promise, those made before its first await, once it settles. Later ones are the collector's.
 */
export async function tidyAwait<T, R>(fn: () => T | Promise<T>, read: (value: T) => R): Promise<R> {
  const outer = current;
  const made: Owned[] = [];
  current = made;
  try {
    let result: T | Promise<T>;
    try {
      result = fn();
    } finally {
      current = outer;
    }
    const value = await result;
    return tidy(() => read(value));
  } finally {
    closeAll(made, new Set(), adopt);
  }
}

function closeAll(made: Owned[], escaped: Set<Owned>, receive: (owned: Owned) => void): void {
  let count = 0;
  for (const owned of made) {
    if (owned.handle === 0 || owned.isKept) continue;
    if (escaped.has(owned)) {
      receive(owned);
      continue;
    }
    values[count++] = owned.handle;
    owned.handle = 0;
    if (count === SLOTS) {
      native.release(count);
      count = 0;
    }
  }
  if (count > 0) native.release(count);
}

function collect(value: unknown, into: Set<Owned>): void {
  if (value === null || typeof value !== "object") return;
  if ("handle" in value && "isKept" in value) {
    into.add(value as Owned);
  } else if (Array.isArray(value) || value instanceof Set) {
    for (const item of value) collect(item, into);
  } else if (value instanceof Map) {
    for (const item of value.values()) collect(item, into);
  } else if (value instanceof Promise || typeof (value as { then?: unknown }).then === "function") {
    const what = "a function that returns its result";
    throw expectedType("tidy", what, "a Promise", "Await outside and tidy the parts");
  } else {
    const prototype = Object.getPrototypeOf(value);
    if (prototype !== Object.prototype && prototype !== null) return;
    for (const item of Object.values(value)) collect(item, into);
  }
}

/**
 * Exempt a tensor from every `tidy`: it lives until `dispose()` or until JavaScript collects the object.
 *
 * @returns the same tensor.
 */
export function keep<T extends Owned>(tensor: T): T {
  if (!tensor.isKept) release(tensor);
  return tensor;
}
