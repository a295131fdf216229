#include <stdexcept>

#include "device.hpp"
#include "syrk_accumulate_cuda.hpp"

namespace curvedit {
namespace {

[[noreturn]] void refuse() {
  throw std::runtime_error("syrk_accumulate: this build has no CUDA kernels");
}

}  // namespace

std::string cuda_architectures() { return ""; }
void syrk_accumulate_cuda(const SyrkCuda&) { refuse(); }
void syrk_accumulate_wgmma(const SyrkWgmma&) { refuse(); }
std::int64_t syrk_partial_wgmma(std::int64_t, std::int64_t, int, bool) { refuse(); }
void scale_tokens_cuda(const ScaledTokens&) { refuse(); }

}  // namespace curvedit
