// Runs the tensor-core kernel on a CPU and compares it with a plain sum in double precision.
// Arguments: tokens dim dtype(bf16|fp16) weighted aligned splits groups. Prints the results as
// JSON.
#define CURVEDIT_ON_HOST
#include "../../csrc/syrk_accumulate_mma.hpp"
#include "syrk_accumulate_case.hpp"

using namespace curvedit;

namespace {

template <typename Words, bool kWeighted, bool kAligned>
void launch(const SyrkOnDevice& p) {
  host::launch(p.side * (p.side + 1) / 2, p.splits, p.groups, mma::kThreads, mma::kShared,
               [&] { syrk_accumulate_mma<Words, kWeighted, kAligned>(p); });
}

template <typename Words>
int run(const Case& c, int splits) {
  return run<Words>(c, [&](SyrkOnDevice p, const std::uint16_t*) {
    const std::int64_t size = p.groups * (p.side * (p.side + 1) / 2) * kDeviceTile * kDeviceTile;
    std::vector<float> partial(splits > 1 ? splits * size : 0, NAN);
    p.splits = splits;
    p.partial = partial.empty() ? nullptr : partial.data();
    if (c.weighted && c.aligned) launch<Words, true, true>(p);
    else if (c.weighted) launch<Words, true, false>(p);
    else if (c.aligned) launch<Words, false, true>(p);
    else launch<Words, false, false>(p);
    if (p.partial)
      host::launch(static_cast<int>((size + 255) / 256), 1, 1, 256, 0,
                   [&] { syrk_add_partial(p.out, p.partial, size, p.splits); });
  });
}

// Checks, for many sizes, that every lower tile comes exactly once.
int check_order() {
  for (std::ptrdiff_t side = 1; side < 70; ++side)
    for (std::ptrdiff_t band : {1, 4, 8}) {
      std::set<std::pair<std::ptrdiff_t, std::ptrdiff_t>> seen;
      for (std::ptrdiff_t n = 0; n < side * (side + 1) / 2; ++n) {
        const Position at = position(n, side, band);
        if (at.column < 0 || at.column > at.row || at.row >= side ||
            !seen.insert({at.row, at.column}).second) {
          std::printf("{\"side\": %td, \"band\": %td, \"n\": %td}\n", side, band, n);
          return 1;
        }
      }
    }
  std::printf("{}\n");
  return 0;
}

}  // namespace

int main(int count, char** words) {
  if (count == 2 && std::string(words[1]) == "order") return check_order();
  if (count == 2 && std::string(words[1]) == "shared") return std::printf("%d\n", mma::kShared) < 0;
  if (count != 8) return 2;
  const Case c{std::atoll(words[1]), std::atoi(words[2]), words[4][0] == '1', words[5][0] == '1',
               std::atoi(words[7])};
  const int splits = std::atoi(words[6]);
  return std::string(words[3]) == "bf16" ? run<Bfloat16Words>(c, splits)
                                         : run<Float16Words>(c, splits);
}
