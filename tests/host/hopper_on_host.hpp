// csrc/hopper_functions.hpp for a CPU, in addition to device_on_host.hpp.
//
// Products happen when they are waited for. Bulk copies happen when a thread waits for their
// barrier and all arrivals have been made or, with EARLY_COPIES in the environment, at once.
// Reading too early shows in the first mode, releasing a stage too early in the second. Descriptors
// are decoded field by field, and swizzles are computed from address bits, as the PTX manual
// defines them.
#pragma once
#include <cstdlib>
#include <map>

namespace curvedit {

struct TensorMap {
  const std::uint16_t* base;
  std::int64_t columns, tokens, stride;  // stride in elements
  int box_columns, box_tokens;
};
#define CURVEDIT_MAP const TensorMap&

namespace host {

struct CountingBarrier {
  unsigned arrivals = 0, pending = 0, bytes = 0, parity = 0;
  std::vector<std::pair<unsigned, std::function<void()>>> copies{};

  void settle() {
    if (pending == 0 && bytes == 0) {
      parity ^= 1;
      pending = arrivals;
    }
  }
};

struct Product {
  float* sum;
  std::uint64_t a, b;
  float (*to_float)(std::uint16_t);
};

struct Hopper {  // a block's state in addition to host::Block
  std::map<std::uintptr_t, CountingBarrier> barriers{};  // by their distance from window()
  std::map<int, Barrier> partial{};
  std::vector<std::vector<std::vector<Product>>> groups{};  // per thread; the last group is open
};

inline Hopper& hopper(Block& of = *block) {
  if (!of.hopper) {
    of.hopper = std::make_shared<Hopper>();
    of.hopper->groups.assign(of.threads, {{}});
  }
  return *of.hopper;
}

inline CountingBarrier& barrier_at(Shared place, Block& of = *block) {
  return hopper(of).barriers.at(place - block->window());
}

inline std::uintptr_t swizzled(std::uintptr_t offset) { return offset ^ ((offset >> 7 & 7) << 4); }

// Element (column, row) of the matrix that a descriptor describes.
inline std::uint16_t element(std::uint64_t matrix, int column, int row) {
  const std::uintptr_t start = (matrix & 0x3fff) << 4;
  const std::uintptr_t columns = (matrix >> 16 & 0x3fff) << 4, rows = (matrix >> 32 & 0x3fff) << 4;
  const std::uintptr_t offset =
      start + column / 64 * columns + row / 8 * rows + row % 8 * 128 + column % 64 * 2;
  std::uint16_t word;
  std::memcpy(&word, reinterpret_cast<const char*>(block->window() + swizzled(offset)), 2);
  return word;
}

inline void run(const Product& product) {
  const int thread = current % 128, lane = thread % 32;
  float left[2][16];
  for (int half = 0; half < 2; ++half)
    for (int k = 0; k < 16; ++k)
      left[half][k] =
          product.to_float(element(product.a, thread / 32 * 16 + lane / 4 + half * 8, k));
  for (int pair = 0; pair < 64; ++pair)
    for (int k = 0; k < 16; ++k) {
      const int column = pair / 2 * 8 + lane % 4 * 2 + pair % 2;
      const float right = product.to_float(element(product.b, column, k));
      for (int half = 0; half < 2; ++half)
        product.sum[pair / 2 * 4 + half * 2 + pair % 2] += left[half][k] * right;
    }
}

}  // namespace host

inline void init_barrier(Shared barrier, unsigned arrivals) {
  host::hopper().barriers[barrier - host::block->window()] = {arrivals, arrivals};
}
inline void publish_barriers() {}
inline int rank_in_cluster() {
  return static_cast<int>(host::block - host::block->cluster->blocks.data());
}
inline void cluster_barrier() {
  host::Cluster& all = *host::block->cluster;
  host::meet(all.barrier, static_cast<int>(all.blocks.size()) * host::block->threads);
}
inline void arrive_at(Shared barrier, int rank) {
  host::CountingBarrier& state = host::barrier_at(barrier, host::block->cluster->blocks.at(rank));
  --state.pending;
  state.settle();
}
inline void arrive_expecting(Shared barrier, unsigned bytes) {
  host::barrier_at(barrier).bytes += bytes;
  arrive_at(barrier, rank_in_cluster());
}
inline void wait(Shared barrier, unsigned parity) {
  host::yield();  // lets other threads run even where the phase is already over
  for (;;) {
    host::CountingBarrier& state = host::barrier_at(barrier);
    if (state.parity != parity) return;
    if (state.pending == 0 && !state.copies.empty()) {
      const auto [bytes, copy] = state.copies.front();
      state.copies.erase(state.copies.begin());
      copy();
      state.bytes -= bytes;
      state.settle();
    } else {
      host::yield();
    }
  }
}

namespace host {

// Copies a box to the shared memory of a block, at the place that `to` has in this block.
inline void load_box_to(Block& target, Shared to, const TensorMap* map, int column, int token,
                        Shared barrier) {
  const std::uintptr_t place = to - block->window(), window = target.window();
  const auto copy = [=] {
    for (int t = 0; t < map->box_tokens; ++t)
      for (int c = 0; c < map->box_columns; ++c) {
        const bool is_inside = token + t < map->tokens && column + c < map->columns;
        const std::uint16_t word =
            is_inside ? map->base[(token + t) * map->stride + column + c] : 0;
        const std::uintptr_t offset = swizzled(place + t * map->box_columns * 2 + c * 2);
        std::memcpy(reinterpret_cast<char*>(window + offset), &word, 2);
      }
  };
  const auto bytes = static_cast<unsigned>(map->box_tokens * map->box_columns * 2);
  static const bool is_early = std::getenv("EARLY_COPIES") != nullptr;
  CountingBarrier& state = barrier_at(barrier, target);
  if (is_early) {
    copy();
    state.bytes -= bytes;
    state.settle();
  } else {
    state.copies.push_back({bytes, copy});
  }
}

}  // namespace host

inline void load_box(Shared to, const TensorMap* map, int column, int token, Shared barrier) {
  host::load_box_to(*host::block, to, map, column, token, barrier);
}
inline void load_box_for_both(Shared to, const TensorMap* map, int column, int token,
                              Shared barrier) {
  for (host::Block& target : host::block->cluster->blocks)
    host::load_box_to(target, to, map, column, token, barrier);
}

template <int kRegisters>
inline void take_registers() {}
template <int kRegisters>
inline void give_registers() {}
inline void prefetch(const float*, unsigned) {}
inline void allow_second_kernel() {}
inline void wait_for_first_kernel() {}
inline void add_pair(float* at, float left, float right) { at[0] += left, at[1] += right; }
inline void store_pair(float* at, float left, float right) { at[0] = left, at[1] = right; }

inline void fence_async() {}
inline void partial_barrier(int id, int threads) {
  host::meet(host::hopper().partial[id], threads);
}

inline void begin_products() {}
inline void commit_products() { host::hopper().groups[host::current].emplace_back(); }

template <int kPending>
inline void wait_for_products() {
  auto& groups = host::hopper().groups[host::current];
  while (groups.size() > kPending + 1) {
    for (const host::Product& product : groups.front()) host::run(product);
    groups.erase(groups.begin());
  }
  host::meet(host::warp().barrier, 32);
}

inline std::uint64_t matrix_at(Shared at, unsigned next_columns, unsigned next_rows) {
  const std::uint64_t place = ((at - host::block->window()) & 0x3ffff) >> 4;
  const std::uint64_t columns = next_columns >> 4, rows = next_rows >> 4;
  return place | columns << 16 | rows << 32 | 1ull << 62;
}

template <typename Words>
struct WarpgroupOnHost {
  static void multiply(float (&d)[128], std::uint64_t a, std::uint64_t b) {
    host::hopper().groups[host::current].back().push_back({d, a, b, Words::to_float});
  }
};
using Bfloat16Warpgroup = WarpgroupOnHost<Bfloat16Words>;
using Float16Warpgroup = WarpgroupOnHost<Float16Words>;

}  // namespace curvedit
