#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace subspace {

/// A file that appears under its name whole or not at all: bytes go to `<path>.partial.<pid>` in
/// the same folder; commit() flushes them to the disk and renames. Destroyed without commit(), the
/// partial file is removed.
///
/// Throws Io with the path and the system's reason (no space left, permission denied, ...).
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, std::size_t bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }
  std::uint64_t written() const { return written_; }
  void commit();

 private:
  [[noreturn]] void fail_io(const char* doing);

  std::filesystem::path path_;
  std::filesystem::path partial_;
  int descriptor_ = -1;
  std::uint64_t written_ = 0;
};

/// Writes `text` to `path` through an AtomicFile.
void write_file_atomically(const std::filesystem::path& path, std::string_view text);

/// Creates the folder and its parents; throws Io with the reason if that is not possible.
void create_folder(const std::filesystem::path& folder);

/// Removes a file, or a folder with all that is in it (links are removed, not followed); nothing if
/// there is none. Throws Io with the path that could not be removed and the reason.
///
/// std::filesystem::remove_all would do, but PyTorch's CUDA builds export a broken one of their
/// own, which a program that is linked with them calls instead of the C++ library's.
void remove_tree(const std::filesystem::path& path);

/// Holds a folder for one process: an exclusive lock on `<folder>/.lock`, released when destroyed
/// or when the process dies in any way. Throws Busy (naming the holder's process id) if another
/// process holds it, Io if the folder cannot be written.
class FolderLock {
 public:
  explicit FolderLock(const std::filesystem::path& folder);
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  int descriptor_ = -1;
};

}  // namespace subspace
