#include "lora/adapter.h"

#include <ATen/ATen.h>

#include <set>

#include "base/error.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/format.h"

namespace subspace {
namespace fs = std::filesystem;
namespace {

constexpr const char* kConfigName = "adapter_config.json";
constexpr const char* kWeightsName = "adapter_model.safetensors";

AdapterConfig read_config(const fs::path& folder, const AdapterOptions& options) {
  const fs::path path = folder / kConfigName;
  std::error_code status;
  if (!fs::exists(path, status)) {
    fail(ErrorCode::NotFound, "{}: no {} in it; expected the folder of a PEFT adapter ({} and {})",
         folder.string(), kConfigName, kConfigName, kWeightsName);
  }
  return parse_adapter_config(read_json_file(path), path.string(), options);
}

fs::path weights_of(const fs::path& folder) {
  std::error_code status;
  const fs::path path = folder / kWeightsName;
  if (fs::exists(path, status)) return path;
  if (fs::exists(folder / "adapter_model.bin", status)) {
    fail(ErrorCode::Unsupported,
         "{}: the weights are adapter_model.bin, a pickle, which can run code and is not read; "
         "load it with PEFT and save_pretrained(FOLDER) it as safetensors",
         folder.string());
  }
  fail(ErrorCode::NotFound, "{}: no {}, the weights that belong to {}", folder.string(),
       kWeightsName, kConfigName);
}

std::int64_t elements(const TensorInfo& info) { return info.elements(); }

kernels::Format readable(DType dtype, const std::string& where) {
  const auto format = format_of(dtype);
  // FP8 would need scales, which adapters do not have.
  if (format && dtype_bits(dtype) > 8) return *format;
  fail(ErrorCode::Unsupported, "{}: stored as {}; adapters are read from F64, F32, F16 and BF16",
       where, dtype_name(dtype));
}

}  // namespace

fs::path resolve_adapter(const std::string& adapter) {
  std::error_code status;
  if (fs::is_directory(adapter, status)) return adapter;
  if (adapter.find('/') == std::string::npos || fs::exists(adapter, status)) {
    fail(ErrorCode::NotFound,
         "{}: {}; expected a folder with {} and {}, or org/name[@revision] of an adapter in the "
         "Hugging Face cache",
         adapter, fs::exists(adapter, status) ? "not a folder" : "no such folder", kConfigName,
         kWeightsName);
  }
  return resolve_model(adapter);
}

Adapter::Adapter(const fs::path& folder, const AdapterOptions& options)
    : folder_(folder), config_(read_config(folder, options)), file_(weights_of(folder)) {
  notes_ = config_.notes;
  read_keys();
  for (auto& [path, module] : modules_) complete(module);
  if (modules_.empty() && whole_.empty()) {
    fail(ErrorCode::InvalidFormat,
         "{}: an empty adapter: no lora_A and lora_B in it, and no tensor saved whole",
         file_.path().string());
  }
}

void Adapter::read_keys() {
  using Part = AdapterKey::Part;
  const std::string where = file_.path().string();
  std::set<std::string> names;
  std::int64_t embeddings = 0;
  for (const auto& [name, info] : file_.header().tensors) {
    const AdapterKey key = parse_adapter_key(name, where);
    if (!key.adapter.empty()) names.insert(key.adapter);
    if (names.size() > 1) {
      fail(ErrorCode::Unsupported,
           "{}: holds several adapters ('{}' and '{}'); save one of them alone", where,
           *names.begin(), *names.rbegin());
    }
    if (key.part == Part::ignored) continue;
    if (key.part == Part::embedding) {
      ++embeddings;
      continue;
    }
    if (key.part == Part::whole) {
      whole_[canonical_path(key.path + "." + key.leaf)] = name;
      whole_parameters_ += elements(info);
      continue;
    }
    AdapterModule& module = modules_[canonical_path(key.path)];
    if (!module.path.empty() && module.path != key.path) {
      fail(ErrorCode::Unsupported,
           "{}: the modules '{}' and '{}' would be the same matrix of a base; one adapter for one "
           "model is expected",
           where, module.path, key.path);
    }
    module.path = key.path;
    parameters_ += elements(info);
    std::string& slot = key.part == Part::a        ? module.a
                        : key.part == Part::b      ? module.b
                        : key.part == Part::b_bias ? module.b_bias
                                                   : module.magnitude;
    if (!slot.empty()) {
      fail(ErrorCode::InvalidFormat, "{}: '{}' and '{}' are the same part of one module", where,
           slot, name);
    }
    slot = name;
  }
  if (embeddings > 0) notes_.push_back("embeddings are adapted too; they are left out");
}

void Adapter::complete(AdapterModule& module) const {
  const std::string where = file_.path().string();
  if (module.a.empty() || module.b.empty()) {
    const bool only_a = !module.a.empty();
    fail(ErrorCode::NotFound,
         "{}: module '{}' has no {}, which belongs to {}; the file is not "
         "complete",
         where, module.path, only_a ? "lora_B.weight" : "lora_A.weight",
         only_a             ? "its lora_A.weight"
         : module.b.empty() ? "its other tensors"
                            : "its lora_B.weight");
  }
  const auto& a = file_.info(module.a).shape;
  const auto& b = file_.info(module.b).shape;
  // A convolution's A is [r, in, ..]; attention has none, and only its size is counted.
  if (a.size() < 2 || b.size() < 2 || a[0] != b[1] || a[0] < 1) {
    fail(ErrorCode::InvalidShape,
         "{}: module '{}' has lora_A {} and lora_B {}; expected [r, in] and [out, r] of one r",
         where, module.path, shape_text(a), shape_text(b));
  }
  module.rank = a[0];
  module.in = a[1];
  module.out = b[0];
  const std::int64_t stated = config_.rank_of(module.path);
  if (stated != module.rank) {
    fail(ErrorCode::InvalidValue,
         "{}: module '{}' has rank {} (lora_A is {}), but {} says {} for it; configuration and "
         "weights belong to different adapters",
         where, module.path, module.rank, shape_text(a), kConfigName, stated);
  }
  module.alpha = config_.alpha_of(module.path);
  module.scale = config_.scale_of(module.path, module.rank);
  auto expect = [&](bool stated_so, const std::string& key, const char* field, const char* tensor) {
    if (stated_so == !key.empty()) return;
    fail(ErrorCode::InvalidFormat, "{}: module '{}' has {} {}, but {} says {}: {}", where,
         module.path, key.empty() ? "no" : "a", tensor, kConfigName, field,
         stated_so ? "true" : "false");
  };
  expect(config_.lora_bias, module.b_bias, "lora_bias", "lora_B.bias");
  expect(config_.dora, module.magnitude, "use_dora", "lora_magnitude_vector");
  check_one(module.b_bias, module.out, module);
  check_one(module.magnitude, module.out, module);
}

void Adapter::check_one(const std::string& key, std::int64_t size,
                        const AdapterModule& module) const {
  if (key.empty() || file_.info(key).elements() == size) return;
  fail(ErrorCode::InvalidShape, "{}: tensor '{}' has shape {}; expected [{}], as lora_B is {}",
       file_.path().string(), key, shape_text(file_.info(key).shape), size,
       shape_text(file_.info(module.b).shape));
}

at::Tensor Adapter::tensor(const std::string& key) const {
  const TensorInfo& info = file_.info(key);
  at::Tensor out = at::empty(info.shape, at::kDouble);
  if (out.numel() == 0) return out;
  const std::string where = fmt::format("{}: tensor '{}'", file_.path().string(), key);
  kernels::Dequantize how;
  how.format = readable(info.dtype, where);
  std::vector<std::byte> bytes(info.bytes());
  file_.read(info, 0, bytes.data(), bytes.size());
  how.in = bytes.data();
  how.out = out.data_ptr<double>();
  how.rows = 1;
  how.cols = out.numel();
  const std::int64_t bad = kernels::dequantize_cpu(how, 1);
  if (bad >= 0) {
    const std::int64_t columns = info.shape.empty() ? 1 : info.shape.back();
    fail(ErrorCode::NotFinite, "{} holds {} at [{}, {}]; expected finite numbers", where,
         how.out[bad], bad / columns, bad % columns);
  }
  return out;
}

at::Tensor Adapter::b(const AdapterModule& module) const { return tensor(module.b) * module.scale; }

}  // namespace subspace
