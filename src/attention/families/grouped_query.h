#pragma once

#include "attention/family_base.h"

namespace subspace {

/// Decoders with `model.layers.L.self_attn.{q,k,v,o}_proj`: everything but rotary, scale and
/// window.
class GroupedQuery : public FamilyBase {
 protected:
  /// What the configuration may leave to its class; a head_dim of 0: width / heads.
  struct HeadDefaults {
    std::int64_t heads = 0, groups = 0, head_dim = 0;
  };
  GroupedQuery(Context context, const char* family, const HeadDefaults& defaults);
  GroupedQuery(Context context, const char* family)
      : GroupedQuery(std::move(context), family, {}) {}

  std::int64_t head_dim() const { return head_dim_; }
  /// `unit_offset`: norm weights are stored as gamma - 1 (Gemma).
  AttentionLayer projections(std::int64_t layer, TensorSource& source,
                             bool unit_offset = false) const;

 private:
  std::int64_t head_dim_;
};

}  // namespace subspace
