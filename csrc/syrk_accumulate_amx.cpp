// syrk_accumulate for bfloat16 input on Intel's matrix unit: 16 x 16 tiles, 32 tokens per step.
//
// Takes sums whose weights are all 0 or 1; everything else goes to AVX-512. The unit treats
// subnormal numbers as 0.
#define CURVEDIT_TARGET                                                                          \
  _Pragma("GCC target(\"avx512f,avx512bw,avx512vl,avx512dq,fma,f16c,prefer-vector-width=512\")") \
      _Pragma("GCC target(\"amx-tile,amx-bf16\")")
#define CURVEDIT_F16C

#include "masked_sums.hpp"
#include "syrk_accumulate_kernel.hpp"

namespace curvedit {
namespace {

constexpr std::ptrdiff_t kStep = 32, kSteps = 8, kAmxDepth = kStep * kSteps;  // tokens
constexpr std::ptrdiff_t kWords = kPanel * kPanel;  // pairs of tokens in one step of one panel
constexpr std::ptrdiff_t kAmxPanel = kSteps * kWords;

struct alignas(64) TileConfig {
  std::uint8_t palette = 1, start = 0, reserved[14] = {};
  std::uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Transposes 16 x 16 words.
void transpose(const std::uint32_t* from, std::uint32_t* to) {
  __m512i a[16], b[16];
  for (int k = 0; k < 16; ++k) a[k] = _mm512_load_si512(from + 16 * k);
  for (int k = 0; k < 16; k += 2) {
    b[k] = _mm512_unpacklo_epi32(a[k], a[k + 1]);
    b[k + 1] = _mm512_unpackhi_epi32(a[k], a[k + 1]);
  }
  for (int k = 0; k < 16; k += 4)
    for (int h = 0; h < 2; ++h) {
      a[k + 2 * h] = _mm512_unpacklo_epi64(b[k + h], b[k + 2 + h]);
      a[k + 2 * h + 1] = _mm512_unpackhi_epi64(b[k + h], b[k + 2 + h]);
    }
  for (int c = 0; c < 4; ++c) {  // a[4 q + c]: words n = 4 lane + c of rows 4 q … 4 q + 3
    const __m512i x = _mm512_shuffle_i32x4(a[c], a[4 + c], 0x88);
    const __m512i y = _mm512_shuffle_i32x4(a[c], a[4 + c], 0xdd);
    const __m512i z = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0x88);
    const __m512i w = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0xdd);
    _mm512_store_si512(to + 16 * c, _mm512_shuffle_i32x4(x, z, 0x88));
    _mm512_store_si512(to + 16 * (4 + c), _mm512_shuffle_i32x4(y, w, 0x88));
    _mm512_store_si512(to + 16 * (8 + c), _mm512_shuffle_i32x4(x, z, 0xdd));
    _mm512_store_si512(to + 16 * (12 + c), _mm512_shuffle_i32x4(y, w, 0xdd));
  }
}

// Packs one step of one panel twice: by columns, with pairs of tokens as rows, and transposed.
void pack_step(const Syrk& p, const float* weight, std::ptrdiff_t token, std::ptrdiff_t first,
               std::uint32_t* columns, std::uint32_t* rows) {
  const auto* x = static_cast<const std::uint16_t*>(p.x.x);
  const std::ptrdiff_t width = std::min(kPanel, p.x.dim - first);
  for (std::ptrdiff_t pair = 0; pair < kPanel; ++pair) {
    __m512i half[2];
    for (std::ptrdiff_t n = 0; n < 2; ++n) {
      const std::ptrdiff_t t = token + 2 * pair + n;
      const std::uint16_t* from = x + t * p.x.token_stride + first * p.x.dim_stride;
      if (t >= p.x.tokens || width <= 0 || (weight && weight[t] == 0.0f)) {
        half[n] = _mm512_setzero_si512();
      } else if (width == kPanel && p.x.dim_stride == 1) {
        half[n] = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
      } else {
        alignas(64) std::uint32_t words[16] = {};
        for (std::ptrdiff_t c = 0; c < width; ++c) words[c] = from[c * p.x.dim_stride];
        half[n] = _mm512_load_si512(words);
      }
    }
    _mm512_store_si512(columns + pair * kPanel,
                       _mm512_or_si512(half[0], _mm512_slli_epi32(half[1], 16)));
  }
  transpose(columns, rows);
}

// Adds to 32 x 32 elements of a tile: four accumulators, two panels by rows, two by columns.
void multiply(const std::uint32_t* rows, const std::uint32_t* columns, std::ptrdiff_t steps,
              float* c) {
  constexpr long kStride = kTile * sizeof(float);
  float* below = c + 16 * kTile;
  _tile_loadd(0, c, kStride);
  _tile_loadd(1, c + 16, kStride);
  _tile_loadd(2, below, kStride);
  _tile_loadd(3, below + 16, kStride);
  for (std::ptrdiff_t k = 0; k < steps; ++k, rows += kWords, columns += kWords) {
    _tile_loadd(4, rows, 64);
    _tile_loadd(6, columns, 64);
    _tile_loadd(7, columns + kAmxPanel, 64);
    _tile_loadd(5, rows + kAmxPanel, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, kStride);
  _tile_stored(1, c + 16, kStride);
  _tile_stored(2, below, kStride);
  _tile_stored(3, below + 16, kStride);
}

void run_sum(const Syrk& p, const SyrkSum& sum) {
  const std::ptrdiff_t side = (p.x.dim + kTile - 1) / kTile, panels = side * kGroup;
  const std::ptrdiff_t tiles = syrk_tiles(p.x.dim);
  const int threads = static_cast<int>(std::clamp<std::ptrdiff_t>(p.threads, 1, tiles));
  const Memory memory = allocate(2 * panels * kAmxPanel);
  auto* const rows = reinterpret_cast<std::uint32_t*>(memory.get());
  auto* const columns = rows + panels * kAmxPanel;
  const TileConfig config;
#pragma omp parallel num_threads(threads)
  {
    _tile_loadconfig(&config);
    for (std::ptrdiff_t token = 0; token < p.x.tokens; token += kAmxDepth) {
      const std::ptrdiff_t steps = std::min(kSteps, (p.x.tokens - token + kStep - 1) / kStep);
#pragma omp for schedule(dynamic, 4)
      for (std::ptrdiff_t panel = 0; panel < panels; ++panel)
        for (std::ptrdiff_t k = 0; k < steps; ++k) {
          const std::ptrdiff_t at = panel * kAmxPanel + k * kWords;
          pack_step(p, sum.weight, token + k * kStep, panel * kPanel, columns + at, rows + at);
        }
#pragma omp for schedule(dynamic)
      for (std::ptrdiff_t n = 0; n < tiles; ++n) {
        const Position at = position(n, side, kBand);
        float* const out = sum.out + (at.row * (at.row + 1) / 2 + at.column) * kTile * kTile;
        const std::ptrdiff_t height = std::min(kTile, p.x.dim - at.row * kTile);
        const std::ptrdiff_t width = std::min(kTile, p.x.dim - at.column * kTile);
        for (std::ptrdiff_t c = 0; c < width; c += 32)
          for (std::ptrdiff_t r = at.row == at.column ? c : 0; r < height; r += 32)
            multiply(rows + (at.row * kGroup + r / kPanel) * kAmxPanel,
                     columns + (at.column * kGroup + c / kPanel) * kAmxPanel, steps,
                     out + r * kTile + c);
      }
    }
    _tile_release();
  }
}

void run_sums(const Syrk& p) {
  for (int n = 0; n < p.count; ++n) run_sum(p, p.sums[n]);
}

}  // namespace

void syrk_amx(const Syrk& problem) { run_masked(problem, run_sums, syrk_avx512); }

}  // namespace curvedit
