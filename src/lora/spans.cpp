#include "lora/spans.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <map>

#include "spectrum/device_stream.h"
#include "spectrum/product.h"

namespace subspace {
namespace {

/// All heads' spans side by side, [count, d, P].
at::Tensor all_side_by_side(const Spans& spans, std::int64_t count) {
  std::vector<at::Tensor> expanded;
  for (const at::Tensor& span : spans.tensors) expanded.push_back(for_heads(span, count));
  return expanded.size() == 1 ? expanded[0] : at::cat(expanded, 2);
}

std::int64_t width_before(const Spans& spans, std::size_t place) {
  std::int64_t width = 0;
  for (std::size_t j = 0; j < place; ++j) width += spans.tensors[j].size(2);
  return width;
}

}  // namespace

std::int64_t Spans::width() const { return width_before(*this, tensors.size()); }

std::int64_t Spans::matrices() const {
  std::int64_t count = 1;
  for (const at::Tensor& span : tensors) count = std::max(count, span.size(0));
  return count;
}

Spans spans_of(const Side& side) {
  Spans spans;
  for (const Piece& piece : side.pieces) {
    std::size_t place = 0;
    while (place < spans.tensors.size() && !spans.tensors[place].is_same(piece.span)) ++place;
    if (place == spans.tensors.size()) spans.tensors.push_back(piece.span);
    spans.of_piece.push_back(place);
  }
  return spans;
}

at::Tensor side_by_side(const Spans& spans, std::int64_t head, std::int64_t count) {
  const bool columns = spans.tensors[0].stride(1) == 1;
  std::vector<at::Tensor> parts;
  for (const at::Tensor& span : spans.tensors) {
    const at::Tensor one = span[head / (count / span.size(0))].cpu();
    parts.push_back(columns ? one.t() : one);
  }
  const at::Tensor all = parts.size() == 1 ? parts[0] : at::cat(parts, columns ? 0 : 1);
  return columns ? all.t() : all;
}

at::Tensor batched_gram(const Spans& spans, std::int64_t count) {
  const at::Tensor x = all_side_by_side(spans, count);
  return product(x.mT(), x);
}

at::Tensor products_between(const Spans& right, const Spans& left, bool batched) {
  const std::int64_t rights = right.matrices(), lefts = left.matrices();
  if (batched) {
    return heads_product(all_side_by_side(right, rights).mT(), all_side_by_side(left, lefts));
  }
  const std::int64_t count = std::max(rights, lefts);
  at::Tensor all = at::empty({count, right.width(), left.width()}, left.tensors[0].options());
  at::parallel_for(0, count, 1, [&](std::int64_t begin, std::int64_t end) {
    at::Tensor x, y;
    for (std::int64_t i = begin; i < end; ++i) {
      // Heads of a group read the same matrix.
      const auto renew = [&](at::Tensor& kept, const Spans& spans, std::int64_t matrices) {
        const std::int64_t each = count / matrices;
        if (!kept.defined() || i % each == 0) kept = side_by_side(spans, i / each, matrices);
      };
      renew(x, left, lefts);
      renew(y, right, rights);
      all[i].copy_(product(y.t(), x));
    }
  });
  return all;
}

at::Tensor part_between(const at::Tensor& products, const Spans& right, std::size_t b,
                        const Spans& left, std::size_t a) {
  return products.narrow(1, width_before(right, b), right.tensors[b].size(2))
      .narrow(2, width_before(left, a), left.tensors[a].size(2));
}

void fetch(const std::vector<at::Tensor*>& tensors) {
  std::map<const void*, at::Tensor> copies;
  std::vector<at::Tensor> sources;
  for (const at::Tensor* tensor : tensors) {
    if (!tensor->defined() || tensor->is_cpu()) continue;
    at::Tensor& copy = copies[tensor->unsafeGetTensorImpl()];
    if (copy.defined()) continue;
    sources.push_back(tensor->contiguous());
    copy = at::empty(tensor->sizes(),
                     at::TensorOptions().dtype(tensor->scalar_type()).pinned_memory(true));
    copy.copy_(sources.back(), /*non_blocking=*/true);
  }
  if (copies.empty()) return;
  synchronize(sources[0].device());
  for (at::Tensor* tensor : tensors) {
    if (tensor->defined() && !tensor->is_cpu()) *tensor = copies.at(tensor->unsafeGetTensorImpl());
  }
}

}  // namespace subspace
