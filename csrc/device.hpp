// What the CUDA part of this build was compiled for. Needs no GPU, driver or toolkit.
#pragma once
#include <string>

namespace curvedit {

// As "800,860,…"; "" without CUDA.
std::string cuda_architectures();

}  // namespace curvedit
