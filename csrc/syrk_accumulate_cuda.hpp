// syrk_accumulate for half-precision input on a CUDA device. All addresses are device addresses.
// Functions queue their work on the stream, on the current device, and throw std::runtime_error
// with CUDA's message.
#pragma once
#include <cstdint>

namespace curvedit {

struct SyrkCuda {
  std::uintptr_t out, x, weight, offsets;  // as in syrk_accumulate; weight and offsets may be 0
  std::uintptr_t partial;                  // splits times the size of out if splits > 1, else 0
  int dtype;                               // 1: bfloat16, 2: float16
  std::int64_t tokens, dim, token_stride, dim_stride;
  int groups, splits;
  std::uintptr_t stream;
};

void syrk_accumulate_cuda(const SyrkCuda& problem);

// Hopper's kernel, which needs sm_90a. It takes no weights, and rows whose length, stride and
// address are multiples of 16 bytes.
struct SyrkWgmma {
  std::uintptr_t out, x;
  std::uintptr_t low;  // tokens are the sum of x and this; or 0
  std::uintptr_t offsets;
  std::uintptr_t partial;  // syrk_partial_wgmma() floats
  int dtype;
  std::int64_t tokens, dim, token_stride;
  int groups;
  std::uintptr_t stream;
};

void syrk_accumulate_wgmma(const SyrkWgmma& problem);
std::int64_t syrk_partial_wgmma(std::int64_t tokens, std::int64_t dim, int groups, bool has_low);

// Rows for that kernel: the tokens times the roots of their weights.
struct ScaledTokens {
  std::uintptr_t out, low;  // (tokens, width), width a multiple of 8; low may be 0
  std::uintptr_t x, weight;
  int dtype, out_dtype;  // 0: float32, which becomes 1
  std::int64_t tokens, dim, token_stride, dim_stride, width;
  std::uintptr_t stream;
};

void scale_tokens_cuda(const ScaledTokens& problem);

}  // namespace curvedit
