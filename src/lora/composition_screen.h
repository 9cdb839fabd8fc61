#pragma once

#include <map>
#include <utility>
#include <vector>

#include "lora/composition.h"

namespace subspace {

/// What an adapter rewires between all heads of two layers in one mode, by the junction alone (the
/// far ends V and F are the base's): D_ij = V_i (O_i' N_j' - O_i N_j) F_j^T, every head i of the
/// earlier layer with every head j of the later one.
struct LayerPairScreen {
  std::int64_t writer = 0, reader = 0;  ///< layers
  Mode mode = Mode::q;
  /// ||D|| over all pairs of heads: sqrt(sum ||D_ij||^2 / (sum ||M1_i||^2 sum ||N2_j||^2)).
  double rho = 0;
  /// Of the pair of heads with the largest ||D_ij|| / (||M1_i|| ||N2_j||).
  double rho_max = 0;
  std::int64_t head_writer = 0, head_reader = 0;
  /// As in PairScore, of the layers' heads stacked; p by the Haar null of the stacks.
  std::array<double, 3> share{}, lift{}, p{};
  double p_gamma = 1, q_bh = 1;
  /// Principal cosines between what the writers' adapter writes (rows of B_o) and what the readers'
  /// adapter reads (columns of A_x): all that is new on both sides goes through min(r) directions.
  std::vector<double> cosines;
  at::Tensor rho_heads;  ///< [H writers, H readers] float64
};

/// The screen of all pairs of layers, from thin products only:
///
///   bn  (O_i A_x) B_x^j    one (H d_v) x r table for each pair of layers and mode
///   nb  A_o^i (B_o N_j)    one r x (H k) table
///   nn  A_o^i (B_o A_x) B_x^j    an r x r core that all H x H pairs share
///
/// and of each table only the r x r Gram matrix of a head is kept; ||D_ij||^2 for all pairs is then
/// three products [H, r^2] [r^2, H] and the mixed terms three more. O(d (H d_v + H k) r) operations
/// a pair of layers, O(layers^2 H r^2) memory.
///
/// Layers are handed over from the last to the first, each once: a pair is finished when its writer
/// comes, which needs the A of later layers with their norms folded in, and the B_o of earlier
/// ones, with the norm behind their heads folded in. The wide products are in float32 for d > 1024
/// (relative error of rho about 1e-5), else in float64.
class CompositionScreen {
 public:
  /// `writes`: B_o of every layer that takes part, [r, d] (r = 0: none), as `written`
  /// gives it. `layers`: those, rising.
  CompositionScreen(std::vector<std::int64_t> layers, std::vector<at::Tensor> writes,
                    std::vector<std::int64_t> offsets);

  /// The next layer, the last one first. Returns the screens of the pairs it finishes: this layer's
  /// heads as writers, all later layers as readers, three modes each.
  std::vector<LayerPairScreen> add(const Wiring& layer);

 private:
  struct ReadSide {         // of one layer and mode
    at::Tensor a, basis;    // A [d, r] and an orthonormal basis of its columns
    at::Tensor q11, norms;  // B F B^T [H, r, r], ||N2_j||^2 [H]
    Spectrum2 base, delta;
  };
  struct WriteSide {
    at::Tensor far;    // V^T V [H, d_v, d_v]
    at::Tensor far_a;  // V^T V A_o [H, d_v, r]
    at::Tensor p22, norms, b, basis;
    Spectrum2 base, delta;
  };
  struct ReadTable {      // of one writer's B_o and one layer and mode
    at::Tensor q12, q22;  // B F U^T [H, r_x, r_o], U F U^T [H, r_o, r_o] with U = B_o N
  };
  struct Grams {
    at::Tensor q, k, v, o;  // N^T N a head or group; O O^T a head
  };

  void read_side(const Wiring& wiring, const Grams& grams, Mode mode, const RopeMean& rope,
                 std::size_t place);
  WriteSide write_side(const Wiring& wiring, const Grams& grams, std::size_t place) const;
  std::vector<LayerPairScreen> finish(const Wiring& wiring, const WriteSide& writes,
                                      std::size_t place);
  LayerPairScreen screen(const WriteSide& writes, const ReadSide& reads, const ReadTable& table,
                         const at::Tensor& p11, const at::Tensor& p12) const;

  std::vector<std::int64_t> layers_;
  std::vector<at::Tensor> writes_;
  std::vector<std::int64_t> offsets_;
  std::size_t left_;  // layers that have not come
  std::map<std::pair<std::size_t, Mode>, ReadSide> reads_;
  std::map<std::pair<std::size_t, std::size_t>, std::array<ReadTable, 3>> tables_;
};

/// ||sum_j N_j F_j N_j^T||_F^2, n [n, d, k], f [n, k, k] symmetric. Exact for n k <= 512; beyond
/// that the mean of ||P z||^2 over 32 normal vectors z (Hutchinson), always the same ones: its
/// relative error is about sqrt(2 / (32 rank)).
double stacked_square(const at::Tensor& n, const at::Tensor& f);

}  // namespace subspace
