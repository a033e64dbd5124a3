// What the native files share: the frame through which values cross, the tables of live objects, and the
// one place where a C++ exception becomes a JavaScript one. No model and no algorithm lives below this line.
#pragma once

#include <node_api.h>

#include <ATen/ATen.h>
#include <ATen/core/Generator.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

namespace rlar {

// ---- Frame ---------------------------------------------------------------------------------------------
// Arguments and results cross in one buffer shared with JavaScript: slot i has a tag and eight bytes of value.
// JavaScript writes plain numbers there, so a call crosses the language border with two integers, whatever
// the number of its arguments. The same tags stand in src/torch/binding.ts.
enum Tag : uint8_t {
  kDefault = 0,    // not given: the schema's default
  kNone = 1,
  kTensor = 2,     // handle
  kInt = 3,        // a double that holds an integer exactly
  kBigInt = 4,     // int64
  kDouble = 5,
  kBool = 6,
  kString = 7,     // number of an interned string
  kGenerator = 8,  // handle
  kList = 9,       // count; that many values follow
  kArgument = 10,  // a result that is the call's own argument, by position
};

constexpr uint32_t kSlots = 1 << 16;

struct Frame {
  uint8_t* tags;
  double* values;
  int64_t* ints;  // the same memory as values
};
extern Frame frame;

// ---- Tables --------------------------------------------------------------------------------------------
// A JavaScript object owns one slot of a table through a small integer; 0 is never a handle.
template <typename T>
class Table {
 public:
  uint32_t add(T value) {
    live_++;
    if (free_.empty()) {
      items_.push_back(std::move(value));
      return static_cast<uint32_t>(items_.size());
    }
    uint32_t id = free_.back();
    free_.pop_back();
    items_[id - 1] = std::move(value);
    return id;
  }
  T& at(uint32_t id) {
    if (id == 0 || id > items_.size() || !items_[id - 1].defined()) {
      throw std::runtime_error("handle " + std::to_string(id) + " is not alive");
    }
    return items_[id - 1];
  }
  void remove(uint32_t id) {
    at(id) = T();
    free_.push_back(id);
    live_--;
  }
  uint32_t live() const { return live_; }

 private:
  std::vector<T> items_;
  std::vector<uint32_t> free_;
  uint32_t live_ = 0;
};
// These, and whatever else LibTorch or Node.js may still reach while the process ends, are never destroyed: threads,
// graphs and thread-local caches outlive static objects.
extern Table<at::Tensor>& tensors;
extern Table<at::Generator>& generators;

const std::string& interned(uint32_t id);
uint32_t intern(const std::string& text);

// ---- Node-API helpers ----------------------------------------------------------------------------------
// Thrown when JavaScript has already thrown: only unwinds. An std::exception, so that it can cross LibTorch's threads.
struct PendingException : std::exception {};

// Handles made in its lifetime go when it does, however it ends.
class HandleScope {
 public:
  explicit HandleScope(napi_env env);
  ~HandleScope() { napi_close_handle_scope(env_, scope_); }
  HandleScope(const HandleScope&) = delete;
  HandleScope& operator=(const HandleScope&) = delete;

 private:
  napi_env env_;
  napi_handle_scope scope_;
};

inline void check(napi_env env, napi_status status) {
  if (status != napi_ok) {
    bool pending = false;
    napi_is_exception_pending(env, &pending);
    if (pending) throw PendingException{};
    const napi_extended_error_info* info = nullptr;
    napi_get_last_error_info(env, &info);
    throw std::runtime_error(info && info->error_message ? info->error_message : "Node-API call failed");
  }
}

inline HandleScope::HandleScope(napi_env env) : env_(env) { check(env, napi_open_handle_scope(env, &scope_)); }

std::string errorText(const std::exception& error);

// Every exported function has this shape; `guarded` turns what it throws into a JavaScript exception.
struct Args {
  napi_env env;
  napi_value argv[8];
  size_t count;

  double number(size_t i) const;
  uint32_t u32(size_t i) const { return static_cast<uint32_t>(number(i)); }
  bool boolean(size_t i) const;
  std::string string(size_t i) const;
};
using Function = napi_value (*)(const Args&);

template <Function F>
napi_value guarded(napi_env env, napi_callback_info info) {
  Args args{env, {}, 8};
  napi_get_cb_info(env, info, &args.count, args.argv, nullptr, nullptr);
  try {
    return F(args);
  } catch (const PendingException&) {
    return nullptr;
  } catch (const std::exception& error) {
    napi_throw_error(env, nullptr, errorText(error).c_str());
    return nullptr;
  }
}

struct Export {
  const char* name;
  napi_callback function;
};

inline napi_value toNumber(napi_env env, double value) {
  napi_value result;
  check(env, napi_create_double(env, value, &result));
  return result;
}
inline napi_value toHandle(napi_env env, uint32_t value) {
  napi_value result;
  check(env, napi_create_uint32(env, value, &result));
  return result;
}
inline napi_value toBoolean(napi_env env, bool value) {
  napi_value result;
  check(env, napi_get_boolean(env, value, &result));
  return result;
}
napi_value toString(napi_env env, const std::string& value);

// Whether a backward runs inside of another, as that of a recomputed part does.
bool isNestedBackward();

// Tells V8 how much memory lies behind its small handles, in coarse steps.
void reportExternalMemory(napi_env env);

extern const std::vector<Export> callExports;
extern const std::vector<Export> autogradExports;
extern const std::vector<Export> deviceExports;
extern const std::vector<Export> distributedExports;
void installAllocator();
// Done once, when meta is first named: it takes a moment. Until then no tensor can lie there.
void installMetaKernels();
extern bool metaIsUsed;
at::Generator metaGenerator();
c10::Device parseDevice(const std::string& text);
// Why CUDA cannot be used, as a sentence; empty where it can.
std::string cudaMissing();

}  // namespace rlar
