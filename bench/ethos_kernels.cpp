// The expert kernels at the size of the paper's layer, one after another: milliseconds, bytes
// counted, rate. On a machine without a GPU: the CPU versions at a smaller size.
//
//   ./run bench ethos_kernels [--record PATH] [--cpu] [--repeat N] [--tokens N]
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/version.h"
#include "ethos_kernels.h"
#include "kernels/expert_table.h"
#include "kernels/product_key_topk.h"
#include "kernels/stored_experts.h"

#ifdef SUBSPACE_CUDA
#include <cuda_runtime.h>
#endif

namespace subspace::kernels {
namespace {

struct Options {
  std::string record;
  bool cpu = false;
  int repeat = 20;
  std::int64_t tokens = 0;
};

#ifdef SUBSPACE_CUDA

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) fail(ErrorCode::Internal, "{}: {}", what, cudaGetErrorString(status));
}

/// Device memory that lives as long as the program.
template <typename T>
T* allocate(std::int64_t count) {
  void* data = nullptr;
  check(cudaMalloc(&data, static_cast<std::size_t>(count) * sizeof(T)), "cudaMalloc");
  return static_cast<T*>(data);
}
template <typename T>
T* upload(const std::vector<T>& values) {
  T* data = allocate<T>(static_cast<std::int64_t>(values.size()));
  check(cudaMemcpy(data, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice),
        "cudaMemcpy");
  return data;
}
/// `count` elements made of copies of a block of 2^20 normal values: as good as new ones to a
/// memory system, and made in no time.
void* repeated(Element element, std::int64_t count, double scale, std::uint64_t seed) {
  const std::int64_t block = std::min<std::int64_t>(count, 1 << 20);
  const auto bytes = normal_bytes(element, block, scale, seed);
  auto* data = allocate<std::uint8_t>(count * element_bytes(element));
  for (std::int64_t at = 0; at < count; at += block) {
    const std::int64_t n = std::min(block, count - at) * element_bytes(element);
    check(cudaMemcpy(data + at * element_bytes(element), bytes.data(), static_cast<std::size_t>(n),
                     cudaMemcpyHostToDevice),
          "cudaMemcpy");
  }
  return data;
}

std::vector<double> time_cuda(int repeat, const std::function<void()>& work) {
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "cudaEventCreate");
  check(cudaEventCreate(&end), "cudaEventCreate");
  for (int i = 0; i < 3; ++i) work();
  std::vector<double> ms;
  for (int i = 0; i < repeat; ++i) {
    check(cudaEventRecord(begin), "cudaEventRecord");
    work();
    check(cudaEventRecord(end), "cudaEventRecord");
    check(cudaEventSynchronize(end), "cudaEventSynchronize");
    float elapsed = 0;
    check(cudaEventElapsedTime(&elapsed, begin, end), "cudaEventElapsedTime");
    ms.push_back(elapsed);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return ms;
}

Data device_data(const Shape& s, Element element) {
  Data d{};
  const std::int64_t bytes = element_bytes(element);
  d.xp = repeated(element, s.tokens * s.width, 1, 1);
  d.grad = repeated(element, s.tokens * s.width, 1, 2);
  d.table = repeated(element, s.experts * s.width, 0.05, 3);
  d.pre = repeated(element, s.experts * s.width, 1, 4);
  d.acc = allocate<char>(s.tokens * s.width * bytes);
  d.grad_xp = allocate<char>(s.tokens * s.width * bytes);
  d.grad_table = allocate<char>(s.experts * s.width * bytes);
  d.index = upload(random_index(s, 1));
  d.scores = static_cast<float*>(repeated(Element::f32, s.chosen(), 0.1, 5));
  d.p = allocate<float>(s.chosen());
  d.grad_scores = allocate<float>(s.chosen());
  d.weights = allocate<RowWeights>(s.chosen());
  d.expert = allocate<std::uint32_t>(s.chosen());
  d.selection = allocate<std::uint32_t>(s.chosen());
  d.offsets = allocate<std::uint32_t>(s.experts + 1);
  d.workspace = allocate<char>(expert_lists_workspace(s.chosen()));
  d.partial = allocate<float>(expert_grad_workspace(s.chosen(), s.width, true) / 4);
  return d;
}

std::string walk_name(const char* what, const EthosWalk& walk) {
  return std::string(what) + ", " + std::to_string(walk.rows) + " rows x " +
         std::to_string(walk.blocks) + " blocks" + (walk.sorted ? ", sorted" : "");
}

/// Every variant of both walks and of the sums; the sum of the best of each.
void bench_experts(const Options& options, const Shape& s, Table& table) {
  constexpr Element kElement = Element::bf16;
  const Data d = device_data(s, kElement);
  const Bytes bytes(s, kElement);
  const std::vector<EthosWalk> walks = {{8, 4, true}, {8, 4, false}, {4, 6, true}, {4, 6, false},
                                        {4, 5, true}, {2, 8, true},  {2, 8, false}};
  double best_forward = HUGE_VAL, best_backward = HUGE_VAL, best_sums = HUGE_VAL;
  for (const auto& walk : walks) {
    best_forward = std::min(
        best_forward,
        table.add(walk_name("forward", walk),
                  time_cuda(options.repeat,
                            [&] { ethos_experts_cuda(d.forward(s, kElement), nullptr, &walk); }),
                  bytes.forward));
  }
  for (const auto& walk : walks) {
    best_backward = std::min(
        best_backward,
        table.add(
            walk_name("over tokens", walk),
            time_cuda(options.repeat,
                      [&] { ethos_experts_grad_cuda(d.backward(s, kElement), nullptr, &walk); }),
            bytes.backward));
  }
  const double lists = table.add(
      "lists (sort by expert)",
      time_cuda(options.repeat, [&] { expert_lists_cuda(d.lists(s), nullptr); }), bytes.lists);
  for (const bool pre : {false, true}) {
    for (const std::int64_t columns : {128, 256, 512}) {
      const double ms = table.add(
          "over experts, " + std::to_string(columns) + " columns" + (pre ? ", gelu'" : ""),
          time_cuda(options.repeat,
                    [&] { expert_grad_cuda(d.sums(s, kElement, pre), nullptr, columns); }),
          bytes.sums + (pre ? bytes.pre : 0));
      if (pre) best_sums = std::min(best_sums, ms);
    }
  }
  const std::int64_t values = s.experts * s.width;
  const double gelu = table.add("table: gelu",
                                time_cuda(options.repeat,
                                          [&] {
                                            expert_gelu_cuda({.pre = d.pre,
                                                              .grad = nullptr,
                                                              .out = d.grad_table,
                                                              .count = values,
                                                              .element = kElement},
                                                             nullptr);
                                          }),
                                4.0 * static_cast<double>(values));
  table.add("table: gelu'",
            time_cuda(options.repeat,
                      [&] {
                        expert_gelu_cuda({.pre = d.pre,
                                          .grad = d.table,
                                          .out = d.grad_table,
                                          .count = values,
                                          .element = kElement},
                                         nullptr);
                      }),
            6.0 * static_cast<double>(values));
  table.line("experts without products, best of each",
             best_forward + best_backward + lists + best_sums + gelu);
  table.line("the sketch: 1.25 + 1.25 + 0.29 + 1.47", 4.26);

  // Few experts get most selections: a list of hundreds of thousands.
  check(cudaMemcpy(d.index, random_index(s, 8).data(),
                   static_cast<std::size_t>(s.chosen()) * sizeof(std::int64_t),
                   cudaMemcpyHostToDevice),
        "cudaMemcpy");
  const std::string skew = "skewed: ";
  table.add(skew + "forward",
            time_cuda(options.repeat, [&] { ethos_experts_cuda(d.forward(s, kElement), nullptr); }),
            bytes.forward);
  table.add(skew + "lists",
            time_cuda(options.repeat, [&] { expert_lists_cuda(d.lists(s), nullptr); }),
            bytes.lists);
  table.add(
      skew + "over experts",
      time_cuda(options.repeat, [&] { expert_grad_cuda(d.sums(s, kElement, true), nullptr); }),
      bytes.sums + bytes.pre);
}

void bench_routing(const Options& options, const Shape& s, Table& table) {
  const std::int64_t rows = s.tokens * s.heads;
  auto* scores = allocate<float>(rows * s.k);
  auto* weights = allocate<float>(rows * s.k);
  auto* index = allocate<std::int64_t>(rows * s.k);
  for (const Element element : {Element::bf16, Element::f32}) {
    const std::string type = element == Element::bf16 ? "bf16" : "f32";
    void* s1 = repeated(element, rows * s.side, 1, 11);
    void* s2 = repeated(element, rows * s.side, 1, 12);
    const double side = static_cast<double>(rows * s.side * element_bytes(element));
    const ProductKeyTopk p{.s1 = s1,
                           .s2 = s2,
                           .scores = scores,
                           .index = index,
                           .weights = weights,
                           .rows = rows,
                           .side = s.side,
                           .k = s.k,
                           .element = element};
    table.add("top-k with softmax, " + type,
              time_cuda(options.repeat, [&] { product_key_topk_cuda(p, nullptr); }),
              2 * side + 16.0 * static_cast<double>(rows * s.k));
    const ProductKeyTopkGrad g{.grad = scores,
                               .index = index,
                               .weights = weights,
                               .grad_s1 = s1,
                               .grad_s2 = s2,
                               .rows = rows,
                               .side = s.side,
                               .k = s.k,
                               .element = element};
    table.add("top-k backward, " + type,
              time_cuda(options.repeat, [&] { product_key_topk_grad_cuda(g, nullptr); }),
              2 * side + 16.0 * static_cast<double>(rows * s.k));
    cudaFree(s1);
    cudaFree(s2);
  }
}

void bench_norm(const Options& options, const Shape& s, Table& table) {
  constexpr Element kElement = Element::bf16;
  const auto values = [](std::int64_t count) { return repeated(kElement, count, 1, 13); };
  const auto floats = [](std::int64_t count) {
    return static_cast<float*>(repeated(Element::f32, count, 1, 14));
  };
  const Norm norm(s, kElement, values, floats);
  table.add("moments of queries, bf16",
            time_cuda(options.repeat, [&] { column_moments_cuda(norm.moments, nullptr); }),
            norm.bytes);
  table.add("norm of queries, bf16",
            time_cuda(options.repeat, [&] { batch_norm_halves_cuda(norm.forward, nullptr); }),
            2 * norm.bytes);
  table.add("its backward, bf16",
            time_cuda(options.repeat, [&] { batch_norm_halves_grad_cuda(norm.backward, nullptr); }),
            5 * norm.bytes);
}

void bench_stored(const Options& options, Shape s, Table& table) {
  constexpr Element kElement = Element::bf16;
  s.width = 1024;
  Data d = device_data(s, kElement);
  void* down_grad = allocate<char>(s.experts * s.width * 2);
  const Bytes bytes(s, kElement);
  const StoredExperts forward{.x = d.xp,
                              .scores = d.scores,
                              .index = d.index,
                              .down = d.table,
                              .up = d.pre,
                              .y = d.acc,
                              .p = d.p,
                              .tokens = s.tokens,
                              .selections = s.selections(),
                              .experts = s.experts,
                              .width = s.width,
                              .element = kElement};
  const StoredExpertsGrad backward{.grad = d.grad,
                                   .scores = d.scores,
                                   .index = d.index,
                                   .down = d.table,
                                   .up = d.pre,
                                   .p = d.p,
                                   .grad_scores = d.grad_scores,
                                   .weights = d.weights,
                                   .grad_x = d.grad_xp,
                                   .tokens = s.tokens,
                                   .selections = s.selections(),
                                   .experts = s.experts,
                                   .width = s.width,
                                   .element = kElement};
  double sum = table.add("stored, width 1024: forward",
                         time_cuda(options.repeat, [&] { stored_experts_cuda(forward, nullptr); }),
                         bytes.forward + bytes.walk);
  sum += table.add("stored: over tokens",
                   time_cuda(options.repeat, [&] { stored_experts_grad_cuda(backward, nullptr); }),
                   bytes.backward + bytes.walk);
  sum += table.add("stored: lists",
                   time_cuda(options.repeat, [&] { expert_lists_cuda(d.lists(s), nullptr); }),
                   bytes.lists);
  ExpertGrad sums = d.sums(s, kElement, false);
  sums.input = down_grad;
  double best = HUGE_VAL;
  for (const std::int64_t columns : {128, 256, 512}) {
    best = std::min(best, table.add("stored: over experts, " + std::to_string(columns) + " columns",
                                    time_cuda(options.repeat,
                                              [&] { expert_grad_cuda(sums, nullptr, columns); }),
                                    bytes.sums + bytes.pre));
  }
  table.line("stored experts, all (PyTorch: 1.58 us/token)", sum + best);
}

void bench_few_tokens(const Options& options, const Shape& all, Table& table) {
  for (const std::int64_t tokens : {1, 8, 64}) {
    Shape s = all;
    s.tokens = tokens;
    const Data d = device_data(s, Element::bf16);
    table.add("forward, tokens: " + std::to_string(tokens),
              time_cuda(options.repeat,
                        [&] { ethos_experts_cuda(d.forward(s, Element::bf16), nullptr); }),
              Bytes(s, Element::bf16).forward);
    cudaFree(d.table);
    cudaFree(d.pre);
    cudaFree(d.grad_table);
  }
}

std::string device_name(Table& table, const Options& options) {
  cudaDeviceProp properties{};
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  std::printf("%s, %d multiprocessors, L2 %d MB\n", properties.name, properties.multiProcessorCount,
              properties.l2CacheSize >> 20);
  const std::int64_t bytes = std::int64_t{1} << 30;
  char* from = allocate<char>(bytes);
  char* to = allocate<char>(bytes);
  table.add("copy of 1 GB within the device",
            time_cuda(options.repeat,
                      [&] {
                        check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes),
                                              cudaMemcpyDeviceToDevice),
                              "cudaMemcpyAsync");
                      }),
            2.0 * static_cast<double>(bytes));
  cudaFree(from);
  cudaFree(to);
  return properties.name;
}

Json bench_cuda(const Options& options) {
  const Shape s{options.tokens > 0 ? options.tokens : 32768, 262144, 512, 8, 16, 512};
  Table table(s.tokens);
  const std::string device = device_name(table, options);
  bench_experts(options, s, table);
  bench_routing(options, s, table);
  bench_norm(options, s, table);
  bench_few_tokens(options, s, table);
  bench_stored(options, s, table);
  return {{"device", device}, {"tokens", s.tokens},           {"experts", s.experts},
          {"width", s.width}, {"selections", s.selections()}, {"rows", table.rows()}};
}
#endif  // SUBSPACE_CUDA

std::vector<double> time_cpu(int repeat, const std::function<void()>& work) {
  work();
  std::vector<double> ms;
  for (int i = 0; i < repeat; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    work();
    ms.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin)
                     .count());
  }
  return ms;
}

/// Host memory that lives as long as the program.
template <typename T>
T* keep(std::int64_t count) {
  auto* data = static_cast<T*>(std::calloc(static_cast<std::size_t>(count), sizeof(T)));
  if (data == nullptr) fail(ErrorCode::Internal, "no memory for {} values", count);
  return data;
}
void* keep_normals(Element element, std::int64_t count, double scale, std::uint64_t seed) {
  const auto bytes = normal_bytes(element, count, scale, seed);
  auto* data = keep<std::uint8_t>(static_cast<std::int64_t>(bytes.size()));
  std::copy(bytes.begin(), bytes.end(), data);
  return data;
}

Data host_data(const Shape& s, Element element) {
  Data d{};
  const std::int64_t bytes = element_bytes(element);
  d.xp = keep_normals(element, s.tokens * s.width, 1, 1);
  d.grad = keep_normals(element, s.tokens * s.width, 1, 2);
  d.table = keep_normals(element, s.experts * s.width, 0.05, 3);
  d.pre = keep_normals(element, s.experts * s.width, 1, 4);
  d.acc = keep<char>(s.tokens * s.width * bytes);
  d.grad_xp = keep<char>(s.tokens * s.width * bytes);
  d.grad_table = keep<char>(s.experts * s.width * bytes);
  const auto index = random_index(s, 1);
  d.index = keep<std::int64_t>(s.chosen());
  std::copy(index.begin(), index.end(), d.index);
  d.scores = static_cast<float*>(keep_normals(Element::f32, s.chosen(), 0.1, 5));
  d.p = keep<float>(s.chosen());
  d.grad_scores = keep<float>(s.chosen());
  d.weights = keep<RowWeights>(s.chosen());
  d.expert = keep<std::uint32_t>(s.chosen());
  d.selection = keep<std::uint32_t>(s.chosen());
  d.offsets = keep<std::uint32_t>(s.experts + 1);
  return d;
}

Json bench_cpu(const Options& options) {
  const Shape s{options.tokens > 0 ? options.tokens : 1024, 16384, 256, 8, 16, 128};
  const int threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  Table table(s.tokens);
  for (const Element element : {Element::f32, Element::bf16}) {
    const Data d = host_data(s, element);
    const Bytes bytes(s, element);
    for (const Isa isa : {Isa::portable, Isa::avx2}) {
      if (!isa_available(isa)) continue;
      const std::string name = std::string(element == Element::f32 ? "f32" : "bf16") +
                               (isa == Isa::avx2 ? " avx2: " : " portable: ");
      double sum = 0;
      sum += table.add(
          name + "forward",
          time_cpu(options.repeat, [&] { ethos_experts_cpu(d.forward(s, element), threads, isa); }),
          bytes.forward);
      sum +=
          table.add(name + "over tokens",
                    time_cpu(options.repeat,
                             [&] { ethos_experts_grad_cpu(d.backward(s, element), threads, isa); }),
                    bytes.backward);
      sum +=
          table.add(name + "lists", time_cpu(options.repeat, [&] { expert_lists_cpu(d.lists(s)); }),
                    bytes.lists);
      sum += table.add(name + "over experts, gelu'",
                       time_cpu(options.repeat,
                                [&] { expert_grad_cpu(d.sums(s, element, true), threads, isa); }),
                       bytes.sums + bytes.pre);
      sum += table.add(name + "table: gelu",
                       time_cpu(options.repeat,
                                [&] {
                                  expert_gelu_cpu({.pre = d.pre,
                                                   .grad = nullptr,
                                                   .out = d.grad_table,
                                                   .count = s.experts * s.width,
                                                   .element = element},
                                                  threads);
                                }),
                       2 * bytes.pre);
      table.line((name + "all").c_str(), sum);
    }
  }
  const std::int64_t rows = s.tokens * s.heads;
  const void* s1 = keep_normals(Element::f32, rows * s.side, 1, 11);
  const void* s2 = keep_normals(Element::f32, rows * s.side, 1, 12);
  const ProductKeyTopk p{.s1 = s1,
                         .s2 = s2,
                         .scores = keep<float>(rows * s.k),
                         .index = keep<std::int64_t>(rows * s.k),
                         .weights = keep<float>(rows * s.k),
                         .rows = rows,
                         .side = s.side,
                         .k = s.k,
                         .element = Element::f32};
  table.add("top-k with softmax, f32",
            time_cpu(options.repeat, [&] { product_key_topk_cpu(p, threads); }),
            8.0 * static_cast<double>(rows * s.side));
  const auto values = [](std::int64_t count) { return keep_normals(Element::f32, count, 1, 13); };
  const auto floats = [&](std::int64_t count) { return static_cast<float*>(values(count)); };
  const Norm norm(s, Element::f32, values, floats);
  table.add("moments of queries, f32",
            time_cpu(options.repeat, [&] { column_moments_cpu(norm.moments, threads); }),
            norm.bytes);
  table.add("norm of queries, f32",
            time_cpu(options.repeat, [&] { batch_norm_halves_cpu(norm.forward, threads); }),
            2 * norm.bytes);
  table.add("its backward, f32",
            time_cpu(options.repeat, [&] { batch_norm_halves_grad_cpu(norm.backward, threads); }),
            5 * norm.bytes);
  return {{"device", "cpu"},      {"threads", threads}, {"tokens", s.tokens},
          {"experts", s.experts}, {"width", s.width},   {"selections", s.selections()},
          {"rows", table.rows()}};
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const bool more = i + 1 < argc;
    if (argument == "--cpu") {
      options.cpu = true;
    } else if (argument == "--record" && more) {
      options.record = argv[++i];
    } else if (argument == "--repeat" && more) {
      options.repeat = std::max(1, std::atoi(argv[++i]));
    } else if (argument == "--tokens" && more) {
      options.tokens = std::atoll(argv[++i]);
    } else {
      fail(ErrorCode::Usage,
           "ethos_kernels: '{}' is not understood; there are --record PATH, "
           "--cpu, --repeat N, --tokens N",
           argument);
    }
  }
  return options;
}

int run(const Options& options) {
  Json record;
#ifdef SUBSPACE_CUDA
  record = options.cpu ? bench_cpu(options) : bench_cuda(options);
#else
  record = bench_cpu(options);
#endif
  record["benchmark"] = "ethos_kernels";
  record["version"] = version();
  record["compiler"] = compiler();
  if (!options.record.empty()) {
    write_file_atomically(options.record, record.dump(1) + "\n");
    std::printf("record: %s\n", options.record.c_str());
  }
  return 0;
}

}  // namespace
}  // namespace subspace::kernels

int main(int argc, char** argv) {
  try {
    return subspace::kernels::run(subspace::kernels::parse(argc, argv));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "ethos_kernels: %s\n", error.what());
    return 1;
  }
}
