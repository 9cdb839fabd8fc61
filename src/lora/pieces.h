#pragma once

#include <optional>
#include <string>
#include <vector>

#include "lora/terms.h"

namespace subspace {

/// The names of a circuit's changes, numbered as they are met.
class SwitchNames {
 public:
  /// The set with that change alone. Throws Unsupported beyond 32 changes.
  SwitchSet bit(const std::string& name);
  const std::vector<std::string>& names() const { return names_; }

 private:
  std::vector<std::string> names_;
};

/// One matrix of a layer and what changes it.
struct ChangedMatrix {
  const char* name;
  std::int64_t layer;
  const at::Tensor& weight;  ///< [n, in, out], or [in, out]
  const MatrixChange& change;
};

/// W' = (W + A B) diag(gain) + full as pieces: W; A (B gain); W diag(gain - 1); full. Throws
/// InvalidShape and NotFinite, naming layer and matrix.
std::vector<Piece> matrix_pieces(const ChangedMatrix& matrix, SwitchNames& names);
/// The same of W'^T: W^T; (B gain)^T A^T; diag(gain - 1) W^T; full^T.
std::vector<Piece> transposed_pieces(const ChangedMatrix& matrix, SwitchNames& names);

/// All products first_a second_b. Each keeps the thinner of the two spans.
std::vector<Piece> chained(const std::vector<Piece>& first, const std::vector<Piece>& second);

struct RowScaling {
  const char* name;          ///< of the change of a trained norm
  bool homogeneous = false;  ///< the last row is the bias: LayerNorm's bias joins it
  double scale = 1;          ///< on the rows besides
};

/// X <- N X of every piece: rms N = diag(gamma), layer N = (I - 11^T/d) diag(gamma). A changed norm
/// doubles the pieces: those of N' - N take part in its change.
void scale_rows(std::vector<Piece>& pieces, const Norm& norm, const std::optional<Norm>& changed,
                const RowScaling& scaling, SwitchNames& names);
/// X <- X diag(gamma), likewise (norms on each head's queries and keys).
void scale_columns(std::vector<Piece>& pieces, const Norm& norm, const std::optional<Norm>& changed,
                   const char* name, SwitchNames& names);

/// Y <- N Y of the pieces of what is written, Y^T, for the norm behind it: rms N = diag(gamma),
/// layer N = diag(gamma) (I - 11^T/d); a changed norm likewise.
void scale_written(std::vector<Piece>& pieces, const Norm& norm, const std::optional<Norm>& changed,
                   const char* name, SwitchNames& names);

/// A last row: the bias on the base, zero on spans of changes; what a change adds to the bias is a
/// piece of rank one that takes part in `set`.
void append_bias(std::vector<Piece>& pieces, const at::Tensor& bias, const at::Tensor& added,
                 SwitchSet set);

}  // namespace subspace
