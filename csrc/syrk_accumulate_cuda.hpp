// syrk_accumulate of half-precision input on a CUDA device. Addresses are the device's.
#pragma once
#include <cstdint>

namespace curvedit {

struct SyrkCuda {
  std::uintptr_t out, x, weight, offsets;  // as syrk_accumulate's; weight and offsets may be 0
  std::uintptr_t partial;                  // splits * out's size where splits > 1, else 0
  int dtype;                               // 1 bfloat16, 2 float16
  std::int64_t tokens, dim, token_stride, dim_stride;
  int groups, splits;
  std::uintptr_t stream;
  bool hopper;  // with wgmma and bulk copies: sm_90a; no weight, dim_stride 1, rows in whole 16 bytes
};

// Queues the work on the stream, on the current device. Throws std::runtime_error with CUDA's message.
void syrk_accumulate_cuda(const SyrkCuda& problem);

}  // namespace curvedit
