// Sums that an instruction set for bfloat16 can take: no weights but 0 and 1, which need no
// multiplication of the tokens.
#pragma once
#include "syrk_accumulate.hpp"

namespace curvedit {
namespace {

inline bool is_mask(const SyrkSum& sum, std::ptrdiff_t tokens) {
  for (std::ptrdiff_t t = 0; sum.weight && t < tokens; ++t)
    if (sum.weight[t] != 0.0f && sum.weight[t] != 1.0f) return false;
  return true;
}

// Calls `run` with those of the sums, `rest` with the others.
template <typename Run>
void run_masked(const Syrk& problem, Run run, void (*rest)(const Syrk&)) {
  Syrk parts[2] = {problem, problem};  // masked, others
  parts[0].count = parts[1].count = 0;
  for (int n = 0; n < problem.count; ++n) {
    const SyrkSum& sum = problem.sums[n];
    const bool masked = problem.x.dtype == Dtype::bfloat16 && is_mask(sum, problem.x.tokens);
    Syrk& part = parts[masked ? 0 : 1];
    part.sums[part.count++] = sum;
  }
  if (parts[0].count) run(parts[0]);
  if (parts[1].count) rest(parts[1]);
}

}  // namespace
}  // namespace curvedit
