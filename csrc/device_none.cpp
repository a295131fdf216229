#include <stdexcept>

#include "device.hpp"
#include "syrk_accumulate_cuda.hpp"

namespace curvedit {
std::string cuda_architectures() { return ""; }
void syrk_accumulate_cuda(const SyrkCuda&) {
  throw std::runtime_error("syrk_accumulate: this build has no CUDA kernels");
}
}  // namespace curvedit
