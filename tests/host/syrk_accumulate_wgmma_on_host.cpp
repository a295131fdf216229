// The same as syrk_accumulate_on_host.cpp for the kernel of Hopper GPUs.
// Arguments: tokens dim dtype(bf16|fp16) splits groups poisoned. Prints the results as JSON.
#define CURVEDIT_ON_HOST
#include "../../csrc/syrk_accumulate_wgmma.hpp"
#include "syrk_accumulate_case.hpp"

using namespace curvedit;

namespace {

template <typename Words>
int run(const Case& c) {
  return run<Words>(c, [](const SyrkOnDevice& p) {
    const TensorMap map{p.x, p.dim, p.tokens, p.token_stride, wgmma::kColumns, wgmma::kDepth};
    host::launch(p.side * (p.side + 1) / 2, p.splits, p.groups, wgmma::kThreads, wgmma::kShared,
                 [&] { syrk_accumulate_wgmma<WarpgroupOnHost<Words>>(p, map); });
  });
}

}  // namespace

int main(int count, char** words) {
  if (count == 2 && std::string(words[1]) == "shared")
    return std::printf("%d\n", wgmma::kShared) < 0;
  if (count != 7) return 2;
  const Case c{std::atoll(words[1]), std::atoi(words[2]), false, true, std::atoi(words[4]),
               std::atoi(words[5]),  std::atoll(words[6])};
  return std::string(words[3]) == "bf16" ? run<Bfloat16Words>(c) : run<Float16Words>(c);
}
