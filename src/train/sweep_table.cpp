#include "train/sweep_table.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "base/atomic_file.h"
#include "base/error.h"

namespace subspace::train {
namespace {

/// t with 97.5 % of Student's distribution below it, for 1, 2, .. degrees of freedom.
constexpr std::array<double, 30> kStudent = {
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010,  2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796,  2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423};

double student(std::size_t freedom) {
  if (freedom <= kStudent.size()) return kStudent[freedom - 1];
  // Fisher's expansion about the normal quantile z: z + (z^3 + z) / 4 f.
  constexpr double z = 1.959964;
  return z + (z * z * z + z) / (4 * static_cast<double>(freedom));
}

std::string csv_cell(const Json& value) {
  if (value.is_null()) return "";
  if (!value.is_string()) return value.dump();
  std::string text = value.get<std::string>();
  if (text.find_first_of(",\"\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + "\"";
}

std::string csv(const std::vector<std::string>& columns, const std::vector<Json>& rows) {
  std::string text;
  for (const std::string& column : columns) text += (text.empty() ? "" : ",") + column;
  for (const Json& row : rows) {
    text += "\n";
    for (std::size_t i = 0; i < columns.size(); ++i) {
      if (i > 0) text += ",";
      if (row.contains(columns[i])) text += csv_cell(row.at(columns[i]));
    }
  }
  return text + "\n";
}

void add_columns(std::vector<std::string>& columns, const Json& row) {
  for (const auto& entry : row.items()) {
    if (std::find(columns.begin(), columns.end(), entry.key()) == columns.end()) {
      columns.push_back(entry.key());
    }
  }
}

Json number_or_null(double value) { return std::isfinite(value) ? Json(value) : Json(); }

}  // namespace

Interval interval(const std::vector<double>& values) {
  Interval out;
  out.count = static_cast<std::int64_t>(values.size());
  const auto n = static_cast<double>(values.size());
  for (const double value : values) out.mean += value / n;
  if (values.size() < 2) {
    out.half = std::numeric_limits<double>::quiet_NaN();
    return out;
  }
  double squares = 0;
  for (const double value : values) squares += (value - out.mean) * (value - out.mean);
  out.half = student(values.size() - 1) * std::sqrt(squares / (n - 1) / n);
  return out;
}

Json to_json(const Interval& interval) {
  return {{"runs", interval.count},
          {"mean", number_or_null(interval.mean)},
          {"half_width_95", number_or_null(interval.half)}};
}

Json sweep_table(const SweepPlan& plan, const std::vector<Json>& runs) {
  Json table = Json::object();
  table["title"] = plan.title;
  table["question"] = plan.question;
  table["grid"] = plan.grid_fields;
  table["runs"] = runs;
  table["arms"] = Json::array();
  for (const std::string& arm : plan.arms) {
    Json row = Json::object();
    row["arm"] = arm;
    std::vector<std::string> names;
    for (const Json& run : runs) {
      if (run.at("arm") != arm) continue;
      for (const auto& [name, value] : run.at("fields").items()) row[name] = value;
      add_columns(names, run.at("numbers"));
    }
    row["numbers"] = Json::object();
    for (const std::string& name : names) {
      std::vector<double> values;
      for (const Json& run : runs) {
        const Json& numbers = run.at("numbers");
        if (run.at("arm") == arm && numbers.contains(name) && numbers.at(name).is_number()) {
          values.push_back(numbers.at(name).get<double>());
        }
      }
      row["numbers"][name] = to_json(interval(values));
    }
    table["arms"].push_back(std::move(row));
  }
  return table;
}

void write_sweep(const std::filesystem::path& folder, const Json& table) {
  std::vector<Json> runs, arms;
  std::vector<std::string> run_columns = {"arm"}, arm_columns = {"arm"};
  for (const Json& run : table.at("runs")) {
    Json row = {{"arm", run.at("arm")}, {"seed", run.at("seed")}};
    row.update(run.at("fields"));
    row.update(run.at("numbers"));
    add_columns(run_columns, row);
    runs.push_back(std::move(row));
  }
  for (const Json& arm : table.at("arms")) {
    Json row = Json::object();
    for (const auto& [name, value] : arm.items()) {
      if (name != "numbers") row[name] = value;
    }
    for (const auto& [name, value] : arm.at("numbers").items()) {
      row["runs"] = value.at("runs");
      row[name] = value.at("mean");
      row[name + "_half_width_95"] = value.at("half_width_95");
    }
    add_columns(arm_columns, row);
    arms.push_back(std::move(row));
  }
  write_file_atomically(folder / "sweep.json", table.dump(1) + "\n");
  write_file_atomically(folder / "runs.csv", csv(run_columns, runs));
  write_file_atomically(folder / "table.csv", csv(arm_columns, arms));
}

}  // namespace subspace::train
