#include "nn/parameters.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "base/error.h"
#include "base/random.h"

namespace subspace::nn {
namespace {

/// FNV-1a: the stream of random numbers that belongs to a tensor's name.
std::uint64_t stream_of(const std::string& name) {
  std::uint64_t hash = 14695981039346656037U;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211U;
  return hash;
}

/// Values that a thread draws at a time, and those that are held in float64 at a time: hundreds of
/// millions are drawn before a first step. Whole blocks of the generator both.
constexpr std::int64_t kRun = 1 << 14, kHeld = 1 << 22;

/// Draws the values of `name` into a contiguous tensor of any type and device; each depends on its
/// place alone, so the number of threads shows nowhere.
void draw(const at::Tensor& out, Init init, double deviation, std::uint64_t seed,
          const std::string& name) {
  const std::uint64_t stream = stream_of(name);
  const double bound = 1 / std::sqrt(static_cast<double>(out.size(-1)));
  const at::Tensor flat = out.view({-1});
  const at::Tensor held = at::empty({std::min(kHeld, flat.numel())}, at::kDouble);
  auto* values = held.data_ptr<double>();
  for (std::int64_t begin = 0; begin < flat.numel(); begin += kHeld) {
    const std::int64_t count = std::min(kHeld, flat.numel() - begin);
    at::parallel_for(0, (count + kRun - 1) / kRun, 1, [&](std::int64_t run, std::int64_t last) {
      for (; run < last; ++run) {
        Random random(seed, stream, static_cast<std::uint64_t>(begin + run * kRun) / 2);
        const std::int64_t end = std::min(count, (run + 1) * kRun);
        for (std::int64_t i = run * kRun; i < end; ++i) {
          values[i] = init == Init::normal ? deviation * random.normal()
                                           : bound * (2 * random.uniform() - 1);
        }
      }
    });
    flat.narrow(0, begin, count).copy_(held.narrow(0, 0, count));
  }
}

}  // namespace

at::Tensor Parameters::add(const std::vector<Named>& parts, std::int64_t rows, Init init,
                           bool decays, bool trained, std::optional<double> deviation) {
  Parameter parameter;
  std::int64_t begin = 0;
  for (const Named& part : parts) {
    parameter.parts.push_back({part.name, part.shape, begin, part.shape.at(0)});
    begin += part.shape.at(0);
  }
  Shape shape = parts.front().shape;
  shape[0] = rows;
  // A buffer is counted in, step by step: bfloat16 would lose the steps.
  at::TensorOptions kept = options_.tensor;
  if (!trained && kept.dtype() != at::kDouble) kept = kept.dtype(at::kFloat);
  parameter.value = init == Init::ones ? at::ones(shape, kept) : at::zeros(shape, kept);
  if ((init == Init::normal || init == Init::fan_in) && options_.fill) {
    for (const Parameter::Part& part : parameter.parts) {
      draw(parameter.value.narrow(0, part.begin, part.rows).view(part.shape), init,
           deviation.value_or(options_.range), options_.seed, part.name);
    }
  }
  const bool learns = trained && !options_.adapter;
  parameter.value.set_requires_grad(learns);
  parameter.decays = decays;
  parameter.trained = learns;
  all_.push_back(parameter);
  return parameter.value;
}

at::Tensor Parameters::weight(const std::string& name, const Shape& shape,
                              std::optional<double> deviation) {
  return add({{name, shape}}, shape.at(0), Init::normal, true, true, deviation);
}

at::Tensor Parameters::weights(const std::vector<Named>& parts) {
  std::int64_t rows = 0;
  for (const Named& part : parts) rows += part.shape.at(0);
  return add(parts, rows, Init::normal, true, true);
}

at::Tensor Parameters::padded_weight(const std::string& name, const Shape& shape,
                                     std::int64_t multiple) {
  const std::int64_t rows = (shape.at(0) + multiple - 1) / multiple * multiple;
  return add({{name, shape}}, rows, Init::normal, true, true);
}

at::Tensor Parameters::bias(const std::vector<Named>& parts) {
  std::int64_t rows = 0;
  for (const Named& part : parts) rows += part.shape.at(0);
  return add(parts, rows, Init::zeros, false, true);
}

at::Tensor Parameters::norm(const std::string& name, const Shape& shape) {
  return add({{name, shape}}, shape.at(0), Init::ones, false, true);
}

at::Tensor Parameters::buffer(const std::string& name, const Shape& shape, Init init) {
  return add({{name, shape}}, shape.at(0), init, false, false);
}

LowRankRows Parameters::adapter(const std::string& name, std::int64_t out, std::int64_t in) {
  if (!options_.adapter || !options_.adapter->targets(name)) return {};
  const std::string base = "base_model.model." + name;
  const std::int64_t r = options_.adapter->rank;
  auto own = [this](const std::string& tensor, const Shape& shape, Init init) {
    add({{tensor, shape}}, shape.at(0), init, true, true);
    Parameter& parameter = all_.back();
    parameter.value.set_requires_grad(true);
    parameter.trained = parameter.adapter = true;
    return parameter.value;
  };
  return {own(base + ".lora_A.weight", {r, in}, Init::fan_in),
          own(base + ".lora_B.weight", {out, r}, Init::zeros), options_.adapter->scale()};
}

std::int64_t Parameters::count() const {
  std::int64_t count = 0;
  for (const Parameter& parameter : all_) {
    if (!parameter.trained) continue;
    for (const Parameter::Part& part : parameter.parts) {
      count += c10::multiply_integers(part.shape);
    }
  }
  return count;
}

std::vector<std::string> Parameters::load(const Checkpoint& checkpoint, int threads,
                                          const std::set<std::string>& may_lack) {
  const at::NoGradGuard no_gradient;
  std::set<std::string> used;
  for (Parameter& parameter : all_) {
    for (const Parameter::Part& part : parameter.parts) {
      const bool needed = !parameter.adapter && !may_lack.contains(part.name);
      if (!needed && !checkpoint.has(part.name)) continue;
      const auto& found = checkpoint.info(part.name).shape;
      if (found != part.shape) {
        fail(ErrorCode::InvalidShape,
             "{}: tensor '{}' has shape {}; expected {} from config.json; the two belong to "
             "different models",
             checkpoint.shard_of(part.name), part.name, shape_text(found), shape_text(part.shape));
      }
      at::Tensor values = at::empty(part.shape, at::kDouble);
      checkpoint.decode(part.name, values.data_ptr<double>(), threads);
      parameter.value.narrow(0, part.begin, part.rows).copy_(values);
      used.insert(part.name);
    }
  }
  std::vector<std::string> unused;
  for (const std::string& name : checkpoint.names()) {
    if (!used.contains(name)) unused.push_back(name);
  }
  return unused;
}

void Parameters::save(const std::filesystem::path& file) const {
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  for (const Parameter& parameter : all_) {
    for (const Parameter::Part& part : parameter.parts) {
      tensors.emplace_back(part.name, parameter.value.detach().narrow(0, part.begin, part.rows));
    }
  }
  write_tensors(file, tensors);
}

}  // namespace subspace::nn
