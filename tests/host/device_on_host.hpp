// csrc/device_functions.hpp for a CPU: every thread of a block is a fiber, and blocks run one after
// another.
//
// Exact to the lane: fragments follow the tables of the PTX manual (ldmatrix, mma.m16n8k16). Copies
// to shared memory happen only when they are waited for, and shared memory starts as NaN, so that
// reading too early shows. Not modelled: speed, bank conflicts, races within one barrier phase.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define CURVEDIT_DEVICE inline
#define CURVEDIT_KERNEL(threads) inline void
#define CURVEDIT_UNROLL
#define CURVEDIT_UNROLL_4

namespace curvedit {
namespace host {

struct Copy {
  std::uintptr_t to;
  const void* from;  // null: zeros
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool is_done = false;
  std::vector<std::vector<Copy>> groups{1};  // the last one is open
};

struct Barrier {
  int waiting = 0;
  unsigned generation = 0;
};

struct Warp {
  Barrier barrier;
  std::uint32_t a[32][4], b[32][2];
  std::uintptr_t address[32];
};

struct Cluster;
struct Hopper;

struct Block {
  int x, y, z, threads;
  Cluster* cluster;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  Barrier barrier{};
  std::vector<std::uint32_t> storage{};
  std::shared_ptr<Hopper> hopper{};  // what hopper_on_host.hpp adds

  // Shared memory begins at the same distance from a multiple of 1024 in every block.
  std::uintptr_t window() const {
    return (reinterpret_cast<std::uintptr_t>(storage.data()) + 1023) / 1024 * 1024;
  }
};

struct Cluster {
  std::vector<Block> blocks;
  Barrier barrier{};
};

inline Block* block;
inline int current;
inline ucontext_t scheduler;
inline const std::function<void()>* body;

inline void yield() {
  const int self = current;
  swapcontext(&block->fibers[self].context, &scheduler);
}

inline void meet(Barrier& barrier, int size) {
  const unsigned generation = barrier.generation;
  if (++barrier.waiting == size) {
    barrier.waiting = 0;
    ++barrier.generation;
  }
  while (barrier.generation == generation) yield();
}

inline void enter() {
  (*body)();
  block->fibers[current].is_done = true;
  yield();
}

constexpr std::size_t kStack = 256 << 10;

inline void prepare(Fiber& fiber) {
  fiber.stack.reset(new char[kStack]);
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStack;
  fiber.context.uc_link = &scheduler;
  makecontext(&fiber.context, enter, 0);
}

// Runs the blocks x, x + 1, … of a cluster, whose threads take turns.
inline void run_cluster(int x, int y, int z, int size, int threads, std::size_t shared_bytes) {
  Cluster cluster{};
  for (int n = 0; n < size; ++n)
    cluster.blocks.push_back({x + n, y, z, threads, &cluster, std::vector<Fiber>(threads),
                              std::vector<Warp>((threads + 31) / 32)});
  for (Block& here : cluster.blocks) {  // memory is NaN as float, bfloat16 and float16
    here.storage.assign((shared_bytes + 1024 + 128) / 4, 0x7fff7fffu);
    for (Fiber& fiber : here.fibers) prepare(fiber);
  }
  for (int left = threads; left > 0;) {
    left = 0;
    for (Block& here : cluster.blocks)
      for (int n = 0; n < threads; ++n) {
        if (here.fibers[n].is_done) continue;
        block = &here;
        current = n;
        swapcontext(&scheduler, &here.fibers[n].context);
        left += !here.fibers[n].is_done;
      }
  }
}

// Clusters, of blocks that are neighbours in x, run one after another.
inline void launch(int x, int y, int z, int threads, std::size_t shared_bytes,
                   const std::function<void()>& kernel, int cluster = 1) {
  body = &kernel;
  for (int k = 0; k < z; ++k)
    for (int j = 0; j < y; ++j)
      for (int i = 0; i < x; i += cluster) run_cluster(i, j, k, cluster, threads, shared_bytes);
}

inline Warp& warp() { return block->warps[current / 32]; }
inline std::uint16_t word(std::uint32_t pair, int high) {
  return static_cast<std::uint16_t>(high ? pair >> 16 : pair);
}

}  // namespace host

using Shared = std::uintptr_t;

inline unsigned char* shared_memory() {
  return reinterpret_cast<unsigned char*>(host::block->window() + 128);
}
inline Shared to_shared(const void* p) { return reinterpret_cast<Shared>(p); }
inline int thread_index() { return host::current; }
inline int block_x() { return host::block->x; }
inline int block_y() { return host::block->y; }
inline int block_z() { return host::block->z; }
inline void block_barrier() { host::meet(host::block->barrier, host::block->threads); }

inline void copy_async(Shared to, const void* from, bool is_read) {
  host::block->fibers[host::current].groups.back().push_back({to, is_read ? from : nullptr});
}
inline void commit_copies() { host::block->fibers[host::current].groups.emplace_back(); }

template <int kPending>
inline void wait_for_copies() {
  auto& groups = host::block->fibers[host::current].groups;
  while (groups.size() > kPending + 1) {  // one more: the open group is not waited for
    for (const host::Copy& copy : groups.front()) {
      if (copy.from) std::memcpy(reinterpret_cast<void*>(copy.to), copy.from, 16);
      else std::memset(reinterpret_cast<void*>(copy.to), 0, 16);
    }
    groups.erase(groups.begin());
  }
}

inline void load_transposed(std::uint32_t (&r)[4], Shared row) {
  host::Warp& warp = host::warp();
  const int lane = host::current % 32;
  warp.address[lane] = row;
  host::meet(warp.barrier, 32);
  for (int m = 0; m < 4;
       ++m) {  // this lane's pair: column lane / 4, rows lane % 4 * 2 and the next
    std::uint16_t pair[2];
    for (int n = 0; n < 2; ++n)
      std::memcpy(
          &pair[n],
          reinterpret_cast<const char*>(warp.address[m * 8 + lane % 4 * 2 + n]) + lane / 4 * 2, 2);
    r[m] = pair[0] | static_cast<std::uint32_t>(pair[1]) << 16;
  }
  host::meet(warp.barrier, 32);
}

template <typename Words>
inline void multiply_on_host(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                             std::uint32_t b1) {
  host::Warp& warp = host::warp();
  const int lane = host::current % 32;
  std::memcpy(warp.a[lane], a, sizeof a);
  warp.b[lane][0] = b0;
  warp.b[lane][1] = b1;
  host::meet(warp.barrier, 32);
  for (int e = 0; e < 4; ++e) {
    const int row = lane / 4 + e / 2 * 8, column = lane % 4 * 2 + e % 2;
    for (int k = 0; k < 16; ++k) {
      const std::uint32_t left = warp.a[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2];
      const std::uint32_t right = warp.b[column * 4 + k % 8 / 2][k / 8];
      c[e] += Words::to_float(host::word(left, k % 2)) * Words::to_float(host::word(right, k % 2));
    }
  }
  host::meet(warp.barrier, 32);
}

struct Bfloat16Words {
  using Word = std::uint16_t;
  static float to_float(std::uint16_t bits) {
    const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
  }
  static std::uint16_t from_float(float value) {  // to nearest, ties to even; no NaN
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
  }
  static void multiply(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                       std::uint32_t b1) {
    multiply_on_host<Bfloat16Words>(c, a, b0, b1);
  }
};

struct Float16Words {
  using Word = std::uint16_t;
  static float to_float(std::uint16_t bits) {
    _Float16 value;
    std::memcpy(&value, &bits, 2);
    return static_cast<float>(value);
  }
  static std::uint16_t from_float(float value) {
    const auto half = static_cast<_Float16>(value);
    std::uint16_t bits;
    std::memcpy(&bits, &half, 2);
    return bits;
  }
  static void multiply(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                       std::uint32_t b1) {
    multiply_on_host<Float16Words>(c, a, b0, b1);
  }
};

struct Float32Words {
  using Word = float;
  static float to_float(float value) { return value; }
};

}  // namespace curvedit
