/**
 * Every operator can be described, and every tensor method, creation and network function gives what PyTorch gives.
 * The expressions are those of scripts/golden/tensors.py under the same names.
 */
import assert from "node:assert/strict";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";

import {
  arange,
  cat,
  type DType,
  einsum,
  eye,
  functional as F,
  full,
  fullLike,
  linspace,
  loadSafetensors,
  meshgrid,
  ones,
  onesLike,
  operatorNames,
  schemaOf,
  stack,
  Tensor,
  tensor,
  tidy,
  where,
  zeros,
  zerosLike,
} from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";

const golden = loadSafetensors(
  fileURLToPath(new URL("../../../test/golden/torch/operators.safetensors", import.meta.url)),
).tensors;
after(() => {
  for (const each of Object.values(golden)) each.dispose();
});

const INPUTS = [
  "a",
  "b",
  "c",
  "p",
  "m",
  "n",
  "s",
  "v",
  "scalar",
  "none",
  "special",
  "x1",
  "x2",
  "img",
  "w",
  "wg",
  "wt",
  "six",
  "three",
  "four",
  "pos4",
  "q",
  "kv",
  "val",
  "kv1",
  "logits",
  "maskadd",
  "i",
  "j",
  "k",
  "rows",
  "which",
  "target",
  "sparse",
  "attend",
] as const;
type Inputs = Record<(typeof INPUTS)[number], Tensor>;
type Result = Tensor | Tensor[] | { values: Tensor; indices: Tensor };
type Cases = Record<string, (t: Inputs) => Result>;

/** Run for every float dtype. */
const FLOATS: Cases = {
  abs: ({ a }) => a.abs(),
  neg: ({ a }) => a.neg(),
  exp: ({ a }) => a.exp(),
  expm1: ({ a }) => a.expm1(),
  log: ({ p }) => p.log(),
  log2: ({ p }) => p.log2(),
  log1p: ({ p }) => p.log1p(),
  sqrt: ({ p }) => p.sqrt(),
  rsqrt: ({ p }) => p.rsqrt(),
  square: ({ a }) => a.square(),
  reciprocal: ({ p }) => p.reciprocal(),
  sin: ({ a }) => a.sin(),
  cos: ({ a }) => a.cos(),
  tanh: ({ a }) => a.tanh(),
  sigmoid: ({ a }) => a.sigmoid(),
  floor: ({ a }) => a.floor(),
  ceil: ({ a }) => a.ceil(),
  round: ({ a }) => a.round(),
  trunc: ({ a }) => a.trunc(),
  sign: ({ a }) => a.sign(),
  relu: ({ a }) => a.relu(),
  silu: ({ a }) => a.silu(),
  isnan: ({ special }) => special.isnan(),
  isinf: ({ special }) => special.isinf(),
  isfinite: ({ special }) => special.isfinite(),
  nanToNum: ({ special }) => special.nanToNum(),
  nanToNumGiven: ({ special }) => special.nanToNum(7, 8, 9),
  logicalNot: ({ special }) => special.logicalNot(),
  clamp: ({ a }) => a.clamp(-0.5, 1),
  clampMin: ({ a }) => a.clamp(0.25),
  clampMax: ({ a }) => a.clamp(null, 0.25),
  clampTensor: ({ a, b }) => a.clamp(b, null),
  gelu: ({ a }) => a.gelu(),
  geluTanh: ({ a }) => a.gelu("tanh"),
  leakyRelu: ({ a }) => a.leakyRelu(0.2),
  softplus: ({ a }) => a.softplus(2, 1.5),
  softmax: ({ a }) => a.softmax(-1),
  softmaxFirst: ({ a }) => a.softmax(0),
  softmaxWide: ({ a }) => a.softmax(1, "float64"),
  logSoftmax: ({ a }) => a.logSoftmax(-2),
  tril: ({ s }) => s.tril(-1),
  triu: ({ s }) => s.triu(1),
  add: ({ a, b }) => a.add(b),
  addAlpha: ({ a, b }) => a.add(b, 0.5),
  addNumber: ({ a }) => a.add(2.5),
  addScalarTensor: ({ scalar }) => scalar.add(scalar),
  addEmpty: ({ none, three }) => none.add(three),
  sub: ({ a, b }) => a.sub(b, 2),
  mul: ({ a, b }) => a.mul(b),
  div: ({ a, p }) => a.div(p),
  divFloor: ({ a }) => a.div(0.75, "floor"),
  divTrunc: ({ a }) => a.div(0.75, "trunc"),
  rsub: ({ a }) => a.rsub(3),
  pow: ({ p }) => p.pow(1.5),
  powTensor: ({ p, b }) => p.pow(b),
  remainder: ({ a }) => a.remainder(0.75),
  floorDivide: ({ a }) => a.floorDivide(0.75),
  maximum: ({ a, b }) => a.maximum(b),
  minimum: ({ a, b }) => a.minimum(b),
  eq: ({ a }) => a.eq(a.round()),
  ne: ({ a }) => a.ne(a.round()),
  lt: ({ a, b }) => a.lt(b),
  le: ({ a }) => a.le(0.5),
  gt: ({ a, b }) => a.gt(b),
  ge: ({ a }) => a.ge(0.5),
  logicalAnd: ({ a, k }) => a.logicalAnd(k),
  logicalOr: ({ a, k }) => a.logicalOr(k),
  lerp: ({ a, c }) => a.lerp(c, 0.25),
  lerpTensor: ({ a, c, p }) => a.lerp(c, p),
  addcmul: ({ a, b, c }) => a.addcmul(b, c, 0.5),
  matmul: ({ m, n }) => m.matmul(n),
  matmulVector: ({ m, v }) => m.matmul(v),
  matmulBatch: ({ a, n }) => a.matmul(n),
  bmm: ({ x1, x2 }) => x1.bmm(x2),
  addmm: ({ three, m, n }) => three.unsqueeze(1).addmm(m, n, { beta: 0.5, alpha: 2 }),
  copy_: ({ a, b }) => a.clone().copy_(b),
  fill_: ({ a }) => a.clone().fill_(-1.5),
  zero_: ({ a }) => a.clone().zero_(),
  add_: ({ a, b }) => a.clone().add_(b, 2),
  sub_: ({ a, b }) => a.clone().sub_(b, 2),
  mul_: ({ a, b }) => a.clone().mul_(b),
  div_: ({ a, p }) => a.clone().div_(p),
  addcmul_: ({ a, b, c }) => a.clone().addcmul_(b, c, 2),
  addcdiv_: ({ a, b, p }) => a.clone().addcdiv_(b, p, 2),
  lerp_: ({ a, c }) => a.clone().lerp_(c, 0.75),
  clamp_: ({ a }) => a.clone().clamp_(-0.5, 0.5),
  maskedFill_: ({ a, k }) => a.clone().maskedFill_(k, 9),
  scatter_: ({ a, which, c }) => a.clone().scatter_(2, which.narrow(2, 0, 1), c),
  scatterValue_: ({ a, which }) => a.clone().scatter_(2, which, 5),
  scatterAdd_: ({ a, which, c }) => a.clone().scatterAdd_(2, which, c),
  indexCopy_: ({ a, rows, c }) => a.clone().indexCopy_(1, rows.narrow(0, 0, 2), c.narrow(1, 0, 2)),
  view: ({ a }) => a.view(6, -1),
  reshape: ({ a }) => a.transpose(0, 2).reshape(-1, 2),
  expand: ({ b }) => b.expand(2, -1, 4),
  repeat: ({ b }) => b.repeat(2, 1, 2),
  permute: ({ a }) => a.permute(2, 0, 1),
  transpose: ({ a }) => a.transpose(-1, 0),
  movedim: ({ a }) => a.movedim(0, -1),
  unsqueeze: ({ a }) => a.unsqueeze(-1),
  squeeze: ({ b }) => b.squeeze(-1),
  squeezeSeveral: ({ b }) => b.unsqueeze(0).squeeze([0, 2]),
  flatten: ({ a }) => a.flatten(1),
  flattenAll: ({ a }) => a.flatten(),
  unflatten: ({ a }) => a.unflatten(-1, [2, -1]),
  flip: ({ a }) => a.flip(0, 2),
  roll: ({ a }) => a.roll([1, -1], [0, 2]),
  rollOne: ({ a }) => a.roll(2, -1),
  repeatInterleave: ({ a }) => a.repeatInterleave(2, 1),
  asStrided: ({ a }) => a.asStrided([3, 2], [2, 1], 3),
  select: ({ a }) => a.select(1, -1),
  narrow: ({ a }) => a.narrow(-1, 1, 2),
  slice: ({ a }) => a.slice(2, 1, null, 2),
  sliceNegative: ({ a }) => a.slice(1, -2, -1),
  split: ({ a }) => a.split(3, -1),
  splitSizes: ({ a }) => a.split([1, 3], 2),
  chunk: ({ a }) => a.chunk(2, 1),
  unbind: ({ a }) => a.unbind(1),
  gather: ({ a, which }) => a.gather(2, which),
  scatter: ({ a, which, c }) => a.scatter(2, which.narrow(2, 0, 1), c),
  scatterValue: ({ a, which }) => a.scatter(2, which, 5),
  indexSelect: ({ a, rows }) => a.indexSelect(1, rows),
  index: ({ a, rows }) => a.index(null, rows),
  indexTwo: ({ a, rows }) => a.index(tensor([0, 1, 1], { dtype: "int64" }), rows),
  indexBool: ({ a, k }) => a.index(k),
  maskedFill: ({ a, k }) => a.maskedFill(k, -9),
  maskedSelect: ({ a, k }) => a.maskedSelect(k),
  nonzero: ({ a }) => a.relu().nonzero(),
  diagonal: ({ s }) => s.diagonal(1),
  diagonalBatch: ({ a }) => a.diagonal(-1, 1, 2),
  sum: ({ a }) => a.sum(),
  sumDims: ({ a }) => a.sum([0, -1]),
  sumKeep: ({ a }) => a.sum(1, { keepdim: true }),
  sumWide: ({ a }) => a.sum(1, { dtype: "float64" }),
  sumEmpty: ({ none }) => none.sum(0),
  sumScalar: ({ scalar }) => scalar.sum(),
  mean: ({ a }) => a.mean(),
  meanDims: ({ a }) => a.mean([1, 2], { keepdim: true }),
  std: ({ a }) => a.std(),
  stdDim: ({ a }) => a.std(-1, { correction: 0, keepdim: true }),
  var: ({ a }) => a.var(1),
  varAll: ({ a }) => a.var(null, { correction: 0 }),
  norm: ({ a }) => a.norm(),
  normOne: ({ a }) => a.norm(1, -1, true),
  normInf: ({ a }) => a.norm(Infinity, [0, 1]),
  prod: ({ p }) => p.prod(),
  amax: ({ a }) => a.amax(),
  amaxDims: ({ a }) => a.amax([0, 2], true),
  amin: ({ a }) => a.amin(-1),
  argmax: ({ a }) => a.argmax(),
  argmaxDim: ({ a }) => a.argmax(1, true),
  argmin: ({ a }) => a.argmin(-1),
  max: ({ a }) => a.max(1),
  min: ({ a }) => a.min(-1, true),
  topk: ({ a }) => a.topk(2),
  topkSmallest: ({ a }) => a.topk(2, 1, { largest: false }),
  sort: ({ a }) => a.sort(1),
  sortDescending: ({ a }) => a.sort(-1, { descending: true, stable: true }),
  argsort: ({ a }) => a.argsort(1, true),
  logsumexp: ({ a }) => a.logsumexp(-1),
  logsumexpDims: ({ a }) => a.logsumexp([0, 2], true),
  cumsum: ({ a }) => a.cumsum(-1),
  cumsumWide: ({ a }) => a.cumsum(0, "float64"),
  all: ({ a }) => a.round().all(),
  allDim: ({ a }) => a.round().all(-1, true),
  any: ({ a }) => a.trunc().any(),
  anyDim: ({ a }) => a.trunc().any(1),
  unique: ({ a }) => a.round().unique(),
  float: ({ a }) => a.float(),
  double: ({ a }) => a.double(),
  half: ({ a }) => a.half(),
  bfloat16: ({ a }) => a.bfloat16(),
  long: ({ a }) => a.mul(3).long(),
  int: ({ a }) => a.mul(3).int(),
  bool: ({ a }) => a.trunc().bool(),
  to: ({ a }) => a.to({ dtype: "float32" }),
  contiguous: ({ a }) => a.transpose(0, 1).contiguous(),
  clone: ({ a }) => a.clone(),
  detach: ({ a }) => a.detach(),
  cat: ({ a, c }) => cat([a, c], -1),
  stack: ({ a, c }) => stack([a, c], 1),
  where: ({ k, a, b }) => where(k, a, b),
  whereNumber: ({ k, a }) => where(k, a, 0.5),
  einsum: ({ x1, x2 }) => einsum("bij,bjk->bki", x1, x2),
  meshgrid: ({ three, v }) => meshgrid(three, v),
  zerosLike: ({ a }) => zerosLike(a),
  onesLike: ({ a }) => onesLike(a),
  fullLike: ({ a }) => fullLike(a, 3),
  linear: ({ a, n, v, scalar }) => F.linear(a, n.transpose(0, 1), cat([v, scalar.unsqueeze(0)])),
  linearPlain: ({ m, s }) => F.linear(m, s),
  embedding: ({ rows, m }) => F.embedding(rows, m),
  conv2d: ({ img, w, six }) => F.conv2d(img, w, six, { padding: 1 }),
  conv2dStride: ({ img, w }) => F.conv2d(img, w, null, { stride: [2, 1], padding: [0, 1], dilation: [1, 2] }),
  conv2dGroups: ({ img, wg, six }) => F.conv2d(img, wg, six, { groups: 2 }),
  conv2dChannelsLast: ({ img, w }) => F.conv2d(img.contiguous("channels_last"), w, null, { padding: 1 }),
  convTranspose2d: ({ img, wt, three }) =>
    F.convTranspose2d(img, wt, three, { stride: 2, padding: 1, outputPadding: 1 }),
  layerNorm: ({ a, v, four }) => F.layerNorm(a, [4], v, four, 1e-3),
  layerNormPlain: ({ a }) => F.layerNorm(a, [3, 4]),
  rmsNorm: ({ a, v }) => F.rmsNorm(a, [4], v, 1e-3),
  groupNorm: ({ img, v, four }) => F.groupNorm(img, 2, v, four, 1e-3),
  batchNorm: ({ img, v, pos4, four }) =>
    F.batchNorm(img, { mean: v, var: pos4 }, four, v, { training: false, momentum: 0.1, eps: 1e-3 }),
  batchNormTraining: ({ img }) =>
    F.batchNorm(img, { mean: null, var: null }, null, null, { training: true, momentum: 0.1, eps: 1e-3 }),
  attention: ({ q, kv, val }) => F.scaledDotProductAttention(q, kv, val),
  attentionCausal: ({ q }) => F.scaledDotProductAttention(q, q, q, { isCausal: true, scale: 0.5 }),
  attentionMask: ({ q, kv, val, attend }) => F.scaledDotProductAttention(q, kv, val, { mask: attend }),
  attentionBias: ({ q, kv, val, maskadd }) => F.scaledDotProductAttention(q, kv, val, { mask: maskadd }),
  attentionGrouped: ({ q, kv1 }) => F.scaledDotProductAttention(q, kv1, kv1, { enableGqa: true }),
  dropoutOff: ({ a }) => F.dropout(a, 0.5, false),
  pad: ({ a }) => F.pad(a, [1, 2, 0, 1], "constant", 3),
  padReflect: ({ img }) => F.pad(img, [2, 1, 1, 0], "reflect"),
  padReplicate: ({ img }) => F.pad(img, [2, 1, 1, 0], "replicate"),
  padCircular: ({ img }) => F.pad(img, [2, 1, 1, 0], "circular"),
  interpolate: ({ img }) => F.interpolate(img, { scale: 2 }),
  interpolateNearestExact: ({ img }) => F.interpolate(img, { size: [4, 9], mode: "nearest-exact" }),
  interpolateBilinear: ({ img }) => F.interpolate(img, { size: [4, 9], mode: "bilinear" }),
  interpolateCorners: ({ img }) => F.interpolate(img, { scale: 1.5, mode: "bilinear", alignCorners: true }),
  interpolateBicubic: ({ img }) => F.interpolate(img, { size: [9, 9], mode: "bicubic" }),
  interpolateArea: ({ img }) => F.interpolate(img, { size: [4, 3], mode: "area" }),
  interpolateAreaScale: ({ img }) => F.interpolate(img, { scale: 0.5, mode: "area" }),
  avgPool2d: ({ img }) => F.avgPool2d(img, 3, { stride: 2, padding: 1 }),
  avgPool2dInside: ({ img }) =>
    F.avgPool2d(img, [3, 2], { padding: 1, ceilMode: true, countIncludePad: false }),
  maxPool2d: ({ img }) => F.maxPool2d(img, 2),
  maxPool2dStride: ({ img }) => F.maxPool2d(img, 3, { stride: [2, 1], padding: 1, ceilMode: true }),
  normalize: ({ a }) => F.normalize(a),
  normalizeOne: ({ a }) => F.normalize(a, { p: 1, dim: -1 }),
  cosineSimilarity: ({ a, c }) => F.cosineSimilarity(a, c, -1),
  crossEntropy: ({ logits, target }) => F.crossEntropy(logits, target),
  crossEntropySmooth: ({ logits, target }) =>
    F.crossEntropy(logits, target.clamp(0), { reduction: "sum", labelSmoothing: 0.1, ignoreIndex: 3 }),
  crossEntropyWeight: ({ logits, target, pos4, scalar }) =>
    F.crossEntropy(logits, target, { weight: cat([pos4, scalar.unsqueeze(0)]) }),
  crossEntropyNone: ({ logits, target }) => F.crossEntropy(logits, target, { reduction: "none" }),
  mseLoss: ({ a, c }) => F.mseLoss(a, c),
  l1Loss: ({ a, c }) => F.l1Loss(a, c, "sum"),
  smoothL1Loss: ({ a, c }) => F.smoothL1Loss(a, c, "none", 0.5),
  binaryCrossEntropyWithLogits: ({ a, c }) => F.binaryCrossEntropyWithLogits(a, c.sigmoid()),
  klDiv: ({ a, c }) => F.klDiv(a.logSoftmax(-1), c.softmax(-1), { reduction: "sum" }),
  klDivLog: ({ a, c }) => F.klDiv(a.logSoftmax(-1), c.logSoftmax(-1), { reduction: "none", logTarget: true }),
};

/** Run for float64 and float32: bfloat16 has no kernel. */
const FULL_FLOATS: Cases = {
  interpolateAntialias: ({ img }) => F.interpolate(img, { size: [4, 3], mode: "bilinear", antialias: true }),
  interpolateBicubicAntialias: ({ img }) =>
    F.interpolate(img, { size: [4, 3], mode: "bicubic", antialias: true }),
};

const INTEGERS: Cases = {
  intAdd: ({ i, j }) => i.add(j),
  intAddFloat: ({ i }) => i.add(0.5),
  intAddBool: ({ i, k }) => i.add(k),
  intSub: ({ i, j }) => i.sub(j, 3),
  intMul: ({ i }) => i.mul(-3),
  intDiv: ({ i, j }) => i.div(j),
  intDivFloor: ({ i, j }) => i.div(j, "floor"),
  intDivTrunc: ({ i, j }) => i.div(j, "trunc"),
  intFloorDivide: ({ i, j }) => i.floorDivide(j),
  intRemainder: ({ i }) => i.remainder(3),
  intPow: ({ j }) => j.pow(2),
  intAbs: ({ i }) => i.abs(),
  intSum: ({ i }) => i.sum(),
  intProd: ({ j }) => j.prod(),
  intMax: ({ i }) => i.max(-1),
  intSort: ({ i }) => i.sort(-1, { stable: true }),
  intCumsum: ({ i }) => i.cumsum(1),
  intClamp: ({ i }) => i.clamp(-2, 2),
  intMaximum: ({ i, j }) => i.maximum(j),
  intEq: ({ i, j }) => i.eq(j),
  intMatmul: ({ i, j }) => i.matmul(j.transpose(0, 1)),
  intUnique: ({ i }) => i.unique(),
  intBincount: ({ sparse }) => sparse.bincount(),
  intBincountLong: ({ sparse }) => sparse.bincount(8),
  intOneHot: ({ sparse }) => F.oneHot(sparse, 6),
  intAnd: ({ i }) => i.bitwiseAnd(6),
  intOr: ({ i, j }) => i.bitwiseOr(j),
  intSqrt: ({ j }) => j.sqrt(),
  intMeanOfFloat: ({ i }) => i.float().mean(0),
  boolAnd: ({ k }) => k.bitwiseAnd(k.flip(0)),
  boolOr: ({ k }) => k.bitwiseOr(k.flip(2)),
  boolNot: ({ k }) => k.logicalNot(),
  boolSum: ({ k }) => k.sum(1),
  boolAll: ({ k }) => k.all(-1),
  boolAny: ({ k }) => k.any([0, 2]),
  boolNonzero: ({ k }) => k.nonzero(),
  boolMul: ({ k, i }) => k.mul(i),
  boolWhere: ({ k }) => where(k, 1, 0),
  boolFloat: ({ k }) => k.float(),
  creationArange: () => arange(2, 11, 3),
  creationArangeFloat: () => arange(1, 0, -0.25, { dtype: "float32" }),
  creationLinspace: () => linspace(-1, 2, 7),
  creationEye: () => eye(3, { dtype: "int64" }),
  creationFull: () => full([2, 2], 7, { dtype: "int32" }),
  creationFullFloat: () => full([2, 2], 7),
  creationOnes: () => ones([2, 3]),
  creationZeros: () => zeros([0, 3], { dtype: "bool" }),
};

/** Methods and functions that this file does not call, by the test that does. */
const ELSEWHERE: Readonly<Record<string, readonly string[]>> = {
  "tensor.test.ts": [
    "constructor",
    "isContiguous",
    "item",
    "itemBigInt",
    "toArray",
    "toList",
    "dims",
    "size",
    "cpu",
    "equal",
  ],
  "autograd.test.ts": ["requiresGrad", "requiresGrad_", "isLeaf", "grad", "backward", "retainGrad"],
  "random.test.ts": ["dropout"],
};

/** Errors that kernels for another processor may make; integers and booleans must be the same. */
const TOLERANCES: Partial<Record<DType, { rtol: number; atol: number }>> = {
  float64: { rtol: 1e-12, atol: 1e-13 },
  float32: { rtol: 2e-6, atol: 2e-6 },
  float16: { rtol: 1e-3, atol: 1e-6 },
  bfloat16: { rtol: 8e-3, atol: 8e-3 },
};

/** What the cases called, to see below that nothing was left out. */
const called = new Set<string>();
record(Tensor.prototype as unknown as Record<string, unknown>);

function record(prototype: Record<string, unknown>): void {
  for (const [name, { value }] of Object.entries(Object.getOwnPropertyDescriptors(prototype))) {
    if (typeof value !== "function" || name === "constructor") continue;
    prototype[name] = function (this: unknown, ...args: unknown[]): unknown {
      called.add(name);
      return Reflect.apply(value, this, args);
    };
  }
}

function inputs(dtype: DType): Inputs {
  const entries = INPUTS.map((name) => {
    const input = golden[`in.${name}`] as Tensor;
    return [name, input.dtype === "float64" ? input.to({ dtype }) : input];
  });
  return Object.fromEntries(entries) as Inputs;
}

function parts(result: Result): Tensor[] {
  if (result instanceof Tensor) return [result];
  return Array.isArray(result) ? result : [result.values, result.indices];
}

function check(name: string, suffix: string, dtype: DType, run: (t: Inputs) => Result): void {
  noLeak(() =>
    tidy(() => {
      const result = run(inputs(dtype));
      const got = parts(result);
      const wanted = got.map((_, i) => golden[`${name}${suffix}${result instanceof Tensor ? "" : `.${i}`}`]);
      assert.equal(
        golden[`${name}${suffix}.${got.length}`],
        undefined,
        `${name}: fewer results than PyTorch's`,
      );
      for (const [i, each] of got.entries()) {
        assert.ok(wanted[i], `${name}${suffix}: no golden result ${i}; run scripts/golden/tensors.py`);
        const { rtol, atol } = TOLERANCES[each.dtype] ?? { rtol: 0, atol: 0 };
        expectClose(each, wanted[i], { rtol, atol, where: `${name}${suffix} result ${i}` });
      }
    }),
  );
}

for (const [name, run] of Object.entries(FLOATS)) {
  test(name, () => {
    for (const dtype of ["float64", "float32", "bfloat16"] as const) check(name, `@${dtype}`, dtype, run);
  });
}

for (const [name, run] of Object.entries(FULL_FLOATS)) {
  test(name, () => {
    for (const dtype of ["float64", "float32"] as const) check(name, `@${dtype}`, dtype, run);
  });
}

for (const [name, run] of Object.entries(INTEGERS)) test(name, () => check(name, "", "float32", run));

test("no golden result is left unread, and every method and network function was called", () => {
  const names = new Set([...Object.keys(FLOATS), ...Object.keys(FULL_FLOATS), ...Object.keys(INTEGERS)]);
  const unread = Object.keys(golden).filter(
    (key) => !key.startsWith("in.") && !names.has(key.split(/[@.]/)[0] as string),
  );
  assert.deepEqual(unread, []);
  const elsewhere = Object.values(ELSEWHERE).flat();
  const methods = Object.getOwnPropertyNames(Tensor.prototype);
  assert.deepEqual(
    methods.filter((method) => !called.has(method) && !elsewhere.includes(method)),
    [],
  );
  const text = [FLOATS, FULL_FLOATS, INTEGERS].flatMap((cases) => Object.values(cases)).join("\n");
  const functions = Object.keys(F).filter((each) => !new RegExp(`F\\.${each}\\(`).test(text));
  assert.deepEqual(functions, []);
});

/** Cases whose sizes depend on values, which are refused on meta. */
const NOT_ON_META: ReadonlySet<string> = new Set([
  "indexBool",
  "maskedSelect",
  "nonzero",
  "unique",
  "intUnique",
  "intBincount",
  "intBincountLong",
  "boolNonzero",
]);

test("every method and function gives PyTorch's shapes on meta, where none depends on a value", () => {
  const suffixed: [Cases, string][] = [
    [FLOATS, "@float32"],
    [FULL_FLOATS, "@float32"],
    [INTEGERS, ""],
  ];
  for (const [cases, suffix] of suffixed) {
    for (const [name, run] of Object.entries(cases)) {
      tidy(() => {
        const given = Object.entries(inputs("float32")).map(([key, x]) => [key, x.to({ device: "meta" })]);
        const onMeta = (): Result => run(Object.fromEntries(given) as Inputs);
        if (NOT_ON_META.has(name)) {
          assert.throws(onMeta, /expected tensors with values, got one on meta/, name);
          return;
        }
        const result = onMeta();
        for (const [i, { dtype, shape }] of parts(result).entries()) {
          const wanted = golden[`${name}${suffix}${result instanceof Tensor ? "" : `.${i}`}`] as Tensor;
          assert.deepEqual([dtype, shape], [wanted.dtype, wanted.shape], name);
        }
      });
    }
  }
});

test("every registered operator has a schema that can be described", () => {
  const names = operatorNames();
  assert.ok(names.length > 2000, `expected thousands of operators, got ${names.length}`);
  assert.equal(new Set(names).size, names.length);
  for (const name of names) {
    const schema = schemaOf(name);
    assert.ok(schema.startsWith(`${name}(`) && schema.includes(" -> "), `${name}: ${schema}`);
  }
  assert.equal(schemaOf("aten::relu"), "aten::relu(Tensor self) -> Tensor");
  assert.equal(
    schemaOf("aten::add.Tensor"),
    "aten::add.Tensor(Tensor self, Tensor other, *, Scalar alpha=1) -> Tensor",
  );
});
