#include <ATen/ATen.h>

#include <cstdio>

#include "attention/family.h"
#include "attention/fused.h"
#include "base/error.h"
#include "cli/commands.h"
#include "lora/adapted_model.h"

namespace subspace {
namespace {

struct ExportArguments {
  std::string model, out, adapter;
  AdapterOptions adapter_options;
  std::int64_t layer = 0, offset = 0;
  bool fold_norms = false;
};

class Views {
 public:
  void add(const std::string& name, const at::Tensor& tensor) {
    if (tensor.defined()) tensors_.emplace_back(name, tensor.contiguous());
  }
  void add(const std::string& name, const Norm& norm) {
    if (norm.kind == Norm::Kind::none) return;
    add(name + ".weight", norm.weight);
    add(name + ".bias", norm.bias);
    say(name + ".kind", norm.kind == Norm::Kind::rms ? "rms" : "layer");
    say(name + ".eps", norm.eps);
  }
  void add(const std::string& name, const Factored& f) {
    add(name + ".left", f.left);
    add(name + ".right", f.right);
  }
  void say(const std::string& name, double value) {
    metadata_[name] = fmt::format("{:.17g}", value);
  }
  void say(const std::string& name, const std::string& value) { metadata_[name] = value; }

  void write(const std::string& path) const {
    std::vector<SafetensorsWriter::Entry> entries;
    for (const auto& [name, tensor] : tensors_) {
      entries.push_back({name, DType::F64, tensor.sizes().vec()});
    }
    SafetensorsWriter writer(path, entries, metadata_);
    for (const auto& [name, tensor] : tensors_) {
      writer.append(name, tensor.data_ptr<double>(),
                    static_cast<std::size_t>(tensor.numel()) * sizeof(double));
    }
    writer.finish();
  }

 private:
  std::vector<std::pair<std::string, at::Tensor>> tensors_;
  std::map<std::string, std::string> metadata_;
};

void export_layer(const ExportArguments& arguments, const GlobalOptions& globals) {
  const Checkpoint checkpoint(resolve_model(arguments.model));
  const auto family = open_family(checkpoint);
  AttentionLayer layer = family->load(arguments.layer, chosen_threads(globals));
  if (!arguments.adapter.empty()) {
    const AdaptedModel model(checkpoint.folder(), Adapter(resolve_adapter(arguments.adapter),
                                                          arguments.adapter_options));
    layer = merged(layer, model.change(arguments.layer, chosen_threads(globals)));
  }
  if (arguments.fold_norms) layer = fold_norms(layer);

  Views views;
  views.add("q", layer.q);
  views.add("q_rope", layer.q_rope);
  views.add("k", layer.k);
  views.add("v", layer.v);
  views.add("o", layer.o);
  views.add("qa", layer.qa);
  views.add("kva", layer.kva);
  views.add("kpe", layer.kpe);
  views.add("ob", layer.ob);
  views.add("q_bias", layer.q_bias);
  views.add("k_bias", layer.k_bias);
  views.add("v_bias", layer.v_bias);
  views.add("o_bias", layer.o_bias);
  views.add("qa_bias", layer.qa_bias);
  views.add("kva_bias", layer.kva_bias);
  views.add("kpe_bias", layer.kpe_bias);
  views.add("sinks", layer.sinks);
  views.add("input", layer.input);
  views.add("q_latent", layer.q_latent);
  views.add("kv_latent", layer.kv_latent);
  views.add("q_head", layer.q_head);
  views.add("k_head", layer.k_head);
  views.add("vo", vo(layer));
  views.add("qk", qk(layer));
  const Rotary& rotary = layer.rotary;
  if (rotary.layout != Rotary::Layout::none) {
    views.add("qk_at", qk_at(layer, arguments.offset));
    views.add("rotary.frequencies", at::tensor(rotary.frequencies, at::kDouble));
    views.say("rotary.layout", rotary.layout == Rotary::Layout::half ? "half" : "interleaved");
    views.say("rotary.dims", static_cast<double>(rotary.dims));
    views.say("rotary.begin", static_cast<double>(rotary.begin));
    views.say("rotary.scale", rotary.scale);
    views.say("qk_at.offset", static_cast<double>(arguments.offset));
  }
  views.say("family", family->shape().family);
  views.say("softmax_scale", layer.softmax_scale);
  views.say("logit_softcap", layer.logit_softcap);
  views.say("window", static_cast<double>(layer.window));
  views.say("causal", layer.causal ? 1.0 : 0.0);
  views.say("values_share_key", layer.values_share_key ? 1.0 : 0.0);
  views.say("q_latent_scale", layer.q_latent_scale);
  views.say("kv_latent_scale", layer.kv_latent_scale);
  views.write(arguments.out);
  std::printf("%s\n", globals.json ? Json({{"views", arguments.out}}).dump().c_str()
                                   : arguments.out.c_str());
}

}  // namespace

void add_export(CLI::App& app, const GlobalOptions& globals) {
  auto arguments = std::make_shared<ExportArguments>();
  CLI::App* command = app.add_subcommand(
      "export",
      "One layer's heads, latents, fused maps (as factors), norms and rotary frequencies in one\n"
      "orientation (row vectors, float64) whatever the family, for use in other programs.\n\n"
      "  subspace export ./gpt2 --layer 3 --out views.safetensors\n"
      "  subspace export ./gpt2 --layer 3 --adapter ./lora --out views.safetensors   (merged)\n\n"
      "Names, shapes and equations are those of docs/conventions.md; scalars are in the file's\n"
      "metadata. Printed: the path of the file.");
  command->add_option("model", arguments->model, "MODEL (see subspace --help)")->required();
  command->add_option("--layer", arguments->layer, "which layer")->check(CLI::NonNegativeNumber);
  command->add_option("--offset", arguments->offset, "offset of the rotary map qk_at")
      ->check(CLI::NonNegativeNumber);
  command->add_flag("--fold-norms", arguments->fold_norms, "norms folded into what reads them");
  command->add_option("--adapter", arguments->adapter, "a LoRA adapter to merge into the layer");
  command->add_flag("--base-is-residual", arguments->adapter_options.base_is_residual,
                    "as `subspace lora` has it");
  command->add_option("--out", arguments->out, "the safetensors file to write")->required();
  command->callback([arguments, &globals] { export_layer(*arguments, globals); });
}

}  // namespace subspace
