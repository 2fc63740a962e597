#!/usr/bin/env bash
# Everything that only a GPU can show, in under ten minutes. A step that fails or runs too long is reported, and
# the rest goes on; what each step said is kept, and the last lines are a summary.
#
# usage: benchmarks/gpu.sh [output folder]
#   PYTHON     of an environment with unblemish[cuda,train,fit,test] (python)
#   BUNDLE, IMAGES   what to profile, a detector and a folder (F2PAD on the sample parts made here)
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
out=${1:-runs/gpu}
mkdir -p "$out"
summary=()
worst=0
most=590  # seconds for everything

skip() { summary+=("skipped  $1: $2"); }

# step NAME SECONDS COMMAND...
step() {
  local name=$1 limit=$2 began=$SECONDS code
  shift 2
  if [ $((most - SECONDS)) -lt "$limit" ]; then limit=$((most - SECONDS)); fi
  if [ "$limit" -lt 5 ]; then
    skip "$name" "no time left"
    return
  fi
  printf '\n== %s ==\n' "$name"
  timeout "$limit" "$@" >"$out/$name.txt" 2>&1
  code=$?
  tail -n 40 "$out/$name.txt"
  case $code in
    0) summary+=("ok       $name ($((SECONDS - began)) s)") ;;
    124) summary+=("TIME OUT $name (after $limit s)"); worst=1 ;;
    *) summary+=("FAILED   $name (exit $code, see $out/$name.txt)"); worst=1 ;;
  esac
}

step machine 20 nvidia-smi --query-gpu=name,compute_cap,driver_version,memory.total,clocks.max.sm --format=csv
# Compiles what has no fat binary yet, which pycuda then keeps.
step once 120 "$python" benchmarks/gpu_once.py
step tests 150 "$python" -m pytest -q -m gpu -p no:cacheprovider tests/kernels tests/runtime/device
step inspection 200 "$python" benchmarks/gpu_inspection.py --work "$out/inspection"

if command -v compute-sanitizer >/dev/null; then
  # One shape of every operation: under the sanitizer a launch takes hundreds of times as long.
  for tool in memcheck racecheck; do
    step "$tool" 60 compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" benchmarks/gpu_once.py
  done
else
  skip memcheck "compute-sanitizer is not on PATH"
  skip racecheck "compute-sanitizer is not on PATH"
fi

step kernels 60 "$python" benchmarks/kernels.py solvers energy --cuda
step kernels-f2pad 30 "$python" benchmarks/kernels.py f2pad detectors --cuda
# Where the time of a step goes, and how near each stage comes to what the chip can do.
step profile-demo 60 "$python" -m unblemish profile src/unblemish/demo_data/parts.bundle --seconds 3
step pggan-1 60 "$python" benchmarks/gpu_steps.py step --batch 1
step pggan-64 60 "$python" benchmarks/gpu_steps.py step --batch 64 --rounds 10
step rrgi 30 "$python" benchmarks/gpu_finetuning.py
step rrgi-torch 30 "$python" benchmarks/gpu_finetuning.py --engine torch
step rgi-torch 60 "$python" benchmarks/gpu_steps.py rgi --batches 1 8 64 --steps 200
step rgi-onnxruntime 60 "$python" benchmarks/gpu_steps.py rgi --engine onnxruntime --batches 1 8 64 --steps 100
bundle=${BUNDLE:-$out/inspection/f2pad.bundle}
images=${IMAGES:-$out/inspection/parts/test/scratch}
if [ -e "$bundle" ] && [ -e "$images" ]; then
  step profile 60 "$python" -m unblemish profile "$bundle" --images "$images"
  step traffic 60 "$python" benchmarks/f2pad_traffic.py "$bundle" "$images"
else
  skip profile "there is no bundle: give BUNDLE and IMAGES"
fi

printf '\n== summary (%s s) ==\n' "$SECONDS"
printf '%s\n' "${summary[@]}" | tee "$out/summary.txt"
exit $worst
