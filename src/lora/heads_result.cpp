#include "lora/heads_result.h"

#include <ATen/ATen.h>

#include <cmath>
#include <unordered_map>

#include "base/error.h"
#include "checkpoint/safetensors.h"
#include "spectrum/metrics.h"

namespace subspace {
namespace {

Json number(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

/// Of the energy of a change's rescaling: what is left beside it is not known if it is less.
constexpr double kLeastRest = 1e-10;

/// Elements of a contiguous float64 tensor on the CPU, by row.
class Rows {
 public:
  explicit Rows(const at::Tensor& x) : x_(x.to(at::kCPU).contiguous()) {}
  double at(std::int64_t row, std::int64_t column = 0) const {
    return data()[row * width() + column];
  }
  std::span<const double> row(std::int64_t row) const {
    return {data() + row * width(), static_cast<std::size_t>(width())};
  }
  Json list(std::int64_t row, std::int64_t most) const {
    Json out = Json::array();
    for (std::int64_t j = 0; j < std::min(most, width()); ++j) out.push_back(number(at(row, j)));
    return out;
  }
  Json list(std::int64_t row) const { return list(row, width()); }
  std::int64_t width() const { return x_.size(0) > 0 ? x_.numel() / x_.size(0) : 0; }

 private:
  const double* data() const { return x_.data_ptr<double>(); }
  at::Tensor x_;
};

/// Metrics of a row of singular values, which rounding may have left in another order by an ulp.
Metrics metrics_of(const Rows& values, std::int64_t head) {
  static const std::vector<double> taus = {0.99, 0.999};
  const std::span<const double> row = values.row(head);
  std::vector<double> sorted(row.begin(), row.end());
  for (std::size_t j = 1; j < sorted.size(); ++j) sorted[j] = std::min(sorted[j], sorted[j - 1]);
  return spectrum_metrics(sorted, taus, {});
}

class HeadEntries {
 public:
  HeadEntries(const LayerResult& layer, const CircuitResult& circuit)
      : layer_(layer),
        circuit_(circuit),
        metrics_(circuit.metrics),
        gram_(metrics_.gram),
        fro_(metrics_.fro),
        split_(metrics_.split),
        align_(metrics_.align) {
    if (metrics_.values_base.defined()) {
      values_ = {Rows(metrics_.values_base), Rows(metrics_.values_adapted),
                 Rows(metrics_.values_delta)};
    }
  }

  Json entry(std::int64_t head) const {
    Json json = Json::object();
    json["layer"] = layer_.layer;
    json["head"] = head;
    json["circuit"] = metrics_.circuit;
    json["offset_mode"] = metrics_.rotary ? layer_.offset_mode : "none";
    sizes(json, head);
    terms(json, head);
    directions(json, head);
    if (!values_.empty()) spectra(json, head);
    if (metrics_.eigen.defined()) {
      json[metrics_.circuit == "VO" ? "copying" : "matching"] = Rows(metrics_.eigen).list(head);
    }
    if (metrics_.curve.defined()) curve(json, head);
    if (metrics_.circuit == "VO" && layer_.copying_tokens.defined()) {
      json["copying_tokens"] = Rows(layer_.copying_tokens).list(head);
    }
    if (circuit_.gain_free.intruder_vec.defined()) {
      intruders(json, head, "_gain_free", circuit_.gain_free.intruder_vec,
                circuit_.gain_free.intruder_sub);
    }
    biases(json, head);
    json["approx"] = approx_json(layer_, metrics_.circuit);
    return json;
  }

 private:
  std::int64_t count() const { return static_cast<std::int64_t>(metrics_.terms.size()); }
  double gram(std::int64_t head, std::int64_t a, std::int64_t b) const {
    return gram_.at(head, a * count() + b);
  }
  double delta_squared(std::int64_t head) const { return fro_.at(head, 2) * fro_.at(head, 2); }
  /// <T_a, dM>
  double with_delta(std::int64_t head, std::int64_t a) const {
    double sum = 0;
    for (std::int64_t b = 1; b < count(); ++b) sum += gram(head, a, b);
    return sum;
  }

  void sizes(Json& json, std::int64_t head) const {
    const double base = fro_.at(head, 0), adapted = fro_.at(head, 1), delta = fro_.at(head, 2);
    json["fro"] = fro_.list(head);
    json["rel_fro"] = number(delta / base);
    if (!values_.empty()) {
      const auto largest = [&](std::size_t which) {
        return values_[which].width() > 0 ? values_[which].at(head) : 0;
      };
      json["spec"] = {number(largest(0)), number(largest(1)), number(largest(2))};
      json["rel_spec"] = number(largest(2) / largest(0));
    }
    const double crossed = with_delta(head, 0);
    json["cos"] = number((base * base + crossed) / (base * adapted));
    json["gain"] = number(crossed / (base * base));
  }

  void terms(Json& json, std::int64_t head) const {
    Json terms = Json::object(), gram_rows = Json::array();
    std::map<std::int64_t, std::pair<double, double>> orders;  // share, and squared norm
    for (std::int64_t a = 0; a < count(); ++a) {
      const auto place = static_cast<std::size_t>(a);
      Json row = Json::array();
      for (std::int64_t b = 0; b < count(); ++b) row.push_back(number(gram(head, a, b)));
      gram_rows.push_back(std::move(row));
      if (a == 0) continue;
      const double own = gram(head, a, a), share = with_delta(head, a) / delta_squared(head);
      terms[metrics_.terms[place]] = {{"fro", number(std::sqrt(std::max(0.0, own)))},
                                      {"share", number(share)},
                                      {"energy", number(own / delta_squared(head))}};
      auto& [order_share, order_own] = orders[metrics_.term_size[place]];
      order_share += share;
      for (std::int64_t b = 1; b < count(); ++b) {
        if (metrics_.term_size[static_cast<std::size_t>(b)] == metrics_.term_size[place]) {
          order_own += gram(head, a, b);
        }
      }
    }
    json["terms"] = std::move(terms);
    json["gram"] = std::move(gram_rows);
    if (orders.size() <= 2) return;
    for (const auto& [order, sums] : orders) {
      json["orders"][std::to_string(order)] = {
          {"fro", number(std::sqrt(std::max(0.0, sums.second)))}, {"share", number(sums.first)}};
    }
  }

  /// The four parts of |dM|^2, of which the rescaling of M, `gain_energy`, lies within the first.
  Json split(std::int64_t head, double gain_energy) const {
    double all = -gain_energy;
    for (std::int64_t j = 0; j < 4; ++j) all += split_.at(head, j);
    // Beyond that, the difference is rounding.
    if (all <= kLeastRest * gain_energy) all = std::nan("");
    return {{"in_in", number(std::max(0.0, split_.at(head, 0) - gain_energy) / all)},
            {"new_read", number(split_.at(head, 1) / all)},
            {"new_write", number(split_.at(head, 2) / all)},
            {"new_new", number(split_.at(head, 3) / all)}};
  }

  void directions(Json& json, std::int64_t head) const {
    json["split"] = split(head, 0);
    const double rescaled = with_delta(head, 0) / fro_.at(head, 0);
    json["split_gain_free"] = split(head, rescaled * rescaled);
    json["align_lift"] = {{"read", number(align_.at(head, 0) / metrics_.null_read)},
                          {"write", number(align_.at(head, 1) / metrics_.null_write)}};
    json["null"] = {{"read", metrics_.null_read}, {"write", metrics_.null_write}};
    if (metrics_.angles.empty()) return;
    json["angles"] = Json::object();
    for (const Angles& angles : metrics_.angles) {
      json["angles"][angles.change] = {
          {"side", angles.read ? "read" : "write"},
          {"cosines", Rows(angles.cosines).list(head)},
          {"kernel", number(Rows(angles.kernel).at(head))},
          {"kernel_null",
           {{"mean", number(angles.null_mean)}, {"deviation", number(angles.null_deviation)}}}};
    }
  }

  void spectra(Json& json, std::int64_t head) const {
    std::vector<Metrics> found;
    for (const Rows& values : values_) found.push_back(metrics_of(values, head));
    const auto column = [&](const char* name, auto get) {
      json[name] = Json::array();
      for (const Metrics& m : found) json[name].push_back(number(static_cast<double>(get(m))));
    };
    const auto ranks = [&](const char* name, std::size_t tau) {
      json[name] = Json::array();
      for (const Metrics& m : found) json[name].push_back(m.effective_rank[tau]);
    };
    ranks("erank99", 0);
    ranks("erank999", 1);
    column("stable_rank", [](const Metrics& m) { return m.stable_rank; });
    column("entropy_rank", [](const Metrics& m) { return m.entropy_rank; });
    json["singular"] = {{"base", values_[0].list(head, kListedValues)},
                        {"adapted", values_[1].list(head, kListedValues)},
                        {"delta", values_[2].list(head, kListedValues)}};
    json["rank_bound"] = metrics_.rank_bound;
    json["rank_num"] = static_cast<std::int64_t>(Rows(metrics_.rank_delta).at(head));
    json["amplification"] = number(Rows(metrics_.amplification).at(head));
    intruders(json, head, "", metrics_.intruder_vec, metrics_.intruder_sub);
  }

  static void intruders(Json& json, std::int64_t head, const std::string& kind,
                        const at::Tensor& vec, const at::Tensor& sub) {
    for (const auto& [name, counts] : {std::pair{"intruder_vec", &vec}, {"intruder_sub", &sub}}) {
      const Rows rows(*counts);
      json[name + kind] = {{"left", static_cast<std::int64_t>(rows.at(head, 0))},
                           {"right", static_cast<std::int64_t>(rows.at(head, 1))}};
    }
  }

  void curve(Json& json, std::int64_t head) const {
    const Rows rows(metrics_.curve);
    json["rel_fro_at"] = Json::object();
    for (std::size_t j = 0; j < layer_.curve.size(); ++j) {
      const auto column = 2 * static_cast<std::int64_t>(j);
      json["rel_fro_at"][std::to_string(layer_.curve[j])] =
          number(std::sqrt(rows.at(head, column + 1) / rows.at(head, column)));
    }
  }

  void biases(Json& json, std::int64_t head) const {
    Json bias = Json::object();
    const auto add = [&](const char* name, const at::Tensor& sizes) {
      if (sizes.defined()) bias[name] = Rows(sizes).list(head);
    };
    if (metrics_.circuit == "VO") {
      add("constant", layer_.bias.constant);
    } else if (metrics_.circuit == "QK") {
      add("key_prior", layer_.bias.key_prior);
      add("query_only", layer_.bias.query_only);
    }
    if (!bias.empty()) json["bias"] = std::move(bias);
  }

  const LayerResult& layer_;
  const CircuitResult& circuit_;
  const CircuitMetrics& metrics_;
  Rows gram_, fro_, split_, align_;
  std::vector<Rows> values_;  // base, adapted, delta
};

/// A field of an entry as one or several columns of the table.
void columns_of(const std::string& name, const Json& value,
                std::vector<std::pair<std::string, std::string>>& out) {
  if (value.is_object()) {
    for (const auto& [key, part] : value.items()) {
      if (key != "cosines") columns_of(name + ":" + key, part, out);
    }
  } else if (value.is_array() && value.size() <= 3 && !value.empty() && !value[0].is_array() &&
             !value[0].is_string()) {
    static const char* const kinds[] = {"base", "adapted", "delta"};
    for (std::size_t j = 0; j < value.size(); ++j) {
      columns_of(name + ":" + kinds[j], value[j], out);
    }
  } else if (value.is_number()) {
    out.emplace_back(name, value.is_number_integer() ? std::to_string(value.get<std::int64_t>())
                                                     : fmt::format("{:.9g}", value.get<double>()));
  } else if (value.is_string()) {
    out.emplace_back(name, value.get<std::string>());
  } else if (value.is_null()) {
    out.emplace_back(name, "");
  }
}

std::string joined(const Json& flags) {
  std::string text;
  for (const Json& flag : flags) {
    if (!text.empty()) text += ' ';
    text += flag.get<std::string>();
  }
  return text;
}

}  // namespace

at::Tensor gain_of(const CircuitMetrics& metrics) {
  const at::Tensor with_base = metrics.gram.select(1, 0);
  return with_base.narrow(1, 1, with_base.size(1) - 1).sum(1) / with_base.select(1, 0);
}

Json approx_json(const LayerResult& result, const std::string& circuit) {
  Json out = Json::array();
  for (const std::string& flag : result.approx) {
    const std::size_t colon = flag.find(':');
    if (colon == std::string::npos) {
      out.push_back(flag);
    } else if (circuit.starts_with(flag.substr(0, colon))) {
      out.push_back(flag.substr(colon + 1));
    }
  }
  return out;
}

Json heads_json(const LayerResult& result) {
  Json out = Json::array();
  for (const CircuitResult& circuit : result.circuits) {
    const HeadEntries entries(result, circuit);
    for (std::int64_t head = 0; head < circuit.metrics.fro.size(0); ++head) {
      out.push_back(entries.entry(head));
    }
  }
  return out;
}

Json shared_json(const LayerResult& result) {
  Json shared = Json::array();
  for (const CircuitResult& circuit : result.circuits) {
    for (const SharedBasis& basis : circuit.shared) {
      Json load = Json::array();
      const Rows rows(basis.load), values(basis.values.unsqueeze(0));
      for (std::int64_t j = 0; j < basis.load.size(0); ++j) load.push_back(rows.list(j));
      shared.push_back({{"circuit", circuit.metrics.circuit},
                        {"change", basis.change},
                        {"side", basis.read ? "read" : "write"},
                        {"values", values.list(0)},
                        {"load", std::move(load)}});
    }
  }
  return {{"layer", result.layer}, {"shared", std::move(shared)}};
}

std::string heads_csv(const Json& heads) {
  std::vector<std::string> order;
  std::unordered_map<std::string, std::size_t> places;
  std::vector<std::vector<std::string>> rows;
  std::vector<std::pair<std::string, std::string>> columns;
  for (const Json& head : heads) {
    columns.clear();
    for (const auto& [name, value] : head.items()) {
      if (name == "gram" || name == "singular") continue;
      if (name == "approx") {
        columns.emplace_back(name, joined(value));
      } else {
        columns_of(name, value, columns);
      }
    }
    std::vector<std::string>& row = rows.emplace_back();
    for (auto& [name, text] : columns) {
      const auto [found, is_new] = places.try_emplace(name, order.size());
      if (is_new) order.push_back(name);
      if (row.size() < order.size()) row.resize(order.size());
      row[found->second] = std::move(text);
    }
  }
  std::string text;
  const auto line = [&](const std::vector<std::string>& cells) {
    for (std::size_t j = 0; j < order.size(); ++j) {
      if (j > 0) text += ',';
      if (j < cells.size()) text += cells[j];
    }
    text += '\n';
  };
  line(order);
  for (const std::vector<std::string>& row : rows) line(row);
  return text;
}

void write_head_values(const std::filesystem::path& path, const std::vector<LayerResult>& layers) {
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  for (const LayerResult& layer : layers) {
    for (const CircuitResult& circuit : layer.circuits) {
      const CircuitMetrics& m = circuit.metrics;
      const std::string name = fmt::format("layers.{}.{}.", layer.layer, m.circuit);
      for (const auto& [part, values] : {std::pair{"base", &m.values_base},
                                         {"adapted", &m.values_adapted},
                                         {"delta", &m.values_delta}}) {
        if (values->defined() && values->numel() > 0) tensors.emplace_back(name + part, *values);
      }
      const HeadVectors& v = circuit.vectors;
      for (const auto& [part, pair] :
           {std::pair{"base", &v.base}, {"adapted", &v.adapted}, {"delta", &v.delta}}) {
        if (!pair->left.defined() || pair->left.numel() == 0) continue;
        tensors.emplace_back(name + "vectors." + part + ".left", pair->left);
        tensors.emplace_back(name + "vectors." + part + ".right", pair->right);
      }
      for (const SharedBasis& basis : circuit.shared) {
        const std::string shared = name + "shared." + basis.change + ".";
        tensors.emplace_back(shared + "directions", basis.directions.t());
        tensors.emplace_back(shared + "load", basis.load);
      }
    }
  }
  std::vector<SafetensorsWriter::Entry> entries;
  for (auto& [name, tensor] : tensors) {
    tensor = tensor.to(at::kCPU).contiguous();
    entries.push_back({name, DType::F64, tensor.sizes().vec()});
  }
  SafetensorsWriter writer(path, entries);
  for (const auto& [name, tensor] : tensors) {
    writer.append(name, tensor.data_ptr<double>(),
                  static_cast<std::size_t>(tensor.numel()) * sizeof(double));
  }
  writer.finish();
}

}  // namespace subspace
