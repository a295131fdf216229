// Runs scale_tokens on a CPU and compares it with the same, one number at a time.
// Arguments: tokens dim aligned(0|1) weighted(0|1). Prints the results as JSON.
#define CURVEDIT_ON_HOST
#include "../../csrc/scale_tokens.hpp"

#include <cstdio>
#include <cstdlib>
#include <random>

using namespace curvedit;

namespace {

template <typename From>
typename From::Word word_of(float value) {
  if constexpr (sizeof(typename From::Word) == 4) return value;
  else return From::from_float(value);
}

template <typename From, typename To>
long wrong_of(std::int64_t tokens, int dim, bool is_aligned, bool is_weighted) {
  std::mt19937 random(0);
  std::normal_distribution<float> normal;
  const int step = is_aligned ? 1 : 2, stride = is_aligned ? dim + 8 : 2 * dim + 3;
  const int width = (dim + 7) / 8 * 8;
  std::vector<typename From::Word> x(static_cast<std::size_t>(tokens * stride + 8));
  for (auto& word : x) word = word_of<From>(normal(random));
  std::vector<float> weight(static_cast<std::size_t>(tokens));
  for (auto& value : weight) value = std::max(0.0f, normal(random));
  for (std::int64_t t = 0; is_weighted && t < tokens; ++t)
    if (weight[t] == 0.0f) x[t * stride] = static_cast<typename From::Word>(0x7fff);
  std::vector<std::uint16_t> got(static_cast<std::size_t>(2 * tokens * width + 8), 0x7fff);
  auto* const out = reinterpret_cast<std::uint16_t*>(
      (reinterpret_cast<std::uintptr_t>(got.data()) + 15) / 16 * 16);
  std::uint16_t* const low = out + tokens * width;
  const Scaling p{out,  low, x.data(), is_weighted ? weight.data() : nullptr, tokens, stride,
                  step, dim, width};
  host::launch(static_cast<int>((tokens * width / 8 + 255) / 256), 1, 1, 256, 0, [&] {
    if (is_aligned) scale_tokens<From, To, true>(p);
    else scale_tokens<From, To, false>(p);
  });
  long wrong = 0;
  for (std::int64_t t = 0; t < tokens; ++t)
    for (int c = 0; c < width; ++c) {
      const float w = is_weighted ? weight[t] : 1.0f;
      const bool is_kept = c < dim && w > 0.0f;
      const float value = is_kept ? From::to_float(x[t * stride + c * step]) * std::sqrt(w) : 0.0f;
      const std::uint16_t high = To::from_float(value);
      wrong += out[t * width + c] != high;
      wrong += low[t * width + c] != To::from_float(value - To::to_float(high));
    }
  return wrong;
}

}  // namespace

int main(int count, char** words) {
  if (count != 5) return 2;
  const std::int64_t tokens = std::atoll(words[1]);
  const int dim = std::atoi(words[2]);
  const bool is_aligned = words[3][0] == '1', is_weighted = words[4][0] == '1';
  const long wrong = wrong_of<Float32Words, Bfloat16Words>(tokens, dim, is_aligned, is_weighted) +
                     wrong_of<Bfloat16Words, Bfloat16Words>(tokens, dim, is_aligned, is_weighted) +
                     wrong_of<Float16Words, Bfloat16Words>(tokens, dim, is_aligned, is_weighted) +
                     wrong_of<Float16Words, Float16Words>(tokens, dim, is_aligned, is_weighted);
  std::printf("{\"wrong\": %ld}\n", wrong);
  return wrong != 0;
}
