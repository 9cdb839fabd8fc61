#include "checkpoint/checkpoint.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "kernels/dequantize.h"

namespace subspace {
namespace fs = std::filesystem;
namespace {

constexpr const char* kIndexName = "model.safetensors.index.json";
constexpr const char* kSingleName = "model.safetensors";

std::string listing(const fs::path& folder) {
  std::vector<std::string> found;
  std::error_code status;
  for (const auto& entry : fs::directory_iterator(folder, status)) {
    found.push_back(entry.path().filename().string());
  }
  std::sort(found.begin(), found.end());
  if (found.size() > 8) {
    found.resize(8);
    found.emplace_back("...");
  }
  return found.empty() ? "nothing" : fmt::format("{}", fmt::join(found, ", "));
}

kernels::Format format_of(DType dtype, const std::string& where) {
  switch (dtype) {
    case DType::F64:
      return kernels::Format::f64;
    case DType::F32:
      return kernels::Format::f32;
    case DType::F16:
      return kernels::Format::f16;
    case DType::BF16:
      return kernels::Format::bf16;
    case DType::F8_E4M3:
      return kernels::Format::f8_e4m3;
    case DType::F8_E8M0:
      return kernels::Format::f8_e8m0;
    default:
      fail(ErrorCode::Unsupported,
           "{}: stored as {}; weights are read from F64, F32, F16, BF16 and "
           "F8_E4M3",
           where, dtype_name(dtype));
  }
}

/// Rows and columns of a tensor seen as a matrix: [n] is [1, n], [] is [1, 1].
std::pair<std::int64_t, std::int64_t> matrix_shape(const TensorInfo& info) {
  if (info.shape.empty()) return {1, 1};
  if (info.shape.size() == 1) return {1, info.shape[0]};
  std::int64_t cols = 1;
  for (std::size_t axis = 1; axis < info.shape.size(); ++axis) cols *= info.shape[axis];
  return {info.shape[0], cols};
}

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

}  // namespace

Checkpoint::Checkpoint(const fs::path& folder) : folder_(folder) {
  std::error_code status;
  if (!fs::exists(folder, status)) {
    fail(ErrorCode::NotFound,
         "{}: no such folder; expected a model folder with config.json and "
         "safetensors files",
         folder.string());
  }
  if (!fs::is_directory(folder, status)) {
    fail(ErrorCode::NotFound,
         "{}: not a folder; expected a model folder with config.json and "
         "safetensors files",
         folder.string());
  }
  if (!fs::exists(folder / "config.json", status)) {
    fail(ErrorCode::NotFound,
         "{}: not a model folder: no config.json in it (found {}); give the "
         "folder that holds "
         "config.json and the safetensors files",
         folder.string(), listing(folder));
  }
  config_ = read_json_file(folder / "config.json");
  if (!config_.is_object()) {
    fail(ErrorCode::InvalidFormat, "{}: expected a JSON object", (folder / "config.json").string());
  }
  if (fs::exists(folder / kIndexName, status)) {
    read_index();
  } else if (fs::exists(folder / kSingleName, status)) {
    for (const auto& [name, info] : shard(kSingleName).header().tensors) {
      shard_of_.emplace(name, kSingleName);
    }
  } else {
    fail(ErrorCode::NotFound, "{}: no weights: neither {} nor {} is there (found {})",
         folder.string(), kSingleName, kIndexName, listing(folder));
  }
  names_.reserve(shard_of_.size());
  for (const auto& [name, file] : shard_of_) names_.push_back(name);
  read_block_size();
}

Checkpoint::~Checkpoint() = default;

void Checkpoint::read_index() {
  const fs::path path = folder_ / kIndexName;
  const Json index = read_json_file(path);
  const Fields fields(index, path.string());
  const Fields map = fields.object("weight_map");
  for (const auto& [name, file] : map.json().items()) {
    if (!file.is_string()) {
      fail(ErrorCode::InvalidFormat, "{}: weight_map gives no file name for tensor '{}'",
           path.string(), name);
    }
    const auto shard_name = file.get<std::string>();
    // A shard outside the folder would let an index read any file of the
    // machine.
    if (shard_name.empty() || shard_name.find('/') != std::string::npos ||
        shard_name.find('\\') != std::string::npos || shard_name == ".." || shard_name == ".") {
      fail(ErrorCode::InvalidFormat,
           "{}: tensor '{}' is said to be in '{}'; expected the plain name of "
           "a file in the same "
           "folder",
           path.string(), name, shard_name);
    }
    shard_of_.emplace(name, shard_name);
  }
  if (shard_of_.empty()) {
    fail(ErrorCode::InvalidFormat, "{}: weight_map names no tensor", path.string());
  }
  if (const auto metadata = fields.object_if("metadata"); metadata && metadata->has("total_size")) {
    const Json& size = metadata->json().at("total_size");
    if (size.is_number_unsigned()) declared_bytes_ = size.get<std::uint64_t>();
  }
}

void Checkpoint::read_block_size() {
  const Fields config(config_, (folder_ / "config.json").string());
  auto quantization = config.object_if("quantization_config");
  if (!quantization) {
    if (const auto text = config.object_if("text_config")) {
      quantization = text->object_if("quantization_config");
    }
  }
  if (!quantization || !quantization->has("weight_block_size")) return;
  const Json& size = quantization->json().at("weight_block_size");
  const bool valid = size.is_array() && size.size() == 2 && size[0].is_number_integer() &&
                     size[1].is_number_integer() && size[0].get<std::int64_t>() >= 1 &&
                     size[1].get<std::int64_t>() >= 1 && size[0].get<std::int64_t>() <= 65536 &&
                     size[1].get<std::int64_t>() <= 65536;
  if (!valid) {
    fail(ErrorCode::InvalidValue,
         "{}: weight_block_size is {}; expected two whole numbers, e.g. [128, "
         "128]",
         quantization->where(), size.dump());
  }
  block_rows_ = size[0].get<std::int64_t>();
  block_cols_ = size[1].get<std::int64_t>();
}

const SafetensorsFile& Checkpoint::shard(const std::string& file) const {
  const std::lock_guard lock(mutex_);
  auto& slot = open_[file];
  if (!slot) {
    std::error_code status;
    if (!fs::exists(folder_ / file, status)) {
      open_.erase(file);
      fail(ErrorCode::NotFound,
           "{}: the shard '{}' that the index names is missing; fetch it again "
           "or complete the "
           "download",
           folder_.string(), file);
    }
    try {
      slot = std::make_unique<SafetensorsFile>(folder_ / file);
    } catch (...) {
      open_.erase(file);
      throw;
    }
  }
  return *slot;
}

bool Checkpoint::has(const std::string& name) const { return shard_of_.contains(name); }

std::string Checkpoint::shard_of(const std::string& name) const {
  const auto found = shard_of_.find(name);
  if (found == shard_of_.end()) {
    fail(ErrorCode::NotFound, "{}: no tensor '{}' among the {} of the checkpoint", folder_.string(),
         name, shard_of_.size());
  }
  return found->second;
}

const TensorInfo& Checkpoint::info(const std::string& name) const {
  const std::string file = shard_of(name);
  const auto& tensors = shard(file).header().tensors;
  const auto found = tensors.find(name);
  if (found == tensors.end()) {
    fail(ErrorCode::InvalidFormat,
         "{}: the index says that tensor '{}' is in '{}', but that file does "
         "not have it",
         folder_.string(), name, file);
  }
  return found->second;
}

std::vector<std::string> Checkpoint::shards() const {
  std::vector<std::string> files;
  for (const auto& [name, file] : shard_of_) files.push_back(file);
  std::sort(files.begin(), files.end());
  files.erase(std::unique(files.begin(), files.end()), files.end());
  return files;
}

std::uint64_t Checkpoint::total_bytes() const {
  std::uint64_t sum = 0;
  for (const std::string& file : shards()) {
    std::error_code status;
    const auto size = fs::file_size(folder_ / file, status);
    if (status) return std::max(sum, declared_bytes_);
    sum += size;
  }
  return sum;
}

void Checkpoint::count(const std::string& name, std::uint64_t bytes) const {
  const std::lock_guard lock(mutex_);
  if (!counted_[name]) {
    counted_[name] = true;
    bytes_read_ += bytes;
  }
}

std::span<const std::byte> Checkpoint::bytes(const std::string& name) const {
  const TensorInfo& tensor = info(name);
  count(name, tensor.bytes());
  return shard(shard_of(name)).bytes(name);
}

void Checkpoint::drop(const std::string& name) const { shard(shard_of(name)).drop(name); }

std::uint64_t Checkpoint::bytes_read() const { return bytes_read_; }

std::string Checkpoint::scale_name(const std::string& name) const {
  if (has(name + "_scale_inv")) return name + "_scale_inv";
  constexpr std::string_view kSuffix = ".weight";
  if (name.ends_with(kSuffix)) {
    const std::string stem = name.substr(0, name.size() - kSuffix.size());
    if (has(stem + ".scale")) return stem + ".scale";
  }
  return {};
}

std::vector<float> Checkpoint::block_scales(const std::string& name) const {
  const std::string scale = scale_name(name);
  if (scale.empty()) return {};
  const auto [rows, cols] = matrix_shape(info(name));
  const auto& tensor = info(scale);
  const std::vector<std::int64_t> expected = {divide_up(rows, block_rows_),
                                              divide_up(cols, block_cols_)};
  if (tensor.shape != expected) {
    fail(ErrorCode::InvalidShape,
         "{}: tensor '{}' has shape {}; expected {}, one scale a block of "
         "{}x{} of '{}' {}",
         shard_of(scale), scale, shape_text(tensor.shape), shape_text(expected), block_rows_,
         block_cols_, name, shape_text(info(name).shape));
  }
  std::vector<double> wide(static_cast<std::size_t>(tensor.elements()));
  read_values(scale, {}, wide.data(), 1, false);
  std::vector<float> scales(wide.size());
  for (std::size_t i = 0; i < wide.size(); ++i) {
    scales[i] = static_cast<float>(wide[i]);
    if (!(scales[i] > 0)) {
      fail(ErrorCode::InvalidValue, "{}: tensor '{}' has the scale {} at [{}, {}]; expected > 0",
           shard_of(scale), scale, wide[i], i / static_cast<std::size_t>(expected[1]),
           i % static_cast<std::size_t>(expected[1]));
    }
  }
  return scales;
}

void Checkpoint::read_values(const std::string& name, const std::vector<float>& scales, double* out,
                             int threads, bool allow_nonfinite) const {
  const TensorInfo& tensor = info(name);
  const SafetensorsFile& file = shard(shard_of(name));
  const auto [rows, cols] = matrix_shape(tensor);
  const std::string where = fmt::format("{}: tensor '{}'", shard_of(name), name);
  kernels::Dequantize p;
  p.format = format_of(tensor.dtype, where);
  p.cols = cols;
  p.block_rows = block_rows_;
  p.block_cols = block_cols_;
  if (!scales.empty()) {
    p.scale = scales.data();
    p.scale_stride = divide_up(cols, block_cols_);
  }
  count(name, tensor.bytes());
  if (rows == 0 || cols == 0) return;
  // Read in pieces rather than through the mapping: a file that shrinks
  // meanwhile is then an error, not a crash, and its pages never count as this
  // process's memory.
  const std::int64_t row_bytes = cols * dtype_size(tensor.dtype);
  const std::int64_t step = std::clamp<std::int64_t>((std::int64_t{16} << 20) / row_bytes, 1, rows);
  std::vector<std::byte> piece(static_cast<std::size_t>(step * row_bytes));
  for (std::int64_t row = 0; row < rows; row += step) {
    p.rows = std::min(step, rows - row);
    p.row0 = row;
    file.read(tensor, static_cast<std::uint64_t>(row * row_bytes), piece.data(),
              static_cast<std::size_t>(p.rows * row_bytes));
    p.in = piece.data();
    p.out = out + row * cols;
    const std::int64_t bad = kernels::dequantize_cpu(p, threads);
    if (bad >= 0 && !allow_nonfinite) {
      fail(ErrorCode::NotFinite, "{} holds {} at [{}, {}]; expected finite weights", where,
           p.out[bad], row + bad / cols, bad % cols);
    }
  }
}

void Checkpoint::decode(const std::string& name, double* out, int threads,
                        bool allow_nonfinite) const {
  if (!has(name)) {
    constexpr std::string_view kSuffix = ".weight";
    const std::string stem =
        name.ends_with(kSuffix) ? name.substr(0, name.size() - kSuffix.size()) : name;
    if (has(stem + ".weight_packed")) {
      fail(ErrorCode::Unsupported,
           "{}: '{}' is stored as compressed-tensors INT4 "
           "('{}.weight_packed'); attention must be "
           "in F64, F32, F16, BF16 or F8_E4M3 (released INT4 checkpoints keep "
           "attention in BF16)",
           folder_.string(), name, stem);
    }
  }
  const TensorInfo& tensor = info(name);
  const std::vector<float> scales = block_scales(name);
  if (tensor.dtype == DType::F8_E4M3 && scales.empty()) {
    fail(ErrorCode::NotFound,
         "{}: tensor '{}' is F8_E4M3, but its block scales '{}_scale_inv' are "
         "not in the checkpoint",
         folder_.string(), name, name);
  }
  read_values(name, scales, out, threads, allow_nonfinite);
}

}  // namespace subspace
