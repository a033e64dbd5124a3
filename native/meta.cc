// Kernels for the meta device, whose tensors have a shape and no values. PyTorch wrote many of its own in Python; the
// operators that lack one in C++ get one here, so that a run on meta shows every tensor that was made on another
// device by mistake.
#include "addon.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/enum_tag.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <utility>

namespace rlar {
namespace {

using c10::IValue;

c10::MemoryFormat formatOf(const at::Tensor& a, const at::Tensor& b) {
  const auto isLast = [](const at::Tensor& t) {
    return t.suggest_memory_format() == c10::MemoryFormat::ChannelsLast;
  };
  return isLast(a) || isLast(b) ? c10::MemoryFormat::ChannelsLast : c10::MemoryFormat::Contiguous;
}

// Sizes of a convolution's output [B, out, ...], for an input that LibTorch has checked.
at::Tensor convolution(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>&,
                       at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed,
                       at::IntArrayRef outputPadding, int64_t groups) {
  std::vector<int64_t> sizes = {input.size(0), transposed ? weight.size(1) * groups : weight.size(0)};
  for (int64_t i = 2; i < input.dim(); i++) {
    const int64_t kernel = dilation[i - 2] * (weight.size(i) - 1) + 1;
    sizes.push_back(transposed ? (input.size(i) - 1) * stride[i - 2] - 2 * padding[i - 2] + kernel + outputPadding[i - 2]
                               : (input.size(i) + 2 * padding[i - 2] - kernel) / stride[i - 2] + 1);
  }
  const auto format = input.dim() == 4 ? formatOf(input, weight) : c10::MemoryFormat::Contiguous;
  return at::empty(sizes, input.options().memory_format(format));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolutionBackward(
    const at::Tensor& gradient, const at::Tensor& input, const at::Tensor& weight, at::IntArrayRef, at::IntArrayRef,
    at::IntArrayRef, bool, at::IntArrayRef, int64_t, std::array<bool, 3> mask) {
  return {mask[0] ? at::empty_like(input) : at::Tensor(), mask[1] ? at::empty_like(weight) : at::Tensor(),
          mask[2] ? at::empty({gradient.size(1)}, gradient.options()) : at::Tensor()};
}

// One is a value that logarithms, divisions and draws take; for whole numbers `whole`.
at::Tensor toCpu(const at::Tensor& tensor, int64_t whole) {
  if (!tensor.defined() || !tensor.is_meta()) return tensor;
  const auto options = tensor.options().device(c10::kCPU);
  at::Tensor filled = at::empty_strided(tensor.sizes(), tensor.strides(), options);
  return filled.fill_(tensor.is_floating_point() || tensor.is_complex() ? 1 : whole);
}

IValue toCpu(const IValue& value, int64_t whole) {
  if (value.isTensor()) return toCpu(value.toTensor(), whole);
  if (value.isDevice() && value.toDevice().is_meta()) return c10::Device(c10::kCPU);
  if (value.isGenerator()) return IValue();
  if (!value.isTensorList()) return value;
  c10::List<at::Tensor> list;
  for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(toCpu(tensor, whole));
  return list;
}

IValue toMeta(const IValue& value) {
  if (value.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(toMeta(tensor).toTensor());
    return list;
  }
  if (!value.isTensor() || !value.toTensor().defined()) return value;
  const at::Tensor& tensor = value.toTensor();
  return at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(c10::kMeta));
}

// Run the operator on the CPU over tensors of the same shapes, and keep the shapes of what comes out: right where no
// size depends on a value.
void throughCpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const c10::FunctionSchema& schema = op.schema();
  const size_t count = schema.arguments().size();
  const std::vector<IValue> given(stack->end() - count, stack->end());
  torch::jit::drop(*stack, count);
  // Zero is an index that every dimension has, but nothing can be divided by it.
  const bool divides = schema.name().find("div") != std::string::npos ||
                       schema.name().find("remainder") != std::string::npos ||
                       schema.name().find("fmod") != std::string::npos;
  torch::jit::Stack own;
  for (const IValue& value : given) own.push_back(toCpu(value, divides ? 1 : 0));
  op.callBoxed(own);
  for (size_t i = 0; i < own.size(); i++) {
    const c10::AliasInfo* alias = schema.returns()[i].alias_info();
    size_t written = count;
    for (size_t j = 0; alias && j < count; j++) {
      const c10::AliasInfo* argument = schema.arguments()[j].alias_info();
      if (argument && argument->isWrite() && argument->beforeSets() == alias->beforeSets()) written = j;
    }
    if (written < count) {
      const at::Tensor& out = given[written].toTensor();
      if (out.sizes() != own[i].toTensor().sizes()) out.resize_(own[i].toTensor().sizes());
      stack->push_back(given[written]);
    } else {
      stack->push_back(toMeta(own[i]));
    }
  }
}

// Everything that LibTorch's own generators do, for tensors on meta; a tensor elsewhere refuses it.
struct MetaGenerator : at::CPUGeneratorImpl {
  MetaGenerator() { device_ = c10::Device(c10::kMeta); }
};

// Whether an operator needs a kernel from here and can have one. What reads values, or has sizes that depend on them,
// stays without: src/torch/call.ts says so.
bool isWanted(const c10::OperatorHandle& op) {
  using Key = c10::DispatchKey;
  if (op.hasKernelForDispatchKey(Key::Meta) || !op.hasKernelForDispatchKey(Key::CPU)) return false;
  for (const Key composed : {Key::CompositeExplicitAutograd, Key::CompositeImplicitAutograd,
                             Key::CompositeExplicitAutogradNonFunctional}) {
    if (op.hasKernelForDispatchKey(composed)) return false;
  }
  if (op.hasTag(at::Tag::data_dependent_output) || op.hasTag(at::Tag::dynamic_output_shape)) return false;
  for (const c10::Argument& result : op.schema().returns()) {
    const auto isTensor = [](const c10::TypePtr& type) { return type->kind() == c10::TypeKind::TensorType; };
    const auto list = result.type()->cast<c10::ListType>();
    if (!isTensor(result.type()) && !(list && isTensor(list->getElementType()))) return false;
  }
  return true;
}

// LibTorch puts these together from others, whose results on meta have other strides than those of the CPU.
constexpr const char* kWhole[] = {"native_layer_norm", "native_group_norm", "native_group_norm_backward"};

}  // namespace

bool metaIsUsed = false;

at::Generator metaGenerator() { return at::make_generator<MetaGenerator>(); }

void installMetaKernels() {
  if (std::exchange(metaIsUsed, true)) return;
  auto& library = *new torch::Library(torch::Library::IMPL, "aten", c10::DispatchKey::Meta, __FILE__, __LINE__);
  auto& dispatcher = c10::Dispatcher::singleton();
  const auto boxed = [&](const std::string& name) {
    library.impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<&throughCpu>());
  };
  for (const c10::OperatorName& name : dispatcher.getAllOpNames()) {
    const auto op = dispatcher.findOp(name);
    if (name.name.rfind("aten::", 0) != 0 || !op || !op->hasSchema() || !isWanted(*op)) continue;
    boxed(name.overload_name.empty() ? name.name : name.name + "." + name.overload_name);
  }
  const auto lacks = [&](const std::string& name) {
    const auto op = dispatcher.findSchema({"aten::" + name, ""});
    return op && !op->hasKernelForDispatchKey(c10::DispatchKey::Meta);
  };
  for (const char* name : kWhole) {
    if (lacks(name)) boxed(name);
  }
  if (lacks("convolution_overrideable")) library.impl("convolution_overrideable", TORCH_FN(convolution));
  if (lacks("convolution_backward_overrideable")) {
    library.impl("convolution_backward_overrideable", TORCH_FN(convolutionBackward));
  }
}

}  // namespace rlar
