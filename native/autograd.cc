// Autograd: gradients of tensors, backward, functions whose backward is written in JavaScript, grad mode and
// autocast. The backward of operators is LibTorch's own.
#include "addon.h"

#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/engine.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

namespace rlar {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

napi_env mainEnv = nullptr;
std::thread::id mainThread;

// ---- Calling JavaScript from engine threads ------------------------------------------------------------
// On a CPU the engine runs on the thread that called backward, and a backward written in JavaScript is called
// straight away. On CUDA it runs on a thread per device while JavaScript's thread waits in `runBackward`, so
// the two meet here: the device thread hands its call over and blocks; should that call run a backward of its
// own, the blocked device thread is the one to run it, as the engine asks of re-entrant calls.
struct Job {
  std::function<void()> work;    // for JavaScript's thread
  std::function<void()> nested;  // for the engine thread that posted this job
  std::exception_ptr error;
  std::exception_ptr nestedError;
  bool done = false;
};

std::mutex& meetingMutex = *new std::mutex;
std::condition_variable& meeting = *new std::condition_variable;
std::deque<Job*>& jobs = *new std::deque<Job*>;
std::vector<Job*>& serving = *new std::vector<Job*>;  // innermost last; JavaScript's thread only

void onMainThread(std::function<void()> work) {
  if (std::this_thread::get_id() == mainThread) return work();
  Job job{std::move(work), nullptr, nullptr, nullptr, false};
  std::unique_lock<std::mutex> lock(meetingMutex);
  jobs.push_back(&job);
  meeting.notify_all();
  while (true) {
    meeting.wait(lock, [&] { return job.done || job.nested; });
    if (job.done) break;
    std::function<void()> nested = job.nested;
    lock.unlock();
    std::exception_ptr error;
    try { nested(); } catch (...) { error = std::current_exception(); }
    lock.lock();
    job.nestedError = error;
    job.nested = nullptr;
    meeting.notify_all();
  }
  if (job.error) std::rethrow_exception(job.error);
}

// Serve engine threads until `finished`, which is read under the lock.
void serveUntil(const std::function<bool()>& finished) {
  std::unique_lock<std::mutex> lock(meetingMutex);
  while (true) {
    meeting.wait(lock, [&] { return !jobs.empty() || finished(); });
    if (jobs.empty()) return;
    Job* job = jobs.front();
    jobs.pop_front();
    lock.unlock();
    serving.push_back(job);
    try { job->work(); } catch (...) { job->error = std::current_exception(); }
    serving.pop_back();
    lock.lock();
    job->done = true;
    meeting.notify_all();
  }
}

void runOnEngineThread(const std::function<void()>& work) {
  if (!serving.empty()) {
    Job* job = serving.back();
    {
      std::lock_guard<std::mutex> lock(meetingMutex);
      job->nested = work;
      meeting.notify_all();
    }
    serveUntil([job] { return job->nested == nullptr; });
    if (job->nestedError) std::rethrow_exception(std::exchange(job->nestedError, nullptr));
    return;
  }
  std::exception_ptr error;
  bool done = false;
  std::thread thread([&] {
    try { work(); } catch (...) { error = std::current_exception(); }
    std::lock_guard<std::mutex> lock(meetingMutex);
    done = true;
    meeting.notify_all();
  });
  serveUntil([&] { return done; });
  thread.join();
  if (error) std::rethrow_exception(error);
}

// ---- Backward functions written in JavaScript ----------------------------------------------------------

// What a JavaScript backward threw, kept until `runBackward` is back in JavaScript's hands.
napi_ref thrownValue = nullptr;
std::vector<napi_ref>& deadCallbacks = *new std::vector<napi_ref>;
std::mutex& deadMutex = *new std::mutex;

void releaseDeadCallbacks(napi_env env) {
  std::lock_guard<std::mutex> lock(deadMutex);
  for (napi_ref ref : deadCallbacks) napi_delete_reference(env, ref);
  deadCallbacks.clear();
}

struct Callback : torch::CustomClassHolder {
  explicit Callback(napi_ref ref) : ref(ref) {}
  ~Callback() override {
    std::lock_guard<std::mutex> lock(deadMutex);
    deadCallbacks.push_back(ref);
  }
  napi_ref ref;
};

uint32_t putTensors(const variable_list& list, uint32_t slot) {
  for (const at::Tensor& tensor : list) {
    if (slot >= kSlots) throw std::runtime_error("more than 65536 tensors do not fit into one call");
    frame.tags[slot] = tensor.defined() ? kTensor : kNone;
    frame.values[slot] = tensor.defined() ? tensors.add(tensor) : 0;
    slot++;
  }
  return slot;
}

// Read `count` tensors (null: undefined) from the frame.
variable_list takeTensors(uint32_t slot, uint32_t count) {
  variable_list list;
  for (uint32_t i = slot; i < slot + count; i++) {
    if (frame.tags[i] == kNone) list.emplace_back();
    else list.push_back(tensors.at(static_cast<uint32_t>(frame.values[i])));
  }
  return list;
}

// Whether another tensor than the view's own base, which lives by the view alone, looks at the same memory.
bool sharesMemory(const at::Tensor& tensor) {
  if (!tensor.has_storage()) return false;
  const bool holdsBase = tensor.is_view() && tensor._base().use_count() == 1;
  return tensor.storage().use_count() > (holdsBase ? 2 : 1);
}

// The callback finds the gradients of the outputs and then the saved tensors in the frame, as handles of its
// own, and leaves one handle there for each input, to give away (kTensor) or to lend (kArgument), or null. It is
// told whether the backward is for every leaf, and not for chosen ones alone.
variable_list callJavaScript(napi_ref ref, const variable_list& gradients, const variable_list& saved,
                             uint32_t inputs, bool isForAll) {
  napi_env env = mainEnv;
  const HandleScope scope(env);
  napi_value function, receiver, result;
  check(env, napi_get_reference_value(env, ref, &function));
  check(env, napi_get_undefined(env, &receiver));
  putTensors(saved, putTensors(gradients, 0));
  napi_value argv[3] = {toHandle(env, gradients.size()), toHandle(env, saved.size()), toBoolean(env, isForAll)};
  napi_status status = napi_call_function(env, receiver, function, 3, argv, &result);
  if (status != napi_ok) {
    napi_value thrown;
    check(env, napi_get_and_clear_last_exception(env, &thrown));
    if (thrownValue) napi_delete_reference(env, std::exchange(thrownValue, nullptr));
    napi_value holder;  // a reference needs an object: what was thrown may be any value
    check(env, napi_create_array_with_length(env, 1, &holder));
    check(env, napi_set_element(env, holder, 0, thrown));
    check(env, napi_create_reference(env, holder, 1, &thrownValue));
    throw std::runtime_error("a backward function threw");
  }
  variable_list out = takeTensors(0, inputs);
  for (uint32_t i = 0; i < inputs; i++) {
    if (frame.tags[i] == kTensor) tensors.remove(static_cast<uint32_t>(frame.values[i]));
    // The engine adds into a gradient that nobody else refers to, which a new view of used memory must not seem.
    if (out[i].defined() && out[i].use_count() == 1 && sharesMemory(out[i])) out[i] = out[i].clone();
  }
  return out;
}

struct Payload {
  variable_list outputs;
  variable_list saved;
  c10::intrusive_ptr<Callback> callback;
};

struct JsFunction : torch::autograd::Function<JsFunction> {
  static variable_list forward(AutogradContext* ctx, at::TensorList inputs, Payload* payload) {
    ctx->saved_data["callback"] = c10::IValue::make_capsule(payload->callback);
    ctx->saved_data["inputs"] = static_cast<int64_t>(inputs.size());
    ctx->save_for_backward(payload->saved);
    return payload->outputs;
  }
  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    auto callback = c10::static_intrusive_pointer_cast<Callback>(ctx->saved_data["callback"].toCapsule());
    const uint32_t inputs = static_cast<uint32_t>(ctx->saved_data["inputs"].toInt());
    variable_list saved = ctx->get_saved_variables();
    variable_list out;
    const bool gradMode = at::GradMode::is_enabled();
    const bool isForAll = torch::autograd::Engine::get_default_engine().is_checkpoint_valid();
    onMainThread([&] {
      at::AutoGradMode mode(gradMode);
      out = callJavaScript(callback->ref, gradients, saved, inputs, isForAll);
    });
    out.emplace_back();  // for the payload, which is no variable
    return out;
  }
};

// attachBackward(inputs, outputs, saved, callback): leaves the outputs as parts of the graph, handles of their own.
napi_value attachBackward(const Args& args) {
  releaseDeadCallbacks(args.env);
  const uint32_t inputCount = args.u32(0), outputCount = args.u32(1), savedCount = args.u32(2);
  variable_list inputs = takeTensors(0, inputCount);
  Payload payload{takeTensors(inputCount, outputCount), takeTensors(inputCount + outputCount, savedCount), {}};
  napi_ref ref;
  check(args.env, napi_create_reference(args.env, args.argv[3], 1, &ref));
  payload.callback = c10::make_intrusive<Callback>(ref);
  variable_list outputs = JsFunction::apply(at::TensorList(inputs), &payload);
  putTensors(outputs, 0);
  return nullptr;
}

bool threadedBackward = false;

// A backward may be called inside another, by a backward written in JavaScript. Past LibTorch's own limit of 60 the
// engine goes on in a thread of its pool, which would wait for JavaScript's thread while that waits for it.
constexpr int kMostNested = 60;
std::atomic<int> runningBackwards = 0;  // changed on JavaScript's thread only, which waits while an engine thread reads it

struct CountedBackward {
  CountedBackward() {
    if (runningBackwards > kMostNested) {
      throw std::runtime_error("expected at most " + std::to_string(kMostNested) +
                               " backwards inside another, got more. Nest fewer checkpoints or custom functions: "
                               "each calls backward inside the backward of the one around it");
    }
    runningBackwards++;
  }
  ~CountedBackward() { runningBackwards--; }
};

napi_value setThreadedBackward(const Args& args) {
  threadedBackward = args.boolean(0);
  return nullptr;
}

void runBackward(const Args& args, const std::function<void()>& work) {
  releaseDeadCallbacks(args.env);
  const CountedBackward counted;
  // A graph whose roots lie on the CPU may still have nodes on a GPU.
  const bool onDevice = threadedBackward || at::globalContext().hasCUDA();
  try {
    if (onDevice) runOnEngineThread(work);
    else work();
  } catch (const std::exception&) {
    if (!thrownValue) throw;
    napi_value holder, thrown;
    check(args.env, napi_get_reference_value(args.env, thrownValue, &holder));
    check(args.env, napi_get_element(args.env, holder, 0, &thrown));
    napi_delete_reference(args.env, std::exchange(thrownValue, nullptr));
    napi_throw(args.env, thrown);
    throw PendingException{};
  }
  reportExternalMemory(args.env);
}

// backward(roots, gradients, inputs, retainGraph, createGraph): counts of tensors in the frame, in that order.
napi_value backward(const Args& args) {
  const uint32_t rootCount = args.u32(0), gradientCount = args.u32(1), inputCount = args.u32(2);
  const bool retainGraph = args.boolean(3), createGraph = args.boolean(4);
  variable_list roots = takeTensors(0, rootCount);
  variable_list gradients = takeTensors(rootCount, gradientCount);
  variable_list inputs = takeTensors(rootCount + gradientCount, inputCount);
  runBackward(args, [&] {
    torch::autograd::backward(roots, gradients, retainGraph, createGraph, inputs);
  });
  return nullptr;
}

// gradients(roots, gradients, inputs, retainGraph, createGraph, allowUnused): leaves one tensor an input.
napi_value gradientsOf(const Args& args) {
  const uint32_t rootCount = args.u32(0), gradientCount = args.u32(1), inputCount = args.u32(2);
  const bool retainGraph = args.boolean(3), createGraph = args.boolean(4), allowUnused = args.boolean(5);
  variable_list roots = takeTensors(0, rootCount);
  variable_list gradients = takeTensors(rootCount, gradientCount);
  variable_list inputs = takeTensors(rootCount + gradientCount, inputCount);
  variable_list results;
  runBackward(args, [&] {
    results = torch::autograd::grad(roots, inputs, gradients, retainGraph, createGraph, allowUnused);
  });
  putTensors(results, 0);
  return nullptr;
}

// ---- Properties and modes ------------------------------------------------------------------------------

napi_value requiresGrad(const Args& args) { return toBoolean(args.env, tensors.at(args.u32(0)).requires_grad()); }
napi_value isLeaf(const Args& args) { return toBoolean(args.env, tensors.at(args.u32(0)).is_leaf()); }

napi_value setRequiresGrad(const Args& args) {
  tensors.at(args.u32(0)).requires_grad_(args.boolean(1));
  return nullptr;
}

napi_value getGrad(const Args& args) {
  const at::Tensor& grad = tensors.at(args.u32(0)).grad();
  return toHandle(args.env, grad.defined() ? tensors.add(grad) : 0);
}

napi_value setGrad(const Args& args) {
  const uint32_t id = args.u32(1);
  tensors.at(args.u32(0)).mutable_grad() = id == 0 ? at::Tensor() : tensors.at(id);
  return nullptr;
}

napi_value setGradEnabled(const Args& args) {
  const bool before = at::GradMode::is_enabled();
  const bool now = args.boolean(0);
  at::GradMode::set_enabled(now);
  // Until LibTorch 2.10 autocast gave weights that it had cast without a graph to code that needs one.
  if (now && !before) at::autocast::clear_cache();
  return toBoolean(args.env, before);
}

napi_value isGradEnabled(const Args& args) { return toBoolean(args.env, at::GradMode::is_enabled()); }

const char* dtypeName(c10::ScalarType type) {
  switch (type) {
    case c10::kHalf: return "float16";
    case c10::kBFloat16: return "bfloat16";
    case c10::kDouble: return "float64";
    default: return "float32";
  }
}

c10::ScalarType autocastType(const std::string& name) {
  return name == "float16" ? c10::kHalf : name == "bfloat16" ? c10::kBFloat16 : c10::kFloat;
}

void setAutocast(c10::DeviceType device, const std::string& dtype) {
  at::autocast::set_autocast_enabled(device, !dtype.empty());
  if (dtype.empty()) return;
  at::autocast::set_autocast_dtype(device, autocastType(dtype));
  // LibTorch keeps one cast of a weight, whatever the dtype: another dtype begins with none.
  static auto& last = *new std::unordered_map<c10::DeviceType, std::string>;
  if (std::exchange(last[device], dtype) != dtype) at::autocast::clear_cache();
}

// enterAutocast(device, dtype): the state before, as "dtype" or "" where it was off.
napi_value enterAutocast(const Args& args) {
  const c10::DeviceType device = parseDevice(args.string(0)).type();
  const bool wasOn = at::autocast::is_autocast_enabled(device);
  const std::string before = wasOn ? dtypeName(at::autocast::get_autocast_dtype(device)) : "";
  setAutocast(device, args.string(1));
  at::autocast::increment_nesting();
  return toString(args.env, before);
}

// leaveAutocast(device, before): back to what `enterAutocast` returned; the outermost drops the weight cache.
napi_value leaveAutocast(const Args& args) {
  if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
  setAutocast(parseDevice(args.string(0)).type(), args.string(1));
  return nullptr;
}

// Must be called once, on JavaScript's thread, before anything else here.
napi_value adoptThread(const Args& args) {
  mainEnv = args.env;
  mainThread = std::this_thread::get_id();
  return nullptr;
}

}  // namespace

bool isNestedBackward() { return runningBackwards > 1; }

const std::vector<Export> autogradExports = {
    {"adoptThread", guarded<adoptThread>},
    {"attachBackward", guarded<attachBackward>},
    {"setThreadedBackward", guarded<setThreadedBackward>},
    {"backward", guarded<backward>},
    {"gradients", guarded<gradientsOf>},
    {"requiresGrad", guarded<requiresGrad>},
    {"isLeaf", guarded<isLeaf>},
    {"setRequiresGrad", guarded<setRequiresGrad>},
    {"getGrad", guarded<getGrad>},
    {"setGrad", guarded<setGrad>},
    {"setGradEnabled", guarded<setGradEnabled>},
    {"isGradEnabled", guarded<isGradEnabled>},
    {"enterAutocast", guarded<enterAutocast>},
    {"leaveAutocast", guarded<leaveAutocast>},
};

}  // namespace rlar
