// The blocked algorithm, compiled once per instruction set by syrk_accumulate_<set>.cpp.
//
// Tokens are taken kDepth at a time and packed, as float32, into panels of 16 neighbouring columns
// (kDepth x 16, contiguous). X^T X needs one packing only: a panel serves as rows of the product,
// read one number at a time, and as columns, read one vector at a time. The micro-kernel keeps a
// kRows x 16 kPanels block of the product in registers over the whole depth.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "syrk_accumulate.hpp"

// After the standard headers, so that none of their functions is compiled for this set: the linker
// keeps one copy of each, and might keep that one.
#if defined(CURVEDIT_TARGET)
CURVEDIT_TARGET
#endif

namespace curvedit {
namespace {

constexpr std::ptrdiff_t kPanel = 16;
constexpr std::ptrdiff_t kGroup = kTile / kPanel;  // panels of a tile
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
#if defined(__F16C__)
  return _cvtsh_ss(x->bits);
#else
  const std::uint32_t sign = (x->bits & 0x8000u) << 16, exponent = (x->bits >> 10) & 0x1fu;
  const std::uint32_t mantissa = x->bits & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24 is exact in float32
    const float value = static_cast<float>(mantissa) * 5.9604644775390625e-8f;
    return sign ? -value : value;
  }
  const std::uint32_t bits = sign | ((exponent == 31 ? 255u : exponent + 112u) << 23) | (mantissa << 13);
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

// Sixteen neighbours at once.
inline void load_panel(const float* x, float scale, float* to) {
  *reinterpret_cast<Floats*>(to) = *reinterpret_cast<const Floats*>(x) * scale;
}

inline void load_panel(const Bfloat16* x, float scale, float* to) {
  const Words bits = __builtin_convertvector(*reinterpret_cast<const Halves*>(x), Words) << 16;
  *reinterpret_cast<Floats*>(to) = reinterpret_cast<const Floats&>(bits) * scale;
}

inline void load_panel(const Float16* x, float scale, float* to) {
#if defined(__F16C__)
  for (int half = 0; half < 2; ++half) {
    const __m256 eight = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + 8 * half)));
    _mm256_storeu_ps(to + 8 * half, _mm256_mul_ps(eight, _mm256_set1_ps(scale)));
  }
#else
  for (int c = 0; c < kPanel; ++c) to[c] = scale * load(x + c);
#endif
}

// Columns [first, first + 16) of `count` tokens from `token` on, times the tokens' scales; 0 outside.
template <typename T>
void pack_chunk(const Syrk& p, const float* scale, std::ptrdiff_t token, std::ptrdiff_t count,
                std::ptrdiff_t first, float* to) {
  const T* x = static_cast<const T*>(p.x);
  const std::ptrdiff_t width = std::min(kPanel, p.dim - first);
  for (std::ptrdiff_t k = 0; k < count; ++k, to += kPanel) {
    const float s = scale ? scale[k] : 1.0f;
    const T* from = x + (token + k) * p.token_stride + first * p.dim_stride;
    if (s == 0.0f) {  // never read: NaN times 0 would stay NaN
      std::fill(to, to + kPanel, 0.0f);
    } else if (width == kPanel && p.dim_stride == 1) {
      load_panel(from, s, to);
    } else {
      for (std::ptrdiff_t c = 0; c < kPanel; ++c) to[c] = c < width ? s * load(from + c * p.dim_stride) : 0.0f;
    }
  }
}

// Set: floats per vector, rows and panels of the micro-kernel, depth of a block.
template <int kFloats, int kRows, int kPanels, int kDepth>
struct Algorithm {
  typedef float Vector __attribute__((vector_size(kFloats * sizeof(float)), aligned(16), may_alias));
  static constexpr int kVectors = kPanels * static_cast<int>(kPanel) / kFloats;  // per row
  static constexpr int kPerPanel = static_cast<int>(kPanel) / kFloats;
  static constexpr std::ptrdiff_t kColumns = kPanels * kPanel;
  static_assert(kPanel % kRows == 0 && kTile % kColumns == 0, "micro-tiles must fill a tile");

  // c (kRows x kColumns, row stride kTile) += rows^T columns over `depth` tokens.
  static void micro(const float* rows, const float* columns, std::ptrdiff_t panel_size, std::ptrdiff_t depth,
                    float* c) {
    Vector sum[kRows][kVectors] = {};
    for (std::ptrdiff_t k = 0; k < depth; ++k) {
      Vector right[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v)
        right[v] = *reinterpret_cast<const Vector*>(columns + (v / kPerPanel) * panel_size + k * kPanel +
                                                    (v % kPerPanel) * kFloats);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const Vector left = rows[k * kPanel + r] - Vector{};
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sum[r][v] += left * right[v];
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v)
        *reinterpret_cast<Vector*>(c + r * kTile + v * kFloats) += sum[r][v];
  }

  // One 128 x 128 tile; micro-tiles above the diagonal or outside the matrix are skipped.
  static void tile(const Syrk& p, const float* packed, std::ptrdiff_t row, std::ptrdiff_t column,
                   std::ptrdiff_t depth) {
    float* out = p.out + (row * (row + 1) / 2 + column) * kTile * kTile;
    const std::ptrdiff_t panel_size = kDepth * kPanel;
    const std::ptrdiff_t height = std::min(kTile, p.dim - row * kTile), width = std::min(kTile, p.dim - column * kTile);
    for (std::ptrdiff_t c = 0; c < width; c += kColumns) {
      const float* columns = packed + (column * kTile + c) / kPanel * panel_size;
      std::ptrdiff_t first = row == column ? c / kRows * kRows : 0;
      for (std::ptrdiff_t r = first; r < height; r += kRows) {
        const std::ptrdiff_t global = row * kTile + r;
        const float* rows = packed + global / kPanel * panel_size + global % kPanel;
        micro(rows, columns, panel_size, depth, out + r * kTile + c);
      }
    }
  }

  static void pack(const Syrk& p, const float* scale, std::ptrdiff_t token, std::ptrdiff_t depth,
                   std::ptrdiff_t first_panel, float* packed) {
    for (std::ptrdiff_t k = 0; k < depth; k += kChunk) {
      const std::ptrdiff_t count = std::min(kChunk, depth - k);
      for (std::ptrdiff_t panel = first_panel; panel < first_panel + kGroup; ++panel) {
        float* to = packed + (panel * kDepth + k) * kPanel;
        const float* s = scale ? scale + k : nullptr;
        switch (p.dtype) {
          case Dtype::float32: pack_chunk<float>(p, s, token + k, count, panel * kPanel, to); break;
          case Dtype::bfloat16: pack_chunk<Bfloat16>(p, s, token + k, count, panel * kPanel, to); break;
          case Dtype::float16: pack_chunk<Float16>(p, s, token + k, count, panel * kPanel, to); break;
        }
      }
    }
  }

  static void run(const Syrk& p) {
    const std::ptrdiff_t side = (p.dim + kTile - 1) / kTile, tiles = side * (side + 1) / 2;
    const std::ptrdiff_t panels = side * kGroup;
    const int threads = static_cast<int>(std::clamp<std::ptrdiff_t>(p.threads, 1, tiles));
    const auto size = static_cast<std::size_t>(panels * kDepth * kPanel);
    struct Free {
      void operator()(float* memory) const { ::operator delete(memory, std::align_val_t{64}); }
    };
    std::unique_ptr<float, Free> packed(
        static_cast<float*>(::operator new(size * sizeof(float), std::align_val_t{64})));
    std::vector<float> scale(p.weight ? static_cast<std::size_t>(p.tokens) : 0);
    for (std::size_t t = 0; t < scale.size(); ++t) scale[t] = std::sqrt(p.weight[t]);

    // OpenMP, because torch uses it: a second pool of threads would fight with its spinning workers.
#pragma omp parallel num_threads(threads)
    for (std::ptrdiff_t token = 0; token < p.tokens; token += kDepth) {
      const std::ptrdiff_t depth = std::min<std::ptrdiff_t>(kDepth, p.tokens - token);
#pragma omp for schedule(static)
      for (std::ptrdiff_t group = 0; group < side; ++group)
        pack(p, p.weight ? scale.data() + token : nullptr, token, depth, group * kGroup, packed.get());
        // Tiles from the last row up: the few large pieces of a row first, the small ones at the end.
#pragma omp for schedule(dynamic)
      for (std::ptrdiff_t n = 0; n < tiles; ++n) {
        const std::ptrdiff_t index = tiles - 1 - n;
        auto row = static_cast<std::ptrdiff_t>((std::sqrt(8.0 * static_cast<double>(index) + 1.0) - 1.0) / 2.0);
        while (row * (row + 1) / 2 > index) --row;
        while ((row + 1) * (row + 2) / 2 <= index) ++row;
        tile(p, packed.get(), row, index - row * (row + 1) / 2, depth);
      }
    }
  }
};

}  // namespace
}  // namespace curvedit
