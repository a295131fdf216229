#define CURVEDIT_TARGET _Pragma("GCC target(\"avx2,fma,f16c\")")
#define CURVEDIT_F16C  // a target set by _Pragma does not define __F16C__
#include "syrk_accumulate_kernel.hpp"

namespace curvedit {
void syrk_avx2(const Syrk& problem) {
  Algorithm<MicroKernel<Singles, 8, 1, 6, 5, 5>, 256>::run(problem);
}
}  // namespace curvedit
