// Which cluster of syrk_accumulate's Hopper kernel computes which macro tile, over which tokens.
//
// Macro tiles are computed whole, one by each cluster at a time, as long as they fill all clusters.
// What is left, if it is worth it, is cut into as many equal stretches of steps as there are
// clusters. Their partial sums are added by a second kernel, in order.
#pragma once
#include "syrk_accumulate_device.hpp"

namespace curvedit {

constexpr int kDepth = 64;          // tokens per step
constexpr int kMacro = 4 * kDeviceTile * kDeviceTile;  // elements of a macro tile
constexpr int kPieces = kMacro / 1024;  // of 256 threads
constexpr int kWorthwhile = 16;     // steps: about what a second kernel costs

struct Plan {
  int clusters;
  int units;  // macro tiles of all groups
  int whole;  // of these, the first ones, which are computed whole
  int steps;  // of each other unit
};

struct Piece {
  bool is_end;
  Position at;  // of the macro tile
  int group;
  Range range;
  float* partial;  // where its sums go: 4 tiles; null: to the output
};

CURVEDIT_EVERYWHERE constexpr int macro_tiles(int side) { return (side + 1) / 2 * ((side + 1) / 2 + 1) / 2; }

// Of the shared steps, the first of this cluster.
CURVEDIT_EVERYWHERE constexpr std::int64_t begin_of(const Plan& plan, int cluster) {
  return static_cast<std::int64_t>(plan.units - plan.whole) * plan.steps * cluster / plan.clusters;
}

constexpr Plan plan_of(int side, int groups, std::int64_t tokens, int clusters) {
  const int units = groups * macro_tiles(side), rest = units % clusters;
  const auto steps = static_cast<int>((tokens + kDepth - 1) / kDepth);
  const bool is_shared = groups == 1 && rest > 0 &&
                         static_cast<std::int64_t>(steps) * (clusters - rest) > kWorthwhile * clusters;
  return {clusters, units, is_shared ? units - rest : units, steps};
}

CURVEDIT_DEVICE float* tile_at(const SyrkOnDevice& p, int group, int row, int column) {
  const std::int64_t tiles = static_cast<std::int64_t>(p.side) * (p.side + 1) / 2;
  const std::int64_t index = group * tiles + static_cast<std::int64_t>(row) * (row + 1) / 2 + column;
  return p.out + index * kDeviceTile * kDeviceTile;
}

// The n-th piece of work of a cluster.
CURVEDIT_DEVICE Piece piece_of(const SyrkOnDevice& p, const Plan& plan, int cluster, int n) {
  const int side = (p.side + 1) / 2, macros = macro_tiles(p.side);
  const int mine = cluster < plan.whole ? (plan.whole - cluster - 1) / plan.clusters + 1 : 0;
  if (n < mine) {
    const int unit = cluster + n * plan.clusters, group = unit / macros;
    const std::int64_t first = p.offsets ? p.offsets[group] : 0;
    const std::int64_t last = p.offsets ? p.offsets[group + 1] : p.tokens;
    return {false, position(unit % macros, side, kDeviceBand), group, {first, last}, nullptr};
  }
  const int part = n - mine;
  const std::int64_t from = begin_of(plan, cluster), to = begin_of(plan, cluster + 1);
  if (plan.whole == plan.units || from >= to || from / plan.steps + part > (to - 1) / plan.steps)
    return {true, {}, 0, {}, nullptr};
  const std::int64_t unit = from / plan.steps + part, start = unit * plan.steps;
  const std::int64_t first = from > start ? from - start : 0;
  const std::int64_t last = to < start + plan.steps ? to - start : plan.steps;
  return {false,
          position(plan.whole + unit, side, kDeviceBand),
          0,
          {first * kDepth, last == plan.steps ? p.tokens : last * kDepth},
          p.partial + (2 * static_cast<std::int64_t>(cluster) + part) * kMacro};
}

// Adds the partial sums of the shared macro tiles to out, in order. Grid: (kPieces, shared units).
// One thread per four elements.
CURVEDIT_KERNEL(256)
syrk_add_pieces(const SyrkOnDevice p, const Plan plan) {
  const int quarter = block_x() / 16, unit = block_y();
  const int element = (block_x() % 16 * 256 + thread_index()) * 4;
  const Position at = position(plan.whole + unit, (p.side + 1) / 2, kDeviceBand);
  const int row = 2 * static_cast<int>(at.row) + quarter / 2;
  const int column = 2 * static_cast<int>(at.column) + quarter % 2;
  if (row >= p.side || column > row) return;
  const std::int64_t start = static_cast<std::int64_t>(unit) * plan.steps;
  const std::int64_t all = static_cast<std::int64_t>(plan.units - plan.whole) * plan.steps;
  auto cluster = static_cast<int>(start * plan.clusters / all);  // has the first step, or follows
  while (begin_of(plan, cluster) > start) --cluster;
  while (begin_of(plan, cluster + 1) <= start) ++cluster;
  float sum[4] = {};
  for (; cluster < plan.clusters && begin_of(plan, cluster) < start + plan.steps; ++cluster) {
    const bool is_second = begin_of(plan, cluster) < start;
    if (begin_of(plan, cluster) == begin_of(plan, cluster + 1)) continue;
    const float* const from = p.partial + (2 * static_cast<std::int64_t>(cluster) + is_second) * kMacro +
                              quarter * kDeviceTile * kDeviceTile + element;
    CURVEDIT_UNROLL
    for (int n = 0; n < 4; ++n) sum[n] += from[n];
  }
  float* const to = tile_at(p, 0, row, column) + element;
  CURVEDIT_UNROLL
  for (int n = 0; n < 4; ++n) to[n] += sum[n];
}

}  // namespace curvedit
