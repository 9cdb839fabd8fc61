#pragma once

#include <ATen/ATen.h>

#include "lora/close.h"
#include "lora/layer_change.h"

namespace subspace::testing {

/// A layer of `heads` heads and `groups` key/value groups over width d, every number random, and a
/// random adapter on the matrices that `on` names ("qkvo").
struct RandomLayer {
  RandomLayer(std::int64_t index, std::int64_t d, std::int64_t heads, std::int64_t groups,
              std::int64_t k, std::int64_t d_v, const std::string& on = "qkvo", std::int64_t r = 3,
              double size = 0.5) {
    layer.index = change.index = index;
    layer.q = normal({heads, d, k});
    layer.k = normal({groups, d, k});
    layer.v = normal({groups, d, d_v});
    layer.o = normal({heads, d_v, d});
    auto adapted = [&](char name) { return on.find(name) != std::string::npos; };
    if (adapted('q')) change.q = {normal({1, d, r}), size * normal({heads, r, k}), {}, {}};
    if (adapted('k')) change.k = {normal({1, d, r}), size * normal({groups, r, k}), {}, {}};
    if (adapted('v')) change.v = {normal({1, d, r}), size * normal({groups, r, d_v}), {}, {}};
    if (adapted('o')) change.o = {normal({heads, d_v, r}), size * normal({1, r, d}), {}, {}};
  }
  AttentionLayer layer;
  LayerChange change;
};

}  // namespace subspace::testing
