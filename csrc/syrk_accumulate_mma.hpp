// syrk_accumulate for half-precision input on tensor cores, sm_80 and up: mma.sync, cp.async.
//
// One block of 8 warps computes one lower 128 x 128 tile. Tokens pass, 32 at a time, through a ring
// of four stages. x is stored as (token, column), and both operands of X^T X are its transpose, so
// one load instruction serves both. Tensor cores truncate when they add, so the registers are
// flushed into the float32 tile every 16k tokens.
#pragma once
#include "syrk_accumulate_device.hpp"

namespace curvedit {
namespace mma {

constexpr int kTile = kDeviceTile, kThreads = 256, kDepth = 32, kStages = 4;
constexpr int kOperand = kDepth * kTile;  // 16-bit words of one operand in one stage
constexpr int kStage = 2 * kOperand;      // words
constexpr int kShared = kStages * (kStage * 2 + kDepth * 4);  // bytes
constexpr int kRows = 64, kColumns = 32;                      // of a warp

// Where a word lies in an operand. The 16-byte pieces of eight neighbouring tokens lie in different
// banks.
CURVEDIT_DEVICE int place(int token, int column) {
  return token * kTile + ((column / 8) ^ (token & 7)) * 8 + column % 8;
}

// Loads 32 tokens from `token` on, columns [column, column + 128): two 16-byte pieces per thread.
template <bool kAligned>
CURVEDIT_DEVICE void load(const SyrkOnDevice& p, std::uint16_t* to, std::int64_t token,
                          std::int64_t last, int column) {
  for (int piece = thread_index(); piece < kOperand / 8; piece += kThreads) {
    const int t = piece / (kTile / 8), c = piece % (kTile / 8) * 8;
    const bool is_token = token + t < last;
    const std::uint16_t* from = p.x + (token + t) * p.token_stride;
    if constexpr (kAligned) {  // dim is a multiple of 8: no piece straddles the edge
      const bool is_read = is_token && column + c < p.dim;
      copy_async(to_shared(to + place(t, c)), is_read ? from + column + c : p.x, is_read);
    } else {
      for (int n = 0; n < 8; ++n)
        to[place(t, c) + n] =
            is_token && column + c + n < p.dim ? from[(column + c + n) * p.dim_stride] : 0;
    }
  }
}

// Multiplies both halves of a register by the roots of their tokens' weights. Where the weight is 0
// the result is 0, whatever the register holds.
template <typename Words>
CURVEDIT_DEVICE std::uint32_t scaled(std::uint32_t pair, const float* root) {
  const float low = root[0] * Words::to_float(static_cast<std::uint16_t>(pair));
  const float high = root[1] * Words::to_float(static_cast<std::uint16_t>(pair >> 16));
  const std::uint32_t first = root[0] > 0.0f ? Words::from_float(low) : 0;
  return first | static_cast<std::uint32_t>(root[1] > 0.0f ? Words::from_float(high) : 0) << 16;
}

template <typename Words, bool kWeighted>
CURVEDIT_DEVICE void multiply_stage(float (&sum)[4][4][4], const std::uint16_t* left,
                                    const std::uint16_t* right, const float* root) {
  const int lane = thread_index() % 32, warp = thread_index() / 32;
  const int row = warp / 4 * kRows, column = warp % 4 * kColumns;
  CURVEDIT_UNROLL
  for (int k = 0; k < kDepth; k += 16) {
    std::uint32_t a[4][4], b[2][4];
    CURVEDIT_UNROLL
    for (int m = 0; m < 4; ++m)
      load_transposed(a[m], to_shared(left + place(k + lane % 8 + lane / 16 * 8,
                                                   row + 16 * m + lane / 8 % 2 * 8)));
    CURVEDIT_UNROLL
    for (int n = 0; n < 2; ++n)
      load_transposed(b[n],
                      to_shared(right + place(k + lane % 16, column + 16 * n + lane / 16 * 8)));
    if constexpr (kWeighted) {  // both sides, rounded alike: the sum stays symmetric
      const float* roots = root + k + lane % 4 * 2;
      CURVEDIT_UNROLL
      for (int m = 0; m < 4; ++m) {
        CURVEDIT_UNROLL
        for (int r = 0; r < 4; ++r) a[m][r] = scaled<Words>(a[m][r], roots + r / 2 * 8);
      }
      CURVEDIT_UNROLL
      for (int n = 0; n < 2; ++n) {
        CURVEDIT_UNROLL
        for (int r = 0; r < 4; ++r) b[n][r] = scaled<Words>(b[n][r], roots + r % 2 * 8);
      }
    }
    CURVEDIT_UNROLL
    for (int m = 0; m < 4; ++m) {
      CURVEDIT_UNROLL
      for (int n = 0; n < 4; ++n)
        Words::multiply(sum[m][n], a[m], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
    }
  }
}

CURVEDIT_DEVICE void store(float (&sum)[4][4][4], float* tile, bool is_added) {
  const int lane = thread_index() % 32, warp = thread_index() / 32;
  const int row = warp / 4 * kRows + lane / 4, column = warp % 4 * kColumns + lane % 4 * 2;
  CURVEDIT_UNROLL
  for (int m = 0; m < 4; ++m) {
    CURVEDIT_UNROLL
    for (int n = 0; n < 4; ++n) {
      CURVEDIT_UNROLL
      for (int half = 0; half < 2; ++half) {
        float* at = tile + (row + 16 * m + 8 * half) * kTile + column + 8 * n;
        at[0] = sum[m][n][2 * half] + (is_added ? at[0] : 0.0f);
        at[1] = sum[m][n][2 * half + 1] + (is_added ? at[1] : 0.0f);
        sum[m][n][2 * half] = sum[m][n][2 * half + 1] = 0.0f;
      }
    }
  }
}

}  // namespace mma

// Grid: (tiles, splits, groups). kAligned requires dim_stride 1, and dim, token_stride and the
// address of x to be multiples of 16 bytes.
template <typename Words, bool kWeighted, bool kAligned>
CURVEDIT_KERNEL(mma::kThreads)
syrk_accumulate_mma(const SyrkOnDevice p) {
  using namespace mma;
  auto* const words = reinterpret_cast<std::uint16_t*>(shared_memory());
  auto* const roots = reinterpret_cast<float*>(words + kStages * kStage);
  const Position at = position(block_x(), p.side, kDeviceBand);
  const int row = static_cast<int>(at.row) * kTile, column = static_cast<int>(at.column) * kTile;
  const bool is_diagonal = row == column;  // one operand then serves as both
  const Range range = tokens_of(p, kDepth);

  const auto fetch = [&](std::int64_t token, int stage) {
    std::uint16_t* to = words + stage * kStage;
    load<kAligned>(p, to, token, range.last, row);
    if (!is_diagonal) load<kAligned>(p, to + kOperand, token, range.last, column);
    if (kWeighted && thread_index() < kDepth) {
      const std::int64_t t = token + thread_index();
      roots[stage * kDepth + thread_index()] = t < range.last ? sqrtf(p.weight[t]) : 0.0f;
    }
  };

  float* const tile = tile_of(p, at);
  float sum[4][4][4] = {};
  std::int64_t start = range.first;
  do {  // at least once: a partial tile is written even without tokens
    const std::int64_t stop = start + kDeviceFlush < range.last ? start + kDeviceFlush : range.last;
    const std::int64_t steps = (stop - start + kDepth - 1) / kDepth;
    for (int s = 0; s < kStages - 1; ++s) {
      if (s < steps) fetch(start + s * kDepth, s);
      commit_copies();
    }
    for (std::int64_t k = 0; k < steps; ++k) {
      wait_for_copies<kStages - 2>();
      block_barrier();  // stage k has arrived for all threads, and all are done with stage k - 1
      const std::int64_t next = k + kStages - 1;
      if (next < steps) fetch(start + next * kDepth, static_cast<int>(next % kStages));
      commit_copies();
      const int stage = static_cast<int>(k % kStages);
      const std::uint16_t* left = words + stage * kStage;
      multiply_stage<Words, kWeighted>(sum, left, is_diagonal ? left : left + kOperand,
                                       roots + stage * kDepth);
    }
    block_barrier();  // before the ring is refilled
    store(sum, tile, !p.partial || start != range.first);
    start = stop;
  } while (start < range.last);
}

// Adds the splits' partial sums to out, in order. One thread per element.
CURVEDIT_KERNEL(256)
syrk_add_partial(float* out, const float* partial, std::int64_t size, int splits) {
  const std::int64_t n = static_cast<std::int64_t>(block_x()) * 256 + thread_index();
  if (n >= size) return;
  float sum = 0.0f;
  for (int s = 0; s < splits; ++s) sum += partial[s * size + n];
  out[n] += sum;
}

}  // namespace curvedit
