// What the CUDA part of this build can use; answers without a GPU, a driver or a toolkit.
#pragma once
#include <string>

namespace curvedit {

int cuda_devices();                // usable devices; 0 without driver or GPU
std::string cuda_architectures();  // that this build has code for, "" without CUDA

}  // namespace curvedit
