#include "spectrum/device_stream.h"

#include <c10/core/impl/VirtualGuardImpl.h>

namespace subspace {

OwnStream::OwnStream(const c10::Device& device) : device_(device) {
  if (device.is_cpu()) return;
  guard_.reset_stream(c10::impl::VirtualGuardImpl(device.type()).getStreamFromGlobalPool(device));
}

void OwnStream::finish() const { synchronize(device_); }

DeviceStream::DeviceStream(const c10::Device& device) {
  if (device.is_cpu()) return;
  stream_ = c10::impl::VirtualGuardImpl(device.type()).getStreamFromGlobalPool(device);
}

void synchronize(const c10::Device& device) {
  if (device.is_cpu()) return;
  const c10::impl::VirtualGuardImpl guard(device.type());
  guard.synchronizeStream(guard.getStream(device));
}

}  // namespace subspace
