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
      __builtin_cpu_supports("avx512dq")) {
#if defined(CURVEDIT_AMX)
    if (has_amx()) choices.push_back({"amx", syrk_amx});
#endif
    choices.push_back({"avx512", syrk_avx512});
  }
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

const Choice& chosen(const std::string& instruction_set) {
  for (const Choice& choice : choices())
    if (instruction_set.empty() || instruction_set == choice.name) return choice;
  throw std::invalid_argument("instruction_set: this machine has no " + instruction_set);
}

}  // namespace

void syrk_accumulate(const Syrk& problem, const std::vector<std::int64_t>& offsets, const std::string& instruction_set) {
  const Choice& choice = chosen(instruction_set);
  const std::ptrdiff_t size = syrk_tiles(problem.x.dim) * kTile * kTile;
  for (std::size_t g = 0; g + 1 < offsets.size(); ++g) {
    const std::ptrdiff_t first = offsets[g];
    Syrk group = problem;
    group.x = problem.x.part(first, offsets[g + 1] - first);
    for (int n = 0; n < problem.count; ++n) {
      group.sums[n].out += static_cast<std::ptrdiff_t>(g) * size;
      if (group.sums[n].weight) group.sums[n].weight += first;
    }
    if (group.x.tokens > 0 && group.x.dim > 0) choice.run(group);
  }
}

std::vector<std::string> syrk_instruction_sets() {
  std::vector<std::string> names;
  for (const Choice& choice : choices()) names.push_back(choice.name);
  return names;
}

}  // namespace curvedit
