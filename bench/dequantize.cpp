// Decoding FP8 weights against the memory bandwidth of the machine.
//
//   ./run bench dequantize [--threads N] [--record]
//
// The kernel reads 1 byte and writes 8 a value, so that it is bound by writing: the yardstick is
// the C library's memset of the same output on the same threads, in the same process; its memcpy is
// shown beside it. The last line includes the read of the file (from the page cache).

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <thread>
#include <vector>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"
#include "base/random.h"
#include "checkpoint/checkpoint.h"
#include "kernels/dequantize.h"

namespace {

using namespace subspace;
namespace fs = std::filesystem;

constexpr std::int64_t kRows = 16384;  // o_proj of DeepSeek-V3 is [7168, 16384]; here its transpose
constexpr std::int64_t kCols = 7168;
constexpr int kRepeats = 7;

struct Times {
  double best = 0;
  double worst = 0;
};

template <typename Action>
Times measure(Action action) {
  action();  // touches the pages
  Times times = {1e300, 0};
  for (int i = 0; i < kRepeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    action();
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    times.best = std::min(times.best, elapsed.count());
    times.worst = std::max(times.worst, elapsed.count());
  }
  return times;
}

void on_threads(int threads, auto action) {
  std::vector<std::jthread> workers;
  for (int t = 0; t < threads; ++t) workers.emplace_back([&action, t] { action(t); });
}

}  // namespace

int main(int argc, char** argv) {
  int threads = static_cast<int>(std::thread::hardware_concurrency());
  bool recorded = false;
  for (int i = 1; i < argc; ++i) {
    if (argv[i] == std::string("--record")) {
      recorded = true;
    } else if (argv[i] == std::string("--threads") && i + 1 < argc) {
      threads = std::max(1, std::atoi(argv[++i]));
    } else {
      fmt::print(stderr, "usage: dequantize [--threads N] [--record]\n");
      return 2;
    }
  }
  constexpr std::int64_t kValues = kRows * kCols;
  std::vector<unsigned char> codes(kValues);
  Random random(1);
  for (auto& code : codes) {
    code = static_cast<unsigned char>(random.word());
    if ((code & 0x7f) == 0x7f) code = 0;
  }
  const std::vector<float> scales(kRows / 128 * (kCols / 128), 0.5f);
  // On a cache line, as tensors are: streaming stores exist for aligned addresses only.
  const std::unique_ptr<double, decltype(&std::free)> aligned(
      static_cast<double*>(std::aligned_alloc(64, kValues * sizeof(double))), &std::free);
  double* const out = aligned.get();
  std::vector<double> from(kValues / 2, 1.0);

  Json record = Json::object();
  record["values"] = kValues;
  record["threads"] = threads;
  const auto report = [&](const char* name, const Times& times, double bytes, double base) {
    const double rate = bytes / times.best * 1e-9;
    fmt::print("{:<28} {:8.1f} ms (slowest {:.1f})  {:6.2f} GB/s moved  {:6.2f} Gvalues/s", name,
               times.best * 1e3, times.worst * 1e3, rate,
               static_cast<double>(kValues) / times.best * 1e-9);
    fmt::print("{}\n", base > 0 ? fmt::format("  {:.2f} of memset", rate / base) : "");
    record[name] = {
        {"seconds", times.best}, {"slowest_seconds", times.worst}, {"gigabytes_per_second", rate}};
    if (base > 0) record[name]["ratio_to_memset"] = rate / base;
    return rate;
  };

  const Times copy = measure([&] {
    on_threads(threads, [&](int t) {
      const std::int64_t half = kValues / 2;
      const std::int64_t begin = half * t / threads;
      const std::int64_t end = half * (t + 1) / threads;
      std::memcpy(out + begin, from.data() + begin, static_cast<std::size_t>(end - begin) * 8);
    });
  });
  report("memcpy", copy, 8.0 * kValues, 0);
  const Times fill = measure([&] {
    on_threads(threads, [&](int t) {
      const std::int64_t begin = kValues * t / threads;
      const std::int64_t end = kValues * (t + 1) / threads;
      std::memset(static_cast<void*>(out + begin), t, static_cast<std::size_t>(end - begin) * 8);
    });
  });
  const double base = report("memset", fill, 8.0 * kValues, 0);

  kernels::Dequantize p{.in = codes.data(),
                        .format = kernels::Format::f8_e4m3,
                        .scale = scales.data(),
                        .out = out,
                        .rows = kRows,
                        .cols = kCols,
                        .scale_stride = kCols / 128};
  const double moved = 9.0 * kValues;
  const auto run = [&](const char* name, kernels::Isa isa, bool streaming) {
    if (!kernels::isa_available(isa)) return;
    p.streaming = streaming;
    report(name, measure([&] { kernels::dequantize_cpu(p, threads, isa); }), moved, base);
  };
  run("kernel portable", kernels::Isa::portable, false);
  run("kernel avx2", kernels::Isa::avx2, false);
  run("kernel avx2 streaming", kernels::Isa::avx2, true);

  const fs::path folder = fs::temp_directory_path() / fmt::format("subspace-bench-{}", ::getpid());
  create_folder(folder);
  write_file_atomically(folder / "config.json", "{}");
  SafetensorsWriter writer(folder / "model.safetensors",
                           {{"w.weight", DType::F8_E4M3, {kRows, kCols}},
                            {"w.weight_scale_inv", DType::F32, {kRows / 128, kCols / 128}}});
  writer.append("w.weight", codes.data(), codes.size());
  writer.append("w.weight_scale_inv", scales.data(), scales.size() * 4);
  writer.finish();
  const Checkpoint checkpoint(folder);
  report("file to float64", measure([&] { checkpoint.decode("w.weight", out, threads); }), moved,
         base);
  fs::remove_all(folder);
  if (recorded) {
    create_folder("bench/results");
    write_file_atomically("bench/results/dequantize.json", record.dump(2) + "\n");
  }
  return 0;
}
