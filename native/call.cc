// The generic call: any registered operator by name, its arguments read from the frame by the operator's own
// schema, its results written back. Everything that PyTorch's dispatcher knows is reached from here.
#include "addon.h"

#include <ATen/ScalarOps.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/jit_type.h>
#include <c10/core/Layout.h>
#include <c10/core/MemoryFormat.h>

#include <algorithm>
#include <cstdio>
#include <deque>
#include <optional>
#include <unordered_set>

namespace rlar {
namespace {

enum class Kind : uint8_t {
  Tensor, Int, SymInt, Float, Bool, Scalar, String, Device, DType, Layout, MemoryFormat, Generator,
  TensorList, OptionalTensorList, IntList, SymIntList, FloatList, BoolList, ScalarList, OptionalScalarList, StringList,
  Any, Unsupported,
};

struct ArgSpec {
  std::string name;
  Kind kind;
  bool optional;
  bool written;  // the operator writes into this tensor, so no number can stand for it
  int32_t fixedLength;  // N of int[N], so that one number may stand for all; 0 where there is none
  std::optional<c10::IValue> fallback;
};

struct Operator {
  c10::OperatorHandle handle;
  std::string schema;
  std::vector<ArgSpec> args;
  std::vector<int32_t> returnedArgument;  // for each return: the argument it is, or -1
  bool mixesDevices;  // it copies between devices
};

// A deque: a call may find further operators while its own is in use.
std::deque<Operator>& operators = *new std::deque<Operator>;

Kind listKind(const c10::TypePtr& element) {
  switch (element->kind()) {
    case c10::TypeKind::TensorType: return Kind::TensorList;
    case c10::TypeKind::OptionalType:
      switch (element->castRaw<c10::OptionalType>()->getElementType()->kind()) {
        case c10::TypeKind::TensorType: return Kind::OptionalTensorList;
        case c10::TypeKind::NumberType: return Kind::OptionalScalarList;
        default: return Kind::Unsupported;
      }
    case c10::TypeKind::IntType: return Kind::IntList;
    case c10::TypeKind::SymIntType: return Kind::SymIntList;
    case c10::TypeKind::FloatType: return Kind::FloatList;
    case c10::TypeKind::BoolType: return Kind::BoolList;
    case c10::TypeKind::NumberType: return Kind::ScalarList;
    case c10::TypeKind::StringType: return Kind::StringList;
    default: return Kind::Unsupported;
  }
}

Kind kindOf(const c10::TypePtr& type) {
  switch (type->kind()) {
    case c10::TypeKind::TensorType: return Kind::Tensor;
    case c10::TypeKind::IntType: return Kind::Int;
    case c10::TypeKind::SymIntType: return Kind::SymInt;
    case c10::TypeKind::FloatType: return Kind::Float;
    case c10::TypeKind::BoolType: return Kind::Bool;
    case c10::TypeKind::NumberType: return Kind::Scalar;
    case c10::TypeKind::StringType: return Kind::String;
    case c10::TypeKind::DeviceObjType: return Kind::Device;
    case c10::TypeKind::ScalarTypeType: return Kind::DType;
    case c10::TypeKind::LayoutType: return Kind::Layout;
    case c10::TypeKind::MemoryFormatType: return Kind::MemoryFormat;
    case c10::TypeKind::GeneratorType: return Kind::Generator;
    case c10::TypeKind::AnyType: return Kind::Any;
    case c10::TypeKind::ListType: return listKind(type->castRaw<c10::ListType>()->getElementType());
    default: return Kind::Unsupported;
  }
}

Operator describeOperator(const c10::OperatorHandle& handle) {
  const c10::FunctionSchema& schema = handle.schema();
  static const std::unordered_set<std::string> kCopies = {
      "aten::copy_", "aten::_foreach_copy_", "aten::set_data", "aten::to", "aten::_to_copy"};
  Operator op{handle, c10::toString(schema), {}, {}, kCopies.count(schema.name()) > 0};
  for (const c10::Argument& argument : schema.arguments()) {
    c10::TypePtr type = argument.real_type();
    bool optional = type->kind() == c10::TypeKind::OptionalType;
    if (optional) type = type->castRaw<c10::OptionalType>()->getElementType();
    const c10::AliasInfo* alias = argument.alias_info();
    op.args.push_back({argument.name(), kindOf(type), optional, alias && alias->isWrite(),
                       argument.N().value_or(0), argument.default_value()});
  }
  for (const c10::Argument& result : schema.returns()) {
    int32_t same = -1;
    const c10::AliasInfo* alias = result.alias_info();
    if (alias && alias->isWrite() && result.type()->kind() == c10::TypeKind::TensorType) {
      for (size_t i = 0; i < schema.arguments().size(); i++) {
        const c10::AliasInfo* candidate = schema.arguments()[i].alias_info();
        if (candidate && candidate->isWrite() && candidate->beforeSets() == alias->beforeSets()) {
          same = static_cast<int32_t>(i);
        }
      }
    }
    op.returnedArgument.push_back(same);
  }
  return op;
}

// ---- Reading -------------------------------------------------------------------------------------------

const char* kindName(Kind kind) {
  switch (kind) {
    case Kind::Tensor: return "a Tensor";
    case Kind::Int: case Kind::SymInt: return "an integer";
    case Kind::Float: return "a number";
    case Kind::Bool: return "a boolean";
    case Kind::Scalar: return "a number or boolean";
    case Kind::String: return "a string";
    case Kind::Device: return "a device such as \"cpu\" or \"cuda:0\"";
    case Kind::DType: return "a dtype such as \"float32\"";
    case Kind::Layout: return "a layout: \"strided\" or \"sparse_coo\"";
    case Kind::MemoryFormat: return "a memory format such as \"contiguous_format\"";
    case Kind::Generator: return "a Generator";
    case Kind::TensorList: return "a list of Tensors";
    case Kind::OptionalTensorList: return "a list of Tensors or nulls";
    case Kind::IntList: case Kind::SymIntList: return "a list of integers";
    case Kind::FloatList: return "a list of numbers";
    case Kind::BoolList: return "a list of booleans";
    case Kind::ScalarList: return "a list of numbers";
    case Kind::OptionalScalarList: return "a list of numbers or nulls";
    case Kind::StringList: return "a list of strings";
    case Kind::Any: return "a Tensor, number, boolean or string";
    case Kind::Unsupported: return "a type that JavaScript cannot express";
  }
  return "";
}

std::string listText(uint32_t slot);

std::string tagText(uint32_t slot) {
  switch (frame.tags[slot]) {
    case kDefault: return "nothing";
    case kNone: return "null";
    case kTensor: return "a Tensor";
    case kInt: case kBigInt: case kDouble: {
      if (frame.tags[slot] == kBigInt) return std::to_string(frame.ints[slot]);
      char text[32];
      snprintf(text, sizeof text, "%.15g", frame.values[slot]);
      return text;
    }
    case kBool: return frame.values[slot] != 0 ? "true" : "false";
    case kString: return "\"" + interned(static_cast<uint32_t>(frame.values[slot])) + "\"";
    case kGenerator: return "a Generator";
    case kList: return listText(slot);
    default: return "an unknown value";
  }
}

// Slots that the value at `slot` takes, its own included.
uint32_t span(uint32_t slot) {
  if (frame.tags[slot] != kList) return 1;
  uint32_t count = static_cast<uint32_t>(frame.values[slot]);
  uint32_t next = slot + 1;
  for (uint32_t i = 0; i < count; i++) next += span(next);
  return next - slot;
}

// The first elements of a list, such as "[0, 2, 3]".
std::string listText(uint32_t slot) {
  constexpr int64_t kShown = 8;
  const int64_t count = static_cast<int64_t>(frame.values[slot]);
  std::string text = "[";
  uint32_t next = slot + 1;
  for (int64_t i = 0; i < std::min(count, kShown); i++, next += span(next)) text += (i > 0 ? ", " : "") + tagText(next);
  return text + (count > kShown ? ", ... " + std::to_string(count) + " in all]" : "]");
}

// The place of a value in its list, for messages; kWhole where it is the argument itself.
constexpr int64_t kWhole = -1;

[[noreturn]] void mismatch(const ArgSpec& spec, uint32_t slot, int64_t index = kWhole) {
  throw std::runtime_error("argument '" + spec.name + "': expected " + kindName(spec.kind) +
                           (spec.optional ? " or null" : "") + ", got " + tagText(slot) +
                           (index == kWhole ? "" : " at index " + std::to_string(index)));
}

int64_t readInt(const ArgSpec& spec, uint32_t slot, int64_t index = kWhole) {
  switch (frame.tags[slot]) {
    case kInt: return static_cast<int64_t>(frame.values[slot]);
    case kBigInt: return frame.ints[slot];
    case kDouble:
      if (frame.values[slot] == 0) return 0;  // JavaScript's -0, such as a negated index
      [[fallthrough]];
    default: mismatch(spec, slot, index);
  }
}

double readDouble(const ArgSpec& spec, uint32_t slot, int64_t index = kWhole) {
  switch (frame.tags[slot]) {
    case kInt: case kDouble: return frame.values[slot];
    case kBigInt: return static_cast<double>(frame.ints[slot]);
    default: mismatch(spec, slot, index);
  }
}

c10::Scalar readScalar(const ArgSpec& spec, uint32_t slot, int64_t index = kWhole) {
  switch (frame.tags[slot]) {
    case kInt: return c10::Scalar(static_cast<int64_t>(frame.values[slot]));
    case kBigInt: return c10::Scalar(frame.ints[slot]);
    case kDouble: return c10::Scalar(frame.values[slot]);
    case kBool: return c10::Scalar(frame.values[slot] != 0);
    default: mismatch(spec, slot, index);
  }
}

bool readBool(const ArgSpec& spec, uint32_t slot, int64_t index = kWhole) {
  if (frame.tags[slot] != kBool) mismatch(spec, slot, index);
  return frame.values[slot] != 0;
}

// A number in a Tensor's place becomes what PyTorch makes of it: a 0-d tensor that does not decide the dtype.
at::Tensor readTensor(const ArgSpec& spec, uint32_t slot, int64_t index = kWhole) {
  switch (frame.tags[slot]) {
    case kTensor: return tensors.at(static_cast<uint32_t>(frame.values[slot]));
    case kInt: case kBigInt: case kDouble: case kBool: {
      if (spec.written) mismatch(spec, slot, index);
      at::Tensor number = c10::scalar_to_tensor(readScalar(spec, slot, index));
      number.unsafeGetTensorImpl()->set_wrapped_number(true);
      return number;
    }
    default: mismatch(spec, slot, index);
  }
}

const std::string& readString(const ArgSpec& spec, uint32_t slot, int64_t index = kWhole) {
  if (frame.tags[slot] != kString) mismatch(spec, slot, index);
  return interned(static_cast<uint32_t>(frame.values[slot]));
}

template <typename Value>
const Value& lookUp(const std::unordered_map<std::string, Value>& names, const ArgSpec& spec, uint32_t slot) {
  auto found = names.find(readString(spec, slot));
  if (found == names.end()) mismatch(spec, slot);
  return found->second;
}

const std::unordered_map<std::string, c10::ScalarType> kDTypes = {
    {"uint8", c10::kByte}, {"int8", c10::kChar}, {"int16", c10::kShort}, {"int32", c10::kInt},
    {"int64", c10::kLong}, {"float16", c10::kHalf}, {"float32", c10::kFloat}, {"float64", c10::kDouble},
    {"complex64", c10::kComplexFloat}, {"complex128", c10::kComplexDouble}, {"bool", c10::kBool},
    {"bfloat16", c10::kBFloat16},
};
const std::unordered_map<std::string, c10::Layout> kLayouts = {
    {"strided", c10::kStrided}, {"sparse_coo", c10::kSparse}, {"sparse_csr", c10::kSparseCsr},
    {"mkldnn", c10::kMkldnn},
};
const std::unordered_map<std::string, c10::MemoryFormat> kMemoryFormats = {
    {"contiguous_format", c10::MemoryFormat::Contiguous}, {"preserve_format", c10::MemoryFormat::Preserve},
    {"channels_last", c10::MemoryFormat::ChannelsLast}, {"channels_last_3d", c10::MemoryFormat::ChannelsLast3d},
};

c10::Device readDevice(const ArgSpec& spec, uint32_t slot) {
  const c10::Device device = parseDevice(readString(spec, slot));
  if (!device.is_cuda()) return device;
  // LibTorch itself lists every backend that the operator has.
  const std::string missing = cudaMissing();
  if (!missing.empty()) throw std::runtime_error("expected a CUDA device, got none: " + missing);
  return device;
}

// Read a list whose elements take one slot each; a single number stands for all elements of a `T[N]`.
template <typename T, typename Read>
c10::List<T> readList(const ArgSpec& spec, uint32_t slot, Read read) {
  c10::List<T> list;
  if (frame.tags[slot] != kList) {
    bool isNumber = frame.tags[slot] == kInt || frame.tags[slot] == kBigInt || frame.tags[slot] == kDouble;
    if (spec.fixedLength == 0 || !isNumber) mismatch(spec, slot);
    for (int32_t i = 0; i < spec.fixedLength; i++) list.push_back(read(spec, slot, kWhole));
    return list;
  }
  uint32_t count = static_cast<uint32_t>(frame.values[slot]);
  list.reserve(count);
  for (uint32_t i = 0; i < count; i++) list.push_back(read(spec, slot + 1 + i, i));
  return list;
}

// A schema's `Any` takes what JavaScript has, such as a process group's name.
c10::IValue readAny(const ArgSpec& spec, uint32_t slot) {
  switch (frame.tags[slot]) {
    case kNone: return c10::IValue();
    case kTensor: return readTensor(spec, slot);
    case kString: return readString(spec, slot);
    default: return readScalar(spec, slot);
  }
}

c10::IValue readValue(const ArgSpec& spec, uint32_t slot) {
  if (spec.optional && frame.tags[slot] == kNone) return c10::IValue();
  switch (spec.kind) {
    case Kind::Tensor:
      // A schema's plain `Tensor` can still be undefined (bias, weight); null says so.
      if (frame.tags[slot] == kNone) return at::Tensor();
      return readTensor(spec, slot);
    case Kind::Int: case Kind::SymInt: return readInt(spec, slot);
    case Kind::Float: return readDouble(spec, slot);
    case Kind::Bool: return readBool(spec, slot);
    case Kind::Scalar: return readScalar(spec, slot);
    case Kind::String: return readString(spec, slot);
    case Kind::Device: return readDevice(spec, slot);
    case Kind::DType: return lookUp(kDTypes, spec, slot);
    case Kind::Layout: return lookUp(kLayouts, spec, slot);
    case Kind::MemoryFormat: return lookUp(kMemoryFormats, spec, slot);
    case Kind::Generator:
      if (frame.tags[slot] != kGenerator) mismatch(spec, slot);
      return generators.at(static_cast<uint32_t>(frame.values[slot]));
    case Kind::TensorList: return readList<at::Tensor>(spec, slot, readTensor);
    case Kind::OptionalTensorList:
      return readList<std::optional<at::Tensor>>(
          spec, slot, [](const ArgSpec& s, uint32_t i, int64_t index) -> std::optional<at::Tensor> {
            if (frame.tags[i] == kNone) return std::nullopt;
            return readTensor(s, i, index);
          });
    case Kind::IntList: case Kind::SymIntList: return readList<int64_t>(spec, slot, readInt);
    case Kind::FloatList: return readList<double>(spec, slot, readDouble);
    case Kind::BoolList: return readList<bool>(spec, slot, readBool);
    case Kind::ScalarList: return readList<c10::Scalar>(spec, slot, readScalar);
    case Kind::OptionalScalarList:
      return readList<std::optional<c10::Scalar>>(
          spec, slot, [](const ArgSpec& s, uint32_t i, int64_t index) -> std::optional<c10::Scalar> {
            if (frame.tags[i] == kNone) return std::nullopt;
            return readScalar(s, i, index);
          });
    case Kind::StringList: return readList<std::string>(spec, slot, readString);
    case Kind::Any: return readAny(spec, slot);
    case Kind::Unsupported: break;
  }
  throw std::runtime_error("argument '" + spec.name + "' has a type that JavaScript cannot express");
}

// ---- Writing -------------------------------------------------------------------------------------------

void put(uint32_t slot, Tag tag, double value) {
  frame.tags[slot] = tag;
  frame.values[slot] = value;
}

void putInt(uint32_t slot, int64_t value) {
  constexpr int64_t kSafe = 9007199254740991;
  if (value >= -kSafe && value <= kSafe) {
    put(slot, kInt, static_cast<double>(value));
  } else {
    put(slot, kBigInt, 0);
    frame.ints[slot] = value;
  }
}

// Slots that a result takes. Nothing is written before all results are known to fit, so no handle is lost.
size_t slotsOf(const c10::IValue& value) {
  size_t slots = 1;
  if (value.isTuple()) {
    for (const c10::IValue& element : value.toTupleRef().elements()) slots += slotsOf(element);
  } else if (value.isList()) {
    for (const c10::IValue& element : value.toListRef()) slots += slotsOf(element);
  } else if (value.isComplexDouble()) {
    throw std::runtime_error("a complex number has no JavaScript value; take real or imag first");
  } else if (!value.isTensor() && !value.isNone() && !value.isBool() && !value.isDouble() && !value.isInt() &&
             !value.isSymInt() && !value.isString()) {
    throw std::runtime_error("a result of type " + value.tagKind() + " has no JavaScript value");
  }
  return slots;
}

uint32_t writeList(c10::ArrayRef<c10::IValue> list, uint32_t slot);

uint32_t writeValue(const c10::IValue& value, uint32_t slot) {
  if (value.isTuple()) return writeList(value.toTupleRef().elements(), slot);
  if (value.isList()) return writeList(value.toListRef(), slot);
  if (value.isTensor() && value.toTensor().defined()) put(slot, kTensor, tensors.add(value.toTensor()));
  else if (value.isTensor() || value.isNone()) put(slot, kNone, 0);
  else if (value.isBool()) put(slot, kBool, value.toBool());
  else if (value.isDouble()) put(slot, kDouble, value.toDouble());
  else if (value.isString()) put(slot, kString, intern(value.toStringRef()));
  else putInt(slot, value.isSymInt() ? value.toSymInt().expect_int() : value.toInt());
  return slot + 1;
}

uint32_t writeList(c10::ArrayRef<c10::IValue> list, uint32_t slot) {
  put(slot, kList, static_cast<double>(list.size()));
  uint32_t next = slot + 1;
  for (const c10::IValue& element : list) next = writeValue(element, next);
  return next;
}

// ---- Exports -------------------------------------------------------------------------------------------

napi_value findOperator(const Args& args) {
  auto found = c10::Dispatcher::singleton().findSchema({args.string(0), args.string(1)});
  if (!found) return toHandle(args.env, 0);
  operators.push_back(describeOperator(*found));
  return toHandle(args.env, static_cast<uint32_t>(operators.size()));
}

napi_value operatorSchema(const Args& args) {
  return toString(args.env, operators.at(args.u32(0) - 1).schema);
}

napi_value operatorArguments(const Args& args) {
  const Operator& op = operators.at(args.u32(0) - 1);
  napi_value names;
  check(args.env, napi_create_array_with_length(args.env, op.args.size(), &names));
  for (size_t i = 0; i < op.args.size(); i++) {
    check(args.env, napi_set_element(args.env, names, i, toString(args.env, op.args[i].name)));
  }
  return names;
}

napi_value operatorNames(const Args& args) {
  napi_value names;
  check(args.env, napi_create_array(args.env, &names));
  uint32_t count = 0;
  for (const c10::OperatorName& name : c10::Dispatcher::singleton().getAllOpNames()) {
    std::string text = name.overload_name.empty() ? name.name : name.name + "." + name.overload_name;
    check(args.env, napi_set_element(args.env, names, count++, toString(args.env, text)));
  }
  return names;
}

// LibTorch's meta kernels take operands that its kernels for a GPU refuse. They are refused here, so that a run on
// meta shows what a GPU would not do: a tensor or a generator of the CPU beside those on meta. As on a GPU, a number
// may lie on the CPU, and so may the indices of an indexed tensor and what is copied from or to.
void refuseMixedDevices(const Operator& op, const torch::jit::Stack& stack) {
  const std::string* onMeta = nullptr;
  const std::string* onCpu = nullptr;
  const auto look = [&](const at::Tensor& tensor, const std::string& name) {
    if (!tensor.defined()) return;
    if (tensor.is_meta()) onMeta = &name;
    else if (tensor.is_cpu() && tensor.dim() > 0) onCpu = &name;
  };
  for (size_t i = 0; i < stack.size(); i++) {
    const ArgSpec& spec = op.args[i];
    if (spec.kind == Kind::Tensor && stack[i].isTensor()) {
      look(stack[i].toTensor(), spec.name);
    } else if (spec.kind == Kind::TensorList && stack[i].isTensorList()) {
      for (const c10::IValue& item : stack[i].toListRef()) look(item.toTensor(), spec.name);
    } else if (spec.kind == Kind::Device && stack[i].isDevice()) {
      if (stack[i].toDevice().is_meta()) onMeta = &spec.name;
    } else if (spec.kind == Kind::Generator && stack[i].isGenerator()) {
      if (stack[i].toGenerator().device().is_cpu()) onCpu = &spec.name;
      else if (stack[i].toGenerator().device().is_meta()) onMeta = &spec.name;
    }
  }
  if (!onMeta || !onCpu || op.mixesDevices) return;
  throw std::runtime_error("expected operands on one device, got '" + *onMeta + "' on meta and '" + *onCpu +
                           "' on the CPU");
}

// call(operator, slots): the handle of a single fresh tensor; else 0, and the results stand in the frame.
napi_value callOperator(const Args& args) {
  const Operator& op = operators.at(args.u32(0) - 1);
  const uint32_t used = args.u32(1);
  // One stack serves every call; a call inside a call (a backward that JavaScript wrote) makes its own.
  static torch::jit::Stack& spare = *new torch::jit::Stack;
  torch::jit::Stack stack = std::move(spare);
  uint32_t slot = 0;
  for (const ArgSpec& spec : op.args) {
    if (slot >= used || frame.tags[slot] == kDefault) {
      if (spec.fallback) stack.push_back(*spec.fallback);
      else if (spec.optional) stack.emplace_back();
      else throw std::runtime_error(std::string("missing argument '") + spec.name + "'");
      slot++;
      continue;
    }
    stack.push_back(readValue(spec, slot));
    slot += span(slot);
  }
  if (slot < used) {
    size_t given = op.args.size();
    for (; slot < used; slot += span(slot)) given++;
    throw std::runtime_error("expected at most " + std::to_string(op.args.size()) + " arguments, got " +
                             std::to_string(given));
  }
  if (metaIsUsed) refuseMixedDevices(op, stack);
  op.handle.callBoxed(stack);
  reportExternalMemory(args.env);

  if (stack.size() == 1 && stack[0].isTensor() && op.returnedArgument[0] < 0 && stack[0].toTensor().defined()) {
    const uint32_t handle = tensors.add(std::move(stack[0]).toTensor());
    stack.clear();
    spare = std::move(stack);
    return toHandle(args.env, handle);
  }
  // One result is written as it is, none as null, several as a list.
  size_t needed = stack.size() > 1;
  for (const c10::IValue& result : stack) needed += slotsOf(result);
  if (needed > kSlots) throw std::runtime_error("its result has more than 65536 values, which do not fit");
  uint32_t next = 0;
  if (stack.empty()) put(next++, kNone, 0);
  else if (stack.size() > 1) put(next++, kList, static_cast<double>(stack.size()));
  for (size_t i = 0; i < stack.size(); i++) {
    int32_t same = i < op.returnedArgument.size() ? op.returnedArgument[i] : -1;
    if (same >= 0) put(next++, kArgument, same);
    else next = writeValue(stack[i], next);
  }
  stack.clear();
  spare = std::move(stack);
  return toHandle(args.env, 0);
}

}  // namespace

c10::Device parseDevice(const std::string& text) {
  bool isKnown = text == "cpu" || text == "meta" || text == "cuda" || text.rfind("cuda:", 0) == 0;
  if (!isKnown) throw std::runtime_error("expected a device \"cpu\", \"cuda\" or \"cuda:0\", got \"" + text + "\"");
  if (text == "meta") installMetaKernels();
  return c10::Device(text);
}

const std::vector<Export> callExports = {
    {"findOperator", guarded<findOperator>},
    {"operatorSchema", guarded<operatorSchema>},
    {"operatorArguments", guarded<operatorArguments>},
    {"operatorNames", guarded<operatorNames>},
    {"call", guarded<callOperator>},
};

}  // namespace rlar
