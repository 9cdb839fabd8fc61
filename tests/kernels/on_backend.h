// Runs one kernel's test on each implementation of it: memory that is where the kernel wants it.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "base/random.h"
#include "kernels/dequantize.h"
#include "kernels/element.h"
#include "kernels/ethos_reference.h"

#ifdef SUBSPACE_CUDA
#include <cuda_runtime.h>
#endif

namespace subspace::kernels {

enum class Backend { portable, avx2, cuda };

inline Isa isa_of(Backend backend) { return backend == Backend::avx2 ? Isa::avx2 : Isa::portable; }

inline const char* name_of(Backend backend) {
  return backend == Backend::portable ? "portable" : backend == Backend::avx2 ? "avx2" : "cuda";
}

inline std::vector<Backend> backends() {
  std::vector<Backend> all = {Backend::portable, Backend::avx2};
#ifdef SUBSPACE_CUDA
  all.push_back(Backend::cuda);
#endif
  return all;
}

/// Why this machine cannot run it, or nothing.
inline std::string missing_for(Backend backend) {
  if (backend == Backend::avx2 && !isa_available(Isa::avx2)) {
    return "this processor lacks the instruction set";
  }
#ifdef SUBSPACE_CUDA
  int devices = 0;
  if (backend == Backend::cuda && (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0)) {
    return "needs a GPU";
  }
#endif
  return "";
}

/// An array in the backend's memory.
template <typename T>
class Buffer {
 public:
  Buffer(Backend backend, std::vector<T> values) : values_(std::move(values)), backend_(backend) {
#ifdef SUBSPACE_CUDA
    if (backend_ == Backend::cuda) {
      const std::size_t bytes = values_.size() * sizeof(T);
      EXPECT_EQ(cudaMalloc(&device_, std::max<std::size_t>(bytes, 16)), cudaSuccess);
      EXPECT_EQ(cudaMemcpy(device_, values_.data(), bytes, cudaMemcpyHostToDevice), cudaSuccess);
    }
#endif
  }
  /// All bits set: NaN in every floating type, so that what a kernel forgets to write is seen.
  Buffer(Backend backend, std::int64_t count) : Buffer(backend, unwritten(count)) {}
  ~Buffer() {
#ifdef SUBSPACE_CUDA
    cudaFree(device_);
#endif
  }
  Buffer(const Buffer&) = delete;

  T* data() { return backend_ == Backend::cuda ? device_ : values_.data(); }
  const std::vector<T>& values() {
#ifdef SUBSPACE_CUDA
    if (backend_ == Backend::cuda) {
      EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
      EXPECT_EQ(
          cudaMemcpy(values_.data(), device_, values_.size() * sizeof(T), cudaMemcpyDeviceToHost),
          cudaSuccess);
    }
#endif
    return values_;
  }

 private:
  static std::vector<T> unwritten(std::int64_t count) {
    std::vector<T> values(static_cast<std::size_t>(count));
    if (count > 0) std::memset(static_cast<void*>(values.data()), 0xff, values.size() * sizeof(T));
    return values;
  }
  std::vector<T> values_;
  Backend backend_;
  T* device_ = nullptr;
};

/// Values as stored, and back.
inline std::vector<std::uint8_t> encode(Element element, const Doubles& values) {
  std::vector<std::uint8_t> bytes(values.size() * static_cast<std::size_t>(element_bytes(element)));
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto value = static_cast<float>(values[i]);
    if (element == Element::f32) {
      std::memcpy(&bytes[4 * i], &value, 4);
    } else {
      const std::uint16_t bits = bf16_bits(value);
      std::memcpy(&bytes[2 * i], &bits, 2);
    }
  }
  return bytes;
}

inline Doubles decode(Element element, const std::vector<std::uint8_t>& bytes) {
  Doubles values(bytes.size() / static_cast<std::size_t>(element_bytes(element)));
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (element == Element::f32) {
      float value = 0;
      std::memcpy(&value, &bytes[4 * i], 4);
      values[i] = value;
    } else {
      std::uint16_t bits = 0;
      std::memcpy(&bits, &bytes[2 * i], 2);
      values[i] = bf16_value(bits);
    }
  }
  return values;
}

/// Normal values that the storage holds exactly.
inline Doubles normals(Element element, std::int64_t count, double scale, std::uint64_t seed) {
  Random random(seed, 77);
  Doubles values(static_cast<std::size_t>(count));
  for (double& value : values) value = scale * random.normal();
  return decode(element, encode(element, values));
}

inline std::vector<float> floats(const Doubles& values) { return {values.begin(), values.end()}; }

/// Each |got - want| within its own bound; NaN is within none.
inline void expect_within(const Doubles& got, const Doubles& want, const Doubles& bound,
                          const char* what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  ASSERT_EQ(bound.size(), want.size()) << what;
  for (std::size_t i = 0; i < got.size(); ++i) {
    ASSERT_FALSE(!(std::abs(got[i] - want[i]) <= bound[i]))
        << what << " at " << i << ": " << got[i] << ", expected " << want[i] << " within "
        << bound[i];
  }
}

}  // namespace subspace::kernels
