// CUDA's errors as exceptions.
#pragma once
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace curvedit {

inline void check(cudaError_t status) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string("syrk_accumulate: CUDA: ") + cudaGetErrorString(status));
}

}  // namespace curvedit
