#include "data/npy.h"

#include "data/data_folder.h"

namespace subspace {
namespace {
using test::as_bytes, test::bytes_of, test::error_of, test::expect_says, test::npy_file;

const std::string kGood = "{'descr': '<u2', 'fortran_order': False, 'shape': (2, 3), }";
const std::string kData(12, 'x');

NpyHeader parse(const std::string& file) {
  return parse_npy_header(as_bytes(file), file.size(), "a.npy");
}

TEST(NpyHeaderTest, ReadsWhatNumPyWrites) {
  const NpyHeader header = parse(npy_file(kGood, kData));
  EXPECT_EQ(header.type, NpyType::U16);
  EXPECT_EQ(header.shape, (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(header.elements, 6u);
  EXPECT_EQ(header.data_begin, 128u);
}

TEST(NpyHeaderTest, ReadsEveryTypeAndRank) {
  struct Case {
    const char* descr;
    NpyType type;
    const char* shape;
    std::uint64_t elements;
  };
  for (const Case& c :
       {Case{"|u1", NpyType::U8, "()", 1}, Case{"<u2", NpyType::U16, "(5,)", 5},
        Case{"<u4", NpyType::U32, "(0, 7)", 0}, Case{"<i4", NpyType::I32, "( 1 ,2, 3 )", 6},
        Case{"<i8", NpyType::I64, "(1,1,1,1,1,1,1,2,)", 2}}) {
    const std::string dictionary =
        fmt::format(R"({{"shape":{}, "fortran_order":False,"descr":"{}"}})", c.shape, c.descr);
    const std::string data(c.elements * npy_type_size(c.type), 'x');
    const NpyHeader header = parse(npy_file(dictionary, data, 80));
    EXPECT_EQ(header.type, c.type) << c.descr;
    EXPECT_EQ(header.elements, c.elements) << c.descr;
  }
}

TEST(NpyHeaderTest, ReadsVersionsTwoAndThree) {
  for (const char major : {'\2', '\3'}) {
    std::string file = npy_file(kGood, kData);
    file[6] = major;
    file.insert(10, 2, '\0');  // the length has four bytes
    EXPECT_EQ(parse(file).data_begin, 130u);
  }
}

struct BadHeader {
  const char* name;
  std::string file;
  const char* says;
  ErrorCode code = ErrorCode::InvalidFormat;
};

std::string with(std::size_t at, char value) {
  std::string file = npy_file(kGood, kData);
  file[at] = value;
  return file;
}

std::string dictionary(const std::string& text) { return npy_file(text, kData); }

class BadNpy : public testing::TestWithParam<BadHeader> {};

TEST_P(BadNpy, IsRefused) {
  const Error error = error_of([] { parse(GetParam().file); });
  expect_says(error, GetParam().code, GetParam().says);
  expect_says(error, GetParam().code, "a.npy: ");
}

INSTANTIATE_TEST_SUITE_P(
    Rules, BadNpy,
    testing::Values(
        BadHeader{"empty", "", "not a .npy file"},
        BadHeader{"short_file", "\x93NUMPY\x01", "not a .npy file"},
        BadHeader{"magic", with(1, 'X'), "not a .npy file"},
        BadHeader{"version", with(6, '\4'), "format 4.0", ErrorCode::Unsupported},
        BadHeader{"minor_version", with(7, '\1'), "format 1.1", ErrorCode::Unsupported},
        BadHeader{"ends_in_length", std::string("\x93NUMPY\x02\0\1\0", 10), "inside its header"},
        BadHeader{"header_beyond_file", with(9, '\x10'), "truncated"},
        BadHeader{"header_too_long",
                  std::string("\x93NUMPY\x02\0\1\0\1\0", 12) + std::string(65537, ' '), "65536"},
        BadHeader{"no_dictionary", dictionary("[]"), "expected '{'"},
        BadHeader{"unclosed", dictionary("{'descr': '<u2'"), "expected '}'"},
        BadHeader{"unclosed_string", npy_file("{'descr", "", 40), "end of a string"},
        BadHeader{"escape", dictionary(R"({'de\x73cr': '<u2'})"), "without escapes"},
        BadHeader{"no_colon", dictionary("{'descr' '<u2'}"), "expected ':'"},
        BadHeader{"unquoted", dictionary("{descr: '<u2'}"), "expected '\"'"},
        BadHeader{"boolean", dictionary("{'fortran_order': 0}"), "True or False"},
        BadHeader{"foreign_field", dictionary("{'color': 1}"), "'color'"},
        BadHeader{"twice", dictionary("{'descr': '<u2', 'descr': '<u2'}"), "'descr' twice"},
        BadHeader{"no_descr", dictionary("{'fortran_order': False, 'shape': (2, 3)}"),
                  "no 'descr'"},
        BadHeader{"no_order", dictionary("{'descr': '<u2', 'shape': (2, 3)}"),
                  "no 'fortran_order'"},
        BadHeader{"no_shape", dictionary("{'descr': '<u2', 'fortran_order': False}"), "no 'shape'"},
        BadHeader{"float", dictionary("{'descr': '<f4'}"), "'<f4'", ErrorCode::Unsupported},
        BadHeader{"big_endian", dictionary("{'descr': '>u2'}"), "'>u2'", ErrorCode::Unsupported},
        BadHeader{"pickle", dictionary("{'descr': '|O'}"), "'|O'", ErrorCode::Unsupported},
        BadHeader{"fortran", dictionary("{'descr': '<u2', 'fortran_order': True, 'shape': (2, 3)}"),
                  "Fortran order", ErrorCode::Unsupported},
        BadHeader{"shape_is_number", dictionary("{'shape': 6}"), "expected '('"},
        BadHeader{"shape_without_comma", dictionary("{'shape': (6)}"), "','"},
        BadHeader{"negative_axis", dictionary("{'shape': (-6,)}"), "not negative"},
        BadHeader{"fractional_axis", dictionary("{'shape': (6.0,)}"), "',' or ')'"},
        BadHeader{"huge_axis", dictionary("{'shape': (9223372036854775808,)}"), "beyond 2^63"},
        BadHeader{"many_axes", dictionary("{'shape': (1,1,1,1,1,1,1,1,1)}"), "more than 8 axes"},
        BadHeader{"product",
                  dictionary("{'descr': '<u2', 'fortran_order': False, 'shape': (4294967296, "
                             "4294967296), }"),
                  "2^63 bytes"},
        BadHeader{"product_fits_63_bits_not_bytes",
                  dictionary("{'descr': '<u2', 'fortran_order': False, 'shape': "
                             "(4611686018427387904,), }"),
                  "2^63 bytes"},
        BadHeader{"misaligned", npy_file(kGood, kData, 127), "multiple of", ErrorCode::Unsupported},
        BadHeader{"behind_dictionary", dictionary(kGood + " x"), "line feed"},
        BadHeader{"no_line_feed", with(127, ' '), "line feed"},
        BadHeader{"truncated", npy_file(kGood, kData.substr(1)), "11 bytes of data"},
        BadHeader{"trailing", npy_file(kGood, kData + "x"), "13 bytes of data"}),
    [](const auto& info) { return info.param.name; });

TEST(NpyFileTest, GivesElements) {
  test::DataFolder folder;
  folder.write("a.npy", npy_file(kGood, bytes_of<std::uint16_t>({1, 2, 3, 4, 5, 65535})));
  const NpyFile file(folder.path() / "a.npy");
  const auto values = file.values<std::uint16_t>();
  EXPECT_EQ(std::vector(values.begin(), values.end()),
            (std::vector<std::uint16_t>{1, 2, 3, 4, 5, 65535}));
  expect_says(error_of([&] { file.values<std::int32_t>(); }), ErrorCode::Internal, "holds uint16");
}

TEST(NpyFileTest, MissingEmptyAndFolderAreRefused) {
  test::DataFolder folder;
  folder.write("empty", "");
  expect_says(error_of([&] { NpyFile(folder.path() / "none"); }), ErrorCode::NotFound, "none");
  expect_says(error_of([&] { NpyFile(folder.path() / "empty"); }), ErrorCode::InvalidFormat,
              "empty file");
  expect_says(error_of([&] { NpyFile(folder.path()); }), ErrorCode::InvalidFormat,
              "not a regular file");
}

TEST(NpyFileTest, AFileThatShrinksIsNoticed) {
  test::DataFolder folder;
  folder.write("a.npy", npy_file(kGood, kData));
  const NpyFile file(folder.path() / "a.npy");
  EXPECT_NO_THROW(file.check_size());
  std::filesystem::resize_file(folder.path() / "a.npy", 130);
  expect_says(error_of([&] { file.check_size(); }), ErrorCode::Io, "130 bytes, 140 when");
}

}  // namespace
}  // namespace subspace
