#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

namespace subspace {

/// What model.safetensors.index.json says: which file of the folder holds which tensor.
struct ShardIndex {
  std::map<std::string, std::string> weight_map;
  /// metadata.total_size, the bytes of all tensors; 0 if the index does not say.
  std::uint64_t total_size = 0;
};

/// Parses and validates an index. `where` names it in messages. Throws InvalidFormat: not an
/// object, no weight_map, a shard that is not the plain name of a file in the same folder (an index
/// must not lead anywhere else), a tensor named twice, a total_size that is no size. O(n log n).
ShardIndex parse_shard_index(std::string_view text, const std::string& where);

}  // namespace subspace
