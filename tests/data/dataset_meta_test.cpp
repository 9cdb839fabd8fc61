#include "data/dataset_meta.h"

#include "data/data_folder.h"

namespace subspace {
namespace {
using test::error_of, test::expect_says;

TEST(DatasetMetaTest, ReadsText) {
  test::DataFolder folder;
  test::fill_packed(folder);
  const DatasetMeta meta = parse_dataset_meta(folder.meta.dump(), "meta.json");
  EXPECT_EQ(meta.kind, DataKind::Text);
  EXPECT_EQ(meta.style, TextStyle::Decoder);
  EXPECT_EQ(meta.id, std::string(64, 'a'));
  EXPECT_EQ(meta.length, 4);
  EXPECT_TRUE(meta.packed);
  EXPECT_EQ(meta.pad_id, 9);
  EXPECT_EQ(meta.tokenizer.vocab_size, 10);
  EXPECT_EQ(meta.tokenizer.special.at("eos"), 9);
  EXPECT_EQ(meta.tokenizer.never_masked, std::vector<std::int32_t>{9});
  const SplitMeta& train = meta.splits.at("train");
  EXPECT_EQ(train.rows, 3);
  EXPECT_EQ(train.tokens, 10);
  EXPECT_EQ(train.text_tokens, 7);
  EXPECT_EQ(train.padding, 2);
  EXPECT_EQ(train.documents, 3);
  EXPECT_EQ(train.words, 5);
  EXPECT_EQ(train.arrays.at("tokens").type, NpyType::U16);
  EXPECT_EQ(train.arrays.at("documents").shape, std::vector<std::int64_t>{4});
}

TEST(DatasetMetaTest, ReadsImages) {
  test::DataFolder folder;
  test::fill_images(folder);
  const DatasetMeta meta = parse_dataset_meta(folder.meta.dump(), "meta.json");
  EXPECT_EQ(meta.kind, DataKind::Images);
  EXPECT_EQ(meta.classes, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(meta.image->width, 3);
  EXPECT_EQ(meta.image->std, std::vector<double>{0.5});
}

struct Fault {
  const char* name;
  void (*change)(Json&);
  ErrorCode code;
  const char* says;
};

void expect_fault(Json meta, const Fault& fault) {
  fault.change(meta);
  const Error error = error_of([&] { parse_dataset_meta(meta.dump(), "meta.json"); });
  expect_says(error, fault.code, fault.says);
  expect_says(error, fault.code, "meta.json");
}

Json& array_of(Json& meta, const char* name) { return meta["splits"]["train"]["arrays"][name]; }

class TextMeta : public testing::TestWithParam<Fault> {};

TEST_P(TextMeta, FaultIsRefused) {
  test::DataFolder folder;
  test::fill_packed(folder);
  expect_fault(folder.meta, GetParam());
}

constexpr auto kValue = ErrorCode::InvalidValue;

INSTANTIATE_TEST_SUITE_P(
    Rules, TextMeta,
    testing::Values(
        Fault{"not_ours", [](Json& m) { m.erase("format"); }, ErrorCode::InvalidFormat,
              "subspace-data"},
        Fault{"other_version", [](Json& m) { m["version"] = 2; }, ErrorCode::Unsupported,
              "version 2"},
        Fault{"kind", [](Json& m) { m["kind"] = "audio"; }, kValue, "'audio'"},
        Fault{"short_id", [](Json& m) { m["id"] = "abc"; }, kValue, "64 hexadecimal"},
        Fault{"id_not_hex", [](Json& m) { m["id"] = std::string(64, 'G'); }, kValue,
              "64 hexadecimal"},
        Fault{"style", [](Json& m) { m["style"] = "both"; }, kValue, "'both'"},
        Fault{"length_zero", [](Json& m) { m["length"] = 0; }, kValue, "length"},
        Fault{"length_huge", [](Json& m) { m["length"] = (1 << 20) + 1; }, kValue, "length"},
        Fault{"packed", [](Json& m) { m["packed"] = 1; }, kValue, "packed"},
        Fault{"pad_outside", [](Json& m) { m["pad_id"] = 10; }, kValue, "pad_id"},
        Fault{"no_tokenizer", [](Json& m) { m.erase("tokenizer"); }, ErrorCode::NotFound,
              "tokenizer"},
        Fault{"vocabulary", [](Json& m) { m["tokenizer"]["vocab_size"] = 0; }, kValue,
              "vocab_size"},
        Fault{"special_name", [](Json& m) { m["tokenizer"]["special"]["end"] = 1; }, kValue,
              "'end'"},
        Fault{"special_outside", [](Json& m) { m["tokenizer"]["special"]["eos"] = 10; }, kValue,
              "eos"},
        Fault{"special_lacking", [](Json& m) { m["tokenizer"]["special"] = Json::object(); },
              ErrorCode::NotFound, "no 'eos'"},
        Fault{"encoder_lacks_mask", [](Json& m) { m["style"] = "encoder"; }, ErrorCode::NotFound,
              "no 'cls'"},
        Fault{"never_masked_falls",
              [](Json& m) {
                m["tokenizer"]["never_masked"] = {9, 9};
              },
              kValue, "does not rise at 9"},
        Fault{"never_masked_lacks", [](Json& m) { m["tokenizer"]["never_masked"] = {8}; }, kValue,
              "lacks 9"},
        Fault{"never_masked_outside",
              [](Json& m) {
                m["tokenizer"]["never_masked"] = {9, 10};
              },
              kValue, "never_masked"},
        Fault{"never_masked_fraction", [](Json& m) { m["tokenizer"]["never_masked"] = {0.5}; },
              kValue, "never_masked"},
        Fault{"no_train", [](Json& m) { m["splits"].erase("train"); }, ErrorCode::NotFound,
              "no 'train'"},
        Fault{"split_name", [](Json& m) { m["splits"]["dev"] = Json::object(); }, kValue, "'dev'"},
        Fault{"no_rows", [](Json& m) { m["splits"]["train"]["rows"] = 0; }, kValue, "rows"},
        Fault{"sum_of_tokens", [](Json& m) { m["splits"]["train"]["text_tokens"] = 8; }, kValue,
              "do not make 10"},
        Fault{"padding", [](Json& m) { m["splits"]["train"]["padding"] = 3; }, kValue,
              "do not fill 3 rows of 4"},
        Fault{"negative_words", [](Json& m) { m["splits"]["train"]["words"] = -1; }, kValue,
              "words"},
        Fault{"no_documents", [](Json& m) { m["splits"]["train"]["documents"] = 0; }, kValue,
              "documents"},
        Fault{"no_arrays", [](Json& m) { m["splits"]["train"].erase("arrays"); },
              ErrorCode::NotFound, "arrays"},
        Fault{"array_lacking", [](Json& m) { m["splits"]["train"]["arrays"].erase("lengths"); },
              ErrorCode::NotFound, "no array 'lengths'"},
        Fault{"array_foreign", [](Json& m) { array_of(m, "labels") = array_of(m, "lengths"); },
              kValue, "'labels', which data of kind 'text'"},
        Fault{"file_outside", [](Json& m) { array_of(m, "tokens")["file"] = "../x.npy"; }, kValue,
              "../x.npy"},
        Fault{"file_in_folder", [](Json& m) { array_of(m, "tokens")["file"] = "a/x.npy"; }, kValue,
              "a/x.npy"},
        Fault{"file_empty", [](Json& m) { array_of(m, "tokens")["file"] = ""; }, kValue, "'file'"},
        Fault{"file_twice",
              [](Json& m) { array_of(m, "tokens")["file"] = array_of(m, "lengths")["file"]; },
              kValue, "two arrays"},
        Fault{"dtype_unknown", [](Json& m) { array_of(m, "tokens")["dtype"] = "float32"; }, kValue,
              "'float32'"},
        Fault{"dtype_wrong", [](Json& m) { array_of(m, "tokens")["dtype"] = "int64"; }, kValue,
              "is int64"},
        Fault{"shape_wrong",
              [](Json& m) {
                array_of(m, "tokens")["shape"] = {4, 3};
              },
              ErrorCode::InvalidShape, "[4, 3]; expected [3, 4]"},
        Fault{"shape_of_documents", [](Json& m) { array_of(m, "documents")["shape"] = {3}; },
              ErrorCode::InvalidShape, "expected [4]"},
        Fault{"shape_negative",
              [](Json& m) {
                array_of(m, "tokens")["shape"] = {-3, 4};
              },
              kValue, "'shape'"},
        Fault{"shape_beyond_64_bits",
              [](Json& m) {
                array_of(m, "tokens")["shape"] = {UINT64_MAX, 4};
              },
              kValue, "'shape'"},
        Fault{"shape_no_list", [](Json& m) { array_of(m, "tokens")["shape"] = 12; }, kValue,
              "'shape'"},
        Fault{"array_hash", [](Json& m) { array_of(m, "tokens")["sha256"] = ""; }, kValue,
              "sha256"}),
    [](const auto& info) { return info.param.name; });

class ImagesMeta : public testing::TestWithParam<Fault> {};

TEST_P(ImagesMeta, FaultIsRefused) {
  test::DataFolder folder;
  test::fill_images(folder);
  expect_fault(folder.meta, GetParam());
}

INSTANTIATE_TEST_SUITE_P(
    Rules, ImagesMeta,
    testing::Values(
        Fault{"channels", [](Json& m) { m["image"]["channels"] = 17; }, kValue, "channels"},
        Fault{"height", [](Json& m) { m["image"]["height"] = 0; }, kValue, "height"},
        Fault{"mean_count",
              [](Json& m) {
                m["image"]["mean"] = {0.1, 0.2};
              },
              kValue, "list of 1 numbers"},
        Fault{"mean_text", [](Json& m) { m["image"]["mean"] = {"x"}; }, kValue, "mean"},
        Fault{"std_zero", [](Json& m) { m["image"]["std"] = {0.0}; }, kValue, "above 0"},
        Fault{"no_image", [](Json& m) { m.erase("image"); }, ErrorCode::NotFound, "image"},
        Fault{"one_class", [](Json& m) { m["classes"] = {"a"}; }, kValue, "1 names"},
        Fault{"shape",
              [](Json& m) {
                array_of(m, "images")["shape"] = {2, 6};
              },
              ErrorCode::InvalidShape, "expected [2, 1, 2, 3]"}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace subspace
