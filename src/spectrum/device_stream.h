#pragma once

#include <c10/core/Device.h>
#include <c10/core/StreamGuard.h>

#include <optional>

namespace subspace {

/// While it lives, what the calling thread starts on a GPU goes to a stream of its own, beside the
/// work of other threads. Tensors made meanwhile may be used elsewhere only after finish(), and
/// freed only when that use is over. Does nothing on the CPU.
class OwnStream {
 public:
  explicit OwnStream(const c10::Device& device);
  /// Waits for what was started.
  void finish() const;

 private:
  c10::Device device_;
  c10::OptionalStreamGuard guard_;
};

/// A stream for several threads that take turns: what one of them frees the next may have, which
/// with a stream for each would stay beside it.
class DeviceStream {
 public:
  explicit DeviceStream(const c10::Device& device);

  /// While the guard lives, what the calling thread starts goes there. Nothing on the CPU.
  c10::OptionalStreamGuard use() const { return c10::OptionalStreamGuard(stream_); }

 private:
  std::optional<c10::Stream> stream_;
};

/// Waits for what the calling thread has started on its present stream.
void synchronize(const c10::Device& device);

}  // namespace subspace
