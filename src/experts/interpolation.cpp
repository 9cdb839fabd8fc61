#include "experts/interpolation.h"

#include <ATen/ATen.h>

namespace subspace::experts {
namespace {

constexpr std::int64_t kPairs = 24, kSteps = 11;

struct Ends {
  at::Tensor a, b;  // [pairs] experts
};

/// Values [steps, pairs] of one pair, as a list.
Json along(const at::Tensor& values, std::int64_t pair) {
  return doubles_of(values.select(1, pair));
}

at::Tensor length_of(const at::Tensor& x) { return x.norm(2, -1); }

at::Tensor cosine_of(const at::Tensor& x, const at::Tensor& y) {
  return (x * y).sum(-1) / (length_of(x) * length_of(y)).clamp_min(1e-300);
}

/// Distance of h from the line between its ends at t, in parts of their distance.
at::Tensor off_the_line(const at::Tensor& h, const at::Tensor& t) {
  const at::Tensor a = h.select(0, 0), b = h.select(0, h.size(0) - 1);
  return length_of(h - (1 - t) * a - t * b) / length_of(a - b).clamp_min(1e-300);
}

void add_pairs(Json& out, const char* kind, const Ends& ends, const ExpertTensors& tensors,
               const Neighbourhood& neighbourhood, const at::Tensor& x) {
  const at::Tensor z_a = tensors.z.index_select(0, ends.a), z_b = tensors.z.index_select(0, ends.b);
  const at::Tensor t = at::linspace(0, 1, kSteps, tensors.z.options()).view({-1, 1, 1});
  const at::Tensor h = tensors.read((1 - t) * z_a + t * z_b);  // [steps, pairs, width]
  const at::Tensor a = h.select(0, 0), b = h.select(0, kSteps - 1);
  const at::Tensor away = h - neighbourhood.mean();
  const at::Tensor to_a = cosine_of(away, a - neighbourhood.mean());
  const at::Tensor to_b = cosine_of(away, b - neighbourhood.mean());
  const at::Tensor flat = t.squeeze(-1);
  const at::Tensor lengths =
      length_of(h) / ((1 - flat) * length_of(a) + flat * length_of(b)).clamp_min(1e-300);
  const at::Tensor departure = off_the_line(h, t);
  at::Tensor response;
  if (x.defined()) {
    // [steps, pairs, tokens]
    const at::Tensor xp = at::matmul(x.to(tensors.w_u.options()), tensors.w_u);
    response = off_the_line(at::gelu(at::matmul(h, xp.t())), t);
  }
  const Nearest middle =
      neighbourhood.nearest(h.select(0, kSteps / 2), at::full_like(ends.a, -1), 1);
  for (std::int64_t i = 0; i < ends.a.size(0); ++i) {
    const auto first = ends.a[i].item<std::int64_t>(), second = ends.b[i].item<std::int64_t>();
    const auto nearest = middle.experts[i][0].item<std::int64_t>();
    Json pair = {{"kind", kind},
                 {"a", first},
                 {"b", second},
                 {"cosine", to_b[0][i].item<double>()},
                 {"to_a", along(to_a, i)},
                 {"to_b", along(to_b, i)},
                 {"length", along(lengths, i)},
                 {"departure", along(departure, i)}};
    if (response.defined()) pair["response"] = along(response, i);
    pair["midpoint"] = {{"expert", nearest},
                        {"cosine", middle.cosines[i][0].item<double>()},
                        {"end", nearest == first || nearest == second}};
    out["pairs"].push_back(pair);
  }
}

}  // namespace

Json interpolation_of_experts(const ExpertTensors& tensors, const Neighbourhood& neighbourhood,
                              const at::Tensor& x) {
  Json out = {{"t", Json::array()}, {"pairs", Json::array()}};
  for (std::int64_t i = 0; i < kSteps; ++i) {
    out["t"].push_back(static_cast<double>(i) / (kSteps - 1.0));
  }
  const at::Tensor drawn = sampled(tensors.z.size(0), 2 * kPairs, tensors.z);
  const std::int64_t pairs = drawn.size(0) / 2;
  const at::Tensor a = drawn.narrow(0, 0, pairs);
  const Nearest nearest = neighbourhood.nearest(tensors.read(tensors.z.index_select(0, a)), a, 1);
  add_pairs(out, "nearest", {a, nearest.experts.select(1, 0)}, tensors, neighbourhood, x);
  add_pairs(out, "drawn", {a, drawn.narrow(0, pairs, pairs)}, tensors, neighbourhood, x);
  return out;
}

}  // namespace subspace::experts
