// Products of float64 matrices: the own kernel against PyTorch's library, in the shapes that the
// spectra of a DeepSeek-V3-sized layer are made of.
//
//   ./run bench matrix_product [--threads N] [--record]
//
// Every case runs both ways in turn, on one thread and on N, and the best of a few runs counts.
// Rates are of the operations that the result needs (a symmetric one half), whoever does more.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"
#include "spectrum/band_reduction.h"
#include "spectrum/gram.h"
#include "spectrum/product.h"

namespace {

using namespace subspace;

constexpr int kRepeats = 3;
constexpr std::int64_t kWidth = 7168;

struct Case {
  const char* name;
  double operations;
  std::function<at::Tensor(Multiplier)> run;
};

at::Tensor normals(at::IntArrayRef shape) { return at::randn(shape, at::kDouble); }

std::vector<Case> cases() {
  const at::Tensor square = normals({2048, 2048}), rows = normals({2048, kWidth});
  const at::Tensor weights = at::rand({2048}, at::kDouble);
  const at::Tensor heads = normals({16, 128, kWidth}), small = normals({16, 128, 128});
  const at::Tensor inner = at::bmm(small, small.mT());
  const at::Tensor queries = normals({128, 1536, 128});
  const at::Tensor panel = normals({kWidth, 72}), turn = normals({72, 72});
  const at::Tensor gram = gram_of_columns(normals({3072, 3072})) / 6144;
  const auto n = static_cast<double>(kWidth);
  return {
      {"2048 x 2048 x 2048", 2 * std::pow(2048.0, 3),
       [=](Multiplier by) { return product(square, square, by); }},
      {"X^T X, X 2048 x 7168", n * n * 2048,
       [=](Multiplier by) { return gram_of_columns(rows, by); }},
      {"X^T diag(w) X", n * n * 2048,
       [=](Multiplier by) { return gram_of_columns(rows, weights, by); }},
      {"sum X_h^T W_h X_h, 16 heads", n * n * 2048 + 2 * n * 2048 * 128,
       [=](Multiplier by) { return weighted_gram(heads, inner, by); }},
      {"X_h^T X_h, 128 of 1536 x 128", 128.0 * 128 * 128 * 1536,
       [=](Multiplier by) { return gram_of_heads(queries, by); }},
      {"7168 x 72 x 72", 2 * n * 72 * 72, [=](Multiplier by) { return product(panel, turn, by); }},
      {"band form of 3072", 4.0 / 3 * std::pow(3072.0, 3),
       [=](Multiplier by) { return reduce_to_band(gram.clone(), 72, by); }},
  };
}

double seconds(const Case& c, Multiplier by) {
  const auto start = std::chrono::steady_clock::now();
  c.run(by);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::string processor() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  }
  return "";
}

std::string isa_name() {
  switch (kernels::widest_isa()) {
    case kernels::Isa::avx512:
      return "avx512";
    case kernels::Isa::avx2:
      return "avx2";
    default:
      return "portable";
  }
}

}  // namespace

int main(int argc, char** argv) {
  int most = static_cast<int>(std::thread::hardware_concurrency());
  bool recorded = false;
  for (int i = 1; i < argc; ++i) {
    if (argv[i] == std::string("--record")) {
      recorded = true;
    } else if (argv[i] == std::string("--threads") && i + 1 < argc) {
      most = std::max(1, std::atoi(argv[++i]));
    } else {
      fmt::print(stderr, "usage: matrix_product [--threads N] [--record]\n");
      return 2;
    }
  }
  at::manual_seed(1);
  Json record = Json::object();
  record["processor"] = processor();
  record["own_instructions"] = isa_name();
  record["rule_takes"] =
      multiplier_for(at::zeros({1}, at::kDouble)) == Multiplier::own ? "own" : "library";
  record["cases"] = Json::array();
  fmt::print("{}, own kernel: {}; the rule takes: {}\n", processor(), isa_name(),
             record["rule_takes"].get<std::string>());
  const std::vector<Case> all = cases();
  std::vector<int> counts = {1};
  if (most > 1) counts.push_back(most);
  for (const int threads : counts) {
    at::set_num_threads(threads);
    for (const Case& c : all) {
      double own = 1e300, library = 1e300;
      for (int i = 0; i < kRepeats; ++i) {
        own = std::min(own, seconds(c, Multiplier::own));
        library = std::min(library, seconds(c, Multiplier::library));
      }
      const double scale = c.operations * 1e-9;
      fmt::print("{:<30} {:2d} threads: own {:6.1f} GF/s, library {:6.1f} GF/s, ratio {:.2f}\n",
                 c.name, threads, scale / own, scale / library, library / own);
      record["cases"].push_back({{"case", c.name},
                                 {"threads", threads},
                                 {"operations", c.operations},
                                 {"own_seconds", own},
                                 {"library_seconds", library},
                                 {"ratio", library / own}});
    }
  }
  if (recorded) {
    const std::string kind =
        kernels::processor_vendor() == kernels::Vendor::intel ? "intel" : "other";
    create_folder("bench/results");
    write_file_atomically("bench/results/matrix_product-" + kind + ".json", record.dump(2) + "\n");
  }
  return 0;
}
