#!/usr/bin/env bash
# On a GPU machine, in at most 500 s: builds the package for its device and checks every kernel
# there. gpu_steps.sh says what PYTHON, OUT and --dry are; gpu_measure.sh then measures.
source "$(dirname "$0")/gpu_steps.sh"
require_gpu

tests=("$python" -m pytest -q -p no:cacheprovider -ra)
has xdist && tests+=(-n "${WORKERS:-10}" --max-worker-restart=200)
has pytest_timeout && tests+=(--timeout=90 --timeout-method=thread)
has pytest_benchmark && has xdist && tests+=(-p no:benchmark)
# on a CPU a part stands for all
[ $dry = 1 ] && tests+=(-k "not triton and not fit_in_bfloat16") && export CURVEDIT_REHEARSE=1
cli=("$python" -m curvedit)

build
step doctor 60 "${cli[@]}" doctor
step tests-gpu 130 "${tests[@]}" tests/test_gpu.py tests/test_gpu_stages.py
step tests-kernels 110 "${tests[@]}" tests/test_syrk_accumulate.py tests/test_second_moment_accumulate.py \
  tests/test_staircase_project.py tests/test_staircase_limits.py tests/test_kernel_borders.py tests/test_eigen.py
sanitizer=(compute-sanitizer --error-exitcode 9 --print-limit 20)
if [ $dry = 1 ] || ! command -v compute-sanitizer >/dev/null; then
  sanitizer=(env)
fi
sanitized() {  # tool, backend
  local tool=()
  [ "${sanitizer[0]}" = env ] || tool=(--tool "$1")
  step "$1-$2" 20 "${sanitizer[@]}" "${tool[@]}" "$python" benchmarks/gpu_small_calls.py "$2"
}
export PYTORCH_NO_CUDA_MEMORY_CACHING=1  # so that memory beyond a tensor's is nobody's
for backend in cuda wgmma triton; do sanitized memcheck $backend; done
for backend in cuda wgmma; do sanitized racecheck $backend; done
finish
