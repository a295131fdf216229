#include "device.hpp"

#define CURVEDIT_QUOTE(...) #__VA_ARGS__
#define CURVEDIT_LIST(...) CURVEDIT_QUOTE(__VA_ARGS__)

namespace curvedit {

std::string cuda_architectures() { return CURVEDIT_LIST(__CUDA_ARCH_LIST__); }

}  // namespace curvedit
