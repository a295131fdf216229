#include "second_moment_accumulate_kernel.hpp"

namespace curvedit {
void second_moment_portable(const SecondMoment& problem) {
  SecondMoments<MicroKernel<Singles, 4, 1, 2, 2, 2, 2, 2, 2, 2, 2>>::run(problem);
}
}  // namespace curvedit
