// syrk_accumulate for bfloat16 input by AVX512-BF16, which multiplies pairs of tokens: twice as
// many per instruction. Takes sums whose weights are all 0 or 1; everything else goes to AVX-512.
#define CURVEDIT_TARGET                                                                          \
  _Pragma("GCC target(\"avx512f,avx512bw,avx512vl,avx512dq,fma,f16c,prefer-vector-width=512\")") \
      _Pragma("GCC target(\"avx512bf16\")")
#define CURVEDIT_F16C  // a target set by _Pragma does not define __F16C__
#include "masked_sums.hpp"
#include "syrk_accumulate_kernel.hpp"
// After the target is set.
#include "bfloat16_pairs.hpp"

namespace curvedit {
void syrk_avx512_bf16(const Syrk& problem) {
  run_masked(problem, Algorithm<MicroKernel<Pairs, 16, 2, 8, 8>, 256>::run, syrk_avx512);
}
}  // namespace curvedit
