// Which cluster of syrk_accumulate's Hopper kernel computes which macro tile, over which tokens.
//
// Macro tiles are computed whole, one by each cluster at a time, as long as they fill all clusters.
// What is left, if that pays, is cut along the tokens. First come sets of pieces, one piece of each
// tile, which work on the same tokens at a time and so share them in the second-level cache. The
// clusters that remain share evenly what the sets leave. Partial sums are added by a second kernel,
// in order.
#pragma once
#include "hopper_functions.hpp"
#include "syrk_accumulate_device.hpp"

namespace curvedit {

constexpr int kDepth = 64;                             // tokens per step
constexpr int kMacro = 4 * kDeviceTile * kDeviceTile;  // elements of a macro tile
constexpr int kPieceCost = 11;                         // steps that writing and adding a piece take
constexpr int kSecondCost = 8;                         // steps that a second kernel takes

struct Plan {
  int clusters;
  int units;   // macro tiles of all groups
  int whole;   // of these, the first ones, which are computed whole
  int steps;   // of each other unit
  int sets;    // of pieces
  int length;  // steps of a piece of a set
  int rest;    // steps that the sets leave of each unit
};

struct Piece {
  bool is_end;
  Position at;  // of the macro tile
  int group;
  int first, last;  // steps; `last` at most the group's
  float* partial;   // where its sums go: 4 tiles; null: to the output
};

CURVEDIT_EVERYWHERE constexpr int up(std::int64_t n, std::int64_t by) {
  return static_cast<int>((n + by - 1) / by);
}
CURVEDIT_EVERYWHERE constexpr int macro_tiles(int side) {
  return (side + 1) / 2 * ((side + 1) / 2 + 1) / 2;
}
CURVEDIT_EVERYWHERE constexpr int shared_units(const Plan& plan) { return plan.units - plan.whole; }

// Of the steps that the sets leave, those of all units in a row, the first of the n-th cluster that
// shares them.
CURVEDIT_EVERYWHERE constexpr int rest_of(const Plan& plan, int n) {
  const int units = shared_units(plan), sharers = plan.clusters - plan.sets * units;
  return units * plan.rest * n / sharers;
}

// How many macro tiles the partial sums need.
constexpr int places_of(const Plan& plan) {
  const int units = shared_units(plan);
  return units == 0 ? 0 : plan.rest == 0 ? plan.sets * units : plan.clusters + units;
}

// `steps`: of every unit, if there is one group only.
constexpr Plan plan_of(int side, int groups, int steps, int clusters) {
  Plan plan{clusters, groups * macro_tiles(side), groups * macro_tiles(side), steps, 0, 0, 0};
  const int units = plan.units % clusters;
  if (groups > 1 || units == 0 || steps >= (1 << 30) / (clusters * clusters)) return plan;
  const int sets = clusters / units, even = up(static_cast<std::int64_t>(units) * steps, clusters);
  const int alone = up(steps, sets), rest = steps - sets * even;
  const bool has_rest = rest > 0 && even + (1 + up(even, rest)) * kPieceCost < alone + kPieceCost;
  const int cost =
      kSecondCost + (has_rest ? even + (1 + up(even, rest)) * kPieceCost : alone + kPieceCost);
  if (cost >= steps) return plan;
  plan.whole -= units;
  plan.sets = has_rest ? sets : up(steps, alone);
  plan.length = has_rest ? even : alone;
  plan.rest = has_rest ? rest : 0;
  return plan;
}

CURVEDIT_DEVICE float* tile_at(const SyrkOnDevice& p, int group, int row, int column) {
  const std::int64_t tiles = static_cast<std::int64_t>(p.side) * (p.side + 1) / 2;
  const std::int64_t index =
      group * tiles + static_cast<std::int64_t>(row) * (row + 1) / 2 + column;
  return p.out + index * kDeviceTile * kDeviceTile;
}

CURVEDIT_DEVICE Range tokens_of_group(const SyrkOnDevice& p, int group) {
  return p.offsets ? Range{p.offsets[group], p.offsets[group + 1]} : Range{0, p.tokens};
}

// A piece of a shared unit, whose sums go to one of the places.
CURVEDIT_DEVICE Piece shared_piece(const SyrkOnDevice& p, const Plan& plan, int unit, int first,
                                   int last, int place) {
  return {false,
          position(plan.whole + unit, (p.side + 1) / 2, kDeviceBand),
          0,
          first,
          last < plan.steps ? last : plan.steps,
          p.partial + static_cast<std::int64_t>(place) * kMacro};
}

// The n-th piece of work of a cluster.
CURVEDIT_DEVICE Piece piece_of(const SyrkOnDevice& p, const Plan& plan, int cluster, int n) {
  const Piece end{true, {}, 0, 0, 0, nullptr};
  const int mine = cluster < plan.whole ? (plan.whole - cluster - 1) / plan.clusters + 1 : 0;
  if (n < mine) {
    const int macros = macro_tiles(p.side), unit = cluster + n * plan.clusters;
    const int group = unit / macros;
    const Range tokens = tokens_of_group(p, group);
    return {false, position(unit % macros, (p.side + 1) / 2, kDeviceBand), group,
            0,     up(tokens.last - tokens.first, kDepth) * p.products,    nullptr};
  }
  const int part = n - mine, units = shared_units(plan), in_sets = plan.sets * units;
  if (cluster < in_sets) {
    const int first = cluster / units * plan.length;
    if (part > 0) return end;
    return shared_piece(p, plan, cluster % units, first, first + plan.length, cluster);
  }
  if (plan.rest == 0) return end;
  const int sharer = cluster - in_sets;
  const int from = rest_of(plan, sharer), to = rest_of(plan, sharer + 1);
  const int unit = from / plan.rest + part, begin = unit * plan.rest;
  if (begin >= to || from >= to) return end;
  const int first = from > begin ? from - begin : 0;
  const int last = to < begin + plan.rest ? to - begin : plan.rest;
  const int done = plan.sets * plan.length;  // sharer + unit grows from piece to piece
  return shared_piece(p, plan, unit, done + first, done + last, in_sets + sharer + unit);
}

struct alignas(16) Four {
  float at[4];

  CURVEDIT_DEVICE void add(const float* from) {
    const Four other = *reinterpret_cast<const Four*>(from);
    CURVEDIT_UNROLL
    for (int n = 0; n < 4; ++n) at[n] += other.at[n];
  }
};

// Adds the partial sums of the shared macro tiles to out, in order. Grid: (kAdders, shared units).
constexpr int kAdders = kMacro / 1024;  // blocks of 256 threads, four elements each

CURVEDIT_KERNEL(256)
syrk_add_pieces(const SyrkOnDevice p, const Plan plan) {
  const int unit = block_y(), units = shared_units(plan), in_sets = plan.sets * units;
  const int element = (block_x() * 256 + thread_index()) * 4;
  const int quarter = element / (kDeviceTile * kDeviceTile);
  const Position at = position(plan.whole + unit, (p.side + 1) / 2, kDeviceBand);
  const int row = 2 * static_cast<int>(at.row) + quarter / 2;
  const int column = 2 * static_cast<int>(at.column) + quarter % 2;
  wait_for_first_kernel();
  if (row >= p.side || column > row) return;
  const float* const from = p.partial + element;
  Four sum{};
  CURVEDIT_UNROLL_4
  for (int set = 0; set < plan.sets; ++set)
    sum.add(from + static_cast<std::int64_t>(set * units + unit) * kMacro);
  if (plan.rest > 0) {
    int sharer = 0;
    while (rest_of(plan, sharer + 1) <= unit * plan.rest) ++sharer;
    for (; sharer < plan.clusters - in_sets && rest_of(plan, sharer) < (unit + 1) * plan.rest;
         ++sharer)
      if (rest_of(plan, sharer) < rest_of(plan, sharer + 1))
        sum.add(from + static_cast<std::int64_t>(in_sets + sharer + unit) * kMacro);
  }
  float* const to = tile_at(p, 0, row, column) + element % (kDeviceTile * kDeviceTile);
  sum.add(to);
  *reinterpret_cast<Four*>(to) = sum;
}

}  // namespace curvedit
