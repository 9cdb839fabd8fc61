#pragma once

#include <array>
#include <filesystem>
#include <memory>
#include <vector>

#include "lora/composition.h"
#include "lora/layer_change.h"
#include "nn/model.h"

namespace subspace {

/// The adapter's terms of a head's two circuits: QK has q, k, qk, VO has v, o, vo.
enum class GatedTerm { q, k, qk, v, o, vo };
inline constexpr std::array<const char*, 6> kTermNames = {"q", "k", "qk", "v", "o", "vo"};

/// Part of the adapter on the way from one head to a later one, by which it acts with weight `gate`
/// instead of 1:
///   bn  the reader's adapter sees x without what the writer's base matrix wrote
///   nb  the reader's base matrix sees x without what the writer's o-adapter wrote
///   nn  the reader's adapter sees x without what the writer's o-adapter wrote
struct EdgeGate {
  std::int64_t writer = 0, writer_head = 0, reader = 0, reader_head = 0;
  Mode mode = Mode::q;
  Route route = Route::bn;
  double gate = 0;
};

/// A decoder whose adapter can be switched on term by term and head by head (section 7.3 of the
/// specification of `lora`), exactly:
///
///   logits_ij = sum_ab g_ab q_a R k_b^T,   q_base = x W_Q, q_new = x dW_Q, ..
///   out_i     = sum_ab g_ab (P v_a) o_b    g of (base, base) is 1, of the others the term's
///
/// All gates 1 are the model with the adapter merged into it, all 0 the base. An edge gate takes
/// the writer's contribution, divided by the norm's scale as it stands, out of what one head of a
/// later layer reads (the scale itself is kept: an RMSNorm is not linear).
///
/// Runs `llama` and `subspace_decoder` of src/nn with MHA, GQA or MQA, rotary or no positions of
/// their own, and a dense or no feed-forward part. T x T logits are formed: for small models.
class GatedModel {
 public:
  /// `base`: a folder in Hugging Face layout. Throws Unsupported, naming what it is, for other
  /// models (MLA, mixtures of experts, shared output latents, learned positions) and for adapters
  /// that saved a norm whole; InvalidShape for changes of another model.
  GatedModel(const std::filesystem::path& base, const std::vector<LayerChange>& changes,
             at::ScalarType dtype, int threads);

  std::int64_t layers() const { return static_cast<std::int64_t>(layers_.size()); }
  std::int64_t heads() const { return config().attention.heads; }
  const nn::ModelConfig& config() const { return model_->config(); }
  /// Gates of one value, [layers, 6, heads] (terms as in GatedTerm).
  at::Tensor gates(double value) const;

  /// Vectors that the head reads, [B, T, d], for tokens [B, T].
  at::Tensor hidden(const at::Tensor& tokens, const at::Tensor& gates,
                    const std::vector<EdgeGate>& edges = {}) const;
  /// [.., d] -> [.., vocabulary]
  at::Tensor logits(const at::Tensor& hidden) const { return model_->logits(hidden); }
  /// Sum of -log p(target) over rows [N, d].
  double loss_sum(const at::Tensor& rows, const at::Tensor& targets) const;

  /// The base with the adapter merged into its matrices, as src/nn runs it: what all gates 1 must
  /// equal.
  std::unique_ptr<nn::Model> merged(int threads) const;
  /// The base as src/nn runs it: what all gates 0 must equal.
  std::unique_ptr<nn::Model> base_model(int threads) const;

 private:
  /// A matrix and what the adapter adds to it, with their biases; [heads or groups, in, out].
  struct Matrix {
    at::Tensor base, change, bias, bias_change;
    at::Tensor wide_base, wide_change;  // [in, heads out]; o: [heads in, out]: one product for all
  };
  struct Layer {
    Matrix q, k, v, o;
    nn::NormLayer before, behind;
    nn::Linear gate, up, down;
  };
  /// What the heads of a layer have written to the residual stream, [B, H, T, d]: base matrix and
  /// adapter.
  struct Written {
    at::Tensor base, change;
  };
  struct Projected {
    at::Tensor base, change;  // [B, H, T, k]
  };

  void refuse_other_models() const;
  Layer make_layer(const AttentionLayer& layer, const LayerChange& change) const;
  at::Tensor parameter(const std::string& name) const;
  at::Tensor parameter_if(const std::string& name) const;
  Projected project(const Matrix& matrix, const at::Tensor& x) const;
  void withhold(Projected& projected, const Matrix& matrix, const at::Tensor& scale, Mode mode,
                std::int64_t layer, const std::vector<EdgeGate>& edges,
                const std::vector<Written>& written) const;
  at::Tensor feed_forward(const Layer& layer, const at::Tensor& x) const;
  /// Adds what the layer's heads write to x; kept a head in `written` if there are edges.
  at::Tensor attend(std::int64_t layer, const at::Tensor& x, const at::Tensor& gates,
                    const std::vector<EdgeGate>& edges, std::vector<Written>& written) const;

  std::filesystem::path base_;
  at::ScalarType dtype_;
  std::unique_ptr<nn::Model> model_;
  std::vector<Layer> layers_;
  nn::NormLayer last_;
  nn::RotaryTable rotary_;
};

}  // namespace subspace
