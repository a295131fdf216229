#include "syrk_accumulate.hpp"

#include "cpu.hpp"

namespace curvedit {
namespace {

const std::vector<CpuKernel<Syrk>>& kernels() {
  static const auto found = usable<Syrk>({
#if defined(CURVEDIT_AMX)
      {"amx", syrk_amx},
#endif
#if defined(CURVEDIT_AVX512_BF16)
      {"avx512_bf16", syrk_avx512_bf16},
#endif
#if defined(__x86_64__)
      {"avx512", syrk_avx512},
      {"avx2", syrk_avx2},
#endif
      {"portable", syrk_portable},
  });
  return found;
}

}  // namespace

void syrk_accumulate(const Syrk& problem, const std::vector<std::int64_t>& offsets,
                     const std::string& instruction_set) {
  const CpuKernel<Syrk>& kernel = choose(kernels(), instruction_set);
  const std::ptrdiff_t size = syrk_tiles(problem.x.dim) * kTile * kTile;
  for (std::size_t g = 0; g + 1 < offsets.size(); ++g) {
    const std::ptrdiff_t first = offsets[g];
    Syrk group = problem;
    group.x = problem.x.part(first, offsets[g + 1] - first);
    for (int n = 0; n < problem.count; ++n) {
      group.sums[n].out += static_cast<std::ptrdiff_t>(g) * size;
      if (group.sums[n].weight) group.sums[n].weight += first;
    }
    if (group.x.tokens > 0 && group.x.dim > 0) kernel.run(group);
  }
}

std::vector<std::string> syrk_instruction_sets() { return names_of(kernels()); }

}  // namespace curvedit
