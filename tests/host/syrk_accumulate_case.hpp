// A case of syrk_accumulate for a kernel that runs on a CPU: data whose sums are exact, and a plain
// sum to compare with.
#pragma once
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <set>
#include <string>

#include "../../csrc/syrk_accumulate_device.hpp"

namespace curvedit {

struct Case {
  std::int64_t tokens;
  int dim;
  bool weighted, aligned;
  int groups;
  std::int64_t poisoned = 0;  // the last tokens, which belong to no group and hold NaN
  bool split = false;  // tokens are the sum of two numbers, whose smallest product is left out
};

template <typename Words, typename Launch>
int run(const Case& c, Launch launch) {
  std::mt19937 random(0);
  std::uniform_int_distribution<int> small(-4, 4);  // sums are exact, so results must be equal
  const std::int64_t stride = c.aligned ? c.dim + 8 : 2 * c.dim + 3, step = c.aligned ? 1 : 2;
  std::vector<std::uint16_t> x(static_cast<std::size_t>(c.tokens * stride + 8));
  for (auto& value : x) value = Words::from_float(static_cast<float>(small(random)));
  const std::int64_t grouped = c.tokens - c.poisoned;
  for (std::int64_t t = 0; c.poisoned && t < c.tokens;
       ++t)  // past the columns, and ungrouped tokens
    for (std::int64_t n = t < grouped ? c.dim : 0; n < stride; ++n) x[t * stride + n] = 0x7fff;
  std::vector<std::uint16_t> low(x.size());
  for (auto& value : low) value = Words::from_float(static_cast<float>(small(random)));
  std::vector<float> weight(static_cast<std::size_t>(c.tokens));
  for (auto& value : weight) value = static_cast<float>(small(random) * small(random) > 3 ? 4 : 0);
  // A token of weight 0 must not count, whatever it holds.
  for (std::int64_t t = 0; c.weighted && t < c.tokens; ++t)
    if (weight[t] == 0.0f) x[t * stride] = 0x7fff;
  std::vector<std::int64_t> offsets{0};  // uneven, the second group empty
  for (int g = 1; g <= c.groups; ++g)
    offsets.push_back(g < 3 ? grouped / 3 : grouped * g / c.groups);
  offsets.back() = grouped;

  const int side = (c.dim + kDeviceTile - 1) / kDeviceTile, tiles = side * (side + 1) / 2;
  const std::size_t size = static_cast<std::size_t>(c.groups) * tiles * kDeviceTile * kDeviceTile;
  const std::size_t guard = 1000;
  std::vector<float> out(size + 2 * guard, 7.0f);
  SyrkOnDevice p{out.data() + guard,
                 nullptr,
                 x.data(),
                 c.weighted ? weight.data() : nullptr,
                 c.groups > 1 ? offsets.data() : nullptr,
                 c.tokens,
                 stride,
                 step,
                 c.dim,
                 side,
                 1,
                 c.groups,
                 c.split ? 3 : 1};
  launch(p, low.data());

  long wrong = 0, touched = 0;
  for (std::size_t n = 0; n < guard; ++n)
    touched += (out[n] != 7.0f) + (out[guard + size + n] != 7.0f);
  for (int g = 0; g < c.groups; ++g) {
    const std::int64_t first = c.groups > 1 ? offsets[g] : 0;
    const std::int64_t last = c.groups > 1 ? offsets[g + 1] : c.tokens;
    for (int i = 0; i < c.dim; ++i)
      for (int j = 0; j <= i; ++j) {
        double sum = 7.0;
        for (std::int64_t t = first; t < last; ++t) {
          const double w = c.weighted ? weight[t] : 1.0;
          const double left = Words::to_float(x[t * stride + i * step]);
          const double right = Words::to_float(x[t * stride + j * step]);
          if (w > 0.0) sum += w * left * right;
          if (c.split)
            sum += left * Words::to_float(low[t * stride + j * step]) +
                   Words::to_float(low[t * stride + i * step]) * right;
        }
        const int row = i / kDeviceTile, column = j / kDeviceTile;
        const std::ptrdiff_t tile = g * tiles + row * (row + 1) / 2 + column;
        const std::ptrdiff_t at =
            (tile * kDeviceTile + i % kDeviceTile) * kDeviceTile + j % kDeviceTile;
        wrong += p.out[at] != static_cast<float>(sum);
      }
  }
  std::printf("{\"wrong\": %ld, \"touched\": %ld}\n", wrong, touched);
  return wrong || touched;
}

}  // namespace curvedit
