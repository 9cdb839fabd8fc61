#include "experts/inspect_tables.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace subspace::experts {
namespace {

/// A table under way: a heading, then rows of JSON values.
class TableText {
 public:
  explicit TableText(const std::string& heading) : text_(heading + "\n") {}
  void row(const std::vector<Json>& values) {
    std::vector<std::string> cells;
    for (const Json& value : values) cells.push_back(cell(value));
    text_ += fmt::format("{}\n", fmt::join(cells, ","));
    any_ = true;
  }
  bool any() const { return any_; }
  const std::string& text() const { return text_; }

 private:
  static std::string cell(const Json& value) {
    if (value.is_null()) return "";
    if (!value.is_string()) return value.dump();
    std::string quoted = "\"";
    for (const char c : value.get<std::string>()) quoted += c == '"' ? "\"\"" : std::string(1, c);
    return quoted + "\"";
  }
  std::string text_;
  bool any_ = false;
};

/// Calls work(layer number, part) for the layers that have it.
template <typename Work>
void of_layers(const Json& result, const char* part, Work work) {
  for (const Json& layer : result.at("layers")) {
    if (layer.contains(part)) work(layer.at("layer"), layer.at(part));
  }
}

/// Calls work(head or "all", use).
template <typename Work>
void of_heads(const Json& usage, Work work) {
  work(Json("all"), usage.at("all"));
  if (!usage.contains("heads")) return;
  for (std::size_t head = 0; head < usage.at("heads").size(); ++head) {
    work(Json(head), usage.at("heads")[head]);
  }
}

Json value_or_null(const Json& object, const char* name) {
  return object.contains(name) ? object.at(name) : Json();
}

TableText usage_table(const Json& result) {
  TableText table(
      "layer,head,choices,used,entropy,kl_uniform,top_percent,largest,chance_used,"
      "chance_entropy,chance_kl_uniform");
  of_layers(result, "usage", [&](const Json& layer, const Json& usage) {
    of_heads(usage, [&](const Json& head, const Json& use) {
      const Json& chance = use.at("chance");
      table.row({layer, head, use.at("choices"), use.at("used"), use.at("entropy"),
                 use.at("kl_uniform"), use.at("top_percent"), use.at("largest"), chance.at("used"),
                 chance.at("entropy"), chance.at("kl_uniform")});
    });
  });
  return table;
}

TableText histogram_table(const Json& result) {
  TableText table("layer,head,from,to,experts,chance");
  of_layers(result, "usage", [&](const Json& layer, const Json& usage) {
    of_heads(usage, [&](const Json& head, const Json& use) {
      const Json& bins = use.at("histogram");
      for (std::size_t i = 0; i < bins.at("from").size(); ++i) {
        table.row({layer, head, bins.at("from")[i], bins.at("to")[i], bins.at("experts")[i],
                   bins.at("chance")[i]});
      }
    });
  });
  return table;
}

TableText tokens_table(const Json& result) {
  TableText table("layer,expert,why,choices,particular,id,token,count,share,lift");
  of_layers(result, "tokens", [&](const Json& layer, const Json& tokens) {
    for (const Json& expert : tokens.at("experts")) {
      for (const Json& token : expert.at("tokens")) {
        table.row({layer, expert.at("expert"), expert.at("why"), expert.at("choices"),
                   expert.at("particular"), token.at("id"), token.at("token"), token.at("count"),
                   token.at("share"), token.at("lift")});
      }
    }
  });
  return table;
}

TableText clusters_table(const Json& result) {
  TableText table("layer,clusters,explained,chance");
  of_layers(result, "clusters", [&](const Json& layer, const Json& found) {
    for (std::size_t i = 0; i < found.at("clusters").size(); ++i) {
      table.row({layer, found.at("clusters")[i], found.at("explained")[i], found.at("chance")[i]});
    }
  });
  return table;
}

TableText neighbours_table(const Json& result) {
  TableText table("layer,expert,choices,nearest,cosine,nearest_choices");
  of_layers(result, "neighbours", [&](const Json& layer, const Json& found) {
    for (const Json& one : found.at("examples")) {
      for (const Json& other : one.at("nearest")) {
        table.row({layer, one.at("expert"), value_or_null(one, "choices"), other.at("expert"),
                   other.at("cosine"), value_or_null(other, "choices")});
      }
    }
  });
  return table;
}

TableText interpolation_table(const Json& result) {
  TableText table("layer,kind,a,b,cosine,t,to_a,to_b,length,departure,response");
  of_layers(result, "interpolation", [&](const Json& layer, const Json& found) {
    for (const Json& pair : found.at("pairs")) {
      for (std::size_t i = 0; i < found.at("t").size(); ++i) {
        table.row({layer, pair.at("kind"), pair.at("a"), pair.at("b"), pair.at("cosine"),
                   found.at("t")[i], pair.at("to_a")[i], pair.at("to_b")[i], pair.at("length")[i],
                   pair.at("departure")[i],
                   pair.contains("response") ? pair.at("response")[i] : Json()});
      }
    }
  });
  return table;
}

}  // namespace

std::vector<std::pair<std::string, std::string>> inspect_tables(const Json& result) {
  std::vector<std::pair<std::string, std::string>> out;
  auto add = [&](const char* name, const TableText& table) {
    if (table.any()) out.emplace_back(name, table.text());
  };
  add("usage.csv", usage_table(result));
  add("histogram.csv", histogram_table(result));
  add("tokens.csv", tokens_table(result));
  add("clusters.csv", clusters_table(result));
  add("neighbours.csv", neighbours_table(result));
  add("interpolation.csv", interpolation_table(result));
  return out;
}

}  // namespace subspace::experts
