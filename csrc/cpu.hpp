// Which of the CPU kernels' instruction sets this machine has: the only place that asks the CPU.
#pragma once
#include <stdexcept>
#include <string>
#include <vector>

namespace curvedit {

// Those of "amx", "avx512_bf16", "avx512", "avx2" and "portable" that this machine has, fastest
// first. "amx" is listed only if the operating system grants its tiles; "avx512_bf16" only without
// it, since it has not been measured beside it; both only beside "avx512", on which they fall back.
const std::vector<std::string>& cpu_instruction_sets();

// An op's kernel for one instruction set.
template <typename Problem>
struct CpuKernel {
  std::string instruction_set;
  void (*run)(const Problem&);
};

// Those of an op's kernels that this machine can run, fastest first.
template <typename Problem>
std::vector<CpuKernel<Problem>> usable(const std::vector<CpuKernel<Problem>>& kernels) {
  std::vector<CpuKernel<Problem>> found;
  for (const std::string& name : cpu_instruction_sets())
    for (const CpuKernel<Problem>& kernel : kernels)
      if (kernel.instruction_set == name) found.push_back(kernel);
  return found;
}

// The kernel for the named instruction set, or the fastest one for "".
// Throws std::invalid_argument if none of `usable` has that name.
template <typename Problem>
const CpuKernel<Problem>& choose(const std::vector<CpuKernel<Problem>>& usable,
                                 const std::string& name) {
  for (const CpuKernel<Problem>& kernel : usable)
    if (name.empty() || name == kernel.instruction_set) return kernel;
  throw std::invalid_argument("instruction_set: this machine has no " + name);
}

template <typename Problem>
std::vector<std::string> names_of(const std::vector<CpuKernel<Problem>>& kernels) {
  std::vector<std::string> names;
  for (const CpuKernel<Problem>& kernel : kernels) names.push_back(kernel.instruction_set);
  return names;
}

}  // namespace curvedit
