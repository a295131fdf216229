#include <cuda_runtime.h>

#include "cuda_check.hpp"
#include "syrk_accumulate_cuda.hpp"
#include "syrk_accumulate_mma.hpp"

namespace curvedit {
namespace {

template <typename Words, bool kWeighted, bool kAligned>
void launch(const SyrkOnDevice& p, cudaStream_t stream) {
  const auto kernel = syrk_accumulate_mma<Words, kWeighted, kAligned>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, mma::kShared));
  const auto tiles = static_cast<unsigned>(p.side * (p.side + 1) / 2);
  const dim3 grid(tiles, static_cast<unsigned>(p.splits), static_cast<unsigned>(p.groups));
  kernel<<<grid, mma::kThreads, mma::kShared, stream>>>(p);
  check(cudaGetLastError());
  if (!p.partial) return;
  const std::int64_t size = static_cast<std::int64_t>(p.groups) * tiles * kDeviceTile * kDeviceTile;
  syrk_add_partial<<<static_cast<unsigned>((size + 255) / 256), 256, 0, stream>>>(p.out, p.partial,
                                                                                  size, p.splits);
  check(cudaGetLastError());
}

template <typename Words>
void launch(const SyrkOnDevice& p, bool is_aligned, cudaStream_t stream) {
  if (p.weight && is_aligned) launch<Words, true, true>(p, stream);
  else if (p.weight) launch<Words, true, false>(p, stream);
  else if (is_aligned) launch<Words, false, true>(p, stream);
  else launch<Words, false, false>(p, stream);
}

}  // namespace

void syrk_accumulate_cuda(const SyrkCuda& q) {
  if (q.groups == 0 || q.dim == 0) return;
  const auto side = static_cast<int>((q.dim + mma::kTile - 1) / mma::kTile);
  const SyrkOnDevice p{reinterpret_cast<float*>(q.out),
                       q.splits > 1 ? reinterpret_cast<float*>(q.partial) : nullptr,
                       reinterpret_cast<const std::uint16_t*>(q.x),
                       reinterpret_cast<const float*>(q.weight),
                       reinterpret_cast<const std::int64_t*>(q.offsets),
                       q.tokens,
                       q.token_stride,
                       q.dim_stride,
                       static_cast<int>(q.dim),
                       side,
                       q.splits,
                       q.groups};
  const bool is_aligned =
      q.dim_stride == 1 && q.dim % 8 == 0 && q.token_stride % 8 == 0 && q.x % 16 == 0;
  const auto stream = reinterpret_cast<cudaStream_t>(q.stream);
  if (q.dtype == 1) launch<Bfloat16Words>(p, is_aligned, stream);
  else launch<Float16Words>(p, is_aligned, stream);
}

}  // namespace curvedit
