// Tokens times the roots of their weights, in rows that Hopper's kernel can read.
#pragma once
#include <cmath>
#include <cstdint>

#include "device_functions.hpp"

namespace curvedit {

struct alignas(16) Words8 {
  std::uint16_t at[8];
};

struct Scaling {
  std::uint16_t* out;  // (tokens, width), width a multiple of 8; zeros past dim
  const std::uint16_t* x;
  const float* weight;  // (tokens,) or null
  std::int64_t tokens, token_stride, dim_stride;
  int dim, width;
};

// One thread per 8 columns of a token. A token of weight 0 becomes zero, whatever it holds.
// kAligned: the rows of x are contiguous and aligned to 16 bytes.
template <typename From, typename To, bool kAligned>
CURVEDIT_KERNEL(256)
scale_tokens(const Scaling p) {
  const std::int64_t n = static_cast<std::int64_t>(block_x()) * 256 + thread_index();
  const std::int64_t token = n / (p.width / 8);
  if (token >= p.tokens) return;
  const auto first = static_cast<int>(n % (p.width / 8)) * 8;
  const float weight = p.weight ? p.weight[token] : 1.0f, root = sqrtf(weight);
  const std::uint16_t* const from = p.x + token * p.token_stride + first * p.dim_stride;
  Words8 words{};
  if (weight > 0.0f) {
    if constexpr (kAligned) words = *reinterpret_cast<const Words8*>(from);
    CURVEDIT_UNROLL
    for (int c = 0; c < 8; ++c) {
      if (kAligned || first + c < p.dim) {
        const std::uint16_t word = kAligned ? words.at[c] : from[c * p.dim_stride];
        words.at[c] = To::from_float(From::to_float(word) * root);
      }
    }
  }
  *reinterpret_cast<Words8*>(p.out + token * p.width + first) = words;
}

}  // namespace curvedit
