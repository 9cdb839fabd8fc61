#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/error.h"
#include "checkpoint/safetensors.h"

namespace subspace {
namespace fs = std::filesystem;

struct SafetensorsFile::Mapping {
  explicit Mapping(const fs::path& file) : path(file) {}
  ~Mapping() {
    if (address != MAP_FAILED) ::munmap(address, size);
    if (descriptor >= 0) ::close(descriptor);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  void open();
  void read(std::uint64_t at, void* out, std::size_t bytes) const;
  void map();

  fs::path path;
  int descriptor = -1;
  void* address = MAP_FAILED;
  std::size_t size = 0;
  SafetensorsHeader header;
};

void SafetensorsFile::Mapping::open() {
  descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) {
    const int reason = errno;
    fail(reason == ENOENT ? ErrorCode::NotFound : ErrorCode::Io, "{}: cannot be opened: {}",
         path.string(), std::strerror(reason));
  }
  struct stat status {};
  if (::fstat(descriptor, &status) != 0) {
    fail(ErrorCode::Io, "{}: cannot be examined: {}", path.string(), std::strerror(errno));
  }
  if (!S_ISREG(status.st_mode)) {
    fail(ErrorCode::InvalidFormat, "{}: not a regular file; expected a safetensors file",
         path.string());
  }
  size = static_cast<std::size_t>(status.st_size);
}

void SafetensorsFile::Mapping::read(std::uint64_t at, void* out, std::size_t bytes) const {
  char* next = static_cast<char*>(out);
  while (bytes > 0) {
    const ssize_t count = ::pread(descriptor, next, bytes, static_cast<off_t>(at));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      fail(ErrorCode::Io, "{}: cannot be read at byte {}: {}", path.string(), at,
           std::strerror(errno));
    }
    if (count == 0) {
      fail(ErrorCode::Io,
           "{}: ends at byte {}, though it had {} bytes when it was opened; something is changing "
           "the file. Let that finish, or fetch the file again",
           path.string(), at, size);
    }
    next += count;
    at += static_cast<std::uint64_t>(count);
    bytes -= static_cast<std::size_t>(count);
  }
}

void SafetensorsFile::Mapping::map() {
  address = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, descriptor, 0);
  if (address == MAP_FAILED) {
    fail(ErrorCode::Io, "{}: cannot be mapped into memory: {}", path.string(),
         std::strerror(errno));
  }
}

SafetensorsFile::SafetensorsFile(const fs::path& path) : mapping_(std::make_unique<Mapping>(path)) {
  Mapping& file = *mapping_;
  file.open();
  // The header is read, not mapped, and no more is read than a valid header can have.
  std::vector<std::byte> start(std::min<std::size_t>(file.size, 8));
  file.read(0, start.data(), start.size());
  if (start.size() == 8) {
    std::uint64_t length = 0;
    std::memcpy(&length, start.data(), sizeof length);
    if (length <= kMaxHeaderBytes && length <= file.size - 8) {
      start.resize(8 + static_cast<std::size_t>(length));
      file.read(8, start.data() + 8, start.size() - 8);
    }
  }
  file.header = parse_safetensors_header(start, file.size, path.string());
  file.map();
}

SafetensorsFile::~SafetensorsFile() = default;
SafetensorsFile::SafetensorsFile(SafetensorsFile&&) noexcept = default;
SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&&) noexcept = default;

const fs::path& SafetensorsFile::path() const { return mapping_->path; }
const SafetensorsHeader& SafetensorsFile::header() const { return mapping_->header; }

const TensorInfo& SafetensorsFile::info(const std::string& name) const {
  const auto found = mapping_->header.tensors.find(name);
  if (found == mapping_->header.tensors.end()) {
    fail(ErrorCode::NotFound, "{}: no tensor '{}' among its {}", path().string(), name,
         mapping_->header.tensors.size());
  }
  return found->second;
}

std::span<const std::byte> SafetensorsFile::bytes(const std::string& name) const {
  const TensorInfo& tensor = info(name);
  return {static_cast<const std::byte*>(mapping_->address) + tensor.begin, tensor.bytes()};
}

void SafetensorsFile::read(const TensorInfo& tensor, std::uint64_t offset, void* out,
                           std::size_t bytes) const {
  if (offset > tensor.bytes() || bytes > tensor.bytes() - offset) {
    fail(ErrorCode::Internal, "{}: reading {} bytes at {} of a tensor of {} bytes", path().string(),
         bytes, offset, tensor.bytes());
  }
  mapping_->read(tensor.begin + offset, out, bytes);
}

void SafetensorsFile::drop(const std::string& name) const {
  const TensorInfo& tensor = info(name);
  // Only pages wholly inside: a neighbour on the edges may be in use by another thread.
  const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  const std::uint64_t first = (tensor.begin + page - 1) / page * page;
  const std::uint64_t last = tensor.end / page * page;
  if (first >= last) return;
  // A refused hint costs memory, not correctness.
  (void)::madvise(static_cast<char*>(mapping_->address) + first, last - first, MADV_DONTNEED);
}

}  // namespace subspace
