// out += sum_t w_t x_t x_t^T, lower 128 x 128 tiles, float32, in place.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace curvedit {

constexpr std::ptrdiff_t kTile = 128;

enum class Dtype : int { float32 = 0, bfloat16 = 1, float16 = 2 };

// Strides count elements. `weight` may be null; weights are finite and not negative, and a token of
// weight 0 is not read. `out` holds the lower tiles of a dim x dim matrix one after another, row by
// row, 64 KiB each; columns right of the diagonal in a diagonal tile receive unspecified finite
// values. Reference: kernels/syrk_accumulate_ref.py.
struct Syrk {
  float* out;
  const void* x;  // (tokens, dim)
  Dtype dtype;
  std::ptrdiff_t tokens, dim, token_stride, dim_stride;
  const float* weight;  // (tokens,) or null
  int threads;
};

// With the instruction set of this name, or with the fastest for "". Throws std::invalid_argument for
// one that this machine lacks.
void syrk_accumulate(const Syrk& problem, const std::string& instruction_set);

// Of "avx512", "avx2" and "portable" those that this machine has, fastest first.
std::vector<std::string> syrk_instruction_sets();

void syrk_portable(const Syrk& problem);
#if defined(__x86_64__)
void syrk_avx2(const Syrk& problem);
void syrk_avx512(const Syrk& problem);
#endif

}  // namespace curvedit
