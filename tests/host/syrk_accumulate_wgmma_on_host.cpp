// The same as syrk_accumulate_on_host.cpp for the kernel of Hopper GPUs.
// Arguments: tokens dim dtype(bf16|fp16) clusters groups poisoned split. Prints the results as
// JSON.
#define CURVEDIT_ON_HOST
#include "../../csrc/syrk_accumulate_wgmma.hpp"
#include "syrk_accumulate_case.hpp"

using namespace curvedit;

namespace {

template <typename Words>
int run(const Case& c, int clusters) {
  return run<Words>(c, [&](SyrkOnDevice p, const std::uint16_t* low) {
    const TensorMap map{p.x, p.dim, p.tokens, p.token_stride, wgmma::kColumns, kDepth};
    const TensorMap other{low, p.dim, p.tokens, p.token_stride, wgmma::kColumns, kDepth};
    const Plan plan = plan_of(p.side, p.groups, up(p.tokens, kDepth) * p.products, clusters);
    std::vector<float> partial(static_cast<std::size_t>(places_of(plan)) * kMacro, NAN);
    p.partial = partial.data();
    host::launch(
        2 * clusters, 1, 1, wgmma::kThreads, wgmma::kShared,
        [&] { syrk_accumulate_wgmma<WarpgroupOnHost<Words>>(p, plan, map, other); }, 2);
    host::launch(kAdders, shared_units(plan), 1, 256, 0, [&] { syrk_add_pieces(p, plan); });
  });
}

// Checks, for many sizes, that every step of every macro tile comes exactly once, and that no two
// pieces share their partial sums.
int check_plan() {
  for (int side = 1; side < 40; side += 1 + side / 8)
    for (std::int64_t tokens : {1, 64, 1000, 20000})
      for (int clusters : {1, 2, 7, 60, 66}) {
        const Plan plan = plan_of(side, 1, up(tokens, kDepth), clusters);
        SyrkOnDevice p{};
        float none{};
        p.partial = &none, p.side = side, p.tokens = tokens;
        std::map<std::pair<std::ptrdiff_t, std::ptrdiff_t>, std::set<int>> seen;
        std::set<float*> places;
        std::int64_t steps = 0;
        for (int cluster = 0; cluster < clusters; ++cluster)
          for (int n = 0;; ++n) {
            const Piece piece = piece_of(p, plan, cluster, n);
            if (piece.is_end) break;
            bool is_new = !piece.partial || (places.insert(piece.partial).second &&
                                             piece.partial - &none < places_of(plan) * kMacro);
            for (int k = piece.first; k < piece.last; ++k, ++steps)
              is_new &= seen[{piece.at.row, piece.at.column}].insert(k).second;
            if (!is_new || piece.first >= piece.last)
              return std::printf("{\"side\": %d, \"clusters\": %d}\n", side, clusters);
          }
        if (steps != static_cast<std::int64_t>(macro_tiles(side)) * plan.steps)
          return std::printf("{\"side\": %d, \"clusters\": %d}\n", side, clusters);
      }
  return std::printf("{}\n") < 0;
}

}  // namespace

int main(int count, char** words) {
  if (count == 2 && std::string(words[1]) == "shared")
    return std::printf("%d\n", wgmma::kShared) < 0;
  if (count == 2 && std::string(words[1]) == "plan") return check_plan();
  if (count != 8) return 2;
  const Case c{std::atoll(words[1]), std::atoi(words[2]), false, true, std::atoi(words[5]),
               std::atoll(words[6]), words[7][0] == '1'};
  const int clusters = std::atoi(words[4]);
  return std::string(words[3]) == "bf16" ? run<Bfloat16Words>(c, clusters)
                                         : run<Float16Words>(c, clusters);
}
