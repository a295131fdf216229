#!/usr/bin/env bash
# On a GPU machine: builds, tests and measures everything that needs one; no network. PYTHON is the
# interpreter that has torch (the package is installed into its environment), OUT gets the results.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${OUT:-benchmarks/results/gpu}
failed=0

"$python" - <<'CHECK' || exit 1
import sys
try:
    import torch
except ImportError:
    sys.exit("make gpu: this Python has no torch; set PYTHON to one that has")
if not torch.cuda.is_available():
    sys.exit("make gpu: torch sees no GPU here; nothing was built, tested or measured")
print(torch.__version__, torch.cuda.get_device_name(), flush=True)
CHECK
command -v nvcc >/dev/null || { echo "make gpu: nvcc was not found; the CUDA kernels cannot be built"; exit 1; }

step() {  # name, seconds, command: its output goes to OUT/name.txt
  local name=$1 seconds=$2 begun=$SECONDS
  shift 2
  timeout "$seconds" "$@" >"$out/$name.txt" 2>&1
  local status=$?
  echo "$name: $([ $status = 0 ] && echo ok || echo "FAILED ($status)"), $((SECONDS - begun)) s"
  if [ $status != 0 ]; then
    tail -n 40 "$out/$name.txt"
    failed=1
  fi
}

mkdir -p "$out"
step build 180 "$python" -m pip install --no-build-isolation --no-deps -Ccmake.define.CURVEDIT_CUDA=ON -e . || true
[ $failed = 0 ] || exit 1
curvedit=("$python" -c "import sys; from curvedit.cli import main; sys.exit(main())")
step doctor 60 "${curvedit[@]}" doctor
step tests 180 "$python" -m pytest -q tests/test_syrk_accumulate.py tests/test_second_moment_accumulate.py \
  tests/test_staircase_project.py tests/test_eigen.py tests/test_doctor.py
rm -rf "$out/kernels"
step bench 150 "${curvedit[@]}" bench --rounds 5 --out "$out/kernels"
if command -v compute-sanitizer >/dev/null; then
  for backend in cuda wgmma; do
    [ $backend = cuda ] || nvidia-smi --query-gpu=compute_cap --format=csv,noheader | grep -q '^9.0' || continue
    small=(bench --backend $backend --d 136 --tokens 300 --repeat 1)
    step memcheck-$backend 60 compute-sanitizer --tool memcheck --error-exitcode 9 "${curvedit[@]}" "${small[@]}"
    step racecheck-$backend 60 compute-sanitizer --tool racecheck --error-exitcode 9 "${curvedit[@]}" "${small[@]}"
  done
fi
exit $failed
