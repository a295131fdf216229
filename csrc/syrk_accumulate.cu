#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "syrk_accumulate_cuda.hpp"
#include "syrk_accumulate_mma.hpp"
#include "syrk_accumulate_wgmma.hpp"

namespace curvedit {
namespace {

void check(cudaError_t status) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string("syrk_accumulate: CUDA: ") + cudaGetErrorString(status));
}

template <typename Kernel, typename... Maps>
void launch(Kernel kernel, int threads, int shared, const SyrkOnDevice& p, cudaStream_t stream,
            const Maps&... maps) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  const auto tiles = static_cast<unsigned>(p.side * (p.side + 1) / 2);
  const dim3 grid(tiles, static_cast<unsigned>(p.splits), static_cast<unsigned>(p.groups));
  kernel<<<grid, threads, shared, stream>>>(p, maps...);
  check(cudaGetLastError());
  if (!p.partial) return;
  const std::int64_t size = static_cast<std::int64_t>(p.groups) * tiles * kDeviceTile * kDeviceTile;
  syrk_add_partial<<<static_cast<unsigned>((size + 255) / 256), 256, 0, stream>>>(p.out, p.partial,
                                                                                  size, p.splits);
  check(cudaGetLastError());
}

template <typename Words, bool kWeighted, bool kAligned>
void launch(const SyrkOnDevice& p, cudaStream_t stream) {
  launch(syrk_accumulate_mma<Words, kWeighted, kAligned>, mma::kThreads, mma::kShared, p, stream);
}

// Asks the driver for its function when it is needed, so that the library need not be linked.
TensorMap map_of(const SyrkOnDevice& p, bool is_bfloat16) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result;
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault,
                                         &result));
  if (result != cudaDriverEntryPointSuccess)
    throw std::runtime_error("syrk_accumulate: the driver does not support tensor maps");
  TensorMap map;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(p.dim), static_cast<cuuint64_t>(p.tokens)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(p.token_stride) * 2};
  const cuuint32_t box[2] = {wgmma::kColumns, wgmma::kDepth}, steps[2] = {1, 1};
  const CUresult status = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found)(
      &map, is_bfloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2,
      const_cast<std::uint16_t*>(p.x), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    throw std::runtime_error("syrk_accumulate: tensor map: CUDA error " +
                             std::to_string(static_cast<int>(status)));
  return map;
}

template <typename Warpgroup>
void launch_wgmma(const SyrkOnDevice& p, bool is_bfloat16, cudaStream_t stream) {
  launch(syrk_accumulate_wgmma<Warpgroup>, wgmma::kThreads, wgmma::kShared, p, stream,
         map_of(p, is_bfloat16));
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
  if (q.hopper && q.tokens == 0) return;  // a tensor map cannot be empty
  if (q.hopper && q.dtype == 1) launch_wgmma<Bfloat16Warpgroup>(p, true, stream);
  else if (q.hopper) launch_wgmma<Float16Warpgroup>(p, false, stream);
  else if (q.dtype == 1) launch<Bfloat16Words>(p, is_aligned, stream);
  else launch<Float16Words>(p, is_aligned, stream);
}

}  // namespace curvedit
