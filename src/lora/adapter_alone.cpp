#include "lora/adapter_alone.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "lora/layer_origin.h"
#include "lora/low_rank.h"
#include "spectrum/metrics.h"

namespace subspace {
namespace {

std::vector<double> listed(const at::Tensor& values) {
  const at::Tensor row = values.contiguous();
  std::vector<double> out(row.data_ptr<double>(), row.data_ptr<double>() + row.numel());
  // Rounding may leave an ulp of disorder.
  for (std::size_t j = 1; j < out.size(); ++j) out[j] = std::min(out[j], out[j - 1]);
  return out;
}

Json module_json(const Adapter& adapter, const std::string& path, const AdapterModule& module) {
  const LowRank update = {adapter.b(module).flatten(1), adapter.a(module).flatten(1).t()};
  const std::vector<double> values = listed(singular_values(update));
  static const std::vector<double> taus = {0.99};
  const Metrics metrics = spectrum_metrics(values, taus, {});
  double energy = 0;
  for (const double value : values) energy += value * value;
  const std::int64_t layer = layer_in_path(path);
  return {{"module", module.path},
          {"layer", layer >= 0 ? Json(layer) : Json(nullptr)},
          {"rank", module.rank},
          {"in", module.in},
          {"out", module.out},
          {"fro_raw", std::sqrt(energy)},
          {"singular", values},
          {"erank99", metrics.effective_rank[0]},
          {"stable_rank", metrics.stable_rank},
          {"entropy_rank", metrics.entropy_rank}};
}

bool plain(const MatrixChange& change) {
  return change.a.defined() && !change.gain.defined() && !change.full.defined();
}

/// left (middle of head i) right^T of every head, whose ends all heads share.
void append_crossed(Json& out, std::int64_t layer, const char* circuit, const char* term,
                    const at::Tensor& left, const at::Tensor& middle, const at::Tensor& right) {
  const at::Tensor cores =
      at::matmul(at::matmul(triangular(left), middle), triangular(right).transpose(-2, -1));
  const at::Tensor values = at::linalg_svdvals(cores);
  for (std::int64_t head = 0; head < values.size(0); ++head) {
    out.push_back({{"layer", layer},
                   {"head", head},
                   {"circuit", circuit},
                   {"term", term},
                   {"fro", values[head].norm().item<double>()},
                   {"singular", listed(values[head])}});
  }
}

/// `width`: of the model; what reads or writes a latent has another.
Json crossed_terms(const LayerChange& change, std::int64_t width) {
  Json out = Json::array();
  const auto reads = [&](const MatrixChange& x) { return plain(x) && x.a.size(1) == width; };
  const bool latent = change.qa.defined() || change.kva.defined() || change.ob.defined() ||
                      change.q_rope.defined() || change.kpe.defined();
  if (latent) return out;
  if (reads(change.q) && reads(change.k)) {
    const std::int64_t heads = change.q.b.size(0);
    const at::Tensor keys = for_heads(change.k.b, heads).transpose(1, 2);
    append_crossed(out, change.index, "QK", "qk", change.q.a[0], at::bmm(change.q.b, keys),
                   change.k.a[0]);
  }
  if (reads(change.v) && plain(change.o) && change.o.b.size(2) == width) {
    const std::int64_t heads = change.o.a.size(0);
    append_crossed(out, change.index, "VO", "vo", change.v.a[0],
                   at::bmm(for_heads(change.v.b, heads), change.o.a), change.o.b[0].t());
  }
  return out;
}

/// Orthonormal basis of the columns, [d, r]; directions that rounding made are left out.
at::Tensor basis_of(const at::Tensor& columns) {
  const auto [u, s, vh] = at::linalg_svd(columns, /*full_matrices=*/false);
  const double floor = 1e-12 * s[0].item<double>();
  return u.narrow(1, 0, (s > floor).sum().item<std::int64_t>());
}

Json wiring_json(const at::Tensor& writes, const at::Tensor& reads) {
  const auto d = static_cast<double>(writes.size(0));
  const auto p = static_cast<double>(writes.size(1)), q = static_cast<double>(reads.size(1));
  const at::Tensor cosines = at::linalg_svdvals(at::matmul(writes.t(), reads)).clamp_max(1);
  const double variance = d > 1 ? 2 * p * q * (d - p) * (d - q) / (d * d * (d - 1) * (d + 2)) : 0;
  return {{"cosines", listed(cosines)},
          {"kernel", cosines.square().sum().item<double>()},
          {"kernel_null", {{"mean", p * q / d}, {"deviation", std::sqrt(variance)}}}};
}

/// `changes`: of the layers that the adapter touches, rising.
Json wiring_of_layers(const std::vector<LayerChange>& changes) {
  struct Read {
    const char* mode;
    at::Tensor basis;
  };
  std::vector<std::vector<Read>> reads(changes.size());
  for (std::size_t i = 0; i < changes.size(); ++i) {
    const LayerChange& c = changes[i];
    // Through latents a head reads what the latent's own adapter reads.
    for (const auto& [mode, change] : {std::pair{"Q", c.qa.a.defined() ? &c.qa : &c.q},
                                       {"K", c.kva.a.defined() ? &c.kva : &c.k},
                                       {"V", c.kva.a.defined() ? &c.kva : &c.v}}) {
      if (change->a.defined()) reads[i].push_back({mode, basis_of(change->a[0])});
    }
  }
  Json out = Json::array();
  for (std::size_t w = 0; w < changes.size(); ++w) {
    const MatrixChange& o = changes[w].o;
    if (!o.a.defined() || changes[w].ob.defined()) continue;
    const at::Tensor writes = basis_of(o.b[0].t());
    for (std::size_t r = w + 1; r < changes.size(); ++r) {
      for (const Read& read : reads[r]) {
        if (read.basis.size(0) != writes.size(0)) continue;  // reads a latent of the base's
        Json one = {{"w", changes[w].index}, {"r", changes[r].index}, {"mode", read.mode}};
        one.update(wiring_json(writes, read.basis));
        out.push_back(std::move(one));
      }
    }
  }
  return out;
}

Json missing_words(const std::string& why, bool heads_known) {
  Json out = Json::array({why});
  if (!heads_known) {
    out.push_back(
        "which heads there are, so terms of heads and what layers write for one another: give the "
        "base, or a folder with its config.json alone, by --base");
  }
  out.push_back(
      "everything that compares with the base: sizes relative to it (rel_fro), the terms of one "
      "adapter alone (q, k, v, o), old directions against new ones, spectra before and after, "
      "intruders, copying, composition scores; give its weights by --base");
  return out;
}

/// What the terms of heads leave out; the layer's tensors are named, without their numbers.
Json alone_approximations(const AdaptedModel& model) {
  Json out = {"data_unweighted", "norms_left_out"};
  MadeSource source(
      [](const std::string&, const std::vector<std::int64_t>& shape) {
        return at::empty(shape, at::TensorOptions().dtype(at::kDouble).device(at::kMeta));
      },
      [](const std::string&) { return false; });
  const AttentionLayer layer = model.family().assemble(0, source);
  if (layer.rotary.layout != Rotary::Layout::none) out.push_back("offset_0");
  if (layer.q_head.kind != Norm::Kind::none || layer.k_head.kind != Norm::Kind::none) {
    out.push_back("qk_norm");
  }
  return out;
}

std::string joined_values(const Json& values) {
  std::string out;
  for (const Json& value : values) {
    out += fmt::format("{}{:.9g}", out.empty() ? "" : " ", value.get<double>());
  }
  return out;
}

}  // namespace

Json adapter_alone(const Adapter& adapter, const AdaptedModel* model, const std::string& why) {
  Json out = Json::object();
  out["format"] = "subspace-lora-adapter";
  out["version"] = 1;
  out["missing"] = missing_words(why, model != nullptr);
  out["approx"] = model ? alone_approximations(*model) : Json{"data_unweighted"};
  out["modules"] = Json::array();
  std::vector<std::pair<std::int64_t, std::string>> order;  // layer 2 before layer 10
  for (const auto& [path, module] : adapter.modules()) {
    order.emplace_back(layer_in_path(path), path);
  }
  std::sort(order.begin(), order.end());
  for (const auto& [layer, path] : order) {
    out["modules"].push_back(module_json(adapter, path, adapter.modules().at(path)));
  }
  if (model == nullptr) return out;
  std::vector<LayerChange> changes;
  Json crossed = Json::array();
  const bool dora = adapter.config().dora;
  for (const auto& touched : model->touched()) {
    // DoRA's gains and tensors saved whole are differences to the base's.
    if (dora || !touched.whole.empty()) continue;
    changes.push_back(model->change(touched.layer, 1));
    for (Json& term : crossed_terms(changes.back(), model->family().shape().hidden_size)) {
      crossed.push_back(std::move(term));
    }
  }
  out["crossed"] = std::move(crossed);
  out["wiring"] = wiring_of_layers(changes);
  return out;
}

std::string adapter_modules_csv(const Json& result) {
  std::string out = "module,layer,rank,in,out,fro_raw,erank99,stable_rank,entropy_rank,singular\n";
  for (const Json& m : result.at("modules")) {
    out += fmt::format("{},{},{},{},{},{:.9g},{},{:.9g},{:.9g},{}\n",
                       m.at("module").get<std::string>(),
                       m.at("layer").is_null() ? "" : m.at("layer").dump(),
                       m.at("rank").get<std::int64_t>(), m.at("in").get<std::int64_t>(),
                       m.at("out").get<std::int64_t>(), m.at("fro_raw").get<double>(),
                       m.at("erank99").get<std::int64_t>(), m.at("stable_rank").get<double>(),
                       m.at("entropy_rank").get<double>(), joined_values(m.at("singular")));
  }
  return out;
}

std::string adapter_crossed_csv(const Json& result) {
  std::string out = "layer,head,circuit,term,fro,singular\n";
  for (const Json& t : result.at("crossed")) {
    out += fmt::format("{},{},{},{},{:.9g},{}\n", t.at("layer").get<std::int64_t>(),
                       t.at("head").get<std::int64_t>(), t.at("circuit").get<std::string>(),
                       t.at("term").get<std::string>(), t.at("fro").get<double>(),
                       joined_values(t.at("singular")));
  }
  return out;
}

}  // namespace subspace
