/** The tensor floor's public names. */

export {
  type Accepted,
  camelCase,
  isPlainObject,
  known,
  nearestName,
  type OptionNames,
  readOptions,
  requireObject,
  requirePath,
  unknownName,
  withDefaults,
} from "./arguments.js";
export {
  type AutocastState,
  autocast,
  backward,
  checkpoint,
  customFunction,
  enableGrad,
  grad,
  isGradEnabled,
  noGrad,
  withoutAutocast,
} from "./autograd.js";
export { type Argument, call, callTensor, GeneratorHandle, operatorNames, schemaOf } from "./call.js";
export { loadCheckpoint, openCheckpoint } from "./checkpoint.js";
export { type Savable, saveTorch } from "./checkpoint_writer.js";
export {
  arange,
  bernoulli,
  cat,
  einsum,
  empty,
  emptyLike,
  eye,
  full,
  fullLike,
  linspace,
  meshgrid,
  multinomial,
  ones,
  onesLike,
  type RandomOptions,
  rand,
  randint,
  randn,
  randperm,
  stack,
  type TensorOptions,
  tensor,
  where,
  zeros,
  zerosLike,
} from "./creation.js";
export {
  allowTf32,
  CudaGraph,
  type CudaMemory,
  captureGraph,
  cudaDeviceCount,
  cudaEmptyCache,
  cudaMemory,
  emptyCache,
  getNumThreads,
  hasCudaStatistics,
  hasFastBfloat16,
  isCudaAvailable,
  type MemoryInfo,
  memory,
  requireDevice,
  setNumThreads,
  synchronize,
  toDevice,
  version,
  whyNoCuda,
} from "./device.js";
export { DTYPES, type DType, type TypedArray } from "./dtype.js";
export { expected, expectedMessage, expectedType, listed, shownValue, TorchError } from "./errors.js";
export * as functional from "./functional.js";
export { plainName, plainNames } from "./plain_names.js";
export {
  deriveSeed,
  Generator,
  manualSeed,
  type RandomState,
  restoreRandomState,
  saveRandomState,
  stream,
} from "./random.js";
export { loadSafetensors, openSafetensors, SafetensorsFile, saveSafetensors } from "./safetensors.js";
export { keep, tidy } from "./scope.js";
export { type Device, type MemoryFormat, type NestedNumbers, type Operand, Tensor } from "./tensor.js";
export type { BackwardOptions } from "./tensor_options.js";
export { openWeights, type WeightInfo, WeightsFile, type WeightsOptions } from "./weights.js";
