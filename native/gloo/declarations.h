// Stands for Gloo's own headers, which LibTorch does not bring along: what ProcessGroupGloo.hpp names of them, declared
// and no more. The classes themselves lie in libtorch_cpu; nothing here is ever constructed or called by the addon.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace gloo {

constexpr std::chrono::milliseconds kNoTimeout = std::chrono::milliseconds::zero();
constexpr std::chrono::milliseconds kUnsetTimeout = std::chrono::milliseconds(-1);

class Context {
 public:
  std::chrono::milliseconds getTimeout() const;
  void setTimeout(std::chrono::milliseconds timeout);
};

namespace transport {
class Device;
class UnboundBuffer;
}  // namespace transport

namespace rendezvous {
class Store {
 public:
  virtual ~Store();
  virtual void set(const std::string& key, const std::vector<char>& data) = 0;
  virtual std::vector<char> get(const std::string& key) = 0;
  virtual void wait(const std::vector<std::string>& keys) = 0;
  virtual void wait(const std::vector<std::string>& keys, const std::chrono::milliseconds& timeout) = 0;
};
}  // namespace rendezvous

}  // namespace gloo
