#include "second_moment_accumulate.hpp"

#include <stdexcept>

#include "syrk_accumulate.hpp"

namespace curvedit {
namespace {

struct Choice {
  const char* name;
  void (*run)(const SecondMoment&);
};

const Choice kChoices[] = {
#if defined(__x86_64__)
    {"avx512", second_moment_avx512},
    {"avx2", second_moment_avx2},
#endif
    {"portable", second_moment_portable},
};

}  // namespace

void second_moment_accumulate(const SecondMoment& problem, const std::string& instruction_set) {
  const std::string name = instruction_set.empty() ? second_moment_instruction_sets().front() : instruction_set;
  for (const std::string& has : second_moment_instruction_sets())
    for (const Choice& choice : kChoices)
      if (name == has && name == choice.name) return choice.run(problem);
  throw std::invalid_argument("instruction_set: this machine has no " + name);
}

std::vector<std::string> second_moment_instruction_sets() {
  std::vector<std::string> names;
  for (const std::string& name : syrk_instruction_sets())
    for (const Choice& choice : kChoices)
      if (name == choice.name) names.push_back(name);
  return names;
}

}  // namespace curvedit
