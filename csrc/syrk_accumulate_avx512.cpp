#define CURVEDIT_TARGET \
  _Pragma("GCC target(\"avx512f,avx512bw,avx512vl,avx512dq,fma,f16c,prefer-vector-width=512\")")
#define CURVEDIT_F16C  // a target set by _Pragma does not define __F16C__
#include "syrk_accumulate_kernel.hpp"

namespace curvedit {
void syrk_avx512(const Syrk& problem) {
  Algorithm<MicroKernel<Singles, 16, 2, 8, 8>, 256>::run(problem);
}
}  // namespace curvedit
