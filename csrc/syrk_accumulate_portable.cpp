#include "syrk_kernel.hpp"

namespace curvedit {
void syrk_portable(const Syrk& problem) { Algorithm<4, 1, 256, 2, 2, 2, 2, 2, 2, 2, 2>::run(problem); }
}  // namespace curvedit
