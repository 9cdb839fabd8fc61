#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "attention/family.h"
#include "lora/adapter.h"
#include "lora/layer_change.h"
#include "lora/layer_origin.h"

namespace subspace {

/// A base and an adapter on it: what the adapter does to each attention layer.
///
/// No family's storage is known here. The family's own recipe is run on tensors that hold their own
/// row and column numbers, and each matrix of the layer then says from which stored tensor it is
/// cut and where; A and B are cut there too. So every family that can be read can be adapted.
///
/// The base may be a folder with config.json alone: then changes() still cuts A and B into heads,
/// and what needs the base's weights throws NotFound saying so (DoRA's gains, tensors saved whole).
class AdaptedModel {
 public:
  /// Throws what Checkpoint and open_family do; for an adapter of another model InvalidShape
  /// (layer, module, found, expected) or NotFound (a module of attention that the base does not
  /// have); Unsupported for a base whose weights are quantised (bitsandbytes, GPTQ, AWQ, ...).
  AdaptedModel(const std::filesystem::path& base, Adapter adapter);

  const Adapter& adapter() const { return adapter_; }
  const Checkpoint& checkpoint() const { return *checkpoint_; }
  const Family& family() const { return *family_; }
  bool has_weights() const { return checkpoint_->has_weights(); }

  /// The base's layer. Throws NotFound without the base's weights, else as Family::load.
  AttentionLayer load(std::int64_t layer, int threads, const at::Device& device = at::kCPU) const;
  /// What the adapter does to that layer; nothing defined if it leaves the layer alone. O(size of
  /// A, B and of what is saved whole); with DoRA O(size of the adapted matrices).
  LayerChange change(std::int64_t layer, int threads) const;

  /// Layers of the base that the adapter changes, and the paths of the modules that are changed in
  /// each, ascending. Reads no weights.
  struct Touched {
    std::int64_t layer = 0;
    std::vector<std::string> modules;  ///< canonical paths, keys of Adapter::modules()
    std::vector<std::string> whole;    ///< canonical names, keys of Adapter::whole()
  };
  const std::vector<Touched>& touched() const { return touched_; }
  /// Where the matrices of that layer are stored. Reads no weights.
  LayerOrigin origin(std::int64_t layer) const;
  /// Of each matrix of that layer, by its name in AttentionLayer: the module that it is cut from.
  std::vector<std::pair<std::string, std::string>> cut_from(std::int64_t layer) const;
  /// Adapted modules that are not part of attention (MLP, embeddings, heads): paths.
  const std::vector<std::string>& outside() const { return outside_; }
  /// Notes of the adapter, of the base, and of the two together.
  std::vector<std::string> notes() const;

 private:
  void refuse_quantised() const;
  void find_touched();
  void check_shape(std::int64_t layer, const Family::Needed& stored,
                   const AdapterModule& module) const;
  /// Whether the layer's stored matrix is [in, out].
  bool is_transposed(std::int64_t layer, const std::string& stored) const;

  Adapter adapter_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<Family> family_;
  std::vector<Touched> touched_;
  std::vector<std::string> outside_;
  std::vector<std::string> notes_;
};

/// The folder of an adapter's base: `given` (a folder or a name in the cache) if it is not empty,
/// else what base_model_name_or_path names, if that is a folder or in the Hugging Face cache.
/// Nothing if it is not; `why` then says what was looked for.
std::optional<std::filesystem::path> find_base(const Adapter& adapter, const std::string& given,
                                               std::string& why);

/// The layer with the adapter merged into it: each W_i' of MatrixChange, biases with what is added
/// to them, norms replaced.
AttentionLayer merged(const AttentionLayer& base, const LayerChange& change);

}  // namespace subspace
