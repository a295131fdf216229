#include "device.hpp"

namespace curvedit {
int cuda_devices() { return 0; }
std::string cuda_architectures() { return ""; }
}  // namespace curvedit
