#include "train/device_graph.h"

#include "base/error.h"

#ifdef SUBSPACE_CUDA
#include <ATen/cuda/CUDAGraph.h>
#endif

namespace subspace::train {

#ifdef SUBSPACE_CUDA

struct DeviceGraph::Graph {
  at::cuda::CUDAGraph graph;
};

DeviceGraph::Pool::Pool() {
  const auto id = at::cuda::graph_pool_handle();
  id_[0] = id.first;
  id_[1] = id.second;
}

void DeviceGraph::record(const Pool& pool, const std::function<void()>& work) {
  auto recording = std::make_unique<Graph>();
  // Relaxed: other threads (batches in pinned memory) go on asking the driver for memory.
  recording->graph.capture_begin({pool.id_[0], pool.id_[1]}, cudaStreamCaptureModeRelaxed);
  try {
    work();
  } catch (...) {
    try {
      recording->graph.capture_end();
    } catch (...) {  // the work's own error is the one to tell
    }
    throw;
  }
  recording->graph.capture_end();
  graph_ = std::move(recording);
}

void DeviceGraph::replay() { graph_->graph.replay(); }

bool DeviceGraph::possible(c10::Device device) { return device.is_cuda(); }

#else

struct DeviceGraph::Graph {};

DeviceGraph::Pool::Pool() = default;

void DeviceGraph::record(const Pool&, const std::function<void()>&) {
  fail(ErrorCode::Internal, "this program was built without CUDA and cannot record its work");
}

void DeviceGraph::replay() {}

bool DeviceGraph::possible(c10::Device) { return false; }

#endif

DeviceGraph::DeviceGraph() = default;
DeviceGraph::~DeviceGraph() = default;
DeviceGraph::DeviceGraph(DeviceGraph&&) noexcept = default;
DeviceGraph& DeviceGraph::operator=(DeviceGraph&&) noexcept = default;

}  // namespace subspace::train
