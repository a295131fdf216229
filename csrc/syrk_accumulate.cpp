#include "syrk_accumulate.hpp"

namespace curvedit {
namespace {

struct Choice {
  const char* name;
  void (*run)(const Syrk&);
};

Choice choose() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    return {"avx512", syrk_avx512};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {"avx2", syrk_avx2};
#endif
  return {"portable", syrk_portable};
}

const Choice& chosen() {
  static const Choice choice = choose();
  return choice;
}

}  // namespace

void syrk_accumulate(const Syrk& problem) {
  if (problem.tokens > 0 && problem.dim > 0) chosen().run(problem);
}

const char* syrk_instruction_set() { return chosen().name; }

}  // namespace curvedit
