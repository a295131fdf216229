// syrk_accumulate for half-precision input on Hopper's tensor cores, sm_90a: wgmma, bulk tensor
// copies.
//
// One block computes one lower 128 x 128 tile: two warpgroups compute 64 rows each, fed by one
// thread of a third, which copies 64 tokens at a time into a ring of six stages. x is stored as
// (token, column), so both operands of X^T X are read transposed, from the panels of 64 columns
// that the copies write.
#pragma once
#include "hopper_functions.hpp"
#include "syrk_accumulate_device.hpp"

namespace curvedit {
namespace wgmma {

constexpr int kTile = kDeviceTile, kDepth = 64, kStages = 6;
constexpr int kConsumers = 256, kThreads = kConsumers + 128;
constexpr int kColumns = 64;  // of a panel, whose rows are 128 bytes, the span of the swizzle
constexpr int kPanel = kDepth * kColumns * 2;                               // bytes
constexpr int kOperand = kTile / kColumns * kPanel, kStage = 2 * kOperand;  // bytes
constexpr int kFlush = kDeviceFlush / kDepth;                               // steps
constexpr int kAlignment = 1024;                                            // of a swizzled panel
constexpr int kShared = kStages * (kStage + 2 * 8) + kAlignment;

// Zeroes the copies of tokens past the end. These belong to another group, and may hold NaN.
CURVEDIT_DEVICE void clear_tail(unsigned char* stage, int tokens, int panels) {
  const int row = kColumns * 2 / 16, rows = kDepth - tokens;  // 16-byte pieces
  for (int n = thread_index(); n < panels * rows * row; n += kConsumers) {
    auto* const to = reinterpret_cast<float*>(stage + n / (rows * row) * kPanel +
                                              (tokens * row + n % (rows * row)) * 16);
    to[0] = to[1] = to[2] = to[3] = 0.0f;
  }
  fence_async();
  partial_barrier(1, kConsumers);
}

CURVEDIT_DEVICE void store(float (&sum)[64], float* tile, bool is_added) {
  const int lane = thread_index() % 32, row = thread_index() / 32 * 16 + lane / 4;
  CURVEDIT_UNROLL
  for (int n = 0; n < 64; n += 2) {
    float* const at = tile + (row + n / 2 % 2 * 8) * kTile + n / 4 * 8 + lane % 4 * 2;
    at[0] = sum[n] + (is_added ? at[0] : 0.0f);
    at[1] = sum[n + 1] + (is_added ? at[1] : 0.0f);
    sum[n] = sum[n + 1] = 0.0f;
  }
}

// Keeps the ring full. Runs in one thread.
CURVEDIT_DEVICE void feed(const TensorMap* map, Range range, int row, int column, Shared stages,
                          Shared full, Shared empty) {
  const int operands = row == column ? 1 : 2;
  const std::int64_t steps = (range.last - range.first + kDepth - 1) / kDepth;
  for (std::int64_t k = 0; k < steps; ++k) {
    const auto stage = static_cast<unsigned>(k % kStages);
    const auto turn = static_cast<unsigned>(k / kStages);
    const auto token = static_cast<int>(range.first + k * kDepth);
    const Shared barrier = full + 8 * stage;
    wait(empty + 8 * stage, (turn & 1) ^ 1);
    arrive_expecting(barrier, operands * kOperand);
    for (int panel = 0; panel < 2 * operands; ++panel)
      load_box(stages + stage * kStage + panel * kPanel, map,
               (panel < 2 ? row : column) + panel % 2 * kColumns, token, barrier);
  }
}

// Multiplies each stage as it arrives, and hands it back once its products are done. Runs in two
// warpgroups. Between flushes only products may touch the sum: otherwise ptxas serialises them.
template <typename Warpgroup>
CURVEDIT_DEVICE void consume(const SyrkOnDevice& p, Range range, int operands,
                             unsigned char* stages, Shared full, Shared empty, float* tile) {
  const bool hands_back = thread_index() % 32 == 0;
  const std::int64_t steps = (range.last - range.first + kDepth - 1) / kDepth;
  float sum[64] = {};
  bool is_added = !p.partial;
  std::int64_t k = 0;
  do {  // at least once: a partial tile is written even without tokens
    const std::int64_t stop = k + kFlush < steps ? k + kFlush : steps;
    for (; k < stop; ++k) {
      const auto stage = static_cast<unsigned>(k % kStages);
      const auto turn = static_cast<unsigned>(k / kStages);
      unsigned char* const left = stages + stage * kStage;
      wait(full + 8 * stage, turn & 1);
      const std::int64_t tokens = range.last - range.first - k * kDepth;
      if (tokens < kDepth) clear_tail(left, static_cast<int>(tokens), 2 * operands);
      const Shared a = to_shared(left) + thread_index() / 128 * kPanel;
      const Shared b = to_shared(left) + (operands - 1) * kOperand;
      begin_products();
      CURVEDIT_UNROLL
      for (int row = 0; row < kDepth; row += 16)
        Warpgroup::multiply(sum, matrix_at(a + row * 128, kPanel, 1024),
                            matrix_at(b + row * 128, kPanel, 1024));
      commit_products();
      wait_for_products<1>();
      if (k > 0 && hands_back) arrive(empty + 8 * static_cast<unsigned>((k - 1) % kStages));
    }
    wait_for_products<0>();
    store(sum, tile, is_added);
    is_added = true;
  } while (k < steps);
}

}  // namespace wgmma

// Grid: (tiles, splits, groups). The map's boxes are 64 tokens of 64 columns. Takes no weights.
template <typename Warpgroup>
CURVEDIT_KERNEL(wgmma::kThreads)
syrk_accumulate_wgmma(const SyrkOnDevice p, CURVEDIT_MAP map) {
#if defined(CURVEDIT_ON_HOST) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using namespace wgmma;
  const Shared begin = to_shared(shared_memory());
  unsigned char* const stages = shared_memory() + (kAlignment - begin % kAlignment) % kAlignment;
  const Shared full = to_shared(stages) + kStages * kStage, empty = full + 8 * kStages;
  if (thread_index() == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      init_barrier(full + 8 * stage, 1);
      init_barrier(empty + 8 * stage, kConsumers / 32);
    }
    publish_barriers();
  }
  block_barrier();
  const Position at = position(block_x(), p.side, kDeviceBand);
  const int row = static_cast<int>(at.row) * kTile, column = static_cast<int>(at.column) * kTile;
  const Range range = tokens_of(p, kDepth);
  if (thread_index() < kConsumers)
    consume<Warpgroup>(p, range, row == column ? 1 : 2, stages, full, empty, tile_of(p, at));
  else if (thread_index() == kConsumers)
    feed(&map, range, row, column, to_shared(stages), full, empty);
#endif
}

}  // namespace curvedit
