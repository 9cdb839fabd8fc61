#include "kernels/expert_table.h"

#include <algorithm>
#include <cstring>

#include "kernels/gelu.h"
#include "kernels/over_batch.h"

namespace subspace::kernels {
namespace {

constexpr std::int64_t kRun = 8192;  // values a thread takes at a time

template <typename Stored, typename Read, typename Write>
void gelu_run(const ExpertGelu& p, std::int64_t begin, std::int64_t end, Read read, Write write) {
  const auto* pre = static_cast<const Stored*>(p.pre);
  const auto* grad = static_cast<const Stored*>(p.grad);
  auto* out = static_cast<Stored*>(p.out);
  for (std::int64_t i = begin; i < end; ++i) {
    const Gelu<float> gelu = gelu_fast(read(pre[i]));
    out[i] = write(grad == nullptr ? gelu.value : read(grad[i]) * gelu.slope);
  }
}

}  // namespace

void expert_gelu_cpu(const ExpertGelu& p, int threads) {
  over_batch((p.count + kRun - 1) / kRun, threads, [&](std::int64_t run) {
    const std::int64_t begin = run * kRun;
    const std::int64_t end = std::min(p.count, begin + kRun);
    if (p.element == Element::f32) {
      const auto same = [](float value) { return value; };
      gelu_run<float>(p, begin, end, same, same);
    } else {
      gelu_run<std::uint16_t>(p, begin, end, bf16_value, bf16_bits);
    }
  });
}

void gather_rows_cpu(const GatherRows& p, int threads) {
  const std::int64_t bytes = p.width * element_bytes(p.element);
  constexpr std::int64_t kRows = 64;
  over_batch((p.count + kRows - 1) / kRows, threads, [&](std::int64_t block) {
    const std::int64_t end = std::min(p.count, (block + 1) * kRows);
    for (std::int64_t i = block * kRows; i < end; ++i) {
      char* out = static_cast<char*>(p.out) + i * bytes;
      const bool valid = p.index[i] >= 0 && p.index[i] < p.count_rows;
      if (p.places != nullptr) p.places[i] = valid ? i : -1;
      if (!valid) {
        std::fill_n(out, bytes, char{0});
      } else {
        std::memcpy(out, static_cast<const char*>(p.rows) + p.index[i] * bytes,
                    static_cast<std::size_t>(bytes));
      }
    }
  });
}

Generate choose_generation(std::int64_t selections_in_all, std::int64_t experts) {
  return 4 * selections_in_all < experts ? Generate::distinct : Generate::table;
}

}  // namespace subspace::kernels
