// The building blocks of the CPU kernels, compiled once per instruction set.
//
// Tokens are packed into panels of 16 neighbouring columns (depth x 16 words, contiguous). A word is
// a token's number as float32, or, where the instruction set multiplies them, two tokens' numbers
// as bfloat16. A panel serves both as rows of a product, read one word at a time, and as columns,
// read one vector at a time. The micro-kernel keeps a kHeight x 16 kPanels block of the product in
// registers over the whole depth.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>

#if defined(__x86_64__)
#pragma GCC diagnostic push  // GCC 12 warns about variables that this header leaves undefined
#pragma GCC diagnostic ignored "-Wuninitialized"
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#include "tokens.hpp"

// After the standard headers, so that none of their functions is compiled for this instruction set:
// the linker keeps one copy of each function, and it might be that one.
#if defined(CURVEDIT_TARGET)
CURVEDIT_TARGET
#endif

namespace curvedit {
namespace {

constexpr std::ptrdiff_t kPanel = 16;
constexpr std::ptrdiff_t kGroup = kTile / kPanel;  // panels per tile
constexpr std::ptrdiff_t kChunk = 8;  // tokens packed at a time, so that reads stay sequential

typedef float Floats __attribute__((vector_size(64), aligned(4), may_alias));
typedef std::uint32_t Words __attribute__((vector_size(64)));
typedef std::uint16_t Halves __attribute__((vector_size(32), aligned(2), may_alias));

struct Bfloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

inline float load(const float* x) { return *x; }

inline float load(const Bfloat16* x) {
  const std::uint32_t bits = static_cast<std::uint32_t>(x->bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float load(const Float16* x) {
#if defined(CURVEDIT_F16C)
  return _cvtsh_ss(x->bits);
#else
  const std::uint32_t sign = (x->bits & 0x8000u) << 16, exponent = (x->bits >> 10) & 0x1fu;
  const std::uint32_t mantissa = x->bits & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24 is exact in float32
    const float value = static_cast<float>(mantissa) * 5.9604644775390625e-8f;
    return sign ? -value : value;
  }
  const std::uint32_t bits =
      sign | ((exponent == 31 ? 255u : exponent + 112u) << 23) | (mantissa << 13);
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

// Loads sixteen neighbouring columns at once.
inline void load_panel(const float* x, float scale, float* to) {
  *reinterpret_cast<Floats*>(to) = *reinterpret_cast<const Floats*>(x) * scale;
}

inline void load_panel(const Bfloat16* x, float scale, float* to) {
  const Words bits = __builtin_convertvector(*reinterpret_cast<const Halves*>(x), Words) << 16;
  *reinterpret_cast<Floats*>(to) = reinterpret_cast<const Floats&>(bits) * scale;
}

inline void load_panel(const Float16* x, float scale, float* to) {
#if defined(CURVEDIT_F16C)
  for (int half = 0; half < 2; ++half) {
    const __m256 eight =
        _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + 8 * half)));
    _mm256_storeu_ps(to + 8 * half, _mm256_mul_ps(eight, _mm256_set1_ps(scale)));
  }
#else
  for (int c = 0; c < kPanel; ++c) to[c] = scale * load(x + c);
#endif
}

// Packs columns [first, first + 16) of `count` tokens from `token` on, times the tokens' scales.
// Columns outside the matrix become 0.
template <typename T>
void pack_chunk(const Tokens& p, const float* scale, std::ptrdiff_t token, std::ptrdiff_t count,
                std::ptrdiff_t first, float* to) {
  const T* x = static_cast<const T*>(p.x);
  const std::ptrdiff_t width = std::min(kPanel, p.dim - first);
  for (std::ptrdiff_t k = 0; k < count; ++k, to += kPanel) {
    const float s = scale ? scale[k] : 1.0f;
    const T* from = x + (token + k) * p.token_stride + first * p.dim_stride;
    if (s == 0.0f) {  // not read: 0 times NaN would be NaN
      std::fill(to, to + kPanel, 0.0f);
    } else if (width == kPanel && p.dim_stride == 1) {
      // Rows are too short for the hardware to start prefetching.
      __builtin_prefetch(from + 2 * kChunk * p.token_stride);
      load_panel(from, s, to);
    } else {
      for (std::ptrdiff_t c = 0; c < kPanel; ++c)
        to[c] = c < width ? s * load(from + c * p.dim_stride) : 0.0f;
    }
  }
}

inline void pack_chunk(const Tokens& p, const float* scale, std::ptrdiff_t token,
                       std::ptrdiff_t count, std::ptrdiff_t first, float* to) {
  switch (p.dtype) {
    case Dtype::float32: return pack_chunk<float>(p, scale, token, count, first, to);
    case Dtype::bfloat16: return pack_chunk<Bfloat16>(p, scale, token, count, first, to);
    case Dtype::float16: return pack_chunk<Float16>(p, scale, token, count, first, to);
  }
}

// In the unnamed namespace, unlike std::vector, so that the linker cannot replace it by a copy that
// was compiled for another instruction set.
struct Free {
  void operator()(float* memory) const { ::operator delete(memory, std::align_val_t{64}); }
};
using Memory = std::unique_ptr<float, Free>;

inline Memory allocate(std::ptrdiff_t floats) {
  const auto bytes = static_cast<std::size_t>(floats) * sizeof(float);
  return Memory(static_cast<float*>(::operator new(bytes, std::align_val_t{64})));
}

struct Add {
  template <typename V>
  static V of(V sum) {
    return sum;
  }
};
struct AddSquare {
  template <typename V>
  static V of(V sum) {
    return sum * sum;
  }
};

// Words of one token's number each.
struct Singles {
  static constexpr std::ptrdiff_t kTokens = 1;  // per word

  static void pack(const Tokens& p, const float* scale, std::ptrdiff_t token, std::ptrdiff_t count,
                   std::ptrdiff_t first, float* to) {
    pack_chunk(p, scale, token, count, first, to);
  }

  template <typename V>
  static V add_product(V sum, V left, V right) {
    return sum + left * right;
  }

  template <typename V>
  static V broadcast(const float* word) {
    return *word - V{};
  }
};

// Parameters of an instruction set: what a word holds; words per vector; columns of the
// micro-kernel, in panels; and how the 16 rows of a panel are divided, so that the sums fill the
// registers without spilling.
template <typename Content, int kFloats, int kPanels, int... kRows>
struct MicroKernel {
  using Packing = Content;
  typedef float Vector
      __attribute__((vector_size(kFloats * sizeof(float)), aligned(16), may_alias));
  typedef float Unaligned
      __attribute__((vector_size(kFloats * sizeof(float)), aligned(4), may_alias));
  static constexpr int kPerPanel = static_cast<int>(kPanel) / kFloats;
  static constexpr int kVectors = kPanels * kPerPanel;  // per row
  static constexpr std::ptrdiff_t kColumns = kPanels * kPanel;
  static_assert((kRows + ...) == kPanel && kTile % kColumns == 0, "micro-tiles must fill a tile");

  // 16 rows of c, kColumns wide, += rows^T columns over `depth` words, or its square, as `Take`
  // says. Panels lie `next` words apart.
  template <typename Take>
  static void block(const float* rows, const float* columns, std::ptrdiff_t next,
                    std::ptrdiff_t depth, float* c, std::ptrdiff_t stride) {
    (micro<Take, kRows>(rows, columns, next, depth, c, stride), ...);
  }

 private:
  template <typename Take, int kHeight>
  static inline void micro(const float*& rows, const float* columns, std::ptrdiff_t next,
                           std::ptrdiff_t depth, float*& c, std::ptrdiff_t stride) {
    for (int r = 0; r < kHeight; ++r)  // c is far away: fetch it while the sums are computed
      for (std::ptrdiff_t v = 0; v < kColumns; v += 16) __builtin_prefetch(c + r * stride + v, 1);
    Vector sum[kHeight][kVectors] = {};
#pragma GCC unroll 4
    for (std::ptrdiff_t k = 0; k < depth; ++k) {
      Vector right[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v)
        right[v] = *reinterpret_cast<const Vector*>(columns + (v / kPerPanel) * next + k * kPanel +
                                                    (v % kPerPanel) * kFloats);
#pragma GCC unroll 16
      for (int r = 0; r < kHeight; ++r) {
        const Vector left = Packing::template broadcast<Vector>(rows + k * kPanel + r);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v)
          sum[r][v] = Packing::add_product(sum[r][v], left, right[v]);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < kHeight; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v)
        *reinterpret_cast<Unaligned*>(c + r * stride + v * kFloats) += Take::of(sum[r][v]);
    rows += kHeight;
    c += kHeight * stride;
  }
};

}  // namespace
}  // namespace curvedit
