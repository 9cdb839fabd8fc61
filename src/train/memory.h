#pragma once

#include <c10/core/Device.h>

#include <exception>
#include <string>

#include "nn/config.h"
#include "train/settings.h"

namespace subspace::train {

/// Whether an error says that memory ran out: a GPU's, that of ATen's allocator on the CPU (which
/// has no type of its own), or any other.
bool is_out_of_memory(const std::exception& error);

/// The largest divisor of `number` that is at most `limit` (both from 1).
std::int64_t largest_divisor(std::int64_t number, std::int64_t limit);

/// Why a step found no memory and what to do: `rows` a pass would have fitted, 0: not even one,
/// -1: not known. What is advised makes steps of exactly as many rows.
std::string no_memory_for_rows(const Settings& settings, c10::Device device, std::int64_t rows);

/// Why a model cannot be set up for training: what its numbers take at least, with gradients and
/// AdamW's state or, of an adapter's base, alone.
std::string no_memory_for_model(const nn::ModelConfig& model, const Settings& settings,
                                c10::Device device, bool frozen);

}  // namespace subspace::train
