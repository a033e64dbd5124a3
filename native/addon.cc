// The addon's entry: the shared frame, the tables, access to a tensor's shape and memory, and the list of
// exported functions. One JavaScript thread owns it.
#include "addon.h"

#include <c10/util/Exception.h>
#include <c10/util/Logging.h>

#include <atomic>
#include <cstring>

namespace rlar {

Frame frame{};
Table<at::Tensor>& tensors = *new Table<at::Tensor>;
Table<at::Generator>& generators = *new Table<at::Generator>;

namespace {

std::vector<std::string>& strings = *new std::vector<std::string>;
std::unordered_map<std::string, uint32_t>& stringNumbers = *new std::unordered_map<std::string, uint32_t>;

napi_value internString(const Args& args) { return toHandle(args.env, intern(args.string(0))); }
napi_value internedString(const Args& args) { return toString(args.env, interned(args.u32(0))); }

// release(count): the handles stand in the frame's first slots.
napi_value release(const Args& args) {
  const uint32_t count = args.u32(0);
  for (uint32_t i = 0; i < count; i++) tensors.remove(static_cast<uint32_t>(frame.values[i]));
  reportExternalMemory(args.env);
  return nullptr;
}

// shape(tensor): the rank; the sizes stand in the frame.
napi_value shape(const Args& args) {
  const at::Tensor& tensor = tensors.at(args.u32(0));
  const at::IntArrayRef sizes = tensor.sizes();
  for (size_t i = 0; i < sizes.size(); i++) frame.values[i] = static_cast<double>(sizes[i]);
  return toHandle(args.env, sizes.size());
}

napi_value strides(const Args& args) {
  const at::IntArrayRef strides = tensors.at(args.u32(0)).strides();
  for (size_t i = 0; i < strides.size(); i++) frame.values[i] = static_cast<double>(strides[i]);
  return toHandle(args.env, strides.size());
}

// info(tensor): dtype code, device (-1 the CPU, -2 meta, else the CUDA index), strided or not, storage offset.
napi_value info(const Args& args) {
  const at::Tensor& tensor = tensors.at(args.u32(0));
  frame.values[0] = static_cast<double>(tensor.scalar_type());
  frame.values[1] = tensor.is_cpu() ? -1 : tensor.is_meta() ? -2 : tensor.device().index();
  const bool strided = tensor.layout() == c10::kStrided;
  frame.values[2] = strided;
  frame.values[3] = strided ? static_cast<double>(tensor.storage_offset()) : 0;
  return nullptr;
}

struct Bytes {
  void* data;
  size_t size;
};

Bytes typedArray(const Args& args, size_t i) {
  napi_typedarray_type type;
  size_t length, offset;
  napi_value buffer;
  Bytes bytes{nullptr, 0};
  check(args.env, napi_get_typedarray_info(args.env, args.argv[i], &type, &length, &bytes.data, &buffer, &offset));
  size_t width = 1;
  switch (type) {
    case napi_int16_array: case napi_uint16_array: width = 2; break;
    case napi_int32_array: case napi_uint32_array: case napi_float32_array: width = 4; break;
    case napi_float64_array: case napi_bigint64_array: case napi_biguint64_array: width = 8; break;
    default: break;
  }
  bytes.size = length * width;
  return bytes;
}

const at::Tensor& plainTensor(const Args& args, size_t size) {
  const at::Tensor& tensor = tensors.at(args.u32(0));
  if (!tensor.is_cpu() || !tensor.is_contiguous() || tensor.nbytes() != size) {
    throw std::runtime_error("expected a contiguous CPU tensor of " + std::to_string(size) + " bytes");
  }
  return tensor;
}

// writeBytes(tensor, array): fill a contiguous CPU tensor; readBytes(tensor, array): the other way.
napi_value writeBytes(const Args& args) {
  const Bytes bytes = typedArray(args, 1);
  const at::Tensor& tensor = plainTensor(args, bytes.size);
  if (bytes.size > 0) std::memcpy(tensor.data_ptr(), bytes.data, bytes.size);
  return nullptr;
}

napi_value readBytes(const Args& args) {
  const Bytes bytes = typedArray(args, 1);
  const at::Tensor& tensor = plainTensor(args, bytes.size);
  if (bytes.size > 0) std::memcpy(bytes.data, tensor.data_ptr(), bytes.size);
  return nullptr;
}

void define(napi_env env, napi_value exports, const std::vector<Export>& list) {
  for (const Export& item : list) {
    napi_value function;
    check(env, napi_create_function(env, item.name, NAPI_AUTO_LENGTH, item.function, nullptr, &function));
    check(env, napi_set_named_property(env, exports, item.name, function));
  }
}

}  // namespace

const std::string& interned(uint32_t id) { return strings.at(id); }

uint32_t intern(const std::string& text) {
  auto [found, isNew] = stringNumbers.try_emplace(text, static_cast<uint32_t>(strings.size()));
  if (isNew) strings.push_back(text);
  return found->second;
}

std::string errorText(const std::exception& error) {
  if (const auto* torchError = dynamic_cast<const c10::Error*>(&error)) {
    return torchError->what_without_backtrace();
  }
  return error.what();
}

double Args::number(size_t i) const {
  double value = 0;
  if (i >= count || napi_get_value_double(env, argv[i], &value) != napi_ok) {
    throw std::runtime_error("expected a number as argument " + std::to_string(i));
  }
  return value;
}

bool Args::boolean(size_t i) const {
  bool value = false;
  if (i >= count || napi_get_value_bool(env, argv[i], &value) != napi_ok) {
    throw std::runtime_error("expected a boolean as argument " + std::to_string(i));
  }
  return value;
}

std::string Args::string(size_t i) const {
  size_t size = 0;
  if (i >= count || napi_get_value_string_utf8(env, argv[i], nullptr, 0, &size) != napi_ok) {
    throw std::runtime_error("expected a string as argument " + std::to_string(i));
  }
  std::string text(size, '\0');
  check(env, napi_get_value_string_utf8(env, argv[i], text.data(), size + 1, &size));
  return text;
}

napi_value toString(napi_env env, const std::string& value) {
  napi_value result;
  check(env, napi_create_string_utf8(env, value.data(), value.size(), &result));
  return result;
}

}  // namespace rlar

NAPI_MODULE_INIT() {
  using namespace rlar;
  static std::atomic<bool> isLoaded{false};
  if (isLoaded.exchange(true)) {
    napi_throw_error(env, nullptr,
                     "rl-ar-finetune: expected one JavaScript thread to load LibTorch, got a second. "
                     "Do the tensor work in one thread and send plain data to the others.");
    return nullptr;
  }
  try {
    c10::initLogging();  // reads TORCH_CPP_LOG_LEVEL, which nothing else in LibTorch does
    installAllocator();
    void* values;
    void* tags;
    napi_value valueBuffer, tagBuffer;
    check(env, napi_create_arraybuffer(env, kSlots * sizeof(double), &values, &valueBuffer));
    check(env, napi_create_arraybuffer(env, kSlots, &tags, &tagBuffer));
    // The module keeps both buffers for as long as it lives, so the addresses stay good.
    napi_ref keep;
    check(env, napi_create_reference(env, valueBuffer, 1, &keep));
    check(env, napi_create_reference(env, tagBuffer, 1, &keep));
    frame = {static_cast<uint8_t*>(tags), static_cast<double*>(values), static_cast<int64_t*>(values)};
    check(env, napi_set_named_property(env, exports, "values", valueBuffer));
    check(env, napi_set_named_property(env, exports, "tags", tagBuffer));
    define(env, exports, {{"intern", guarded<internString>},
                          {"interned", guarded<internedString>},
                          {"release", guarded<release>},
                          {"shape", guarded<shape>},
                          {"strides", guarded<strides>},
                          {"info", guarded<info>},
                          {"writeBytes", guarded<writeBytes>},
                          {"readBytes", guarded<readBytes>}});
    define(env, exports, callExports);
    define(env, exports, autogradExports);
    define(env, exports, deviceExports);
    define(env, exports, distributedExports);
  } catch (const PendingException&) {
    return nullptr;
  } catch (const std::exception& error) {
    napi_throw_error(env, nullptr, errorText(error).c_str());
    return nullptr;
  }
  return exports;
}
