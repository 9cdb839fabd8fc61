#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/error.h"
#include "data/npy.h"

namespace subspace {
namespace fs = std::filesystem;

struct NpyFile::Mapping {
  explicit Mapping(const fs::path& file) : path(file) {
    descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) {
      const int reason = errno;
      fail(reason == ENOENT ? ErrorCode::NotFound : ErrorCode::Io, "{}: cannot be opened: {}",
           path.string(), std::strerror(reason));
    }
  }
  ~Mapping() {
    if (address != MAP_FAILED) ::munmap(address, size);
    if (descriptor >= 0) ::close(descriptor);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  std::size_t current_size() const {
    struct stat status {};
    if (::fstat(descriptor, &status) != 0) {
      fail(ErrorCode::Io, "{}: cannot be examined: {}", path.string(), std::strerror(errno));
    }
    if (!S_ISREG(status.st_mode)) {
      fail(ErrorCode::InvalidFormat, "{}: not a regular file; expected a .npy file", path.string());
    }
    return static_cast<std::size_t>(status.st_size);
  }

  void map() {
    size = current_size();
    if (size == 0) fail(ErrorCode::InvalidFormat, "{}: an empty file", path.string());
    address = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, descriptor, 0);
    if (address == MAP_FAILED) {
      fail(ErrorCode::Io, "{}: cannot be mapped into memory: {}", path.string(),
           std::strerror(errno));
    }
  }

  fs::path path;
  int descriptor = -1;
  void* address = MAP_FAILED;
  std::size_t size = 0;
  NpyHeader header;
};

NpyFile::NpyFile(const fs::path& path) : mapping_(std::make_unique<Mapping>(path)) {
  mapping_->map();
  mapping_->header = parse_npy_header(bytes(), mapping_->size, path.string());
}

NpyFile::~NpyFile() = default;
NpyFile::NpyFile(NpyFile&&) noexcept = default;
NpyFile& NpyFile::operator=(NpyFile&&) noexcept = default;

const fs::path& NpyFile::path() const { return mapping_->path; }
const NpyHeader& NpyFile::header() const { return mapping_->header; }

std::span<const std::byte> NpyFile::bytes() const {
  return {static_cast<const std::byte*>(mapping_->address), mapping_->size};
}

void NpyFile::check_size() const {
  const std::size_t found = mapping_->current_size();
  if (found != mapping_->size) {
    fail(ErrorCode::Io,
         "{}: has {} bytes, {} when it was opened; something is changing the data under this run. "
         "Let that finish and start again",
         path().string(), found, mapping_->size);
  }
}

void NpyFile::expect_type(NpyType type) const {
  if (header().type != type) {
    fail(ErrorCode::Internal, "{}: read as {}, but holds {}", path().string(), npy_type_name(type),
         npy_type_name(header().type));
  }
}

}  // namespace subspace
