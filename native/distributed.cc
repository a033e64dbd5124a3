// Process groups of PyTorch's c10d: a store, in which the processes of a run find each other, and groups with Gloo (and
// NCCL where LibTorch has CUDA), registered by name. The collectives themselves are operators of `_c10d_functional`,
// which the generic call reaches by the group's name. Who waits for whom, and what is said of a process that does not
// come, is in src/distributed/.
#include "addon.h"

#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <sstream>
#include <thread>

#if __has_include(<torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>)
#define RLAR_DISTRIBUTED
#endif

#ifdef RLAR_DISTRIBUTED
#define USE_DISTRIBUTED
#define USE_C10D_GLOO
#include <torch/csrc/distributed/c10d/FileStore.hpp>
#include <torch/csrc/distributed/c10d/GroupRegistry.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#ifdef RLAR_NCCL
#define USE_C10D_NCCL
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif
#endif

namespace rlar {
namespace {

#ifdef RLAR_DISTRIBUTED
using Store = c10::intrusive_ptr<c10d::Store>;
using Milliseconds = std::chrono::milliseconds;

Table<Store>& stores = *new Table<Store>;

// Run something in a thread of its own and wait for it no longer than `limit`: a store whose machine is gone may never
// answer. Past the limit the thread is left to itself, with all that it holds.
template <typename Result>
Result within(Milliseconds limit, const std::string& what, std::function<Result()> task) {
  struct Outcome {
    std::mutex mutex;
    std::condition_variable isDone;
    std::optional<Result> value;
    std::string error;
    bool isFailed = false;
  };
  auto outcome = std::make_shared<Outcome>();
  std::thread([outcome, task = std::move(task)] {
    std::optional<Result> value;
    std::string error;
    try {
      value = task();
    } catch (const std::exception& failure) {
      error = errorText(failure);
    }
    std::lock_guard<std::mutex> lock(outcome->mutex);
    outcome->isFailed = !value.has_value();
    outcome->value = std::move(value);
    outcome->error = std::move(error);
    outcome->isDone.notify_one();
  }).detach();
  std::unique_lock<std::mutex> lock(outcome->mutex);
  const auto ended = [&] { return outcome->isFailed || outcome->value.has_value(); };
  if (!outcome->isDone.wait_for(lock, limit, ended)) {
    throw std::runtime_error(what + ": no answer within " + std::to_string(limit.count() / 1000.0) + " s");
  }
  if (outcome->isFailed) throw std::runtime_error(outcome->error);
  return std::move(*outcome->value);
}

std::vector<uint8_t> bytesOf(const std::string& text) { return {text.begin(), text.end()}; }

Milliseconds seconds(const Args& args, size_t i) {
  return Milliseconds(static_cast<int64_t>(args.number(i) * 1000));
}

// Where a store is, kept so that the heartbeat can open a connection of its own to it.
struct Place {
  std::string host;  // empty: a file
  uint16_t port = 0;
  std::string file;
  int size = 0;
  std::string prefix;

  Store open(bool isServer, Milliseconds timeout) const {
    Store store;
    if (host.empty()) {
      store = c10::make_intrusive<c10d::FileStore>(file, size);
    } else {
      c10d::TCPStoreOptions options;
      options.port = port;
      options.isServer = isServer;
      options.waitWorkers = false;
      options.timeout = timeout;
      store = c10::make_intrusive<c10d::TCPStore>(host, options);
    }
    store->setTimeout(timeout);
    return c10::make_intrusive<c10d::PrefixStore>(prefix, store);
  }
};

// ---- Heartbeat -----------------------------------------------------------------------------------------
// A thread that tells the store once a second that this process lives and how many collectives it has begun, also while
// JavaScript waits in one. What another process has not told for some seconds, that process cannot tell any more.
std::atomic<int64_t> collectives{0};

class Heartbeat {
 public:
  Heartbeat(Place place, std::string key, Milliseconds timeout)
      : state_(std::make_shared<State>()), thread_([state = state_, place = std::move(place), key = std::move(key), timeout] {
          beat(*state, place, key, timeout);
        }) {
    thread_.detach();  // a store that does not answer must not keep the process
  }
  ~Heartbeat() {
    std::lock_guard<std::mutex> lock(state_->mutex);
    state_->isOver = true;
    state_->changed.notify_one();
  }

 private:
  struct State {
    std::mutex mutex;
    std::condition_variable changed;
    bool isOver = false;
  };
  static void beat(State& state, const Place& place, const std::string& key, Milliseconds timeout) {
    try {
      const Store store = place.open(false, timeout);
      for (int64_t tick = 1;; tick++) {
        store->set(key, bytesOf(std::to_string(tick) + " " + std::to_string(collectives.load())));
        std::unique_lock<std::mutex> lock(state.mutex);
        if (state.changed.wait_for(lock, std::chrono::seconds(1), [&] { return state.isOver; })) return;
      }
    } catch (const std::exception&) {
      // The others see that nothing comes any more; this process finds the store gone where it next asks it.
    }
  }

  std::shared_ptr<State> state_;
  std::thread thread_;
};
std::unique_ptr<Heartbeat>& heartbeat = *new std::unique_ptr<Heartbeat>;

Place placeOf(const Args& args) {
  Place place;
  place.host = args.string(0);
  if (place.host.empty()) place.file = args.string(1);
  else place.port = static_cast<uint16_t>(std::stoul(args.string(1)));
  place.prefix = args.string(2);
  place.size = static_cast<int>(args.number(3));
  return place;
}

// openStore(host, port, prefix, processes, isServer, timeout): a TCP store; with an empty host `port` names a file.
napi_value openStore(const Args& args) {
  const Place place = placeOf(args);
  const bool isServer = args.boolean(4);
  const Milliseconds timeout = seconds(args, 5);
  return toHandle(args.env, stores.add(within<Store>(timeout, "the store", [=] { return place.open(isServer, timeout); })));
}

// startHeartbeat(host, port, prefix, processes, key, timeout): stopHeartbeat() ends it.
napi_value startHeartbeat(const Args& args) {
  heartbeat = std::make_unique<Heartbeat>(placeOf(args), args.string(4), seconds(args, 5));
  return nullptr;
}

napi_value stopHeartbeat(const Args&) {
  heartbeat.reset();
  return nullptr;
}

napi_value closeStore(const Args& args) {
  stores.remove(args.u32(0));
  return nullptr;
}

// storeSet(store, key, value, timeout)
napi_value storeSet(const Args& args) {
  const Store store = stores.at(args.u32(0));
  const std::string key = args.string(1);
  const std::string value = args.string(2);
  within<bool>(seconds(args, 3), "the store", [=] {
    store->set(key, bytesOf(value));
    return true;
  });
  return nullptr;
}

// storeSetFirst(store, key, value, timeout): the value that stands there, which is the first that anybody set.
napi_value storeSetFirst(const Args& args) {
  const Store store = stores.at(args.u32(0));
  const std::string key = args.string(1);
  const std::string value = args.string(2);
  return toString(args.env, within<std::string>(seconds(args, 3), "the store", [=] {
                    const std::vector<uint8_t> stands = store->compareSet(key, {}, bytesOf(value));
                    return std::string(stands.begin(), stands.end());
                  }));
}

// storeGet(store, key, timeout): null where nothing was set.
napi_value storeGet(const Args& args) {
  const Store store = stores.at(args.u32(0));
  const std::string key = args.string(1);
  const auto value =
      within<std::optional<std::string>>(seconds(args, 2), "the store", [=]() -> std::optional<std::string> {
        if (!store->check({key})) return std::optional<std::string>(std::in_place, "");
        const std::vector<uint8_t> bytes = store->get(key);
        return "=" + std::string(bytes.begin(), bytes.end());
      });
  if (value->empty()) {
    napi_value none;
    check(args.env, napi_get_null(args.env, &none));
    return none;
  }
  return toString(args.env, value->substr(1));
}

// storeAdd(store, key, amount, timeout): the sum.
napi_value storeAdd(const Args& args) {
  const Store store = stores.at(args.u32(0));
  const std::string key = args.string(1);
  const int64_t amount = static_cast<int64_t>(args.number(2));
  return toNumber(args.env, static_cast<double>(within<int64_t>(seconds(args, 3), "the store",
                                                                [=] { return store->add(key, amount); })));
}

// LibTorch's register of names does not keep the groups alive.
using Group = c10::intrusive_ptr<c10d::ProcessGroup>;
std::unordered_map<std::string, Group>& groups = *new std::unordered_map<std::string, Group>;

// openGroup(store, name, rank, size, timeout, address, interface, device): a group of all processes. Gloo listens at
// `address`, or on the network interface where one is named; with NCCL tensors on CUDA go through it.
napi_value openGroup(const Args& args) {
  const Store store = stores.at(args.u32(0));
  const std::string name = args.string(1);
  const int rank = static_cast<int>(args.number(2));
  const int size = static_cast<int>(args.number(3));
  const Milliseconds timeout = seconds(args, 4);
  const std::string address = args.string(5);
  const std::string interface = args.string(6);
  const bool wantsNccl = args.boolean(7);
  Group group = within<Group>(timeout, "the process group", [=] {
    auto options = c10d::ProcessGroupGloo::Options::create(timeout);
    options->devices.push_back(interface.empty() ? c10d::ProcessGroupGloo::createDeviceForHostname(address)
                                                 : c10d::ProcessGroupGloo::createDeviceForInterface(interface));
    Group made = c10::make_intrusive<c10d::ProcessGroup>(store, rank, size);
    const Store forGloo = c10::make_intrusive<c10d::PrefixStore>("gloo/" + name, store);
    made->setBackend(c10::kCPU, c10d::ProcessGroup::BackendType::GLOO,
                     c10::make_intrusive<c10d::ProcessGroupGloo>(forGloo, rank, size, options));
    made->setDefaultBackend(c10d::ProcessGroup::BackendType::GLOO);
#ifdef RLAR_NCCL
    if (wantsNccl) {
      auto forCuda = c10d::ProcessGroupNCCL::Options::create();
      forCuda->timeout = timeout;
      const Store forNccl = c10::make_intrusive<c10d::PrefixStore>("nccl/" + name, store);
      made->setBackend(c10::kCUDA, c10d::ProcessGroup::BackendType::NCCL,
                       c10::make_intrusive<c10d::ProcessGroupNCCL>(forNccl, rank, size, forCuda));
      made->setDefaultBackend(c10d::ProcessGroup::BackendType::NCCL);
    }
#endif
    return made;
  });
#ifndef RLAR_NCCL
  if (wantsNccl) throw std::runtime_error("the addon was built without NCCL");
#endif
  group->setGroupName(name);
  c10d::register_process_group(name, group);
  groups[name] = group;
  return nullptr;
}

// ---- Gradients while the backward pass runs ------------------------------------------------------------
// Sums gradients over the processes in buckets. After `arm` a bucket is sent as soon as the gradients of its parameters
// are complete, while the backward pass goes on with earlier layers. Buckets are sent in their order, since a collective
// meets the one that the others begin at the same place in their order. A hook comes after each accumulation: one for a
// parameter, or several where a backward runs inside the backward (a recomputed part), which does not say when it is over.
// Such buckets, and whatever else `arm` is not told to send early, are left to the caller.
class Reducer : public std::enable_shared_from_this<Reducer> {
 public:
  Reducer(Group group, std::vector<std::vector<at::Tensor>> buckets)
      : group_(std::move(group)), buckets_(std::move(buckets)) {
    for (size_t b = 0; b < buckets_.size(); b++) bucketOf_.insert(bucketOf_.end(), buckets_[b].size(), b);
    seen_.resize(bucketOf_.size());
  }

  void watch() {
    size_t i = 0;
    for (const auto& bucket : buckets_) {
      for (const at::Tensor& parameter : bucket) {
        torch::autograd::impl::set_post_acc_grad_hooks(parameter, std::make_unique<Hook>(weak_from_this(), i++));
      }
    }
  }

  void unwatch() {
    for (const auto& bucket : buckets_) {
      for (const at::Tensor& parameter : bucket) torch::autograd::impl::set_post_acc_grad_hooks(parameter, nullptr);
    }
  }

  // The next backward pass is the last one of the step; `early` has a 1 for each bucket that may be sent during it.
  void arm(const std::string& early) {
    std::lock_guard<std::mutex> lock(mutex_);
    isArmed_ = true;
    begin(early);
  }

  // Send what is left of the early buckets, with zeros where a gradient is missing. Gives for each parameter whether it has
  // a gradient (1), and whether its gradient came once (2) or in parts (4); then, after a blank, the buckets sent in time.
  std::string submit(const std::string& early) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!isArmed_) begin(early);
    isArmed_ = false;
    const size_t inTime = works_.size();
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
    std::string found;
    size_t i = 0;
    for (const auto& bucket : buckets_) {
      for (const at::Tensor& parameter : bucket) {
        const Seen& seen = seen_[i++];
        const int once = seen.count == 1 && !seen.inParts ? 2 : 0;
        found += static_cast<char>('0' + (parameter.grad().defined() ? 1 : 0) + once + (seen.inParts ? 4 : 0));
      }
    }
    for (; next_ < order_.size(); next_++) send(order_[next_]);
    return found + " " + std::to_string(inTime);
  }

  void wait() {
    auto works = std::exchange(works_, {});
    for (const auto& work : works) work->wait();
  }

 private:
  struct Seen {
    int count = 0;
    bool inParts = false;
  };

  struct Hook : torch::autograd::PostAccumulateGradHook {
    Hook(std::weak_ptr<Reducer> owner, size_t i) : owner(std::move(owner)), i(i) {}
    void operator()(const at::Tensor&) override {
      if (const auto reducer = owner.lock()) reducer->accumulated(i);
    }
    std::weak_ptr<Reducer> owner;
    size_t i;
  };

  void begin(const std::string& early) {
    order_.clear();
    next_ = 0;
    missing_.clear();
    for (size_t b = 0; b < buckets_.size(); b++) {
      missing_.push_back(buckets_[b].size());
      if (early[b] == '1') order_.push_back(b);
    }
    std::fill(seen_.begin(), seen_.end(), Seen{});
  }

  // On the thread of the engine that accumulated.
  void accumulated(size_t i) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!isArmed_ || error_) return;
    Seen& seen = seen_[i];
    if (isNestedBackward() || seen.count++ > 0) seen.inParts = true;
    const size_t bucket = bucketOf_[i];
    try {
      const auto sentEnd = order_.begin() + static_cast<std::ptrdiff_t>(next_);
      if (seen.inParts && std::find(order_.begin(), sentEnd, bucket) != sentEnd) {
        throw std::runtime_error("expected every gradient once in a backward pass, got another part of one that was sent");
      }
      if (seen.inParts || seen.count > 1) return;
      missing_[bucket]--;
      while (next_ < order_.size() && missing_[order_[next_]] == 0) send(order_[next_++]);
    } catch (...) {
      error_ = std::current_exception();  // thrown where the caller waits, and not out of the backward
    }
  }

  void send(size_t b) {
    at::NoGradGuard guard;
    std::vector<at::Tensor> gradients;
    for (const at::Tensor& parameter : buckets_[b]) {
      at::Tensor& gradient = parameter.mutable_grad();
      if (!gradient.defined()) gradient = at::zeros_like(parameter);
      else if (!gradient.is_contiguous()) gradient = gradient.contiguous();
      gradients.push_back(gradient);
    }
    collectives++;
    if (gradients.size() == 1) works_.push_back(group_->allreduce(gradients));
    else works_.push_back(group_->allreduce_coalesced(gradients));
  }

  const Group group_;
  const std::vector<std::vector<at::Tensor>> buckets_;
  std::vector<size_t> bucketOf_;
  std::mutex mutex_;
  bool isArmed_ = false;
  std::vector<size_t> order_;  // of buckets that are sent early
  size_t next_ = 0;
  std::vector<size_t> missing_;  // gradients to come, of each bucket
  std::vector<Seen> seen_;
  std::vector<c10::intrusive_ptr<c10d::Work>> works_;
  std::exception_ptr error_;
};

std::unordered_map<uint32_t, std::shared_ptr<Reducer>>& reducers = *new std::unordered_map<uint32_t, std::shared_ptr<Reducer>>;
uint32_t lastReducer = 0;

// openReducer(group, sizes): the parameters are in the frame; sizes are of the buckets, such as "3,1".
napi_value openReducer(const Args& args) {
  std::vector<std::vector<at::Tensor>> buckets;
  std::stringstream sizes(args.string(1));
  uint32_t slot = 0;
  for (std::string size; std::getline(sizes, size, ',');) {
    auto& bucket = buckets.emplace_back();
    for (unsigned long i = std::stoul(size); i > 0; i--) {
      bucket.push_back(tensors.at(static_cast<uint32_t>(frame.values[slot++])));
    }
  }
  const auto reducer = std::make_shared<Reducer>(groups.at(args.string(0)), std::move(buckets));
  reducer->watch();
  reducers[++lastReducer] = reducer;
  return toHandle(args.env, lastReducer);
}

napi_value closeReducer(const Args& args) {
  const auto found = reducers.find(args.u32(0));
  if (found == reducers.end()) return nullptr;
  found->second->unwatch();
  reducers.erase(found);
  return nullptr;
}

napi_value armReducer(const Args& args) {
  reducers.at(args.u32(0))->arm(args.string(1));
  return nullptr;
}

napi_value submitReducer(const Args& args) {
  return toString(args.env, reducers.at(args.u32(0))->submit(args.string(1)));
}

napi_value waitReducer(const Args& args) {
  reducers.at(args.u32(0))->wait();
  return nullptr;
}

napi_value closeGroup(const Args& args) {
  for (const auto& [_, reducer] : reducers) reducer->unwatch();
  reducers.clear();
  const std::string name = args.string(0);
  c10d::unregister_process_group(name);
  groups.erase(name);
  return nullptr;
}

// countCollective(): this process begins one more.
napi_value countCollective(const Args&) {
  collectives++;
  return nullptr;
}

napi_value distributedBackends(const Args& args) {
#ifdef RLAR_NCCL
  return toString(args.env, "gloo,nccl");
#else
  return toString(args.env, "gloo");
#endif
}
#else
napi_value distributedBackends(const Args& args) { return toString(args.env, ""); }
#endif

}  // namespace

const std::vector<Export> distributedExports = {
    {"distributedBackends", guarded<distributedBackends>},
#ifdef RLAR_DISTRIBUTED
    {"openStore", guarded<openStore>},
    {"closeStore", guarded<closeStore>},
    {"startHeartbeat", guarded<startHeartbeat>},
    {"stopHeartbeat", guarded<stopHeartbeat>},
    {"storeSet", guarded<storeSet>},
    {"storeSetFirst", guarded<storeSetFirst>},
    {"storeGet", guarded<storeGet>},
    {"storeAdd", guarded<storeAdd>},
    {"openGroup", guarded<openGroup>},
    {"closeGroup", guarded<closeGroup>},
    {"openReducer", guarded<openReducer>},
    {"closeReducer", guarded<closeReducer>},
    {"armReducer", guarded<armReducer>},
    {"submitReducer", guarded<submitReducer>},
    {"waitReducer", guarded<waitReducer>},
    {"countCollective", guarded<countCollective>},
#endif
};

}  // namespace rlar
