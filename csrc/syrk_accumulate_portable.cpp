#include "syrk_accumulate_kernel.hpp"

namespace curvedit {
void syrk_portable(const Syrk& problem) {
  Algorithm<MicroKernel<Singles, 4, 1, 2, 2, 2, 2, 2, 2, 2, 2>, 256>::run(problem);
}
}  // namespace curvedit
