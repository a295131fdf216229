// syrk_accumulate for half-precision input on Hopper's tensor cores, sm_90a: wgmma, bulk tensor
// copies, clusters of two blocks.
//
// A cluster computes a macro tile of 2 x 2 tiles, each of its blocks one row of them (128 x 256):
// two warpgroups compute 64 rows each, fed by one thread of a third, which copies 64 tokens at a
// time into a ring of four stages. Both blocks need the same columns, so each copies half of them
// for both. x is stored as (token, column), so both operands of X^T X are read transposed, from the
// panels of 64 columns that the copies write.
#pragma once
#include "hopper_functions.hpp"
#include "syrk_accumulate_device.hpp"
#include "syrk_accumulate_plan.hpp"

namespace curvedit {
namespace wgmma {

constexpr int kTile = kDeviceTile, kStages = 4;
constexpr int kConsumers = 256, kThreads = kConsumers + 128;
constexpr int kColumns = 64;  // of a panel, whose rows are 128 bytes, the span of the swizzle
constexpr int kPanel = kDepth * kColumns * 2;          // bytes
constexpr int kLeft = 2 * kPanel, kStage = 3 * kLeft;  // bytes: the rows' panels, then all
constexpr int kFlush = kDeviceFlush / kDepth;          // steps
constexpr int kAlignment = 1024;                       // of a swizzled panel
constexpr int kShared = kStages * (kStage + 2 * 8) + kAlignment;
constexpr int kEarly = 24;  // steps before its end at which a piece asks for the tiles it adds to
constexpr int kFew = 56, kMany = 224;  // registers of a thread that copies, and that multiplies

struct Ring {
  unsigned char* stages;
  Shared full, empty;
  int stage = 0;
  unsigned turn = 0;

  CURVEDIT_DEVICE void advance() {
    if (++stage == kStages) stage = 0, turn ^= 1;
  }
};

// The step of a piece: its tokens, and of how many there are.
struct Step {
  Range tokens;  // of the group
  int all;       // steps of one product
  int product, step;

  CURVEDIT_DEVICE Step(const SyrkOnDevice& p, const Piece& piece)
      : tokens(tokens_of_group(p, piece.group)), all(up(tokens.last - tokens.first, kDepth)) {
    product = all > 0 ? piece.first / all : 0;
    step = piece.first - product * all;
  }
  CURVEDIT_DEVICE int first_token() const { return static_cast<int>(tokens.first) + step * kDepth; }
  CURVEDIT_DEVICE int size() const {
    return static_cast<int>(tokens.last - tokens.first) - step * kDepth;
  }
  CURVEDIT_DEVICE void advance() {
    if (++step == all) step = 0, ++product;
  }
};

// Zeroes the copies of tokens past the end. These belong to another group, and may hold NaN.
CURVEDIT_DEVICE void clear_tail(unsigned char* stage, int tokens) {
  const int row = kColumns * 2 / 16, rows = kDepth - tokens;  // 16-byte pieces
  for (int n = thread_index(); n < kStage / kPanel * rows * row; n += kConsumers) {
    auto* const to = reinterpret_cast<float*>(stage + n / (rows * row) * kPanel +
                                              (tokens * row + n % (rows * row)) * 16);
    to[0] = to[1] = to[2] = to[3] = 0.0f;
  }
  fence_async();
  partial_barrier(1, kConsumers);
}

// Writes this warpgroup's rows of `count` tiles that follow each other, or adds them.
template <bool kIsAdded>
CURVEDIT_DEVICE void put(const float (&sum)[128], float* tiles, int count) {
  const int lane = thread_index() % 32, row = thread_index() / 32 * 16 + lane / 4;
  CURVEDIT_UNROLL
  for (int tile = 0; tile < 2; ++tile) {
    if (tile >= count) break;
    float* const from = tiles + tile * kTile * kTile + row * kTile + lane % 4 * 2;
    CURVEDIT_UNROLL
    for (int n = 0; n < 32; ++n) {
      float* const at = from + n % 2 * 8 * kTile + n / 2 * 8;
      const float left = sum[tile * 64 + 2 * n], right = sum[tile * 64 + 2 * n + 1];
      if (kIsAdded) add_pair(at, left, right);
      else store_pair(at, left, right);
    }
  }
}

// Keeps the ring full. Runs in one thread. Where x is the sum of two halves, high and low, the
// products are high x high, high x low and low x high.
CURVEDIT_DEVICE void feed(const SyrkOnDevice& p, const Plan& plan, const TensorMap* high,
                          const TensorMap* low, Ring ring) {
  const int rank = rank_in_cluster();
  for (int n = 0;; ++n) {
    const Piece piece = piece_of(p, plan, block_x() / 2, n);
    if (piece.is_end) return;
    const int row = 2 * static_cast<int>(piece.at.row) + rank;
    const int column = 2 * static_cast<int>(piece.at.column);
    const bool has_left = p.products > 1 || piece.at.row != piece.at.column;
    const int early = piece.last - piece.first > kEarly ? piece.last - kEarly : piece.first;
    Step step(p, piece);
    for (int k = piece.first; k < piece.last; ++k) {
      if (k == early && !piece.partial && row < p.side)
        for (int part = 0; part < (row > column ? 8 : 4); ++part)
          prefetch(tile_at(p, piece.group, row, column) + part * kTile * kTile / 4, kTile * kTile);
      const TensorMap* const left = step.product == 2 ? low : high;
      const TensorMap* const right = step.product == 1 ? low : high;
      const Shared barrier = ring.full + 8 * ring.stage;
      const Shared to = to_shared(ring.stages) + ring.stage * kStage;
      wait(ring.empty + 8 * ring.stage, ring.turn ^ 1);
      arrive_expecting(barrier, has_left ? kStage : kStage - kLeft);
      for (int panel = 0; panel < 2; ++panel) {
        const int place = panel * kColumns, token = step.first_token();
        if (has_left) load_box(to + panel * kPanel, left, row * kTile + place, token, barrier);
        load_box_for_both(to + kLeft + (2 * rank + panel) * kPanel, right,
                          (column + rank) * kTile + place, token, barrier);
      }
      ring.advance();
      step.advance();
    }
  }
}

// Multiplies each stage as it arrives, and hands it back once its products are done. Runs in two
// warpgroups. Between flushes only products may touch the sum: otherwise ptxas serialises them.
template <typename Warpgroup>
CURVEDIT_DEVICE void consume(const SyrkOnDevice& p, const Plan& plan, Ring ring) {
  const int rank = rank_in_cluster(), lane = thread_index() % 32;
  for (int n = 0;; ++n) {
    const Piece piece = piece_of(p, plan, block_x() / 2, n);
    if (piece.is_end) return;
    const int row = 2 * static_cast<int>(piece.at.row) + rank;
    const int column = 2 * static_cast<int>(piece.at.column);
    const int wanted = row >= p.side ? 0 : row > column ? 2 : 1;
    const bool has_left = p.products > 1 || piece.at.row != piece.at.column;
    const Shared at = (has_left ? 0 : kLeft + 2 * rank * kPanel) + thread_index() / 128 * kPanel;
    float* const tiles = piece.partial ? piece.partial + rank * 2 * kTile * kTile
                                       : tile_at(p, piece.group, row, column);
    bool is_added = !piece.partial;
    Step step(p, piece);
    for (int k = piece.first; k < piece.last;) {
      const int stop = k + kFlush < piece.last ? k + kFlush : piece.last;
      float sum[128] = {};
      int before = -1;
      for (; k < stop; ++k) {
        unsigned char* const stage = ring.stages + ring.stage * kStage;
        wait(ring.full + 8 * ring.stage, ring.turn);
        if (step.size() < kDepth) clear_tail(stage, step.size());
        const Shared a = to_shared(stage) + at, b = to_shared(stage) + kLeft;
        begin_products();
        CURVEDIT_UNROLL
        for (int token = 0; token < kDepth; token += 16)
          Warpgroup::multiply(sum, matrix_at(a + token * 128, kPanel, 1024),
                              matrix_at(b + token * 128, kPanel, 1024));
        commit_products();
        wait_for_products<1>();
        if (before >= 0 && lane < 2) arrive_at(ring.empty + 8 * before, lane);
        before = ring.stage;
        ring.advance();
        step.advance();
      }
      wait_for_products<0>();
      if (lane < 2) arrive_at(ring.empty + 8 * before, lane);
      if (is_added) put<true>(sum, tiles, wanted);
      else put<false>(sum, tiles, wanted);
      is_added = true;
    }
  }
}

}  // namespace wgmma

// Grid: two blocks per cluster of the plan. The maps' boxes are 64 tokens of 64 columns. Takes no
// weights.
template <typename Warpgroup>
CURVEDIT_KERNEL(wgmma::kThreads)
syrk_accumulate_wgmma(const SyrkOnDevice p, const Plan plan, CURVEDIT_MAP high, CURVEDIT_MAP low) {
#if defined(CURVEDIT_ON_HOST) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using namespace wgmma;
  const Shared begin = to_shared(shared_memory());
  Ring ring{shared_memory() + (kAlignment - begin % kAlignment) % kAlignment, 0, 0};
  ring.full = to_shared(ring.stages) + kStages * kStage;
  ring.empty = ring.full + 8 * kStages;
  if (thread_index() == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      init_barrier(ring.full + 8 * stage, 1);
      init_barrier(ring.empty + 8 * stage, 2 * kConsumers / 32);
    }
    publish_barriers();
  }
  cluster_barrier();
  allow_second_kernel();
  if (thread_index() < kConsumers) {
    take_registers<kMany>();
    consume<Warpgroup>(p, plan, ring);
  } else {
    give_registers<kFew>();
    if (thread_index() == kConsumers) feed(p, plan, &high, &low, ring);
  }
  cluster_barrier();  // the other block may still copy to this one, and arrive here
#else
  __trap();  // compiled for sm_90 without its own instructions
#endif
}

}  // namespace curvedit
