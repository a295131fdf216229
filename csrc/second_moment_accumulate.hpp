// out += sum_b (sum_{t in b} g_t a_t^T)^2, elementwise, over sequences b of tokens.
#pragma once
#include <string>
#include <vector>

#include "tokens.hpp"

namespace curvedit {

// Reference: kernels/second_moment_accumulate_ref.py.
// Sequence b is tokens offsets[b] … offsets[b + 1] - 1.
struct SecondMoment {
  float* out;                   // (g.dim, a.dim), contiguous
  Tokens g, a;                  // gradients and inputs of the same tokens
  const std::int64_t* offsets;  // (sequences + 1,)
  std::ptrdiff_t sequences;
  int threads;
};

// Runs with the named instruction set, one of second_moment_instruction_sets(), or with the fastest
// for "". Throws std::invalid_argument for one that this machine lacks.
void second_moment_accumulate(const SecondMoment& problem, const std::string& instruction_set);

// The op's instruction sets that this machine has, fastest first.
std::vector<std::string> second_moment_instruction_sets();

void second_moment_portable(const SecondMoment& problem);
#if defined(__x86_64__)
void second_moment_avx2(const SecondMoment& problem);
void second_moment_avx512(const SecondMoment& problem);
void second_moment_avx512_bf16(const SecondMoment& problem);
#endif

}  // namespace curvedit
