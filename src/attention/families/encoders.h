#pragma once

#include "attention/family_base.h"

namespace subspace {

/// Tensor names of one encoder block (without prefix), for the families that differ in little else.
struct EncoderNames {
  std::string query, key, value, output;  ///< projections, without ".weight"
  std::string input_norm;                 ///< the LayerNorm whose output attention reads
  std::string output_norm;                ///< the one on the sum that attention is added to, if any
};

/// Multi-head attention without rotation: four Linear layers with optional biases.
AttentionLayer encoder_layer(const ModelShape& shape, const EncoderNames& names, double eps,
                             TensorSource& source);

/// The first of `prefixes` under which the checkpoint has `tensor`; NotFound (naming all) if none.
std::string find_prefix(const Checkpoint& checkpoint, const std::vector<std::string>& prefixes,
                        const std::string& tensor);

/// Width of a head; throws InvalidValue unless heads divide the width.
std::int64_t even_head_dim(const ModelShape& shape, const std::string& where);

}  // namespace subspace
