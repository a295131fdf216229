// What the CUDA kernels of syrk_accumulate share: the problem, and which block works on which
// tokens and tile.
#pragma once
#include <cstdint>

#include "device_functions.hpp"
#include "tile_order.hpp"

namespace curvedit {

constexpr int kDeviceTile = 128;
constexpr int kDeviceBand = 8;       // tile rows walked together
constexpr int kDeviceFlush = 16384;  // tokens per flush: tensor cores truncate when they add

struct SyrkOnDevice {
  float* out;      // (groups, tiles, 128, 128)
  float* partial;  // (splits, groups, tiles, 128, 128) if several blocks share a tile, else null
  const std::uint16_t* x;       // (tokens, dim)
  const float* weight;          // (tokens,) or null
  const std::int64_t* offsets;  // (groups + 1,) or null
  std::int64_t tokens, token_stride, dim_stride;
  int dim, side, splits, groups;
  int products = 1;  // of Hopper's kernel: 3 where x is the sum of two halves
};

struct Range {
  std::int64_t first, last;
};

// The tokens of this block: its split's share, in whole steps of `depth`, of its group's tokens.
CURVEDIT_DEVICE Range tokens_of(const SyrkOnDevice& p, int depth) {
  const std::int64_t first = p.offsets ? p.offsets[block_z()] : 0;
  const std::int64_t last = p.offsets ? p.offsets[block_z() + 1] : p.tokens;
  const std::int64_t steps = (last - first + depth - 1) / depth;
  const std::int64_t each = (steps + p.splits - 1) / p.splits;
  const std::int64_t from = first + each * depth * block_y(), to = from + each * depth;
  return {from < last ? from : last, to < last ? to : last};
}

// Where this block's tile is written: to the output, or to its split's partial sums.
CURVEDIT_DEVICE float* tile_of(const SyrkOnDevice& p, Position at) {
  const std::int64_t tiles = static_cast<std::int64_t>(p.side) * (p.side + 1) / 2;
  const std::int64_t matrix =
      p.partial ? static_cast<std::int64_t>(block_y()) * p.groups + block_z() : block_z();
  const std::int64_t index = matrix * tiles + at.row * (at.row + 1) / 2 + at.column;
  return (p.partial ? p.partial : p.out) + index * kDeviceTile * kDeviceTile;
}

}  // namespace curvedit
