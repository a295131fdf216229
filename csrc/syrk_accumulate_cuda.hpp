// syrk_accumulate for half-precision input on a CUDA device. All addresses are device addresses.
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
  // Use wgmma and bulk copies, which need sm_90a, no weight, dim_stride 1, and 16-byte aligned rows
  // whose length is a multiple of 16 bytes.
  bool hopper;
};

// Queues the work on the stream, on the current device. Throws std::runtime_error with CUDA's
// message.
void syrk_accumulate_cuda(const SyrkCuda& problem);

}  // namespace curvedit
