// A matrix of tokens, as the CPU kernels read it.
#pragma once
#include <cstddef>
#include <cstdint>

namespace curvedit {

constexpr std::ptrdiff_t kTile = 128;

enum class Dtype : int { float32 = 0, bfloat16 = 1, float16 = 2 };

// Strides count elements.
struct Tokens {
  const void* x;  // (tokens, dim)
  Dtype dtype;
  std::ptrdiff_t tokens, dim, token_stride, dim_stride;

  // The `count` tokens from `first` on.
  Tokens part(std::ptrdiff_t first, std::ptrdiff_t count) const {
    const std::ptrdiff_t bytes = dtype == Dtype::float32 ? 4 : 2;
    return {static_cast<const char*>(x) + first * token_stride * bytes,
            dtype,
            count,
            dim,
            token_stride,
            dim_stride};
  }
};

}  // namespace curvedit
