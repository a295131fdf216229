#!/usr/bin/env bash
# On a GPU machine, in at most 500 s: runs the programs of gpu_measure/, each of which writes JSON
# lines, but for fit_experts.py, which would take another 75 s. gpu_steps.sh says what PYTHON, OUT
# and --dry are; gpu_correct.sh comes before.
source "$(dirname "$0")/gpu_steps.sh"
require_gpu

declare -A seconds=([ceilings]=35 [eigen]=60 [fit_7b]=115 [staircase]=50 [syrk]=90 [triton_grid]=60)
startup=15  # of a program, until it counts its own time
build
for file in benchmarks/gpu_measure/*.py; do
  name=$(basename "$file" .py)
  case $name in common | predictions | report | fit_experts | "*") continue ;; esac
  limit=${seconds[$name]:-15}
  options=(--json "$out/$name.json" --seconds $((limit - startup)))
  [ $dry = 1 ] && options+=(--dry)
  step "$name" "$limit" "$python" "$file" "${options[@]}"
done
finish
