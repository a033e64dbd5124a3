// Devices: memory that LibTorch holds and what V8 is told of it, threads, random generators, CUDA.
#include "addon.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/version.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <mutex>

#ifdef __APPLE__
#include <malloc/malloc.h>
#define allocatedSize malloc_size
#else
#include <malloc.h>
#define allocatedSize malloc_usable_size
#endif

#ifdef RLAR_CUDA
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace rlar {
namespace {

// ---- Memory --------------------------------------------------------------------------------------------

std::atomic<int64_t> cpuBytes{0};
std::atomic<int64_t> cpuPeakBytes{0};
int64_t reportedBytes = 0;
c10::Allocator* baseAllocator = nullptr;
c10::DeleterFnPtr baseDeleter = nullptr;

// The C library returns a large block to the system when it is freed, and then the next one costs a page fault for
// every 4 KiB: more than most operators take to fill it. So large blocks wait here for a request of their size, as
// long as they and what is live take no more than what was once live at the same time.
class WaitingBlocks {
 public:
  // A block of `size` to `size * 5 / 4` bytes, the smallest there is; null where none waits.
  void* take(size_t size, int64_t live) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto best = blocks_.end();
    for (auto block = blocks_.begin(); block != blocks_.end(); ++block) {
      const bool fits = block->size >= size && block->size - size <= size / 4;
      if (fits && (best == blocks_.end() || block->size <= best->size)) best = block;
    }
    void* data = nullptr;
    if (best != blocks_.end()) {
      data = best->data;
      bytes_ -= static_cast<int64_t>(best->size);
      blocks_.erase(best);
    }
    mostLive_ = std::max(mostLive_, live + static_cast<int64_t>(size));
    while (!blocks_.empty() && live + static_cast<int64_t>(size) + bytes_ > mostLive_) dropOldest();
    return data;
  }
  void add(void* data, size_t size) {
    std::lock_guard<std::mutex> lock(mutex_);
    blocks_.push_back({data, size});
    bytes_ += static_cast<int64_t>(size);
    if (blocks_.size() > kMost) dropOldest();
  }
  void clear() {
    std::lock_guard<std::mutex> lock(mutex_);
    while (!blocks_.empty()) dropOldest();
    mostLive_ = 0;
  }
  int64_t bytes() {
    std::lock_guard<std::mutex> lock(mutex_);
    return bytes_;
  }

 private:
  struct Block {
    void* data;
    size_t size;
  };
  static constexpr size_t kMost = 4096;

  void dropOldest() {
    bytes_ -= static_cast<int64_t>(blocks_.front().size);
    baseDeleter(blocks_.front().data);
    blocks_.pop_front();
  }

  std::mutex mutex_;
  std::deque<Block> blocks_;  // oldest first
  int64_t bytes_ = 0;
  int64_t mostLive_ = 0;
};

constexpr size_t kLarge = 1 << 20;
WaitingBlocks& waiting = *new WaitingBlocks;  // outlives tensors that die when the process ends

void countedFree(void* pointer) {
  if (!pointer) return;
  const size_t size = allocatedSize(pointer);
  cpuBytes -= static_cast<int64_t>(size);
  if (size >= kLarge) waiting.add(pointer, size);
  else baseDeleter(pointer);
}

// LibTorch's own CPU allocator, counted: what tensors, graphs and temporaries hold, at every moment.
struct CountingAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    void* pointer = size >= kLarge ? waiting.take(size, cpuBytes.load()) : nullptr;
    if (!pointer) pointer = baseAllocator->raw_allocate(size);
    if (!pointer) return {nullptr, nullptr, &countedFree, c10::DeviceType::CPU};
    const int64_t now = cpuBytes += static_cast<int64_t>(allocatedSize(pointer));
    int64_t peak = cpuPeakBytes.load(std::memory_order_relaxed);
    while (now > peak && !cpuPeakBytes.compare_exchange_weak(peak, now)) {}
    return {pointer, pointer, &countedFree, c10::DeviceType::CPU};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &countedFree; }
  void copy_data(void* to, const void* from, size_t count) const override { default_copy_data(to, from, count); }
};

CountingAllocator& countingAllocator = *new CountingAllocator;

napi_value memory(const Args& args) {
  if (args.count > 0 && args.boolean(0)) cpuPeakBytes = cpuBytes.load();
  frame.values[0] = tensors.live();
  frame.values[1] = generators.live();
  frame.values[2] = static_cast<double>(cpuBytes.load());
  frame.values[3] = static_cast<double>(cpuPeakBytes.load());
  frame.values[4] = static_cast<double>(waiting.bytes());
  return nullptr;
}

napi_value emptyCache(const Args&) {
  waiting.clear();
#ifdef __GLIBC__
  malloc_trim(0);  // the C library keeps freed small blocks, of every thread that has ever allocated
#endif
  return nullptr;
}

// ---- Random --------------------------------------------------------------------------------------------

napi_value newGenerator(const Args& args) {
  const c10::Device device = parseDevice(args.string(0));
  if (device.is_meta()) return toHandle(args.env, generators.add(metaGenerator()));
  return toHandle(args.env, generators.add(at::globalContext().defaultGenerator(device).clone()));
}

napi_value defaultGenerator(const Args& args) {
  const c10::Device device = parseDevice(args.string(0));
  if (device.is_meta()) return toHandle(args.env, generators.add(metaGenerator()));
  return toHandle(args.env, generators.add(at::globalContext().defaultGenerator(device)));
}

// seedGenerator(generator): the seed stands in the frame, 64 bits.
napi_value seedGenerator(const Args& args) {
  at::Generator& generator = generators.at(args.u32(0));
  std::lock_guard<std::mutex> lock(generator.mutex());
  generator.set_current_seed(static_cast<uint64_t>(frame.ints[0]));
  return nullptr;
}

napi_value generatorState(const Args& args) {
  return toHandle(args.env, tensors.add(generators.at(args.u32(0)).get_state()));
}

napi_value setGeneratorState(const Args& args) {
  at::Generator& generator = generators.at(args.u32(0));
  std::lock_guard<std::mutex> lock(generator.mutex());
  generator.set_state(tensors.at(args.u32(1)));
  return nullptr;
}

napi_value releaseGenerator(const Args& args) {
  generators.remove(args.u32(0));
  return nullptr;
}

// ---- Threads and versions ------------------------------------------------------------------------------

napi_value setNumThreads(const Args& args) {
  at::set_num_threads(static_cast<int>(args.number(0)));
  return nullptr;
}
napi_value getNumThreads(const Args& args) { return toNumber(args.env, at::get_num_threads()); }
napi_value torchVersion(const Args& args) { return toString(args.env, TORCH_VERSION); }
napi_value torchConfig(const Args& args) { return toString(args.env, at::show_config()); }

// ---- CUDA ----------------------------------------------------------------------------------------------
// Without CUDA headers at build time a CUDA LibTorch still computes; statistics and graphs need them.

napi_value whyNoCuda(const Args& args) { return toString(args.env, cudaMissing()); }

napi_value hasCudaGraphs(const Args& args) {
#ifdef RLAR_CUDA
  return toBoolean(args.env, true);
#else
  return toBoolean(args.env, false);
#endif
}

napi_value cudaDeviceCount(const Args& args) {
  if (!at::globalContext().hasCUDA()) return toNumber(args.env, 0);
  const c10::impl::VirtualGuardImpl guard(c10::DeviceType::CUDA);
  return toNumber(args.env, guard.deviceCount());
}

napi_value synchronize(const Args& args) {
  const c10::Device device = parseDevice(args.string(0));
  if (device.is_cpu() || device.is_meta()) return nullptr;
  const c10::impl::VirtualGuardImpl guard(device.type());
  guard.synchronizeDevice(device.has_index() ? device.index() : guard.getDevice().index());
  return nullptr;
}

// tf32(flags): whether float32 may be rounded to TF32 in products (1) and in convolutions (2); returns the flags before.
napi_value tf32(const Args& args) {
  at::Context& context = at::globalContext();
  const uint32_t before = (context.allowTF32CuBLAS() ? 1 : 0) | (context.allowTF32CuDNN() ? 2 : 0);
  const uint32_t flags = args.u32(0);
  context.setAllowTF32CuBLAS((flags & 1) != 0);
  context.setAllowTF32CuDNN((flags & 2) != 0);
  return toNumber(args.env, before);
}

#ifdef RLAR_CUDA

c10::DeviceIndex cudaIndex(const std::string& text) {
  const c10::Device device = parseDevice(text);
  return device.has_index() ? device.index() : c10::cuda::current_device();
}

// cudaMemory(device, resetPeak): allocated, peak allocated, reserved, peak reserved bytes in the frame.
napi_value cudaMemory(const Args& args) {
  const c10::DeviceIndex index = cudaIndex(args.string(0));
  const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(index);
  frame.values[0] = static_cast<double>(stats.allocated_bytes[0].current);
  frame.values[1] = static_cast<double>(stats.allocated_bytes[0].peak);
  frame.values[2] = static_cast<double>(stats.reserved_bytes[0].current);
  frame.values[3] = static_cast<double>(stats.reserved_bytes[0].peak);
  if (args.boolean(1)) c10::cuda::CUDACachingAllocator::resetPeakStats(index);
  return nullptr;
}

napi_value cudaEmptyCache(const Args&) {
  c10::cuda::CUDACachingAllocator::emptyCache();
  return nullptr;
}

// One captured graph and, during its capture, the side stream that it runs on; the stream before comes back when
// the guard goes.
struct CapturedGraph {
  at::cuda::CUDAGraph graph;
  std::optional<c10::cuda::CUDAStreamGuard> capturing;
};
std::vector<std::unique_ptr<CapturedGraph>>& graphs = *new std::vector<std::unique_ptr<CapturedGraph>>;

CapturedGraph& graphAt(uint32_t id) {
  if (id == 0 || id > graphs.size() || !graphs[id - 1]) throw std::runtime_error("the graph was released");
  return *graphs[id - 1];
}

napi_value graphBegin(const Args& args) {
  auto captured = std::make_unique<CapturedGraph>();
  c10::cuda::getCurrentCUDAStream().synchronize();
  captured->capturing.emplace(c10::cuda::getStreamFromPool(true));
  captured->graph.capture_begin();
  graphs.push_back(std::move(captured));
  return toHandle(args.env, static_cast<uint32_t>(graphs.size()));
}

// Takes a graph out of the table for as long as its capture ends: whatever throws, stream and graph are given back.
napi_value graphEnd(const Args& args) {
  graphAt(args.u32(0));
  std::unique_ptr<CapturedGraph> captured = std::move(graphs[args.u32(0) - 1]);
  captured->graph.capture_end();
  captured->capturing.reset();
  graphs[args.u32(0) - 1] = std::move(captured);
  return nullptr;
}

// For a capture whose recording failed. CUDA reports the failure once more when such a capture ends.
napi_value graphAbort(const Args& args) {
  graphAt(args.u32(0));
  const std::unique_ptr<CapturedGraph> captured = std::move(graphs[args.u32(0) - 1]);
  try { captured->graph.capture_end(); } catch (const std::exception&) {}
  return nullptr;
}

napi_value graphReplay(const Args& args) {
  graphAt(args.u32(0)).graph.replay();
  return nullptr;
}

napi_value graphRelease(const Args& args) {
  graphAt(args.u32(0));
  graphs[args.u32(0) - 1].reset();
  return nullptr;
}

#else

napi_value noCuda(const Args&) {
  throw std::runtime_error(
      "CUDA memory statistics and graphs were not built in. Build against a CUDA LibTorch with the CUDA headers "
      "(CUDA_HOME, or the nvidia-cuda-runtime package beside torch)");
}
constexpr auto cudaMemory = noCuda;
constexpr auto cudaEmptyCache = noCuda;
constexpr auto graphBegin = noCuda;
constexpr auto graphEnd = noCuda;
constexpr auto graphAbort = noCuda;
constexpr auto graphReplay = noCuda;
constexpr auto graphRelease = noCuda;

#endif

}  // namespace

std::string cudaMissing() {
  if (at::globalContext().hasCUDA()) return "";
  if (at::CUDAHooksRegistry()->Has("CUDAHooks")) {
    return "LibTorch " TORCH_VERSION " was built with CUDA but sees no device. Check nvidia-smi and CUDA_VISIBLE_DEVICES";
  }
  return "LibTorch " TORCH_VERSION " was built for the CPU alone. Set LIBTORCH to a CUDA build";
}

void installAllocator() {
  baseAllocator = c10::GetCPUAllocator();
  baseDeleter = baseAllocator->raw_deleter();
  // Counting needs an allocator whose pointers are plain; LibTorch's default is.
  if (baseDeleter) c10::SetCPUAllocator(&countingAllocator, 255);
}

void reportExternalMemory(napi_env env) {
  constexpr int64_t kStep = 16 << 20;
  const int64_t now = cpuBytes.load(std::memory_order_relaxed);
  if (now - reportedBytes < kStep && reportedBytes - now < kStep) return;
  int64_t total;
  napi_adjust_external_memory(env, now - reportedBytes, &total);
  reportedBytes = now;
}

const std::vector<Export> deviceExports = {
    {"memory", guarded<memory>},
    {"emptyCache", guarded<emptyCache>},
    {"newGenerator", guarded<newGenerator>},
    {"defaultGenerator", guarded<defaultGenerator>},
    {"seedGenerator", guarded<seedGenerator>},
    {"generatorState", guarded<generatorState>},
    {"setGeneratorState", guarded<setGeneratorState>},
    {"releaseGenerator", guarded<releaseGenerator>},
    {"setNumThreads", guarded<setNumThreads>},
    {"getNumThreads", guarded<getNumThreads>},
    {"torchVersion", guarded<torchVersion>},
    {"torchConfig", guarded<torchConfig>},
    {"whyNoCuda", guarded<whyNoCuda>},
    {"hasCudaGraphs", guarded<hasCudaGraphs>},
    {"cudaDeviceCount", guarded<cudaDeviceCount>},
    {"synchronize", guarded<synchronize>},
    {"tf32", guarded<tf32>},
    {"cudaMemory", guarded<cudaMemory>},
    {"cudaEmptyCache", guarded<cudaEmptyCache>},
    {"graphBegin", guarded<graphBegin>},
    {"graphEnd", guarded<graphEnd>},
    {"graphAbort", guarded<graphAbort>},
    {"graphReplay", guarded<graphReplay>},
    {"graphRelease", guarded<graphRelease>},
};

}  // namespace rlar
