#include "nn/config.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "attention/rope.h"
#include "base/error.h"
#include "nn/config_fields.h"

namespace subspace::nn {
namespace {

/// Reads one configuration; each architecture is the list of what it has.
class Reader {
 public:
  Reader(const Json& json, const std::string& where) : in_(json, where) {
    // What transformers writes into every configuration and a model's arithmetic does not depend
    // on.
    in_.known({"model_type",
               "architectures",
               "transformers_version",
               "torch_dtype",
               "dtype",
               "auto_map",
               "_name_or_path",
               "use_cache",
               "bos_token_id",
               "eos_token_id",
               "pad_token_id",
               "cls_token_id",
               "sep_token_id",
               "mask_token_id",
               "unk_token_id",
               "decoder_start_token_id",
               "id2label",
               "label2id",
               "num_labels",
               "problem_type",
               "pretraining_tp",
               "output_attentions",
               "output_hidden_states",
               "return_dict",
               "is_encoder_decoder",
               "tokenizer_class",
               "chunk_size_feed_forward",
               "classifier_dropout",
               "gradient_checkpointing",
               "attn_implementation",
               "_attn_implementation",
               "num_nextn_predict_layers",
               "num_mtp_layers",
               "ep_size",
               "initializer_range"});
    out_.json = json;
    out_.model_type = in_.fields().string("model_type");
  }

  ModelConfig bert() {
    text(encoder_task());
    encoder_of_transformers();
    out_.token_types = in_.positive_or("type_vocab_size", 2);
    out_.post_norm = true;
    out_.attention.bias = true;
    in_.must_be("is_decoder", false, "model_type 'bert' is an encoder here");
    in_.must_be("add_cross_attention", false, "there is no decoder to attend to");
    in_.must_be("position_embedding_type", "absolute", "BERT learns its positions");
    in_.must_be("tie_word_embeddings", true, "BERT's head is its embedding");
    out_.tied = true;
    in_.known({"classifier_dropout"});
    return finish();
  }

  ModelConfig vit() {
    common(Task::image_classification);
    image();
    encoder_of_transformers();
    out_.attention.bias = in_.boolean_or("qkv_bias", true);
    in_.known({"encoder_stride", "pooler_act", "pooler_output_size"});
    return finish();
  }

  ModelConfig llama() {
    text(Task::causal_lm);
    out_.tied = in_.boolean_or("tie_word_embeddings", false);
    rms();
    plain_heads(in_.positive_or("num_key_value_heads", out_.attention.heads));
    out_.attention.bias = out_.attention.output_bias = in_.boolean_or("attention_bias", false);
    out_.attention.rope = out_.attention.value;
    rotary(Rotary::Layout::half);
    in_.choice_or("hidden_act", "silu", {"silu"});
    gated(in_.boolean_or("mlp_bias", false));
    return finish();
  }

  ModelConfig deepseek() {
    text(Task::causal_lm);
    out_.tied = in_.boolean_or("tie_word_embeddings", false);
    rms();
    latent_heads();
    out_.attention.latent_eps = 1e-6;  // transformers builds these norms with their class's default
    in_.must_be("head_dim", out_.attention.rope, "it repeats qk_rope_head_dim");
    in_.must_be("qk_head_dim", out_.attention.query(), "qk_nope_head_dim + qk_rope_head_dim");
    in_.must_be("scoring_func", "sigmoid",
                "transformers' DeepseekV3 has no other; model_type 'subspace_decoder' takes both");
    in_.must_be("topk_method", "noaux_tc", "transformers' DeepseekV3 has no other");
    in_.must_be("moe_layer_freq", 1, "every layer from first_k_dense_replace on has experts");
    in_.choice_or("hidden_act", "silu", {"silu"});
    gated(false);
    experts({.experts = 256,
             .active = 8,
             .shared = 1,
             .width = 2048,
             .groups = 8,
             .active_groups = 4,
             .first_layer = 3,
             .scaling = 2.5});
    return finish();
  }

  /// Pre-norm blocks with RMSNorm and any attention, output and feed-forward.
  ModelConfig ours(Task task) {
    if (task == Task::image_classification) {
      common(task);
      image();
    } else {
      text(task == Task::masked_lm ? encoder_task() : task);
      out_.tied = in_.boolean_or("tie_word_embeddings", true);
    }
    rms();
    any_attention();
    output();
    feed_forward();
    return finish();
  }

 private:
  void common(Task task) {
    out_.task = task;
    out_.width = in_.positive("hidden_size");
    out_.layers = in_.positive("num_hidden_layers");
    out_.attention.heads = in_.positive("num_attention_heads");
    out_.attention.causal = task == Task::causal_lm;
    out_.initializer_range = in_.not_negative_or("initializer_range", 0.02);
    for (const char* name :
         {"attention_dropout", "attention_probs_dropout_prob", "hidden_dropout_prob"}) {
      out_.dropout = std::max(out_.dropout, in_.not_negative_or(name, 0));
    }
  }

  /// transformers tells by the class's name alone what the head of an encoder is.
  Task encoder_task() const {
    const Json& json = in_.fields().json();
    if (!json.contains("architectures") || !json.at("architectures").is_array()) {
      return Task::masked_lm;
    }
    for (const Json& name : json.at("architectures")) {
      if (name.is_string() && name.get<std::string>().ends_with("ForSequenceClassification")) {
        return Task::sequence_classification;
      }
    }
    return Task::masked_lm;
  }

  /// num_labels, or as many as id2label names; 2 without either, as transformers has it.
  std::int64_t labels() {
    const auto names = in_.fields().object_if("id2label");
    return in_.positive_or("num_labels",
                           names ? static_cast<std::int64_t>(names->json().size()) : 2);
  }

  void text(Task task) {
    common(task);
    if (task == Task::sequence_classification) {
      out_.labels = labels();
      in_.must_be("problem_type", "single_label_classification", "a text is of one class here");
    }
    out_.vocab = in_.positive("vocab_size");
    out_.positions = in_.positive("max_position_embeddings");
  }

  void image() {
    ImageConfig image;
    image.size = in_.positive("image_size");
    image.patch = in_.positive("patch_size");
    image.channels = in_.positive_or("num_channels", 3);
    if (image.size % image.patch != 0) {
      in_.contradiction("image_size", fmt::format("patch_size {} does not divide it", image.patch));
    }
    image.labels = labels();
    out_.image = image;
  }

  /// What BERT and ViT have in common.
  void encoder_of_transformers() {
    out_.layer_norm = out_.learned_positions = true;
    out_.decoder_names = false;
    out_.norm_eps = in_.not_negative_or("layer_norm_eps", 1e-12);
    plain_heads(out_.attention.heads);
    out_.attention.nope = out_.attention.value;
    out_.attention.output_bias = true;
    in_.choice_or("hidden_act", "gelu", {"gelu"});
    plain(true);
  }

  void rms() { out_.norm_eps = in_.not_negative_or("rms_norm_eps", 1e-6); }

  /// Heads of one width for queries, keys and values.
  void plain_heads(std::int64_t kv_heads) {
    AttentionConfig& a = out_.attention;
    a.kv_heads = kv_heads;
    if (a.heads % a.kv_heads != 0) {
      in_.contradiction("num_key_value_heads",
                        fmt::format("num_attention_heads {} is not a multiple of it", a.heads));
    }
    if (in_.has("head_dim")) {
      a.value = in_.positive("head_dim");
    } else if (out_.width % a.heads != 0) {
      in_.contradiction(
          "hidden_size",
          fmt::format("num_attention_heads {} does not divide it: give head_dim", a.heads));
    } else {
      a.value = out_.width / a.heads;
    }
    a.scale = 1 / std::sqrt(static_cast<double>(a.value));
  }

  void latent_heads() {
    AttentionConfig& a = out_.attention;
    a.kv_heads = a.heads;
    in_.must_be("num_key_value_heads", a.heads, "every head of MLA has its own keys");
    a.kv_rank = in_.positive("kv_lora_rank");
    a.q_rank = in_.count_or("q_lora_rank", 0);
    a.nope = in_.count_or("qk_nope_head_dim", 0);
    a.rope = in_.count_or("qk_rope_head_dim", 0);
    a.value = in_.positive("v_head_dim");
    a.own_rotary_keys =
        out_.model_type != "deepseek_v3" &&
        in_.choice_or("qk_rope_keys", "shared", {"per_head", "shared"}) == "per_head";
    if (a.query() == 0) in_.contradiction("qk_nope_head_dim", "a query must have dimensions");
    a.bias = a.output_bias = in_.boolean_or("attention_bias", false);
    a.latent_eps = out_.norm_eps;
    a.scale =
        yarn_softmax_factor(read_rope(in_.fields())) / std::sqrt(static_cast<double>(a.query()));
    rotary(in_.boolean_or("rope_interleave", true) ? Rotary::Layout::interleaved
                                                   : Rotary::Layout::half);
  }

  void rotary(Rotary::Layout layout) {
    in_.known({"rope_theta", "rope_parameters", "rope_scaling"});
    if (out_.learned_positions) {
      if (out_.attention.rope > 0) {
        in_.contradiction("qk_rope_head_dim",
                          "position_embedding_type 'absolute' rotates nothing: expected 0");
      }
      return;
    }
    if (out_.attention.rope % 2 != 0) {
      in_.contradiction("qk_rope_head_dim", "expected an even number of rotated dimensions");
    }
    if (out_.attention.rope == 0) return;
    out_.attention.rotary =
        make_rotary(in_.fields(), read_rope(in_.fields()), out_.attention.rope, layout);
    // The one rotary key of DeepSeek is rotated by itself, a head's own where it stands in the
    // head.
    if (out_.attention.own_rotary_keys) out_.attention.rotary.begin = out_.attention.nope;
  }

  void any_attention() {
    AttentionConfig& a = out_.attention;
    const bool image = out_.image.has_value();
    out_.learned_positions = in_.choice_or("position_embedding_type", image ? "absolute" : "rope",
                                           {"absolute", "rope"}) == "absolute";
    const bool latent = in_.has("kv_lora_rank");
    const std::int64_t groups = in_.positive_or("num_key_value_heads", a.heads);
    const std::string implied = latent              ? "mla"
                                : groups == a.heads ? "mha"
                                : groups == 1       ? "mqa"
                                                    : "gqa";
    const std::string named = in_.choice_or("attention", implied, {"gqa", "mha", "mla", "mqa"});
    if (named != implied) {
      in_.contradiction("attention",
                        fmt::format("kv_lora_rank and num_key_value_heads {} of {} heads say '{}'",
                                    groups, a.heads, implied));
    }
    if (latent) {
      latent_heads();
      return;
    }
    plain_heads(groups);
    a.rope = out_.learned_positions ? 0 : in_.count_or("qk_rope_head_dim", a.value);
    if (a.rope > a.value) {
      in_.contradiction("qk_rope_head_dim", fmt::format("a head has {} dimensions", a.value));
    }
    a.nope = a.value - a.rope;
    in_.must_be("qk_nope_head_dim", a.nope, "the head's dimensions that are not rotated");
    a.bias = a.output_bias = in_.boolean_or("attention_bias", false);
    rotary(in_.boolean_or("rope_interleave", false) ? Rotary::Layout::interleaved
                                                    : Rotary::Layout::half);
  }

  void output() {
    AttentionConfig& a = out_.attention;
    const bool shared = in_.has("o_lora_rank");
    const std::string named =
        in_.choice_or("attention_output", shared ? "shared" : "dense", {"dense", "shared"});
    if (named == "shared" && !shared) {
      in_.contradiction("attention_output", "it needs o_lora_rank, the width of the latent");
    }
    if (named == "dense") {
      for (const char* name : {"o_lora_rank", "o_groups", "o_latent_norm"}) {
        if (in_.has(name)) {
          in_.contradiction(name,
                            "a dense output has no latent: remove it, or give o_lora_rank "
                            "and no attention_output 'dense'");
        }
      }
      return;
    }
    a.o_rank = in_.positive("o_lora_rank");
    a.o_groups = in_.positive_or("o_groups", 1);
    if (a.heads % a.o_groups != 0) {
      in_.contradiction("o_groups", fmt::format("it does not divide the {} heads", a.heads));
    }
    const std::string norm =
        in_.choice_or("o_latent_norm", "none", {"none", "rms", "rms_per_head"});
    a.o_norm = norm == "none"  ? LatentNorm::none
               : norm == "rms" ? LatentNorm::rms
                               : LatentNorm::rms_per_head;
    a.latent_eps = out_.norm_eps;
  }

  /// Any of them: `feed_forward` names the kind, the fields that are there imply dense or moe.
  void feed_forward() {
    const bool routed = in_.has("n_routed_experts");
    const std::string kind = in_.choice_or("feed_forward", routed ? "moe" : "dense", kFeedForwards);
    if (routed != (kind == "moe")) {
      in_.contradiction("feed_forward", routed ? "n_routed_experts says 'moe'"
                                               : "it needs n_routed_experts and what goes with it");
    }
    const std::string act =
        in_.choice_or("hidden_act", "swiglu", {"gelu", "none", "silu", "swiglu"});
    const bool bias = in_.boolean_or("mlp_bias", false);
    if (kind != "dense" && act == "none") {
      in_.contradiction("hidden_act",
                        fmt::format("feed_forward '{}' is more than attention alone", kind));
    }
    if (kind == "moe" && act == "gelu") {
      in_.contradiction("hidden_act", "experts are gated: expected swiglu");
    }
    if (kind != "dense" && kind != "moe") {
      out_.neuron_experts = read_neuron_experts(in_, kind, out_.width, out_.layers);
    }
    const bool no_dense = out_.neuron_experts && out_.neuron_experts->first_layer == 0;
    if (act == "none") {
      in_.must_be("intermediate_size", 0, "hidden_act 'none' is a model of attention alone");
    } else if (!no_dense || in_.has("intermediate_size")) {
      act == "gelu" ? plain(bias) : gated(bias);
    }
    if (kind == "moe") {
      in_.must_be("moe_layer_freq", 1, "every layer from first_k_dense_replace on has experts");
      experts({.experts = 0, .active = 0, .shared = 0});
    }
  }

  void plain(bool bias) { out_.feed_forward = {in_.positive("intermediate_size"), false, bias}; }
  void gated(bool bias) { out_.feed_forward = {in_.positive("intermediate_size"), true, bias}; }

  /// `absent`: values of absent fields; zero where the field must be there.
  void experts(const MoeConfig& absent) {
    auto needed = [&](const char* name, std::int64_t value) {
      return value > 0 ? in_.positive_or(name, value) : in_.positive(name);
    };
    MoeConfig moe;
    moe.experts = needed("n_routed_experts", absent.experts);
    moe.active = needed("num_experts_per_tok", absent.active);
    moe.width = needed("moe_intermediate_size", absent.width);
    moe.shared = in_.count_or("n_shared_experts", absent.shared);
    moe.groups = in_.positive_or("n_group", absent.groups);
    moe.active_groups = in_.positive_or("topk_group", absent.active_groups);
    moe.first_layer = in_.count_or("first_k_dense_replace", absent.first_layer);
    moe.softmax = in_.choice_or("scoring_func", "sigmoid", {"sigmoid", "softmax"}) == "softmax";
    moe.normalize = in_.boolean_or("norm_topk_prob", true);
    moe.scaling = in_.not_negative_or("routed_scaling_factor", absent.scaling);
    moe.bias_speed = in_.not_negative_or("router_bias_update_speed", 0.001);
    moe.auxiliary = in_.not_negative_or("router_aux_loss_coef", 0);
    if (moe.first_layer >= out_.layers) return;  // no layer has experts
    check_experts(moe);
    out_.moe = moe;
  }

  void check_experts(const MoeConfig& moe) {
    const std::int64_t per = moe.experts / moe.groups;
    if (moe.experts % moe.groups != 0 || (moe.groups > 1 && per < 2)) {
      in_.contradiction("n_group", fmt::format("n_routed_experts {} must be a multiple, with two "
                                               "experts or more in each group",
                                               moe.experts));
    }
    if (moe.active_groups > moe.groups) {
      in_.contradiction("topk_group", fmt::format("there are {} groups", moe.groups));
    }
    if (moe.active > per * moe.active_groups) {
      in_.contradiction("num_experts_per_tok",
                        fmt::format("only {} experts can be chosen from", per * moe.active_groups));
    }
  }

  ModelConfig finish() {
    in_.finish(out_.model_type);
    return out_;
  }

  ConfigFields in_;
  ModelConfig out_;
};

}  // namespace

ModelConfig read_model_config(const Json& json, const std::string& where) {
  const std::string type = Fields(json, where).string("model_type");
  Reader reader(json, where);
  if (type == "bert") return reader.bert();
  if (type == "vit") return reader.vit();
  if (type == "llama") return reader.llama();
  if (type == "deepseek_v3") return reader.deepseek();
  if (type == "subspace_encoder") return reader.ours(Task::masked_lm);
  if (type == "subspace_decoder") return reader.ours(Task::causal_lm);
  if (type == "subspace_vit") return reader.ours(Task::image_classification);
  fail(ErrorCode::Unsupported,
       "{}: model_type '{}' cannot be run here; those that can are bert, deepseek_v3, llama, "
       "subspace_decoder, subspace_encoder, subspace_vit and vit",
       where, type);
}

}  // namespace subspace::nn
