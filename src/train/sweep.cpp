#include "train/sweep.h"

#include <fstream>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/interrupt.h"
#include "base/progress.h"
#include "train/alignment.h"
#include "train/device_info.h"
#include "train/layer_time.h"
#include "train/provenance.h"
#include "train/sweep_table.h"

namespace subspace::train {
namespace fs = std::filesystem;
namespace {

/// The last evaluation and the last logged step of a run.
Json last_numbers(const fs::path& run) {
  Json numbers = Json::object(), logged;
  double seconds = 0;
  std::ifstream lines(run / "metrics.jsonl");
  for (std::string line; std::getline(lines, line);) {
    const Json json = parse_json(line, (run / "metrics.jsonl").string());
    if (json.contains("eval")) {
      for (const auto& [name, value] : json.at("eval").items()) {
        if (value.is_number()) numbers["held_out_" + name] = value;
      }
    } else {
      logged = json;
      seconds = json.at("seconds").get<double>();
    }
  }
  if (!logged.is_null()) {
    numbers["training_loss"] = logged.at("loss");
    numbers["training_tokens"] = logged.at("tokens");
    numbers["seconds"] = seconds;
    if (seconds > 0) {
      numbers["tokens_per_second"] = logged.at("tokens").get<double>() / seconds;
    }
  }
  return numbers;
}

class Sweep {
 public:
  Sweep(const SweepPlan& plan, const SweepOptions& options)
      : plan_(plan), options_(options), lock_(folder(options.out)) {}

  Json go() {
    const bool goes_on = !fs::is_empty(options_.out / "runs");
    if (goes_on && options_.data) options_.data->verify();  // what finished runs were made from
    std::vector<Json> done;
    Progress progress("run", static_cast<std::int64_t>(plan_.runs.size()));
    for (const SweepRun& run : plan_.runs) {
      done.push_back({{"arm", run.arm},
                      {"seed", run.seed},
                      {"fields", run.fields},
                      {"numbers", numbers_of(run)}});
      write_sweep(options_.out, sweep_table(plan_, done));
      progress.step(run.arm + fmt::format(", seed {}", run.seed));
      check_interrupted("finished runs are kept; the same command goes on");
    }
    return sweep_table(plan_, done);
  }

 private:
  static const fs::path& folder(const fs::path& out) {
    create_folder(out / "runs");
    return out;
  }

  /// All that a run's numbers depend on.
  Json asked_for(const SweepRun& run) const {
    const Settings settings = read_settings(run.experiment);
    Json json = {{"model", run.experiment.model}, {"train", run.experiment.train}};
    json["dtype"] = dtype_name(chosen_dtype(settings, options_.device));
    if (plan_.measure == SweepPlan::Measure::training) {
      json["data"] = options_.data->meta().id;
      json["alignment"] = plan_.alignment;
    } else {
      json["device"] = device_name(options_.device);
    }
    return json;
  }

  Json numbers_of(const SweepRun& run) const {
    const fs::path folder = options_.out / "runs" / run.name;
    const fs::path result = folder / "result.json";
    if (fs::exists(result)) {
      const Json before = read_json_file(result);
      require_same_request(folder, before, asked_for(run));
      return before.at("numbers");
    }
    create_folder(folder);
    const Json numbers = plan_.measure == SweepPlan::Measure::training
                             ? trained(run, folder)
                             : layer_time(run.experiment, options_.device);
    const Json json = {{"asked_for", asked_for(run)}, {"numbers", numbers}};
    write_file_atomically(result, json.dump(1) + "\n");
    return numbers;
  }

  Json trained(const SweepRun& run, const fs::path& folder) const {
    RunOptions options;
    options.out = folder;
    options.device = options_.device;
    options.threads = options_.threads;
    options.deterministic = options_.deterministic;
    options.resume = true;
    train(run.experiment, options_.data, options);
    Json numbers = last_numbers(folder);
    if (plan_.alignment) numbers.update(output_alignment(folder, options_.threads));
    return numbers;
  }

  const SweepPlan& plan_;
  const SweepOptions& options_;
  FolderLock lock_;
};

}  // namespace

Json run_sweep(const SweepPlan& plan, const SweepOptions& options) {
  if (plan.measure == SweepPlan::Measure::training && options.data == nullptr) {
    fail(ErrorCode::Usage, "{}: trains models, which needs --data", plan.title);
  }
  return Sweep(plan, options).go();
}

}  // namespace subspace::train
