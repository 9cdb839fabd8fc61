#include <algorithm>
#include <atomic>
#include <exception>
#include <limits>
#include <mutex>
#include <thread>

#include "base/error.h"
#include "checkpoint/block_scales.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/format.h"
#include "kernels/over_batch.h"

namespace subspace {
namespace {

// A piece and what it decodes to should stay in a core's second cache together.
constexpr std::int64_t kPieceBytes = 256 << 10;
// Beyond this the output cannot stay in cache, whatever is done with it next.
constexpr std::int64_t kStreamBytes = 8 << 20;
constexpr std::int64_t kReadBytes = 8 << 20;
constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::max();

kernels::Format readable(DType dtype, const std::string& where) {
  const auto format = format_of(dtype);
  if (format) return *format;
  fail(ErrorCode::Unsupported,
       "{}: stored as {}; weights are read from F64, F32, F16, BF16 and F8_E4M3", where,
       dtype_name(dtype));
}

/// One tensor on its way from the file to float64. Several threads take pieces in order: read into
/// the thread's own buffer (a file that shrinks meanwhile is then a short read and an error, where
/// a mapping would end the process), then convert.
class Decoding {
 public:
  Decoding(const SafetensorsFile& file, const TensorInfo& tensor, const kernels::Dequantize& whole)
      : file_(file), tensor_(tensor), whole_(whole) {
    // Scales need whole rows; without them a tensor is one run of values.
    unit_ = whole.scale ? whole.cols : 1;
    units_ = whole.rows * whole.cols / unit_;
    size_ = dtype_size(tensor.dtype);
    step_ = std::clamp<std::int64_t>(kPieceBytes / (unit_ * size_), 1, units_);
  }

  /// The flat index of the first value that is not finite, or kNone.
  std::int64_t run(int threads, bool stop_at_bad) {
    const std::int64_t pieces = (units_ + step_ - 1) / step_;
    const auto workers =
        static_cast<int>(std::clamp<std::int64_t>(pieces, 1, std::max(threads, 1)));
    std::vector<std::exception_ptr> errors(static_cast<std::size_t>(workers));
    {
      std::vector<std::jthread> others;
      for (int t = 1; t < workers; ++t) {
        others.emplace_back([&, t] { work(errors[static_cast<std::size_t>(t)], stop_at_bad); });
      }
      work(errors[0], stop_at_bad);
    }
    for (const auto& error : errors) {
      if (error) std::rethrow_exception(error);
    }
    return bad_;
  }

 private:
  void work(std::exception_ptr& error, bool stop_at_bad) {
    try {
      std::vector<std::byte> piece(static_cast<std::size_t>(step_ * unit_ * size_));
      while (!stop_) {
        const std::int64_t unit = next_.fetch_add(step_);
        if (unit >= units_) break;
        const std::int64_t bad = convert(unit, std::min(step_, units_ - unit), piece);
        if (bad < 0) continue;
        // Pieces are handed out in order, so every earlier one is in some thread's hands and will
        // be finished: the smallest index found is the first there is.
        std::int64_t first = bad_;
        while (bad < first && !bad_.compare_exchange_weak(first, bad)) {
        }
        if (stop_at_bad) stop_ = true;
      }
    } catch (...) {
      error = std::current_exception();
      stop_ = true;
    }
  }

  std::int64_t convert(std::int64_t unit, std::int64_t count, std::vector<std::byte>& piece) {
    const std::int64_t first = unit * unit_;
    file_.read(tensor_, static_cast<std::uint64_t>(first * size_), piece.data(),
               static_cast<std::size_t>(count * unit_ * size_));
    kernels::Dequantize p = whole_;
    p.in = piece.data();
    p.out = whole_.out + first;
    p.rows = whole_.scale ? count : 1;
    p.cols = whole_.scale ? whole_.cols : count;
    p.row0 = whole_.scale ? unit : 0;
    const std::int64_t bad = kernels::dequantize_cpu(p, 1);
    return bad < 0 ? -1 : first + bad;
  }

  const SafetensorsFile& file_;
  const TensorInfo& tensor_;
  const kernels::Dequantize whole_;
  std::int64_t unit_, units_, size_, step_;
  std::atomic<std::int64_t> next_{0};
  std::atomic<std::int64_t> bad_{kNone};
  std::atomic<bool> stop_{false};
};

}  // namespace

Checkpoint::Encoding Checkpoint::encoding(const std::string& name, bool allow_nonfinite) const {
  constexpr std::string_view kSuffix = ".weight";
  const std::string stem =
      name.ends_with(kSuffix) ? name.substr(0, name.size() - kSuffix.size()) : name;
  const TensorInfo& tensor = info(name);
  Encoding encoding{{}, block_scales(name, allow_nonfinite)};
  if (tensor.dtype == DType::F8_E4M3 && encoding.scales.empty() && tensor.elements() > 0) {
    fail(ErrorCode::NotFound,
         "{}: tensor '{}' is F8_E4M3, but its scales are not in the checkpoint; looked for "
         "'{}_scale_inv', '{}_scale' and '{}.scale'",
         folder_.string(), name, name, name, stem);
  }
  const auto [rows, cols] = matrix_shape(tensor);
  encoding.how.format =
      readable(tensor.dtype, fmt::format("{}: tensor '{}'", shard_of(name), name));
  encoding.how.rows = rows;
  encoding.how.cols = cols;
  if (!encoding.scales.empty()) {
    encoding.how.block_rows = block_.rows;
    encoding.how.block_cols = block_.cols;
    encoding.how.scale_stride = (cols + block_.cols - 1) / block_.cols;
  }
  return encoding;
}

void Checkpoint::decode(const std::string& name, double* out, int threads,
                        bool allow_nonfinite) const {
  Encoding found = encoding(name, allow_nonfinite);
  kernels::Dequantize& whole = found.how;
  whole.out = out;
  if (!found.scales.empty()) whole.scale = found.scales.data();
  whole.streaming = whole.rows * whole.cols > kStreamBytes / 8;
  const TensorInfo& tensor = info(name);
  count(name, tensor.bytes());
  if (whole.rows == 0 || whole.cols == 0) return;
  const std::int64_t bad =
      Decoding(shard(shard_of(name)), tensor, whole).run(threads, !allow_nonfinite);
  if (bad != kNone && !allow_nonfinite) fail_nonfinite(name, bad, out[bad]);
}

void Checkpoint::read(const std::string& name, void* to, int threads) const {
  const TensorInfo& tensor = info(name);
  const SafetensorsFile& file = shard(shard_of(name));
  const auto bytes = static_cast<std::int64_t>(tensor.bytes());
  count(name, tensor.bytes());
  std::exception_ptr error;
  std::mutex mutex;
  kernels::over_batch((bytes + kReadBytes - 1) / kReadBytes, threads, [&](std::int64_t piece) {
    const std::int64_t first = piece * kReadBytes;
    try {
      file.read(tensor, static_cast<std::uint64_t>(first), static_cast<std::byte*>(to) + first,
                static_cast<std::size_t>(std::min(kReadBytes, bytes - first)));
    } catch (...) {
      const std::lock_guard lock(mutex);
      error = std::current_exception();
    }
  });
  if (error) std::rethrow_exception(error);
}

void Checkpoint::fail_nonfinite(const std::string& name, std::int64_t index, double value) const {
  const std::int64_t cols = matrix_shape(info(name)).cols;
  fail(ErrorCode::NotFinite,
       "{}: tensor '{}' holds {} at [{}, {}]; expected finite weights. spectra --mark-nonfinite "
       "leaves the head out",
       shard_of(name), name, value, index / cols, index % cols);
}

}  // namespace subspace
