#include "lora/compose_run.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <future>
#include <numeric>
#include <tuple>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/progress.h"
#include "lora/null_draws.h"

namespace subspace {
namespace {

using Clock = std::chrono::steady_clock;
double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Screens whose whole H x H table is written, the ones with the largest rho.
constexpr std::size_t kTables = 12;
/// Bytes of head factors that full scores hold at once.
constexpr double kMostBytes = 3e9;

/// Pairs whose chances are drawn as well, those of the largest rho; draws, and their seed.
constexpr std::size_t kDrawnPairs = 20;
constexpr std::int64_t kDraws = 2000;
constexpr std::uint64_t kDrawSeed = 0;
/// Below this, a chance is called small.
constexpr double kSmall = 0.05;

struct HeadPair {
  std::int64_t writer = 0, writer_head = 0, reader = 0, reader_head = 0;
  Mode mode = Mode::q;
  double rho = 0;  ///< of the screen
  auto place() const { return std::tuple(writer, reader, mode, writer_head, reader_head); }
};

/// Chances of a pair by the gamma law and by drawing: bn, nb, nn and S1.
struct DrawnPair {
  std::array<HaarQuestion, 4> questions;
  std::array<double, 4> p{};
};

/// |dN2| / |N2|, which in mode Q is |dM_QK| / |M_QK| of that head.
double relative_change(const HeadRead& head) {
  return std::sqrt(quotient(head.delta.trace, head.base.trace));
}

DrawnPair questions_of(const HeadWrite& writer, const HeadRead& reader, const PairScore& score) {
  const Energies w = energies_of(writer), r = energies_of(reader);
  const auto d = static_cast<double>(writer.o.size(1));
  return {{{{w.base, r.delta, score.lift[0] / d},
            {w.delta, r.base, score.lift[1] / d},
            {w.delta, r.delta, score.lift[2] / d},
            {w.adapted, r.adapted, score.s1 * score.s1}}},
          {}};
}

class Run {
 public:
  Run(const ComposeSource& source, const ComposeOptions& options)
      : source_(source), options_(options) {
    const auto layers = static_cast<std::int64_t>(source_.changes.size());
    layers_ = options_.layers;
    if (layers_.empty()) {
      layers_.resize(source_.changes.size());
      std::iota(layers_.begin(), layers_.end(), std::int64_t{0});
    }
    for (const std::int64_t layer : layers_) {
      if (layer >= 0 && layer < layers) continue;
      fail(ErrorCode::InvalidValue, "there is no layer {}; the model has {}", layer, layers);
    }
    if (layers_.size() < 2) {
      fail(ErrorCode::InvalidValue, "composition is between heads of two layers; found {} layer(s)",
           layers_.size());
    }
    for (const auto& [writer, reader] : options_.between) {
      if (writer < reader && taken(writer) && taken(reader)) continue;
      fail(ErrorCode::InvalidValue,
           "{}-{}: expected two of the layers looked at, the earlier one first", writer, reader);
    }
    offsets_ = options_.offsets;
    if (offsets_.empty()) {
      offsets_.resize(257);
      std::iota(offsets_.begin(), offsets_.end(), std::int64_t{0});
    }
  }

  Json go() {
    auto start = Clock::now();
    screen();
    const double screen_seconds = since(start);
    adjust_screens();
    start = Clock::now();
    Json pairs = full_scores();
    const double pair_seconds = since(start);
    Json result = Json::object();
    result["d"] = width_;
    result["heads"] = heads_;
    result["layers"] = layers_;
    result["offset_mode"] = !rotary_ ? "none" : offsets_.size() == 1 ? "one" : "rms";
    result["offsets"] = {offsets_.front(), offsets_.back() + 1};
    result["null"] = "haar_gamma";
    result["drawn"] = drawn_json();
    approx_.insert("data_unweighted");
    result["approx"] = approx_;
    result["head_pairs"] = head_pairs_;
    result["floor"] = options_.floor;
    result["above_floor"] = above_floor_;
    result["screens"] = screens_json();
    result["pairs"] = std::move(pairs);
    result["seconds"] = {{"screens", screen_seconds}, {"pairs", pair_seconds}};
    return result;
  }

 private:
  bool taken(std::int64_t layer) const {
    return std::binary_search(layers_.begin(), layers_.end(), layer);
  }
  Norm output_norm(std::int64_t layer) const {
    return source_.output_norms.empty() ? Norm{}
                                        : source_.output_norms.at(static_cast<std::size_t>(layer));
  }
  Wiring wiring(const AttentionLayer& layer) {
    if (layer.output.kind != output_norm(layer.index).kind) {
      fail(ErrorCode::Internal, "layer {}: the norm behind its heads was not announced",
           layer.index);
    }
    Wiring out = wiring_of(layer, source_.changes[static_cast<std::size_t>(layer.index)]);
    approx_.insert(out.approx.begin(), out.approx.end());
    return out;
  }
  std::future<AttentionLayer> load(std::int64_t layer) const {
    return std::async(std::launch::async, [this, layer] {
      AttentionLayer out = source_.load(layer);
      out.index = layer;
      return out;
    });
  }

  void screen() {
    std::vector<at::Tensor> writes;
    auto next = load(layers_.back());
    const AttentionLayer last = next.get();
    width_ = last.o.size(2);
    heads_ = last.heads();
    rotary_ = last.rotary.layout != Rotary::Layout::none;
    for (const std::int64_t layer : layers_) {
      const MatrixChange& o = source_.changes[static_cast<std::size_t>(layer)].o;
      writes.push_back(o.b.defined() ? written(o.b[0], output_norm(layer))
                                     : at::zeros({0, width_}, at::kDouble));
    }
    CompositionScreen screen(layers_, writes, offsets_);
    Progress progress("layer", static_cast<std::int64_t>(layers_.size()));
    AttentionLayer layer = last;
    for (std::size_t i = layers_.size(); i-- > 0;) {
      if (i > 0) next = load(layers_[i - 1]);
      for (LayerPairScreen& found : screen.add(wiring(layer))) take(std::move(found));
      progress.step(fmt::format("{} screens", screens_.size()));
      check_interrupted("nothing is written yet");
      if (i > 0) layer = next.get();
    }
  }

  /// Keeps a screen that has a change, and the candidates for full scores among its pairs of heads.
  void take(LayerPairScreen found) {
    head_pairs_ += found.rho_heads.numel();
    if (!(found.rho_max > 0)) return;
    above_floor_ += (found.rho_heads > options_.floor).sum().item<std::int64_t>();
    const std::int64_t count = std::min(options_.top, found.rho_heads.numel());
    const auto [values, places] = found.rho_heads.flatten().topk(count);
    const std::int64_t readers = found.rho_heads.size(1);
    for (std::int64_t i = 0; i < count; ++i) {
      const double rho = values.data_ptr<double>()[i];
      const std::int64_t place = places.data_ptr<std::int64_t>()[i];
      if (rho > 0) {
        candidates_.push_back(
            {found.writer, place / readers, found.reader, place % readers, found.mode, rho});
      }
    }
    keep_best(static_cast<std::size_t>(options_.top));
    screens_.push_back(std::move(found));
  }

  void keep_best(std::size_t count) {
    std::stable_sort(candidates_.begin(), candidates_.end(),
                     [](const HeadPair& a, const HeadPair& b) { return a.rho > b.rho; });
    if (candidates_.size() > count) candidates_.resize(count);
  }

  void adjust_screens() {
    std::stable_sort(
        screens_.begin(), screens_.end(),
        [](const LayerPairScreen& a, const LayerPairScreen& b) { return a.rho > b.rho; });
    std::vector<double> p;
    for (const LayerPairScreen& screen : screens_) p.push_back(screen.p_gamma);
    const std::vector<double> q = benjamini_hochberg(p);
    for (std::size_t i = 0; i < q.size(); ++i) screens_[i].q_bh = q[i];
  }

  /// Candidates and the pairs asked for, each once, in an order that meets equal junctions in turn.
  std::vector<HeadPair> chosen() const {
    std::vector<HeadPair> all = candidates_;
    for (const auto& [writer, reader] : options_.between) {
      for (const LayerPairScreen& screen : screens_) {
        if (screen.writer != writer || screen.reader != reader) continue;
        for (std::int64_t i = 0; i < screen.rho_heads.size(0); ++i) {
          for (std::int64_t j = 0; j < screen.rho_heads.size(1); ++j) {
            all.push_back({writer, i, reader, j, screen.mode, 0});
          }
        }
      }
    }
    auto before = [](const HeadPair& a, const HeadPair& b) { return a.place() < b.place(); };
    std::stable_sort(all.begin(), all.end(), before);
    const auto same = [](const HeadPair& a, const HeadPair& b) { return a.place() == b.place(); };
    all.erase(std::unique(all.begin(), all.end(), same), all.end());
    return all;
  }

  Json full_scores() {
    const std::vector<HeadPair> pairs = chosen();
    std::vector<PairScore> scores;
    const double head_bytes = static_cast<double>(width_) * 8 * 256 * 2;
    const auto chunk = static_cast<std::size_t>(std::max(1.0, kMostBytes / head_bytes));
    for (std::size_t begin = 0; begin < pairs.size(); begin += chunk) {
      const std::size_t end = std::min(pairs.size(), begin + chunk);
      score(std::vector<HeadPair>(pairs.begin() + static_cast<std::ptrdiff_t>(begin),
                                  pairs.begin() + static_cast<std::ptrdiff_t>(end)),
            scores);
    }
    draw(scores);
    return pairs_json(pairs, scores);
  }

  /// Of the pairs scored since `begin`, those that may be among the first by rho.
  std::vector<std::size_t> leading(const std::vector<PairScore>& scores, std::size_t begin) const {
    std::vector<std::size_t> order(scores.size() - begin);
    std::iota(order.begin(), order.end(), begin);
    std::stable_sort(order.begin(), order.end(),
                     [&](auto a, auto b) { return scores[a].rho > scores[b].rho; });
    order.resize(std::min(order.size(), kDrawnPairs));
    return order;
  }

  /// Draws what the gamma law said of the first pairs, so that what is reported first does not hang
  /// on the shape of a law.
  void draw(const std::vector<PairScore>& scores) {
    std::map<std::size_t, DrawnPair> kept;
    std::vector<HaarQuestion> questions;
    const std::vector<std::size_t> first = leading(scores, 0);
    for (const std::size_t i : first) {
      const auto& asked = (kept[i] = std::move(drawn_.at(i))).questions;
      questions.insert(questions.end(), asked.begin(), asked.end());
    }
    drawn_ = std::move(kept);
    const std::vector<double> p = haar_p_by_draws(width_, questions, kDraws, kDrawSeed);
    std::size_t next = 0;
    for (const std::size_t i : first) {
      for (double& one : drawn_[i].p) one = p[next++];
      const PairScore& score = scores[i];
      const double law[] = {score.p[0], score.p[1], score.p[2], score.p_s1};
      for (std::size_t k = 0; k < 4; ++k) {
        const double by_draws = drawn_[i].p[k];
        if (std::isnan(by_draws)) continue;
        ++drawn_chances_;
        drawn_otherwise_ += (law[k] <= kSmall) != (by_draws <= kSmall);
      }
    }
  }

  Json drawn_json() const {
    return {{"pairs", drawn_.size()}, {"draws", kDraws},           {"seed", kDrawSeed},
            {"level", kSmall},        {"chances", drawn_chances_}, {"otherwise", drawn_otherwise_}};
  }

  void score(const std::vector<HeadPair>& pairs, std::vector<PairScore>& scores) {
    using Writer = std::pair<std::int64_t, std::int64_t>;
    using Reader = std::tuple<std::int64_t, std::int64_t, Mode>;
    std::map<Writer, HeadWrite> writers;
    std::map<Reader, HeadRead> readers;
    std::set<std::int64_t> layers;
    for (const HeadPair& pair : pairs) {
      writers[{pair.writer, pair.writer_head}];
      readers[{pair.reader, pair.reader_head, pair.mode}];
      layers.insert({pair.writer, pair.reader});
    }
    Progress progress("heads of layer", static_cast<std::int64_t>(layers.size()));
    for (const std::int64_t index : layers) {
      const Wiring layer = wiring(load(index).get());
      const RopeMean rope(layer.rotary, layer.q.w.size(2), offsets_);
      for (auto& [key, head] : writers) {
        if (key.first != index) continue;
        head = head_write(layer, key.second);
        writer_qk_[key] = relative_change(head_read(layer, key.second, Mode::q, rope));
      }
      for (auto& [key, head] : readers) {
        if (std::get<0>(key) == index) {
          head = head_read(layer, std::get<1>(key), std::get<2>(key), rope);
        }
      }
      progress.step(std::to_string(index));
      check_interrupted("nothing is written yet");
    }
    const std::size_t first = scores.size();
    // Heads of a group read keys and values with one matrix: their junction is formed once.
    at::Tensor junction, junction_o, junction_n;
    for (const HeadPair& pair : pairs) {
      const HeadWrite& writer = writers.at({pair.writer, pair.writer_head});
      const HeadRead& reader = readers.at({pair.reader, pair.reader_head, pair.mode});
      if (!junction.defined() || !junction_o.is_same(writer.o) ||
          !(junction_n.sizes() == reader.n.sizes() && at::equal(junction_n, reader.n))) {
        junction = at::matmul(writer.o, reader.n);
        junction_o = writer.o;
        junction_n = reader.n;
      }
      scores.push_back(composition_score(writer, reader, junction));
    }
    for (const std::size_t i : leading(scores, first)) {
      const HeadPair& pair = pairs[i - first];
      drawn_[i] = questions_of(writers.at({pair.writer, pair.writer_head}),
                               readers.at({pair.reader, pair.reader_head, pair.mode}), scores[i]);
    }
  }

  double screen_q(const HeadPair& pair) const {
    for (const LayerPairScreen& screen : screens_) {
      if (screen.writer == pair.writer && screen.reader == pair.reader &&
          screen.mode == pair.mode) {
        return screen.q_bh;
      }
    }
    return 1;
  }

  static Json routes(const std::array<double, 3>& values) {
    Json out = Json::object();
    for (std::size_t i = 0; i < 3; ++i) out[kRouteNames[i]] = values[i];
    return out;
  }

  Json pairs_json(const std::vector<HeadPair>& pairs, const std::vector<PairScore>& scores) const {
    std::vector<double> p;
    for (const PairScore& score : scores) p.push_back(score.p_gamma);
    const std::vector<double> q = benjamini_hochberg(p, head_pairs_);
    std::vector<std::size_t> order(pairs.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](auto a, auto b) { return scores[a].rho > scores[b].rho; });
    Json out = Json::array();
    for (const std::size_t i : order) {
      const HeadPair& pair = pairs[i];
      const PairScore& score = scores[i];
      Json one = Json::object();
      one["w"] = {pair.writer, pair.writer_head};
      one["r"] = {pair.reader, pair.reader_head};
      one["mode"] = mode_name(pair.mode);
      one["S"] = score.s;
      one["S1"] = score.s1;
      one["dS"] = score.s1 - score.s;
      one["S1_base"] = score.s1_base;
      one["S_band"] = score.band;
      one["S1_band"] = score.band1;
      one["rho"] = score.rho;
      one["rho_interface"] = score.rho_interface;
      one["writer_qk"] = writer_qk_.at({pair.writer, pair.writer_head});
      one["cos"] = score.cos;
      one["share"] = routes(score.share);
      one["lift"] = routes(score.lift);
      one["p"] = routes(score.p);
      one["p_S1"] = score.p_s1;
      one["p_gamma"] = score.p_gamma;
      one["q_bh"] = std::max(q[i], screen_q(pair));
      if (const auto drawn = drawn_.find(i); drawn != drawn_.end()) {
        const auto& [bn, nb, nn, s1] = drawn->second.p;
        one["p_drawn"] = routes({bn, nb, nn});
        one["p_S1_drawn"] = s1;
      }
      out.push_back(std::move(one));
    }
    return out;
  }

  Json screens_json() const {
    Json out = Json::array();
    for (std::size_t i = 0; i < screens_.size(); ++i) {
      const LayerPairScreen& screen = screens_[i];
      Json one = Json::object();
      one["w"] = screen.writer;
      one["r"] = screen.reader;
      one["mode"] = mode_name(screen.mode);
      one["rho"] = screen.rho;
      one["rho_max"] = screen.rho_max;
      one["heads"] = {screen.head_writer, screen.head_reader};
      one["share"] = routes(screen.share);
      one["lift"] = routes(screen.lift);
      one["p"] = routes(screen.p);
      one["p_gamma"] = screen.p_gamma;
      one["q_bh"] = screen.q_bh;
      one["cosines"] = screen.cosines;
      if (i < kTables) one["rho_heads"] = table(screen.rho_heads);
      out.push_back(std::move(one));
    }
    return out;
  }

  static Json table(const at::Tensor& values) {
    const at::Tensor rows = values.contiguous();
    Json out = Json::array();
    for (std::int64_t i = 0; i < rows.size(0); ++i) {
      const double* row = rows.data_ptr<double>() + i * rows.size(1);
      out.push_back(std::vector<double>(row, row + rows.size(1)));
    }
    return out;
  }

  const ComposeSource& source_;
  const ComposeOptions& options_;
  std::vector<std::int64_t> layers_, offsets_;
  std::set<std::string> approx_;
  std::int64_t width_ = 0, heads_ = 0, head_pairs_ = 0, above_floor_ = 0;
  bool rotary_ = false;
  std::vector<LayerPairScreen> screens_;
  std::vector<HeadPair> candidates_;
  std::map<std::size_t, DrawnPair> drawn_;
  std::map<std::pair<std::int64_t, std::int64_t>, double> writer_qk_;  ///< by layer and head
  std::int64_t drawn_chances_ = 0, drawn_otherwise_ = 0;
};

/// A line of a table, field by field.
class Row {
 public:
  void add(const Json& value) {
    if (!text_.empty()) text_ += ',';
    if (value.is_number_float() && !std::isfinite(value.get<double>())) return;
    text_ += value.is_string() ? value.get<std::string>() : value.dump();
  }
  void add(const Json& object, std::initializer_list<const char*> names) {
    for (const char* name : names) add(object.at(name));
  }
  void add_routes(const Json& object) {
    for (const char* name : {"share", "lift", "p"}) add(object.at(name), {"bn", "nb", "nn"});
  }
  void end(std::string& out) const {
    out += text_;
    out += '\n';
  }

 private:
  std::string text_;
};

}  // namespace

Json compose(const ComposeSource& source, const ComposeOptions& options) {
  const at::NoGradGuard no_gradient;
  return Run(source, options).go();
}

std::string compose_pairs_csv(const Json& result) {
  std::string out =
      "writer_layer,writer_head,reader_layer,reader_head,mode,S,S1,dS,S1_base,S_low,S_high,S1_low,"
      "S1_high,rho,rho_interface,writer_qk,cos,share_bn,share_nb,share_nn,lift_bn,lift_nb,lift_nn,"
      "p_bn,p_nb,p_nn,p_S1,p_gamma,q_bh,"
      "p_bn_drawn,p_nb_drawn,p_nn_drawn,p_S1_drawn\n";
  for (const Json& pair : result.at("pairs")) {
    Row row;
    for (const char* end : {"w", "r"}) {
      for (const Json& number : pair.at(end)) row.add(number);
    }
    row.add(pair, {"mode", "S", "S1", "dS", "S1_base"});
    for (const char* band : {"S_band", "S1_band"}) {
      for (const Json& end : pair.at(band)) row.add(end);
    }
    row.add(pair, {"rho", "rho_interface", "writer_qk", "cos"});
    row.add_routes(pair);
    row.add(pair, {"p_S1", "p_gamma", "q_bh"});
    for (const char* route : kRouteNames) {
      row.add(pair.contains("p_drawn") ? pair.at("p_drawn").at(route) : Json(std::nan("")));
    }
    row.add(pair.contains("p_S1_drawn") ? pair.at("p_S1_drawn") : Json(std::nan("")));
    row.end(out);
  }
  return out;
}

std::string compose_screens_csv(const Json& result) {
  std::string out =
      "writer_layer,reader_layer,mode,rho,rho_max,writer_head,reader_head,share_bn,share_nb,"
      "share_nn,lift_bn,lift_nb,lift_nn,p_bn,p_nb,p_nn,p_gamma,q_bh,cosine_1\n";
  for (const Json& screen : result.at("screens")) {
    Row row;
    row.add(screen, {"w", "r", "mode", "rho", "rho_max"});
    for (const Json& head : screen.at("heads")) row.add(head);
    row.add_routes(screen);
    row.add(screen, {"p_gamma", "q_bh"});
    const Json& cosines = screen.at("cosines");
    row.add(cosines.empty() ? Json("") : cosines[0]);
    row.end(out);
  }
  return out;
}

}  // namespace subspace
