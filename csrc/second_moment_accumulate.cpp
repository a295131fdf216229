#include "second_moment_accumulate.hpp"

#include "cpu.hpp"

namespace curvedit {
namespace {

const std::vector<CpuKernel<SecondMoment>>& kernels() {
  static const auto found = usable<SecondMoment>({
#if defined(CURVEDIT_AVX512_BF16)
      {"avx512_bf16", second_moment_avx512_bf16},
#endif
#if defined(__x86_64__)
      {"avx512", second_moment_avx512},
      {"avx2", second_moment_avx2},
#endif
      {"portable", second_moment_portable},
  });
  return found;
}

}  // namespace

void second_moment_accumulate(const SecondMoment& problem, const std::string& instruction_set) {
  const CpuKernel<SecondMoment>& kernel = choose(kernels(), instruction_set);
  if (problem.g.dim > 0 && problem.a.dim > 0 && problem.sequences > 0) kernel.run(problem);
}

std::vector<std::string> second_moment_instruction_sets() { return names_of(kernels()); }

}  // namespace curvedit
