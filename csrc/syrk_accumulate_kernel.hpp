// The blocked algorithm of syrk_accumulate, compiled once per instruction set by
// syrk_accumulate_<set>.cpp.
//
// Tokens are taken kDepth words at a time. X^T X needs only one packing, whose panels serve both as
// rows and as columns.
#pragma once
#include "syrk_accumulate.hpp"
#include "tile_order.hpp"
// Last, because it sets the compiler's target.
#include "micro_kernel.hpp"

namespace curvedit {
namespace {

// Words that several threads pack at a time if one block is smaller.
constexpr std::ptrdiff_t kShared = 1 << 20;
constexpr std::ptrdiff_t kBand = 4;  // tile rows walked together

template <typename Micro, int kDepth>
struct Algorithm {
  using Packing = typename Micro::Packing;
  static constexpr std::ptrdiff_t kColumns = Micro::kColumns, kPanelSize = kDepth * kPanel;
  static constexpr std::ptrdiff_t kBlock = kDepth * Packing::kTokens;  // tokens

  // Computes one 128 x 128 tile. Micro-tiles above the diagonal or outside the matrix are skipped.
  static void tile(const Syrk& p, float* sum, const float* packed, Position at,
                   std::ptrdiff_t depth) {
    float* out = sum + (at.row * (at.row + 1) / 2 + at.column) * kTile * kTile;
    const float* left = packed + at.row * kGroup * kPanelSize;
    const float* right = packed + at.column * kGroup * kPanelSize;
    const std::ptrdiff_t height = std::min(kTile, p.x.dim - at.row * kTile);
    const std::ptrdiff_t width = std::min(kTile, p.x.dim - at.column * kTile);
    for (std::ptrdiff_t c = 0; c < width; c += kColumns) {
      for (std::ptrdiff_t r = at.row == at.column ? c : 0; r < height; r += kPanel) {
        Micro::template block<Add>(left + r * kDepth, right + c * kDepth, kPanelSize, depth,
                                   out + r * kTile + c, kTile);
      }
    }
  }

  // Packs a tile's panels of one block, `count` tokens, for every sum. The second sum finds the
  // tokens in the first-level cache.
  static void pack(const Syrk& p, const float* const* scale, std::ptrdiff_t token,
                   std::ptrdiff_t count, std::ptrdiff_t first_panel, float* packed,
                   std::ptrdiff_t next_sum) {
    for (std::ptrdiff_t k = 0; k < count; k += kChunk) {
      const std::ptrdiff_t some = std::min(kChunk, count - k);
      for (std::ptrdiff_t panel = first_panel; panel < first_panel + kGroup; ++panel) {
        for (int n = 0; n < p.count; ++n) {
          float* to = packed + n * next_sum + panel * kPanelSize + k / Packing::kTokens * kPanel;
          const float* s = scale[n] ? scale[n] + token + k : nullptr;
          Packing::pack(p.x, s, token + k, some, panel * kPanel, to);
        }
      }
    }
  }

  static void run(const Syrk& p) {
    const std::ptrdiff_t side = (p.x.dim + kTile - 1) / kTile, tiles = syrk_tiles(p.x.dim);
    const int threads = static_cast<int>(std::clamp<std::ptrdiff_t>(p.threads, 1, tiles));
    const std::ptrdiff_t block_size = side * kGroup * kPanelSize;
    const std::ptrdiff_t all = (p.x.tokens + kBlock - 1) / kBlock;
    // One block at a time is best for the caches. Several threads take more blocks, so that they
    // meet at fewer barriers: where other programs share the cores, each barrier waits for the last
    // thread to be scheduled.
    const std::ptrdiff_t wanted = threads > 1 ? kShared / (p.count * block_size) : 1;
    const std::ptrdiff_t blocks = std::clamp<std::ptrdiff_t>(wanted, 1, all);
    const std::ptrdiff_t next_sum = blocks * block_size;
    const Memory packed = allocate(p.count * next_sum), roots = allocate(p.count * p.x.tokens);
    const float* scale[2] = {nullptr, nullptr};
    for (int n = 0; n < p.count; ++n) {
      if (!p.sums[n].weight) continue;
      float* root = roots.get() + n * p.x.tokens;
      for (std::ptrdiff_t t = 0; t < p.x.tokens; ++t) root[t] = std::sqrt(p.sums[n].weight[t]);
      scale[n] = root;
    }

    // OpenMP because torch uses it: a second thread pool would compete with its spinning workers.
#pragma omp parallel num_threads(threads)
    for (std::ptrdiff_t first = 0; first < all; first += blocks) {
      const std::ptrdiff_t here = std::min(blocks, all - first);
      const auto count = [&](std::ptrdiff_t block) {
        return std::min<std::ptrdiff_t>(kBlock, p.x.tokens - (first + block) * kBlock);
      };
#pragma omp for schedule(dynamic)
      for (std::ptrdiff_t n = 0; n < here * side; ++n) {
        const std::ptrdiff_t block = n / side, token = (first + block) * kBlock;
        pack(p, scale, token, count(block), n % side * kGroup, packed.get() + block * block_size,
             next_sum);
      }
      // One sum after the other, because each fills the cache.
#pragma omp for schedule(dynamic)
      for (std::ptrdiff_t n = 0; n < p.count * tiles; ++n) {
        const std::ptrdiff_t sum = n / tiles;
        const float* from = packed.get() + sum * next_sum;
        for (std::ptrdiff_t block = 0; block < here; ++block)
          tile(p, p.sums[sum].out, from + block * block_size, position(n % tiles, side, kBand),
               (count(block) + Packing::kTokens - 1) / Packing::kTokens);
      }
    }
  }
};

}  // namespace
}  // namespace curvedit
