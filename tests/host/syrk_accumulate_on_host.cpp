// Runs the tensor-core kernel on a CPU and compares it with a plain sum in double precision.
// Arguments: tokens dim dtype(bf16|fp16) weighted aligned splits groups. Prints the results as JSON.
#define CURVEDIT_ON_HOST
#include "../../csrc/syrk_accumulate_mma.hpp"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <set>
#include <string>

using namespace curvedit;

namespace {

struct Case {
  std::int64_t tokens;
  int dim;
  bool weighted, aligned;
  int splits, groups;
};

template <typename Words, bool kWeighted, bool kAligned>
void launch(const SyrkOnDevice& p) {
  const int tiles = p.side * (p.side + 1) / 2;
  host::launch(tiles, p.splits, p.groups, mma::kThreads, mma::kShared,
               [&] { syrk_accumulate_mma<Words, kWeighted, kAligned>(p); });
  if (p.partial) {
    const std::int64_t size = static_cast<std::int64_t>(p.groups) * tiles * mma::kTile * mma::kTile;
    host::launch(static_cast<int>((size + 255) / 256), 1, 1, 256, 0,
                 [&] { syrk_add_partial(p.out, p.partial, size, p.splits); });
  }
}

template <typename Words>
int run(const Case& c) {
  std::mt19937 random(0);
  std::uniform_int_distribution<int> small(-4, 4);  // every sum is exact: the results must be equal
  const std::int64_t stride = c.aligned ? c.dim + 8 : 2 * c.dim + 3, step = c.aligned ? 1 : 2;
  std::vector<std::uint16_t> x(static_cast<std::size_t>(c.tokens * stride + 8));
  for (auto& value : x) value = Words::from_float(static_cast<float>(small(random)));
  std::vector<float> weight(static_cast<std::size_t>(c.tokens));
  for (auto& value : weight) value = static_cast<float>(small(random) * small(random) > 3 ? 4 : 0);
  for (std::int64_t t = 0; c.weighted && t < c.tokens; ++t)  // a token of weight 0 must not count, whatever it holds
    if (weight[t] == 0.0f) x[t * stride] = 0x7fff;
  std::vector<std::int64_t> offsets;  // uneven, the second group empty
  for (int g = 0; g <= c.groups; ++g) offsets.push_back(g == 0 ? 0 : g < 3 ? c.tokens / 3 : c.tokens * g / c.groups);
  offsets.back() = c.tokens;

  const int side = (c.dim + mma::kTile - 1) / mma::kTile, tiles = side * (side + 1) / 2;
  const std::size_t size = static_cast<std::size_t>(c.groups) * tiles * mma::kTile * mma::kTile, guard = 1000;
  std::vector<float> out(size + 2 * guard, 7.0f);
  std::vector<float> partial(c.splits > 1 ? c.splits * size : 0, NAN);
  SyrkOnDevice p{out.data() + guard, partial.empty() ? nullptr : partial.data(), x.data(), c.weighted ? weight.data() : nullptr,
                 c.groups > 1 ? offsets.data() : nullptr, c.tokens, stride, step, c.dim, side, c.splits, c.groups};
  if (c.weighted) c.aligned ? launch<Words, true, true>(p) : launch<Words, true, false>(p);
  else c.aligned ? launch<Words, false, true>(p) : launch<Words, false, false>(p);

  long wrong = 0, touched = 0;
  for (std::size_t n = 0; n < guard; ++n) touched += (out[n] != 7.0f) + (out[guard + size + n] != 7.0f);
  for (int g = 0; g < c.groups; ++g) {
    const std::int64_t first = c.groups > 1 ? offsets[g] : 0, last = c.groups > 1 ? offsets[g + 1] : c.tokens;
    for (int i = 0; i < c.dim; ++i)
      for (int j = 0; j <= i; ++j) {
        double sum = 7.0;
        for (std::int64_t t = first; t < last; ++t) {
          const double w = c.weighted ? weight[t] : 1.0;
          if (w > 0.0) sum += w * Words::to_float(x[t * stride + i * step]) * Words::to_float(x[t * stride + j * step]);
        }
        const std::ptrdiff_t tile = i / mma::kTile * (i / mma::kTile + 1) / 2 + j / mma::kTile;
        const std::ptrdiff_t at = ((g * tiles + tile) * mma::kTile + i % mma::kTile) * mma::kTile + j % mma::kTile;
        wrong += p.out[at] != static_cast<float>(sum);
      }
  }
  std::printf("{\"wrong\": %ld, \"touched\": %ld}\n", wrong, touched);
  return wrong || touched;
}

// Every lower tile exactly once, for many sizes.
int check_order() {
  for (std::ptrdiff_t side = 1; side < 70; ++side)
    for (std::ptrdiff_t band : {1, 4, 8}) {
      std::set<std::pair<std::ptrdiff_t, std::ptrdiff_t>> seen;
      for (std::ptrdiff_t n = 0; n < side * (side + 1) / 2; ++n) {
        const Position at = position(n, side, band);
        if (at.column < 0 || at.column > at.row || at.row >= side || !seen.insert({at.row, at.column}).second) {
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
  if (count != 8) return 2;
  const Case c{std::atoll(words[1]), std::atoi(words[2]), words[4][0] == '1', words[5][0] == '1', std::atoi(words[6]),
               std::atoi(words[7])};
  return std::string(words[3]) == "bf16" ? run<Bfloat16Words>(c) : run<Float16Words>(c);
}
