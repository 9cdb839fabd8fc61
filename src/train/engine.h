#pragma once

#include <map>
#include <string>
#include <vector>

#include "train/batches.h"
#include "train/device_graph.h"
#include "train/optimizer.h"

namespace subspace::train {

/// Computes the steps of a run on its device.
///
/// On a GPU a pass and the optimiser's step are recorded as graphs, one for each shape that passes
/// come in: the first pass of a shape is computed launch by launch, the second is recorded, and
/// from then on a step is two starts and a copy of its batch. Nothing waits for the device but
/// read().
class Engine {
 public:
  Engine(nn::Model& model, Optimizer& optimizer, const Settings& settings, c10::Device device,
         c10::ScalarType dtype, bool graphs = true);

  /// Adds `share` times the gradient of the summed loss of a pass.
  void pass(const Batch& batch, double share);
  /// The optimiser's step on what the passes added.
  void step(double learning_rate);

  /// Mean loss and gradient norm of a step.
  struct Result {
    double loss = 0, norm = 0;
  };
  /// Those of the steps since the last call. Waits for the device.
  std::vector<Result> read();
  /// No step more before they are read.
  bool full() const;

  /// The most rows of `batch` that a pass has memory for, from half of them down; 0: not one.
  /// For the message of a run that ran out of it. Leaves gradients behind.
  std::int64_t rows_that_fit(const Batch& batch);

 private:
  struct Recorded {
    Batch inputs;  // on the device, where the graph reads
    DeviceGraph graph;
    std::int64_t seen = 0;
  };
  void compute(const Batch& batch);
  void finish();
  void replay_pass(const Batch& batch);
  /// A number for the device, without waiting.
  void send(at::Tensor& to, double value);

  nn::Model& model_;
  Optimizer& optimizer_;
  const Settings& settings_;
  c10::Device device_;
  c10::ScalarType dtype_;
  bool graphs_;
  std::optional<DeviceGraph::Pool> pool_;
  std::map<std::string, Recorded> passes_;
  DeviceGraph finish_;
  std::int64_t finished_ = 0;

  at::Tensor share_, rate_;   // scalars
  at::Tensor loss_, result_;  // of the step under way; of the last one, [2]
  at::Tensor history_;        // [steps, 2] not yet read
  std::int64_t unread_ = 0;
};

}  // namespace subspace::train
