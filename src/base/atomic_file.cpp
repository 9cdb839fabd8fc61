#include "base/atomic_file.h"

#include <fcntl.h>
#include <ftw.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace subspace {
namespace fs = std::filesystem;

AtomicFile::AtomicFile(fs::path path) : path_(std::move(path)) {
  partial_ = path_;
  partial_ += fmt::format(".partial.{}", ::getpid());
  descriptor_ = ::open(partial_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (descriptor_ < 0) fail_io("created");
}

AtomicFile::~AtomicFile() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  ::unlink(partial_.c_str());
}

void AtomicFile::fail_io(const char* doing) {
  const int reason = errno;
  fail(ErrorCode::Io, "{}: cannot be {}: {}; nothing was left under that name", path_.string(),
       doing, std::strerror(reason));
}

void AtomicFile::write(const void* data, std::size_t bytes) {
  const char* next = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t count = ::write(descriptor_, next, bytes);
    if (count < 0) {
      if (errno == EINTR) continue;
      fail_io("written");
    }
    next += count;
    bytes -= static_cast<std::size_t>(count);
    written_ += static_cast<std::uint64_t>(count);
  }
}

void AtomicFile::commit() {
  if (::fsync(descriptor_) != 0) fail_io("flushed to the disk");
  const int descriptor = descriptor_;
  descriptor_ = -1;
  if (::close(descriptor) != 0 || ::rename(partial_.c_str(), path_.c_str()) != 0) {
    const int reason = errno;
    ::unlink(partial_.c_str());
    errno = reason;
    fail_io("put in its place");
  }
  // The rename itself must survive a power cut, or a resumed run could miss a finished layer.
  fs::path folder = path_.parent_path();
  if (folder.empty()) folder = ".";
  const int directory = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory >= 0) {
    ::fsync(directory);
    ::close(directory);
  }
}

void write_file_atomically(const fs::path& path, std::string_view text) {
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

void create_folder(const fs::path& folder) {
  std::error_code status;
  fs::create_directories(folder, status);
  if (status || !fs::is_directory(folder, status)) {
    fail(ErrorCode::Io, "{}: the folder cannot be created: {}", folder.string(),
         status ? status.message() : "a file of that name is in the way");
  }
}

void remove_tree(const fs::path& path) {
  constexpr int kOpenFolders = 16;
  const auto remove = [](const char* entry, const struct stat*, int, struct FTW*) {
    return ::remove(entry) == 0 || errno == ENOENT ? 0 : errno;
  };
  const int status = ::nftw(path.c_str(), remove, kOpenFolders, FTW_DEPTH | FTW_PHYS);
  if (status == 0 || (status < 0 && errno == ENOENT)) return;
  fail(ErrorCode::Io, "{}: cannot be removed: {}", path.string(),
       std::strerror(status > 0 ? status : errno));
}

FolderLock::FolderLock(const fs::path& folder) {
  const fs::path path = folder / ".lock";
  descriptor_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (descriptor_ < 0) {
    fail(ErrorCode::Io, "{}: the folder cannot be written: {}", folder.string(),
         std::strerror(errno));
  }
  if (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0) {
    char holder[32] = {};
    const ssize_t count = ::read(descriptor_, holder, sizeof(holder) - 1);
    ::close(descriptor_);
    descriptor_ = -1;
    fail(ErrorCode::Busy,
         "{}: another run (process {}) is writing into this folder; wait for it, stop it, or "
         "choose another --out",
         folder.string(), count > 0 ? std::string(holder, static_cast<std::size_t>(count)) : "?");
  }
  const std::string mine = std::to_string(::getpid());
  if (::ftruncate(descriptor_, 0) != 0 ||
      ::pwrite(descriptor_, mine.data(), mine.size(), 0) != static_cast<ssize_t>(mine.size())) {
    const int reason = errno;
    ::close(descriptor_);
    descriptor_ = -1;
    fail(ErrorCode::Io, "{}: cannot be written: {}", path.string(), std::strerror(reason));
  }
}

FolderLock::~FolderLock() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

}  // namespace subspace
