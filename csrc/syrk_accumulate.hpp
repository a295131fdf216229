// out += sum_t w_t x_t x_t^T: the lower 128 x 128 tiles, float32, in place. Also two weightings of
// the same tokens in one pass, and groups of tokens that each have their own out.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "tokens.hpp"

namespace curvedit {

// One weighted sum. `out` holds the lower tiles of a dim x dim matrix one after another, row by
// row, 64 KiB each. Elements above the diagonal of a diagonal tile receive unspecified finite
// values.
struct SyrkSum {
  float* out;
  const float* weight;  // (tokens,) finite, >= 0, or null; a token of weight 0 is not read
};

// Reference: kernels/syrk_accumulate_ref.py.
struct Syrk {
  SyrkSum sums[2];
  int count;  // how many of the sums are wanted, 1 or 2
  Tokens x;
  int threads;
};

constexpr std::ptrdiff_t syrk_tiles(std::ptrdiff_t dim) {
  const std::ptrdiff_t side = (dim + kTile - 1) / kTile;
  return side * (side + 1) / 2;
}

// Adds tokens offsets[g] … offsets[g + 1] - 1, group g, to the g-th of the matrices that each `out`
// holds one after another. Runs with the named instruction set, one of syrk_instruction_sets(), or
// with the fastest for "". Throws std::invalid_argument for one that this machine lacks.
void syrk_accumulate(const Syrk& problem, const std::vector<std::int64_t>& offsets,
                     const std::string& instruction_set);

// The op's instruction sets that this machine and this build have, fastest first.
std::vector<std::string> syrk_instruction_sets();

void syrk_portable(const Syrk& problem);
#if defined(__x86_64__)
void syrk_avx2(const Syrk& problem);
void syrk_avx512(const Syrk& problem);
void syrk_avx512_bf16(const Syrk& problem);
void syrk_amx(const Syrk& problem);
#endif

}  // namespace curvedit
