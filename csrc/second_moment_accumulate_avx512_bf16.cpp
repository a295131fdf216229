// second_moment_accumulate for bfloat16 input by AVX512-BF16, which multiplies pairs of tokens.
// Everything else goes to AVX-512.
#define CURVEDIT_TARGET                                                                          \
  _Pragma("GCC target(\"avx512f,avx512bw,avx512vl,avx512dq,fma,f16c,prefer-vector-width=512\")") \
      _Pragma("GCC target(\"avx512bf16\")")
#define CURVEDIT_F16C  // a target set by _Pragma does not define __F16C__
#include "second_moment_accumulate_kernel.hpp"
// After the target is set.
#include "bfloat16_pairs.hpp"

namespace curvedit {
void second_moment_avx512_bf16(const SecondMoment& problem) {
  if (problem.g.dtype == Dtype::bfloat16 && problem.a.dtype == Dtype::bfloat16)
    SecondMoments<MicroKernel<Pairs, 16, 2, 8, 8>>::run(problem);
  else
    second_moment_avx512(problem);
}
}  // namespace curvedit
