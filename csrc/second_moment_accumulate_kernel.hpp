// The blocked algorithm of second_moment_accumulate, compiled once per instruction set.
//
// A sequence's gradient never leaves the registers: the micro-kernel sums over all of its tokens,
// then adds the square. Besides the output, only the packed tokens of a few sequences are held.
#pragma once
#include "second_moment_accumulate.hpp"
// Last, because it sets the compiler's target.
#include "micro_kernel.hpp"

namespace curvedit {
namespace {

// Tokens' numbers packed at a time, unless one sequence needs more.
constexpr std::ptrdiff_t kPacked = 1 << 18;

template <typename Micro>
struct SecondMoments {
  using Packing = typename Micro::Packing;

  static std::ptrdiff_t depth_of(std::ptrdiff_t tokens) {
    return (tokens + Packing::kTokens - 1) / Packing::kTokens;
  }

  // Packs one panel of a sequence: 16 columns, from column first + 16 panel on.
  static void pack(const Tokens& x, std::ptrdiff_t first, std::ptrdiff_t panel, float* to) {
    to += panel * depth_of(x.tokens) * kPanel;
    for (std::ptrdiff_t k = 0; k < x.tokens; k += kChunk)
      Packing::pack(x, nullptr, k, std::min(kChunk, x.tokens - k), first + panel * kPanel,
                  to + k / Packing::kTokens * kPanel);
  }

  static void run(const SecondMoment& p) {
    const std::int64_t* at = p.offsets;
    std::ptrdiff_t longest = 1;
    for (std::ptrdiff_t b = 0; b < p.sequences; ++b)
      longest = std::max<std::ptrdiff_t>(longest, at[b + 1] - at[b]);
    // Where sequences are long the output is computed in parts, so that fewer columns are packed.
    const std::ptrdiff_t least = 4 * kTile;
    const std::ptrdiff_t most = std::max(least, 4 * kPacked / longest / kTile * kTile);
    const std::ptrdiff_t height = std::min(padded(p.g.dim), most);
    const std::ptrdiff_t width = std::min(padded(p.a.dim), most);
    const std::ptrdiff_t tokens = std::max(longest, kPacked / (height + width));
    const Memory packed = allocate(tokens * (height + width));
    for (std::ptrdiff_t row = 0; row < p.g.dim; row += height)
      for (std::ptrdiff_t column = 0; column < p.a.dim; column += width)
        for (std::ptrdiff_t first = 0, last; first < p.sequences; first = last) {
          for (last = first + 1; last < p.sequences && at[last + 1] - at[first] <= tokens;) ++last;
          part(p, row, std::min(height, p.g.dim - row), column, std::min(width, p.a.dim - column),
               first, last, packed.get());
        }
  }

 private:
  static std::ptrdiff_t padded(std::ptrdiff_t size) { return (size + kTile - 1) / kTile * kTile; }

  // Adds sequences [first, last) to `height` rows and `width` columns of the output.
  static void part(const SecondMoment& p, std::ptrdiff_t row, std::ptrdiff_t height,
                   std::ptrdiff_t column, std::ptrdiff_t width, std::ptrdiff_t first,
                   std::ptrdiff_t last, float* packed) {
    const std::ptrdiff_t down = padded(height) / kTile, along = padded(width) / kTile;
    const std::ptrdiff_t above = down * kGroup, panels = above + along * kGroup;
    const std::ptrdiff_t size = panels * kPanel;  // words per token, if each has its own
    const std::int64_t* at = p.offsets;
    const auto of = [&](std::ptrdiff_t b) { return packed + (at[b] - at[first]) * size; };
#pragma omp parallel num_threads(p.threads)
    {
      const Memory edge = allocate(kTile * kTile);
#pragma omp for schedule(dynamic, 8)
      for (std::ptrdiff_t n = 0; n < (last - first) * panels; ++n) {
        const std::ptrdiff_t b = first + n / panels, panel = n % panels;
        const std::ptrdiff_t tokens = at[b + 1] - at[b];
        if (panel < above) pack(p.g.part(at[b], tokens), row, panel, of(b));
        else
          pack(p.a.part(at[b], tokens), column, panel - above,
               of(b) + above * depth_of(tokens) * kPanel);
      }
#pragma omp for schedule(dynamic)
      for (std::ptrdiff_t n = 0; n < down * along; ++n) {
        const std::ptrdiff_t r = n / along * kTile, c = n % along * kTile;
        const std::ptrdiff_t rows = std::min(kTile, height - r);
        const std::ptrdiff_t columns = std::min(kTile, width - c);
        float* const out = p.out + (row + r) * p.a.dim + column + c;
        const bool is_whole = rows == kTile && columns == kTile;
        if (!is_whole) std::fill(edge.get(), edge.get() + kTile * kTile, 0.0f);
        for (std::ptrdiff_t b = first; b < last; ++b) {
          const std::ptrdiff_t depth = depth_of(at[b + 1] - at[b]), next = depth * kPanel;
          const float* const left = of(b) + r / kPanel * next;
          const float* const right = of(b) + (above + c / kPanel) * next;
          tile(left, right, depth, rows, columns, is_whole ? out : edge.get(),
               is_whole ? p.a.dim : kTile);
        }
        for (std::ptrdiff_t k = 0; !is_whole && k < rows; ++k)
          for (std::ptrdiff_t j = 0; j < columns; ++j)
            out[k * p.a.dim + j] += edge.get()[k * kTile + j];
      }
    }
  }

  static void tile(const float* left, const float* right, std::ptrdiff_t depth,
                   std::ptrdiff_t rows, std::ptrdiff_t columns, float* out, std::ptrdiff_t stride) {
    for (std::ptrdiff_t c = 0; c < columns; c += Micro::kColumns)
      for (std::ptrdiff_t r = 0; r < rows; r += kPanel)
        Micro::template block<AddSquare>(left + r * depth, right + c * depth, depth * kPanel, depth,
                                         out + r * stride + c, stride);
  }
};

}  // namespace
}  // namespace curvedit
