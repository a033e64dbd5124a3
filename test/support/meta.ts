/** Networks on LibTorch's meta device: shapes without values, on which a tensor made on the CPU by mistake raises. */
import type { Module } from "../../src/nn/index.js";
import { Tensor } from "../../src/torch/index.js";

/** The module itself, its parameters and buffers moved to meta: their values are gone. */
export function onMeta<M extends Module>(module: M): M {
  return module.to({ device: "meta" });
}

/** A copy of plain data, arrays and tensors with every tensor on meta. */
export function toMeta<T>(value: T): T {
  if (value instanceof Tensor) return value.to({ device: "meta" }) as T;
  if (Array.isArray(value)) return value.map(toMeta) as T;
  if (value === null || typeof value !== "object" || Object.getPrototypeOf(value) !== Object.prototype)
    return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, toMeta(item)])) as T;
}
