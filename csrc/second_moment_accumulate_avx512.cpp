#define CURVEDIT_TARGET \
  _Pragma("GCC target(\"avx512f,avx512bw,avx512vl,avx512dq,fma,f16c,prefer-vector-width=512\")")
#define CURVEDIT_F16C  // a target set by _Pragma does not define __F16C__
#include "second_moment_accumulate_kernel.hpp"

namespace curvedit {
void second_moment_avx512(const SecondMoment& problem) {
  SecondMoments<MicroKernel<Singles, 16, 2, 8, 8>>::run(problem);
}
}  // namespace curvedit
