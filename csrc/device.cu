#include <cuda_runtime_api.h>

#include "device.hpp"

#define CURVEDIT_QUOTE(...) #__VA_ARGS__
#define CURVEDIT_LIST(...) CURVEDIT_QUOTE(__VA_ARGS__)

namespace curvedit {

int cuda_devices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {  // no driver, or none that this runtime can use
    (void)cudaGetLastError();
    return 0;
  }
  return count;
}

std::string cuda_architectures() { return CURVEDIT_LIST(__CUDA_ARCH_LIST__); }

}  // namespace curvedit
