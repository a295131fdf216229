// The smallest set of components (i, j), in descending lam[i] * mu[j], that holds a share of the
// mass.
#pragma once
#include <cstddef>
#include <cstdint>

namespace curvedit {

struct Staircase {
  double threshold;   // smallest kept product, as near as a double comes; infinity if none is kept
  std::int64_t kept;  // number of kept components
  double mass;        // share of the total mass that is actually kept
};

// Row i keeps columns 0 … limits[i] - 1; limits do not increase. Components that tie with the last
// one kept are taken row by row. The result equals that of sorting all products, except where the
// target falls within rounding of a partial sum. Both spectra must be descending, finite and
// non-negative. 0 < keep_mass <= 1; 1 keeps everything. O((m + n) * 64) time, O(m + n) memory.
// Only ratios of eigenvalues count: a common factor of a spectrum changes nothing but `threshold`.
// Reference: kernels/staircase_limits_ref.py.
Staircase staircase_limits(const double* lam, std::ptrdiff_t m, const double* mu, std::ptrdiff_t n,
                           double keep_mass, std::int32_t* limits);

}  // namespace curvedit
