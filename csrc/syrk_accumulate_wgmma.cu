#include "syrk_accumulate_wgmma.hpp"

#include <cuda_runtime.h>

#include <array>
#include <stdexcept>
#include <string>

#include "cuda_check.hpp"
#include "scale_tokens.hpp"
#include "syrk_accumulate_cuda.hpp"

namespace curvedit {
namespace {

// The driver's function, asked for when it is needed, so that the library need not be linked.
auto encoder() {
  static void* const function = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                           cudaEnableDefault, &result));
    if (result != cudaDriverEntryPointSuccess)
      throw std::runtime_error("syrk_accumulate: the driver does not support tensor maps");
    return found;
  }();
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
}

TensorMap map_of(const SyrkOnDevice& p, std::uintptr_t x, bool is_bfloat16) {
  TensorMap map;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(p.dim), static_cast<cuuint64_t>(p.tokens)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(p.token_stride) * 2};
  const cuuint32_t box[2] = {wgmma::kColumns, kDepth}, steps[2] = {1, 1};
  const CUresult status = encoder()(
      &map, is_bfloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2,
      reinterpret_cast<void*>(x), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    throw std::runtime_error("syrk_accumulate: tensor map: CUDA error " +
                             std::to_string(static_cast<int>(status)));
  return map;
}

// What a launch with an attribute takes: clusters of two blocks, or a start beside the kernel
// before.
struct Launch {
  cudaLaunchAttribute attribute{};
  cudaLaunchConfig_t config{};

  Launch(dim3 grid, int threads, int shared, cudaStream_t stream) {
    config.gridDim = grid;
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = static_cast<std::size_t>(shared);
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
  }
  Launch(const Launch&) = delete;

  const cudaLaunchConfig_t* in_clusters() {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = 2;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    return &config;
  }
  const cudaLaunchConfig_t* early() {
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    return &config;
  }
};

// How many clusters run at once on the current device.
int clusters_here() {
  static std::array<int, 64> known{};  // by device; writing one twice does no harm
  int device = 0, found = 0;
  check(cudaGetDevice(&device));
  const auto place = static_cast<std::size_t>(device) % known.size();
  if (known[place]) return known[place];
  for (const auto kernel :
       {syrk_accumulate_wgmma<Bfloat16Warpgroup>, syrk_accumulate_wgmma<Float16Warpgroup>}) {
    check(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, wgmma::kShared));
    Launch launch(dim3(2), wgmma::kThreads, wgmma::kShared, nullptr);
    check(cudaOccupancyMaxActiveClusters(&found, kernel, launch.in_clusters()));
  }
  if (found == 0) throw std::runtime_error("syrk_accumulate: no cluster fits on this device");
  return known[place] = found;
}

int products_of(bool has_low) { return has_low ? 3 : 1; }
int side_of(std::int64_t dim) { return static_cast<int>((dim + kDeviceTile - 1) / kDeviceTile); }

Plan plan_here(std::int64_t tokens, std::int64_t dim, int groups, bool has_low) {
  const std::int64_t steps = (tokens + kDepth - 1) / kDepth * products_of(has_low);
  return plan_of(side_of(dim), groups, static_cast<int>(steps), clusters_here());
}

template <typename From, typename To>
void scale(const Scaling& p, bool is_aligned, cudaStream_t stream) {
  const std::int64_t threads = p.tokens * (p.width / 8);
  const auto kernel = is_aligned ? scale_tokens<From, To, true> : scale_tokens<From, To, false>;
  kernel<<<static_cast<unsigned>((threads + 255) / 256), 256, 0, stream>>>(p);
  check(cudaGetLastError());
}

}  // namespace

std::int64_t syrk_partial_wgmma(std::int64_t tokens, std::int64_t dim, int groups, bool has_low) {
  return static_cast<std::int64_t>(places_of(plan_here(tokens, dim, groups, has_low))) * kMacro;
}

void syrk_accumulate_wgmma(const SyrkWgmma& q) {
  if (q.groups == 0 || q.dim == 0 || q.tokens == 0) return;  // a tensor map cannot be empty
  const SyrkOnDevice p{reinterpret_cast<float*>(q.out),
                       reinterpret_cast<float*>(q.partial),
                       reinterpret_cast<const std::uint16_t*>(q.x),
                       nullptr,
                       reinterpret_cast<const std::int64_t*>(q.offsets),
                       q.tokens,
                       q.token_stride,
                       1,
                       static_cast<int>(q.dim),
                       side_of(q.dim),
                       1,
                       q.groups,
                       products_of(q.low != 0)};
  const auto stream = reinterpret_cast<cudaStream_t>(q.stream);
  const Plan plan = plan_here(q.tokens, q.dim, q.groups, q.low != 0);
  const auto kernel = q.dtype == 1 ? syrk_accumulate_wgmma<Bfloat16Warpgroup>
                                   : syrk_accumulate_wgmma<Float16Warpgroup>;
  const TensorMap high = map_of(p, q.x, q.dtype == 1);
  const TensorMap low = q.low ? map_of(p, q.low, q.dtype == 1) : high;
  Launch first(dim3(static_cast<unsigned>(2 * plan.clusters)), wgmma::kThreads, wgmma::kShared,
               stream);
  check(cudaLaunchKernelEx(first.in_clusters(), kernel, p, plan, high, low));
  if (shared_units(plan) == 0) return;
  Launch second(dim3(kAdders, static_cast<unsigned>(shared_units(plan))), 256, 0, stream);
  check(cudaLaunchKernelEx(second.early(), syrk_add_pieces, p, plan));
}

void scale_tokens_cuda(const ScaledTokens& q) {
  if (q.tokens == 0 || q.width == 0) return;
  const Scaling p{reinterpret_cast<std::uint16_t*>(q.out),
                  reinterpret_cast<std::uint16_t*>(q.low),
                  reinterpret_cast<const void*>(q.x),
                  reinterpret_cast<const float*>(q.weight),
                  q.tokens,
                  q.token_stride,
                  q.dim_stride,
                  static_cast<int>(q.dim),
                  static_cast<int>(q.width)};
  const int row = q.dtype == 0 ? 4 : 8;  // numbers in 16 bytes
  const bool is_aligned =
      q.dim_stride == 1 && q.dim % 8 == 0 && q.token_stride % row == 0 && q.x % 16 == 0;
  const auto stream = reinterpret_cast<cudaStream_t>(q.stream);
  if (q.dtype == 0) scale<Float32Words, Bfloat16Words>(p, is_aligned, stream);
  else if (q.dtype == 1) scale<Bfloat16Words, Bfloat16Words>(p, is_aligned, stream);
  else if (q.out_dtype == 1) scale<Float16Words, Bfloat16Words>(p, is_aligned, stream);
  else scale<Float16Words, Float16Words>(p, is_aligned, stream);
}

}  // namespace curvedit
