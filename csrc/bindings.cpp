// The only file that knows Python. Tensors arrive as addresses, shapes and strides, which
// curvedit.ops has checked.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "device.hpp"
#include "second_moment_accumulate.hpp"
#include "staircase_limits.hpp"
#include "syrk_accumulate.hpp"
#include "syrk_accumulate_cuda.hpp"

namespace py = pybind11;

namespace {

template <typename T>
T* at(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

using Sums = std::vector<std::pair<std::uintptr_t, std::uintptr_t>>;  // (out, weight or 0)

void syrk_accumulate(const Sums& sums, std::uintptr_t x, int dtype, std::ptrdiff_t dim,
                     std::ptrdiff_t token_stride, std::ptrdiff_t dim_stride,
                     const std::vector<std::int64_t>& offsets, int threads,
                     const std::string& instruction_set) {
  py::gil_scoped_release release;  // nothing below touches Python
  const curvedit::Tokens tokens{
      at<const void>(x), static_cast<curvedit::Dtype>(dtype), 0, dim, token_stride, dim_stride};
  curvedit::Syrk problem{{}, static_cast<int>(sums.size()), tokens, threads};
  for (std::size_t n = 0; n < sums.size() && n < 2; ++n)
    problem.sums[n] = {at<float>(sums[n].first), at<const float>(sums[n].second)};
  curvedit::syrk_accumulate(problem, offsets, instruction_set);
}

void syrk_accumulate_cuda(std::uintptr_t out, std::uintptr_t x, std::uintptr_t weight,
                          std::uintptr_t offsets, std::uintptr_t partial, int dtype,
                          std::int64_t tokens, std::int64_t dim, std::int64_t token_stride,
                          std::int64_t dim_stride, int groups, int splits, std::uintptr_t stream) {
  py::gil_scoped_release release;
  curvedit::syrk_accumulate_cuda({out, x, weight, offsets, partial, dtype, tokens, dim,
                                  token_stride, dim_stride, groups, splits, stream});
}

void syrk_accumulate_wgmma(std::uintptr_t out, std::uintptr_t x, std::uintptr_t low,
                           std::uintptr_t offsets, std::uintptr_t partial, int dtype,
                           std::int64_t tokens, std::int64_t dim, std::int64_t token_stride,
                           int groups, std::uintptr_t stream) {
  py::gil_scoped_release release;
  curvedit::syrk_accumulate_wgmma(
      {out, x, low, offsets, partial, dtype, tokens, dim, token_stride, groups, stream});
}

void scale_tokens_cuda(std::uintptr_t out, std::uintptr_t low, std::uintptr_t x,
                       std::uintptr_t weight, int dtype, int out_dtype, std::int64_t tokens,
                       std::int64_t dim, std::int64_t token_stride, std::int64_t dim_stride,
                       std::int64_t width, std::uintptr_t stream) {
  py::gil_scoped_release release;
  curvedit::scale_tokens_cuda({out, low, x, weight, dtype, out_dtype, tokens, dim, token_stride,
                               dim_stride, width, stream});
}

// The members of Tokens but for `tokens`.
using Source = std::tuple<std::uintptr_t, int, std::ptrdiff_t, std::ptrdiff_t, std::ptrdiff_t>;

curvedit::Tokens tokens_of(const Source& source, std::ptrdiff_t tokens) {
  const auto& [x, dtype, dim, token_stride, dim_stride] = source;
  return {at<const void>(x), static_cast<curvedit::Dtype>(dtype), tokens, dim, token_stride,
          dim_stride};
}

void second_moment_accumulate(std::uintptr_t out, const Source& g, const Source& a,
                              const std::vector<std::int64_t>& offsets, int threads,
                              const std::string& instruction_set) {
  py::gil_scoped_release release;
  const auto sequences = static_cast<std::ptrdiff_t>(offsets.size()) - 1;
  const auto tokens = static_cast<std::ptrdiff_t>(offsets.back());
  curvedit::second_moment_accumulate({at<float>(out), tokens_of(g, tokens), tokens_of(a, tokens),
                                      offsets.data(), sequences, threads},
                                     instruction_set);
}

std::vector<std::string> instruction_sets(const std::string& op) {
  if (op == "syrk_accumulate") return curvedit::syrk_instruction_sets();
  if (op == "second_moment_accumulate") return curvedit::second_moment_instruction_sets();
  throw std::invalid_argument("op: expected syrk_accumulate or second_moment_accumulate, got " +
                              op);
}

py::tuple staircase_limits(std::uintptr_t lam, std::ptrdiff_t m, std::uintptr_t mu,
                           std::ptrdiff_t n, double keep_mass, std::uintptr_t limits) {
  curvedit::Staircase found{};
  {
    py::gil_scoped_release release;
    found = curvedit::staircase_limits(at<const double>(lam), m, at<const double>(mu), n, keep_mass,
                                       at<std::int32_t>(limits));
  }
  return py::make_tuple(found.threshold, found.kept, found.mass);
}

}  // namespace

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  m.doc() = "Compiled kernels of curvedit.";
  m.def("syrk_accumulate", &syrk_accumulate, py::arg("sums"), py::arg("x"), py::arg("dtype"),
        py::arg("dim"), py::arg("token_stride"), py::arg("dim_stride"), py::arg("offsets"),
        py::arg("threads"), py::arg("instruction_set") = "");
  m.def("syrk_accumulate_cuda", &syrk_accumulate_cuda, py::arg("out"), py::arg("x"),
        py::arg("weight"), py::arg("offsets"), py::arg("partial"), py::arg("dtype"),
        py::arg("tokens"), py::arg("dim"), py::arg("token_stride"), py::arg("dim_stride"),
        py::arg("groups"), py::arg("splits"), py::arg("stream"));
  m.def("syrk_accumulate_wgmma", &syrk_accumulate_wgmma, py::arg("out"), py::arg("x"),
        py::arg("low"), py::arg("offsets"), py::arg("partial"), py::arg("dtype"), py::arg("tokens"),
        py::arg("dim"), py::arg("token_stride"), py::arg("groups"), py::arg("stream"));
  m.def("syrk_partial_wgmma", &curvedit::syrk_partial_wgmma, py::arg("tokens"), py::arg("dim"),
        py::arg("groups"), py::arg("has_low"));
  m.def("scale_tokens_cuda", &scale_tokens_cuda, py::arg("out"), py::arg("low"), py::arg("x"),
        py::arg("weight"), py::arg("dtype"), py::arg("out_dtype"), py::arg("tokens"),
        py::arg("dim"), py::arg("token_stride"), py::arg("dim_stride"), py::arg("width"),
        py::arg("stream"));
  m.def("second_moment_accumulate", &second_moment_accumulate, py::arg("out"), py::arg("g"),
        py::arg("a"), py::arg("offsets"), py::arg("threads"), py::arg("instruction_set") = "");
  m.def("instruction_sets", &instruction_sets, py::arg("op"));
  m.def("staircase_limits", &staircase_limits);
  m.def("cuda_architectures", &curvedit::cuda_architectures);
}
