#include "syrk_accumulate.hpp"

#include <stdexcept>

namespace curvedit {
namespace {

struct Choice {
  std::string name;
  void (*run)(const Syrk&);
};

std::vector<Choice> usable() {
  std::vector<Choice> choices;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    choices.push_back({"avx512", syrk_avx512});
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    choices.push_back({"avx2", syrk_avx2});
#endif
  choices.push_back({"portable", syrk_portable});
  return choices;
}

const std::vector<Choice>& choices() {
  static const std::vector<Choice> found = usable();
  return found;
}

}  // namespace

void syrk_accumulate(const Syrk& problem, const std::string& instruction_set) {
  for (const Choice& choice : choices()) {
    if (!instruction_set.empty() && instruction_set != choice.name) continue;
    if (problem.tokens > 0 && problem.dim > 0) choice.run(problem);
    return;
  }
  throw std::invalid_argument("instruction_set: this machine has no " + instruction_set);
}

std::vector<std::string> syrk_instruction_sets() {
  std::vector<std::string> names;
  for (const Choice& choice : choices()) names.push_back(choice.name);
  return names;
}

}  // namespace curvedit
