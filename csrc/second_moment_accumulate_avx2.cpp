#define CURVEDIT_TARGET _Pragma("GCC target(\"avx2,fma,f16c\")")
#define CURVEDIT_F16C  // a target set by _Pragma does not define __F16C__
#include "second_moment_accumulate_kernel.hpp"

namespace curvedit {
void second_moment_avx2(const SecondMoment& problem) {
  SecondMoments<MicroKernel<Singles, 8, 1, 6, 5, 5>>::run(problem);
}
}  // namespace curvedit
