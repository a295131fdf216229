// Panels of bfloat16 pairs, for instruction sets that multiply them: AVX512-BF16.
//
// A product of bfloat16 numbers is exact in float32, and each is added with one rounding. The
// instruction takes subnormal numbers as 0.
#pragma once
#include "micro_kernel.hpp"

namespace curvedit {
namespace {

// Words of two tokens' numbers each.
struct Pairs {
  static constexpr std::ptrdiff_t kTokens = 2;  // per word

  // Packs columns [first, first + 16) of `count` tokens from `token` on. Tokens of scale 0, a
  // missing last one and columns outside the matrix become 0; other scales are taken as 1.
  static void pack(const Tokens& p, const float* scale, std::ptrdiff_t token, std::ptrdiff_t count,
                   std::ptrdiff_t first, float* to) {
    for (std::ptrdiff_t k = 0; k < count; k += 2, to += kPanel) {
      const auto read = [&](std::ptrdiff_t n) {
        return n < count && !(scale && scale[n] == 0.0f) ? load(p, token + n, first)
                                                         : _mm512_setzero_si512();
      };
      const __m512i words = _mm512_or_si512(read(k), _mm512_slli_epi32(read(k + 1), 16));
      _mm512_store_si512(to, words);
    }
  }

  template <typename V>
  static V add_product(V sum, V left, V right) {
    return (V)_mm512_dpbf16_ps((__m512)sum, (__m512bh)left, (__m512bh)right);
  }

  template <typename V>
  static V broadcast(const float* word) {
    std::int32_t bits;
    std::memcpy(&bits, word, sizeof bits);
    return (V)_mm512_set1_epi32(bits);
  }

 private:
  // One token's 16 columns from `first` on, as the lower halves of words.
  static __m512i load(const Tokens& p, std::ptrdiff_t token, std::ptrdiff_t first) {
    const std::ptrdiff_t width = std::min(kPanel, p.dim - first);
    const std::uint16_t* from = static_cast<const std::uint16_t*>(p.x) + token * p.token_stride +
                                first * p.dim_stride;
    if (width == kPanel && p.dim_stride == 1) {
      __builtin_prefetch(from + 2 * kChunk * p.token_stride);
      return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    }
    alignas(64) std::uint32_t words[kPanel] = {};
    for (std::ptrdiff_t c = 0; c < width; ++c) words[c] = from[c * p.dim_stride];
    return _mm512_load_si512(words);
  }
};

}  // namespace
}  // namespace curvedit
