#include "nn/fused_attention.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <atomic>

#include "nn/fused.h"
#include "nn/fused_norm.h"
#include "nn/gradient_sum.h"
#include "nn/on_device.h"

namespace subspace::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

std::atomic<AttentionKernel> attention_kernel = AttentionKernel::fastest;

/// What the functions need of the configuration, as autograd keeps it.
struct Shape {
  std::int64_t heads, width, own_keys, value, begin, dims, interleaved, causal, q_rank, kv_rank;
  double scale, eps;

  Shape(const AttentionConfig& c, const RotaryTable& rotary)
      : heads(c.heads),
        width(c.query()),
        own_keys(c.is_mla() ? c.latent_key() : c.query()),
        value(c.value),
        begin(c.is_mla() && !c.own_rotary_keys ? c.nope : rotary.begin()),
        dims(rotary.dims()),
        interleaved(rotary.layout() == Rotary::Layout::interleaved),
        causal(c.causal),
        q_rank(c.q_rank),
        kv_rank(c.kv_rank),
        scale(c.scale),
        eps(c.latent_eps) {}

  explicit Shape(AutogradContext* context) {
    each([context](const char* name, auto& value) {
      value = context->saved_data.at(name).to<std::decay_t<decltype(value)>>();
    });
  }
  void keep(AutogradContext* context) {
    each([context](const char* name, auto& value) { context->saved_data[name] = value; });
  }
  template <typename Visit>
  void each(const Visit& visit) {
    visit("heads", heads);
    visit("width", width);
    visit("own_keys", own_keys);
    visit("value", value);
    visit("begin", begin);
    visit("dims", dims);
    visit("interleaved", interleaved);
    visit("causal", causal);
    visit("q_rank", q_rank);
    visit("kv_rank", kv_rank);
    visit("scale", scale);
    visit("eps", eps);
  }
  bool shares_key() const { return own_keys < width; }
  std::int64_t key_value() const { return own_keys + value; }
};

/// Which kernel attends: the one asked for, or the fastest.
AttentionKernel kernel_for(const Shape& n, const at::Tensor& x) {
  const AttentionKernel kernel = attention_kernel;
  if (kernel != AttentionKernel::fastest) return kernel;
  const bool brief = x.size(1) <= kernels::kShortLength && x.size(1) % 32 == 0;
  if (x.is_cuda() && x.scalar_type() == at::kBFloat16 && brief && n.width == kernels::kShortHead &&
      n.value == kernels::kShortHead) {
    return AttentionKernel::brief;
  }
  return at::globalContext().deterministicAlgorithms() ? AttentionKernel::flash
                                                       : AttentionKernel::cudnn;
}

/// Heads in the columns of x [B, T, ..] from `column` on, `apart` columns from one to the next.
kernels::HeadRows heads_at(const at::Tensor& x, std::int64_t column, std::int64_t apart) {
  const auto* data = static_cast<const char*>(x.const_data_ptr());
  return {data + column * x.element_size(), x.stride(-2), apart};
}

kernels::RotaryHeads rotation(const Shape& n, const at::Tensor& x, const at::Tensor& cos,
                              const at::Tensor& sin) {
  kernels::RotaryHeads p;
  p.cos = cos.const_data_ptr<float>();
  p.sin = sin.const_data_ptr<float>();
  p.tokens = x.size(0) * x.size(1);
  p.heads = p.kv_heads = n.heads;
  p.width = n.width;
  p.own_keys = n.own_keys;
  p.begin = n.begin;
  p.dims = n.dims;
  p.length = x.size(1);
  p.interleaved = n.interleaved != 0;
  p.element = element_of(x);
  return p;
}

/// Where heads lie: side by side in one tensor, or queries, keys with values, and the shared key in
/// the last columns of the latents.
void place_heads(kernels::RotaryHeads& p, const Shape& n, const at::Tensor& q, const at::Tensor& kv,
                 const at::Tensor& down) {
  if (!kv.defined()) {
    p.q = heads_at(q, 0, n.width);
    p.k = heads_at(q, n.heads * n.width, n.width);
    return;
  }
  p.q = heads_at(q, 0, n.width);
  p.k = heads_at(kv, 0, n.key_value());
  if (n.shares_key()) p.shared = heads_at(down, n.q_rank + n.kv_rank, 0);
}
kernels::HeadRows place_values(const Shape& n, const at::Tensor& q, const at::Tensor& kv) {
  return kv.defined() ? heads_at(kv, n.own_keys, n.key_value())
                      : heads_at(q, 2 * n.heads * n.width, n.value);
}

/// The values where they are, [B, T, H, d_v].
at::Tensor values_of(const Shape& n, const at::Tensor& q, const at::Tensor& kv) {
  if (kv.defined()) {
    return kv.unflatten(-1, {n.heads, n.key_value()}).narrow(-1, n.own_keys, n.value);
  }
  return q.narrow(-1, 2 * n.heads * n.width, n.heads * n.value).unflatten(-1, {n.heads, n.value});
}

/// Softmax attention by PyTorch's kernels, heads [B, T, H, width]; `out` as wide as they made it.
struct Attended {
  at::Tensor out, lse, seed, offset, cum_q, cum_k;
  std::int64_t max_q = 0, max_k = 0;
};

kernels::ShortAttention brief_attention(const Shape& n, const at::Tensor& q, const at::Tensor& k,
                                        const at::Tensor& v, const Attended& a) {
  kernels::ShortAttention p;
  p.q = q.const_data_ptr();
  p.k = k.const_data_ptr();
  p.v = {v.const_data_ptr(), v.stride(1), v.stride(2)};
  p.out = const_cast<void*>(a.out.const_data_ptr());
  p.lse = const_cast<float*>(a.lse.const_data_ptr<float>());
  p.rows = q.size(0);
  p.length = q.size(1);
  p.heads = n.heads;
  p.scale = static_cast<float>(n.scale);
  p.causal = n.causal != 0;
  return p;
}

/// Values narrower than keys: cuDNN takes them as they are, the others with zeros behind.
at::Tensor as_wide_as_keys(AttentionKernel kernel, const Shape& n, const at::Tensor& v) {
  if (n.value == n.width || (kernel == AttentionKernel::cudnn && v.is_cuda())) return v;
  return at::constant_pad_nd(v, {0, n.width - n.value});
}

Attended attend(AttentionKernel kernel, const Shape& n, const at::Tensor& q, const at::Tensor& k,
                const at::Tensor& v) {
  const at::Tensor qt = q.transpose(1, 2), kt = k.transpose(1, 2);
  const at::Tensor vt = as_wide_as_keys(kernel, n, v).transpose(1, 2);
  const bool causal = n.causal != 0;
  Attended a;
  if (kernel == AttentionKernel::brief) {
    a.out = at::empty_like(q).transpose(1, 2);
    a.lse = at::empty({q.size(0), n.heads, q.size(1)}, q.options().dtype(at::kFloat));
    run(q, brief_attention(n, q, k, v, a));
    return a;
  }
  if (q.is_cpu()) {
    std::tie(a.out, a.lse) =
        at::_scaled_dot_product_flash_attention_for_cpu(qt, kt, vt, 0.0, causal, {}, n.scale);
    return a;
  }
  c10::SymInt max_q, max_k;
  if (kernel == AttentionKernel::cudnn) {
    std::tie(a.out, a.lse, a.cum_q, a.cum_k, max_q, max_k, a.seed, a.offset, std::ignore) =
        at::_scaled_dot_product_cudnn_attention(qt, kt, vt, {}, /*compute_log_sumexp=*/true, 0.0,
                                                causal, false, n.scale);
  } else {
    std::tie(a.out, a.lse, a.cum_q, a.cum_k, max_q, max_k, a.seed, a.offset, std::ignore) =
        at::_scaled_dot_product_flash_attention(qt, kt, vt, 0.0, causal, false, n.scale);
  }
  a.max_q = max_q.guard_int(__FILE__, __LINE__);
  a.max_k = max_k.guard_int(__FILE__, __LINE__);
  return a;
}

using Three = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

/// Gradients of q, k and v, [B, H, T, width]; v's may have columns behind its own.
Three attend_backward(AttentionKernel kernel, const Shape& n, const Attended& a,
                      const at::Tensor& grad, const at::Tensor& q, const at::Tensor& k,
                      const at::Tensor& v) {
  if (kernel == AttentionKernel::brief) {
    const at::Tensor g = grad.transpose(1, 2).contiguous();
    at::Tensor gq = at::empty_like(q), gk = at::empty_like(q), gv = at::empty_like(q);
    kernels::ShortAttentionGrad p;
    p.forward = brief_attention(n, q, k, v, a);
    p.grad = g.const_data_ptr();
    p.grad_q = gq.mutable_data_ptr();
    p.grad_k = gk.mutable_data_ptr();
    p.grad_v = gv.mutable_data_ptr();
    run(q, p);
    return {gq.transpose(1, 2), gk.transpose(1, 2), gv.transpose(1, 2)};
  }
  const at::Tensor qt = q.transpose(1, 2), kt = k.transpose(1, 2);
  const at::Tensor vt = as_wide_as_keys(kernel, n, v).transpose(1, 2);
  const at::Tensor g = as_wide_as_keys(kernel, n, grad);
  const bool causal = n.causal != 0;
  if (q.is_cpu()) {
    return at::_scaled_dot_product_flash_attention_for_cpu_backward(g, qt, kt, vt, a.out, a.lse,
                                                                    0.0, causal, {}, n.scale);
  }
  if (kernel == AttentionKernel::cudnn) {
    return at::_scaled_dot_product_cudnn_attention_backward(g, qt, kt, vt, a.out, a.lse, a.seed,
                                                            a.offset, {}, a.cum_q, a.cum_k, a.max_q,
                                                            a.max_k, 0.0, causal, n.scale);
  }
  return at::_scaled_dot_product_flash_attention_backward(g, qt, kt, vt, a.out, a.lse, a.cum_q,
                                                          a.cum_k, a.max_q, a.max_k, 0.0, causal,
                                                          a.seed, a.offset, n.scale);
}

/// Rotates, attends and keeps what backward needs; z [B, T, H d_v]. `more`: kept as well.
at::Tensor heads_forward(AutogradContext* context, const Shape& n, const at::Tensor& q,
                         const at::Tensor& kv, const at::Tensor& down, const at::Tensor& cos,
                         const at::Tensor& sin, const variable_list& more) {
  kernels::RotaryHeads p = rotation(n, q, cos, sin);
  place_heads(p, n, q, kv, down);
  const std::int64_t sizes[] = {q.size(0), q.size(1), n.heads, n.width};
  at::Tensor turned_q = at::empty(sizes, q.options()), turned_k = at::empty(sizes, q.options());
  p.q_out = turned_q.mutable_data_ptr();
  p.k_out = turned_k.mutable_data_ptr();
  run(q, p);
  const AttentionKernel kernel = kernel_for(n, q);
  const Attended a = attend(kernel, n, turned_q, turned_k, values_of(n, q, kv));
  Shape(n).keep(context);
  context->saved_data["kernel"] = static_cast<std::int64_t>(kernel);
  context->saved_data["max_q"] = a.max_q;
  context->saved_data["max_k"] = a.max_k;
  variable_list saved = {turned_q, turned_k, q,      kv,       cos,     sin,
                         a.out,    a.lse,    a.seed, a.offset, a.cum_q, a.cum_k};
  for (const at::Tensor& tensor : more) saved.push_back(tensor);
  context->save_for_backward(saved);
  return a.out.narrow(-1, 0, n.value).transpose(1, 2).flatten(2);
}
constexpr std::size_t kSavedByHeads = 12;

/// Gradients into grad_q (and grad_kv and the shared key's columns of grad_down).
void heads_backward(AutogradContext* context, const variable_list& saved, const at::Tensor& grad,
                    const at::Tensor& grad_q, const at::Tensor& grad_kv,
                    const at::Tensor& grad_down) {
  const Shape n(context);
  Attended a{saved[6], saved[7], saved[8], saved[9], saved[10], saved[11]};
  a.max_q = context->saved_data.at("max_q").toInt();
  a.max_k = context->saved_data.at("max_k").toInt();
  const at::Tensor grad_z = grad.unflatten(-1, {n.heads, n.value}).transpose(1, 2);
  const auto kernel = static_cast<AttentionKernel>(context->saved_data.at("kernel").toInt());
  const auto [gq, gk, gv] =
      attend_backward(kernel, n, a, grad_z, saved[0], saved[1], values_of(n, saved[2], saved[3]));
  const at::Tensor dq = gq.transpose(1, 2).contiguous(), dk = gk.transpose(1, 2).contiguous();
  const at::Tensor dv = gv.narrow(-1, 0, n.value).transpose(1, 2).contiguous();
  kernels::RotaryHeadsGrad p;
  p.forward = rotation(n, grad_q, saved[4], saved[5]);
  place_heads(p.forward, n, grad_q, grad_kv, grad_down);
  p.v = place_values(n, grad_q, grad_kv);
  p.value = n.value;
  p.grad_q = dq.const_data_ptr();
  p.grad_k = dk.const_data_ptr();
  p.grad_v = dv.const_data_ptr();
  run(grad_q, p);
}

struct PlainFunction : Function<PlainFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& all, const at::Tensor& cos,
                            const at::Tensor& sin, const Shape& n) {
    return heads_forward(context, n, all, {}, {}, cos, sin, {});
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor grad_all = at::empty_like(saved[2]);
    heads_backward(context, saved, grads[0], grad_all, {}, {});
    return {grad_all, {}, {}, {}};
  }
};

struct LatentFunction : Function<LatentFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& down,
                            const at::Tensor& q_norm, const at::Tensor& kv_norm,
                            const at::Tensor& q_up, const at::Tensor& kv_up, const at::Tensor& cos,
                            const at::Tensor& sin, const Shape& n) {
    at::Tensor q_scale, kv_scale;
    const at::Tensor q_latent = norm_forward(down.narrow(-1, 0, n.q_rank), q_norm, n.eps, q_scale);
    const at::Tensor kv_latent =
        norm_forward(down.narrow(-1, n.q_rank, n.kv_rank), kv_norm, n.eps, kv_scale);
    keep(context, "q_norm", q_norm);
    keep(context, "kv_norm", kv_norm);
    keep(context, "q_up", q_up);
    keep(context, "kv_up", kv_up);
    return heads_forward(context, n, at::linear(q_latent, q_up), at::linear(kv_latent, kv_up), down,
                         cos, sin, {down, q_latent, kv_latent, q_scale, kv_scale});
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    const Shape n(context);
    const at::Tensor* more = saved.data() + kSavedByHeads;
    const at::Tensor &down = more[0], &q_latent = more[1], &kv_latent = more[2];
    const at::Tensor grad_q = at::empty_like(saved[2]), grad_kv = at::empty_like(saved[3]);
    const at::Tensor grad_down = at::empty_like(down);
    heads_backward(context, saved, grads[0], grad_q, grad_kv, grad_down);
    const at::Tensor q_up = kept(context, "q_up"), kv_up = kept(context, "kv_up");
    const at::Tensor q_rows = grad_q.flatten(0, 1), kv_rows = grad_kv.flatten(0, 1);
    GradientSum q_sum(q_up), kv_sum(kv_up);
    q_sum.add_product(q_rows, q_latent.flatten(0, 1));
    kv_sum.add_product(kv_rows, kv_latent.flatten(0, 1));
    auto through_norm = [&](const at::Tensor& grad, std::int64_t begin, std::int64_t rank,
                            const char* norm, const at::Tensor& scale) {
      const NormGrads found =
          norm_backward(grad, {}, down.narrow(-1, begin, rank), kept(context, norm), scale, {},
                        grad_down.narrow(-1, begin, rank));
      return found.weight;
    };
    const at::Tensor q_norm = through_norm(at::mm(q_rows, q_up), 0, n.q_rank, "q_norm", more[3]);
    const at::Tensor kv_norm =
        through_norm(at::mm(kv_rows, kv_up), n.q_rank, n.kv_rank, "kv_norm", more[4]);
    return {grad_down, q_norm, kv_norm, q_sum.for_autograd(), kv_sum.for_autograd(), {}, {}, {}};
  }
};

}  // namespace

void set_attention_kernel(AttentionKernel kernel) { attention_kernel = kernel; }

bool attention_fits(const AttentionConfig& config, const PassContext& pass, const at::Tensor& x) {
  const RotaryTable& rotary = pass.rotary;
  // PyTorch's fast attention kernels of a GPU know no float32.
  if (!x.is_cpu() && x.scalar_type() != at::kBFloat16) return false;
  if (!fused(x) || pass.mask.defined() || rotary.layout() == Rotary::Layout::none ||
      rotary.of_positions() || config.kv_heads != config.heads || config.value > config.query()) {
    return false;
  }
  const Shape n(config, rotary);
  kernels::RotaryHeads p;
  p.element = element_of(x);
  p.begin = n.begin;
  p.dims = n.dims;
  p.width = n.width;
  p.own_keys = n.own_keys;
  p.q.head = p.q.token = n.width;
  p.k.head = p.k.token = config.is_mla() ? n.key_value() : n.width;
  if (!config.is_mla()) return kernels::rotary_heads_fit(p, n.value);
  p.shared.token = n.q_rank | n.kv_rank | (n.width - n.own_keys);
  return config.q_rank > 0 && n.q_rank <= kernels::kRmsNormWidth &&
         n.kv_rank <= kernels::kRmsNormWidth &&
         (n.q_rank | n.kv_rank | (n.width - n.own_keys)) % kernels::kRmsNormVector == 0 &&
         kernels::rotary_heads_fit(p, n.value);
}

at::Tensor fused_attention(const at::Tensor& all, const AttentionConfig& config,
                           const RotaryTable& rotary) {
  return PlainFunction::apply(all, rotary.cos(), rotary.sin(), Shape(config, rotary));
}

at::Tensor fused_latent_attention(const at::Tensor& down, const LatentWeights& weights,
                                  const AttentionConfig& config, const RotaryTable& rotary) {
  return LatentFunction::apply(down, weights.q_norm, weights.kv_norm, weights.q_up, weights.kv_up,
                               rotary.cos(), rotary.sin(), Shape(config, rotary));
}

}  // namespace subspace::nn
