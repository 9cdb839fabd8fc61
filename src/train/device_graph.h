#pragma once

#include <c10/core/Device.h>

#include <functional>
#include <memory>

namespace subspace::train {

/// Work of a GPU that was recorded once and is started as one: no launch waits for the processor.
///
/// What is recorded reads and writes the same memory every time. Tensors made while recording live
/// in memory that all graphs of `Pool` share, so only what one of them leaves behind on purpose may
/// be read, and before the next is started.
class DeviceGraph {
 public:
  /// Memory for the graphs of one run.
  class Pool {
   public:
    Pool();

   private:
    friend class DeviceGraph;
    unsigned long long id_[2] = {0, 0};
  };

  DeviceGraph();
  ~DeviceGraph();
  DeviceGraph(DeviceGraph&&) noexcept;
  DeviceGraph& operator=(DeviceGraph&&) noexcept;

  /// Records what `work` starts on the present stream, which must be none of the default ones, and
  /// runs none of it. What `work` does must have run before: nothing in it may wait for the device.
  void record(const Pool& pool, const std::function<void()>& work);
  bool recorded() const { return graph_ != nullptr; }
  /// Starts it on the present stream.
  void replay();

  /// Whether this build and device can.
  static bool possible(c10::Device device);

 private:
  struct Graph;
  std::unique_ptr<Graph> graph_;
};

}  // namespace subspace::train
