# Sourced by gpu_correct.sh and gpu_measure.sh: steps with time limits, and the package built.
#
# PYTHON is an interpreter that has torch, pytest and the build's requirements; nothing is installed
# into its environment. OUT gets steps.jsonl, a line per step as it ends, and logs.txt, what the
# steps print, as they print it. A step that fails or hangs does not stop the others. With --dry
# every step runs in its form for a CPU, four times as long at most, and the limits are added up.
# ONLY, a regular expression, picks steps beside the build; TOTAL shortens the whole.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly TOTAL=${TOTAL:-500}  # seconds of all steps
dry=0
[ "${1:-}" = --dry ] && dry=1
python=${PYTHON:-python3}
out=${OUT:-build/gpu-results}
site=$PWD/build/gpu-site  # where the package is installed
planned=0 failed=0 begun=$SECONDS
mkdir -p "$out"
: >>"$out/steps.jsonl"
export PYTHONUNBUFFERED=1 PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
unset TRITON_INTERPRET

step() {  # name, seconds, command
  local name=$1 seconds=$2 start=$SECONDS limit left=$((TOTAL - (SECONDS - begun))) status outcome from
  shift 2
  [[ $name = build || $name =~ ${ONLY:-.} ]] || return 0
  planned=$((planned + seconds))
  limit=$((seconds < left ? seconds : left))
  [ $dry = 1 ] && limit=$((4 * seconds))
  from=$(($(stat -c %s "$out/logs.txt" 2>/dev/null || echo 0) + 1))
  echo "=== $name: $(tr "\n" " " <<<"$*" | cut -c 1-300)" >>"$out/logs.txt"
  if [ $limit -lt 5 ]; then
    status=-1 outcome="no time left"
  else
    timeout -k 5 "$limit" "$@" </dev/null >>"$out/logs.txt" 2>&1
    status=$?
    case $status in 0) outcome=ok ;; 124 | 137) outcome="out of time" ;; *) outcome=failed ;; esac
  fi
  [ $status = 0 ] || failed=1
  printf '{"step": "%s", "outcome": "%s", "status": %d, "seconds": %d, "limit": %d}\n' \
    "$name" "$outcome" $status $((SECONDS - start)) "$limit" >>"$out/steps.jsonl"
  echo "$name: $outcome, $((SECONDS - start)) of $limit s"
  tail -c "+$from" "$out/logs.txt" | tail -n "$([ $status = 0 ] && echo 3 || echo 25)" | cut -c 1-300
  return $status
}

finish() {
  echo "limits: $planned of $TOTAL s; took $((SECONDS - begun)) s"
  [ $planned -le $TOTAL ] || { echo "the limits add up to more than $TOTAL s"; failed=1; }
  local size
  size=$(stat -c %s "$out/logs.txt")
  if [ "$size" -gt 15000000 ]; then  # a log that repeats itself: its ends are enough
    { head -c 7000000 "$out/logs.txt"; echo; echo "=== cut"; tail -c 7000000 "$out/logs.txt"; } \
      >"$out/logs.cut" && mv "$out/logs.cut" "$out/logs.txt"
  fi
  exit $failed
}

has() { "$python" -c "import $1" 2>/dev/null; }

require_gpu() {
  [ $dry = 1 ] && return
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
}

# Installs the package into $site: a wheel of it in .wheels/ or .whl/ if there is one, else built
# for this device only. Other wheels there come along.
install() {
  local into=(-m pip install --quiet --no-deps --no-compile --upgrade --target "$site") own wheels
  wheels=$(ls .wheels/*.whl .whl/*.whl 2>/dev/null | grep -v /curvedit-)
  own=$(ls .wheels/curvedit-*.whl .whl/curvedit-*.whl 2>/dev/null | head -1)
  # shellcheck disable=SC2086 # names of wheels have no spaces
  [ -z "$wheels" ] || "$python" "${into[@]}" --no-index $wheels || return
  if [ -n "$own" ]; then
    "$python" "${into[@]}" --no-index "$own"
    return
  fi
  local isolation=--no-build-isolation capability=9.0
  if [ $dry = 1 ]; then
    has scikit_build_core && has pybind11 || isolation=
  else
    command -v nvcc >/dev/null || { echo "nvcc was not found; the CUDA kernels cannot be built"; return 1; }
    capability=$("$python" -c "import torch; print(*torch.cuda.get_device_capability(), sep='.')")
  fi
  local architecture=${capability/./}
  [ "$architecture" = 90 ] && architecture=90a
  command -v nvcc >/dev/null && into+=(-Ccmake.define.CURVEDIT_CUDA=ON)
  "$python" "${into[@]}" ${isolation:+"$isolation"} -Ccmake.define.CMAKE_CUDA_ARCHITECTURES="$architecture-real" .
}

build() { step build 90 bash -c "$(declare -f has install); $(declare -p python site dry); install"; }
