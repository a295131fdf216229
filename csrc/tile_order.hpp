// The order in which the lower tiles of a symmetric matrix are computed, the same on every device.
#pragma once
#include <cstddef>

#if defined(__CUDACC__)
#define CURVEDIT_EVERYWHERE __host__ __device__
#else
#define CURVEDIT_EVERYWHERE
#endif

namespace curvedit {

struct Position {
  std::ptrdiff_t row, column;
};

// The n-th tile. Bands of `band` tile rows follow each other from the bottom up, and each is walked
// column by column, so that the rows of a band and one column stay in the second-level cache.
CURVEDIT_EVERYWHERE constexpr Position position(std::ptrdiff_t n, std::ptrdiff_t side,
                                                std::ptrdiff_t band) {
  for (std::ptrdiff_t last = side;; last -= band) {
    const std::ptrdiff_t first = last > band ? last - band : 0, height = last - first;
    if (n < first * height) return {first + n % height, n / height};
    n -= first * height;
    for (std::ptrdiff_t column = first; column < last;
         ++column) {  // the triangle at the band's end
      if (n < last - column) return {column + n, column};
      n -= last - column;
    }
  }
}

}  // namespace curvedit
