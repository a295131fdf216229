#include "cpu.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace curvedit {
namespace {

#if defined(__x86_64__)
// Linux grants the tile registers to a process only on request.
bool has_amx() {
#if defined(__linux__)
  unsigned a, b, c, d;
  constexpr unsigned kBf16 = 1u << 22, kTiles = 1u << 24;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kBf16) == 0 || (d & kTiles) == 0)
    return false;
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

// By number, because compilers disagree on the feature's name.
bool has_avx512_bf16() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 5) != 0;
}

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif

std::vector<std::string> ask() {
  std::vector<std::string> names;
#if defined(__x86_64__)
  if (has_avx512()) {
    if (has_amx()) names.push_back("amx");
    else if (has_avx512_bf16()) names.push_back("avx512_bf16");
    names.push_back("avx512");
  }
  if (has_avx2()) names.push_back("avx2");
#endif
  names.push_back("portable");
  return names;
}

}  // namespace

const std::vector<std::string>& cpu_instruction_sets() {
  static const std::vector<std::string> names = ask();
  return names;
}

}  // namespace curvedit
