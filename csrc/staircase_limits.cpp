#include "staircase_limits.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace curvedit {
namespace {

std::uint64_t to_bits(double value) {
  std::uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

double from_bits(std::uint64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// A spectrum divided by a power of two, so that its largest value lies in [0.5, 1). That rounds
// nothing, and products and their sums neither overflow nor vanish.
struct Scaled {
  std::vector<double> values;
  int exponent = 0;

  Scaled(const double* from, std::ptrdiff_t size) : values(from, from + size) {
    if (size) std::frexp(values[0], &exponent);
    const int half = exponent / 2;  // in two steps, because the power itself may be no double
    const double first = std::ldexp(1.0, -half), second = std::ldexp(1.0, half - exponent);
    for (double& value : values) value = value * first * second;
  }
};

// A product of scaled values, in the spectra's own unit; the largest or smallest double where that
// overflows or vanishes.
double unscaled(double product, int exponent) {
  if (!(product > 0.0)) return product;
  return std::clamp(std::ldexp(product, exponent), std::numeric_limits<double>::denorm_min(),
                    std::numeric_limits<double>::max());
}

// Both spectra, and the prefix sums of mu. Walks the staircase of products >= (or >) a threshold
// once.
struct Walk {
  const double* lam;
  std::ptrdiff_t m;
  const double* mu;
  std::ptrdiff_t n;
  std::vector<double> prefix;

  template <typename Keep, typename Visit>
  void rows(Keep keep, Visit visit) const {
    std::ptrdiff_t columns = n;
    for (std::ptrdiff_t i = 0; i < m; ++i) {
      while (columns > 0 && !keep(lam[i] * mu[columns - 1])) --columns;
      visit(i, columns);
    }
  }

  double mass_at_or_above(double threshold) const {
    double mass = 0.0;
    rows([=](double product) { return product >= threshold; },
         [&](std::ptrdiff_t i, std::ptrdiff_t columns) {
           mass += lam[i] * prefix[static_cast<std::size_t>(columns)];
         });
    return mass;
  }
};

}  // namespace

Staircase staircase_limits(const double* outputs, std::ptrdiff_t m, const double* inputs,
                           std::ptrdiff_t n, double keep_mass, std::int32_t* limits) {
  const Scaled rows(outputs, m), columns(inputs, n);
  const double *lam = rows.values.data(), *mu = columns.values.data();
  const int exponent = rows.exponent + columns.exponent;
  Walk walk{lam, m, mu, n, std::vector<double>(static_cast<std::size_t>(n) + 1, 0.0)};
  for (std::ptrdiff_t j = 0; j < n; ++j)
    walk.prefix[static_cast<std::size_t>(j) + 1] = walk.prefix[static_cast<std::size_t>(j)] + mu[j];
  const double total = walk.mass_at_or_above(0.0);
  if (keep_mass >= 1.0) {
    std::fill(limits, limits + m, static_cast<std::int32_t>(n));
    return {m && n ? unscaled(lam[m - 1] * mu[n - 1], exponent) : 0.0, m * n, 1.0};
  }
  std::fill(limits, limits + m, 0);
  if (!(total > 0.0)) return {std::numeric_limits<double>::infinity(), 0, 0.0};

  // Non-negative doubles sort like their bit patterns, so bisecting the bits is exact.
  const double target = keep_mass * total;
  std::uint64_t low = 0, high = to_bits(lam[0] * mu[0]);
  while (low < high) {  // invariant: the mass at or above `low` reaches the target
    const std::uint64_t middle = low + (high - low + 1) / 2;
    if (walk.mass_at_or_above(from_bits(middle)) >= target) low = middle;
    else high = middle - 1;
  }
  const double threshold = from_bits(low);

  // Keep everything above the threshold, then as many ties with it as the target needs.
  double mass = 0.0;
  std::int64_t kept = 0;
  walk.rows([=](double product) { return product > threshold; },
            [&](std::ptrdiff_t i, std::ptrdiff_t columns) {
              limits[i] = static_cast<std::int32_t>(columns);
              kept += columns;
              mass += lam[i] * walk.prefix[static_cast<std::size_t>(columns)];
            });
  const auto reaches = [=](double ties) { return mass + threshold * ties >= target; };
  double ties = threshold > 0.0 ? std::ceil((target - mass) / threshold) : 1.0;
  if (!reaches(ties)) ties += 1.0;  // the quotient is rounded and may be off by one
  else if (reaches(ties - 1.0)) ties -= 1.0;
  auto needed = static_cast<std::int64_t>(
      std::clamp(ties, 1.0, static_cast<double>(m) * static_cast<double>(n)));
  walk.rows([=](double product) { return product >= threshold; },
            [&](std::ptrdiff_t i, std::ptrdiff_t columns) {
              const std::int64_t taken = std::min<std::int64_t>(needed, columns - limits[i]);
              limits[i] += static_cast<std::int32_t>(taken);
              needed -= taken;
              kept += taken;
              mass += threshold * static_cast<double>(taken);
            });
  return {unscaled(threshold, exponent), kept, std::min(mass / total, 1.0)};
}

}  // namespace curvedit
