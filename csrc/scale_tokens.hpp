// Tokens times the roots of their weights, in rows that Hopper's kernel can read: halves, or the
// sum of two.
#pragma once
#include <cmath>
#include <cstdint>

#include "device_functions.hpp"

namespace curvedit {

template <typename Word>
struct alignas(16) Eight {
  Word at[8];
};

struct Scaling {
  std::uint16_t* out;  // (tokens, width), width a multiple of 8; zeros past dim
  std::uint16_t* low;  // the same, what rounding to out has left; or null
  const void* x;
  const float* weight;  // (tokens,) or null
  std::int64_t tokens, token_stride, dim_stride;
  int dim, width;
};

// One thread per 8 columns of a token. A token of weight 0 becomes zero, whatever it holds.
// kAligned: the rows of x are contiguous and aligned to 16 bytes.
template <typename From, typename To, bool kAligned>
CURVEDIT_KERNEL(256)
scale_tokens(const Scaling p) {
  using Word = typename From::Word;
  const std::int64_t n = static_cast<std::int64_t>(block_x()) * 256 + thread_index();
  const std::int64_t token = n / (p.width / 8);
  if (token >= p.tokens) return;
  const auto first = static_cast<int>(n % (p.width / 8)) * 8;
  const float weight = p.weight ? p.weight[token] : 1.0f, root = sqrtf(weight);
  const Word* const from =
      static_cast<const Word*>(p.x) + token * p.token_stride + first * p.dim_stride;
  Eight<Word> words{};
  Eight<std::uint16_t> high{}, low{};
  if (weight > 0.0f) {
    if constexpr (kAligned) words = *reinterpret_cast<const Eight<Word>*>(from);
    CURVEDIT_UNROLL
    for (int c = 0; c < 8; ++c) {
      if (!kAligned && first + c >= p.dim) break;
      const float value = From::to_float(kAligned ? words.at[c] : from[c * p.dim_stride]) * root;
      high.at[c] = To::from_float(value);
      low.at[c] = To::from_float(value - To::to_float(high.at[c]));
    }
  }
  const std::int64_t place = token * p.width + first;
  *reinterpret_cast<Eight<std::uint16_t>*>(p.out + place) = high;
  if (p.low) *reinterpret_cast<Eight<std::uint16_t>*>(p.low + place) = low;
}

}  // namespace curvedit
