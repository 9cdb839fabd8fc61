#include "data/data_folder.h"

#include <unistd.h>

#include <fstream>

#include "base/sha256.h"

namespace subspace::test {
namespace fs = std::filesystem;

std::string npy_file(const std::string& dictionary, const std::string& data,
                     std::size_t header_bytes) {
  const std::size_t length = header_bytes - 10;
  std::string file = "\x93NUMPY";
  file += {'\1', '\0', static_cast<char>(length & 255), static_cast<char>(length >> 8)};
  file += dictionary;
  file.resize(header_bytes - 1, ' ');
  return file + "\n" + data;
}

std::span<const std::byte> as_bytes(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

std::string sha256(std::string_view text) {
  Sha256 hash;
  hash.update(as_bytes(text));
  return hash.hex();
}

DataFolder::DataFolder() {
  const auto* test = testing::UnitTest::GetInstance()->current_test_info();
  std::string name = fmt::format("subspace-data-{}-{}", ::getpid(), test->name());
  for (char& c : name) c = c == '/' ? '-' : c;
  path_ = fs::temp_directory_path() / name;
  fs::remove_all(path_);
  fs::create_directories(path_);
}

DataFolder::~DataFolder() { fs::remove_all(path_); }

void DataFolder::write(const std::string& name, const std::string& bytes) const {
  std::ofstream(path_ / name, std::ios::binary) << bytes;
}

void DataFolder::array(const std::string& split, const std::string& name, const std::string& dtype,
                       const std::vector<std::int64_t>& shape, const std::string& data) {
  const std::map<std::string, std::string> descr = {
      {"uint8", "|u1"}, {"uint16", "<u2"}, {"uint32", "<u4"}, {"int32", "<i4"}, {"int64", "<i8"}};
  const std::string file =
      npy_file(fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}{}), }}",
                           descr.at(dtype), fmt::join(shape, ", "), shape.size() == 1 ? "," : ""),
               data);
  write(fmt::format("{}.{}.npy", split, name), file);
  meta["splits"][split]["arrays"][name] = {{"file", fmt::format("{}.{}.npy", split, name)},
                                           {"dtype", dtype},
                                           {"shape", shape},
                                           {"bytes", file.size()},
                                           {"sha256", sha256(file)}};
}

void DataFolder::write_meta() const { write("meta.json", meta.dump(2)); }

namespace {

Json counts(std::int64_t rows, std::int64_t length, std::int64_t tokens, std::int64_t special,
            std::int64_t documents) {
  return {{"rows", rows},
          {"tokens", tokens},
          {"text_tokens", tokens - special},
          {"special_tokens", special},
          {"padding", rows * length - tokens},
          {"documents", documents},
          {"words", 5},
          {"bytes", 30}};
}

Json base_meta(const char* kind) {
  return {{"format", "subspace-data"},
          {"version", 1},
          {"kind", kind},
          {"id", std::string(64, 'a')},
          {"splits", Json::object()}};
}

}  // namespace

Json decoder_meta() {
  Json meta = base_meta("text");
  meta["style"] = "decoder";
  meta["length"] = 4;
  meta["packed"] = true;
  meta["pad_id"] = 9;
  meta["tokenizer"] = {
      {"name", "t"},      {"kind", "bpe"},           {"sha256", std::string(64, '0')},
      {"vocab_size", 10}, {"special", {{"eos", 9}}}, {"never_masked", {9}}};
  return meta;
}

void fill_packed(DataFolder& folder) {
  folder.meta = decoder_meta();
  folder.meta["splits"]["train"] = counts(3, 4, 10, 3, 3);
  folder.array("train", "tokens", "uint16", {3, 4},
               bytes_of<std::uint16_t>({0, 1, 2, 9, 3, 4, 9, 5, 6, 9, 9, 9}));
  folder.array("train", "lengths", "int32", {3}, bytes_of<std::int32_t>({4, 4, 2}));
  folder.array("train", "documents", "int64", {4}, bytes_of<std::int64_t>({0, 4, 7, 10}));
  folder.meta["splits"]["valid"] = counts(1, 4, 3, 1, 1);
  folder.array("valid", "tokens", "uint32", {1, 4}, bytes_of<std::uint32_t>({7, 8, 9, 9}));
  folder.array("valid", "lengths", "int32", {1}, bytes_of<std::int32_t>({3}));
  folder.array("valid", "documents", "int64", {2}, bytes_of<std::int64_t>({0, 3}));
  folder.write_meta();
}

void fill_encoder(DataFolder& folder) {
  folder.meta = base_meta("text");
  folder.meta["style"] = "encoder";
  folder.meta["length"] = 5;
  folder.meta["packed"] = true;
  folder.meta["pad_id"] = 3;
  folder.meta["tokenizer"] = {{"name", "t"},
                              {"kind", "wordpiece"},
                              {"sha256", std::string(64, '0')},
                              {"vocab_size", 12},
                              {"special", {{"cls", 0}, {"sep", 1}, {"mask", 2}, {"pad", 3}}},
                              {"never_masked", {0, 1, 2, 3}}};
  // Documents {4 5}, {6 7}, {8}: the stream 4 5 SEP 6 7 SEP 8 in pieces of three.
  folder.meta["splits"]["train"] = counts(3, 5, 13, 8, 3);
  folder.array("train", "tokens", "uint16", {3, 5},
               bytes_of<std::uint16_t>({0, 4, 5, 1, 1, 0, 6, 7, 1, 1, 0, 8, 1, 3, 3}));
  folder.array("train", "lengths", "int32", {3}, bytes_of<std::int32_t>({5, 5, 3}));
  folder.array("train", "documents", "int64", {4}, bytes_of<std::int64_t>({1, 6, 11, 13}));
  folder.write_meta();
}

void fill_images(DataFolder& folder) {
  folder.meta = base_meta("images");
  folder.meta["classes"] = {"a", "b"};
  folder.meta["image"] = {
      {"channels", 1}, {"height", 2}, {"width", 3}, {"mean", {0.25}}, {"std", {0.5}}};
  folder.meta["splits"]["train"]["rows"] = 2;
  folder.array("train", "images", "uint8", {2, 1, 2, 3},
               bytes_of<std::uint8_t>({0, 1, 2, 3, 4, 5, 250, 251, 252, 253, 254, 255}));
  folder.array("train", "labels", "int32", {2}, bytes_of<std::int32_t>({1, 0}));
  folder.meta["splits"]["test"]["rows"] = 1;
  folder.array("test", "images", "uint8", {1, 1, 2, 3}, bytes_of<std::uint8_t>({9, 9, 9, 9, 9, 9}));
  folder.array("test", "labels", "int32", {1}, bytes_of<std::int32_t>({0}));
  folder.write_meta();
}

}  // namespace subspace::test
