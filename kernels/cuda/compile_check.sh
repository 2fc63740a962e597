#!/bin/sh
# Compile every CUDA kernel for every architecture the toolkit knows of those listed, warnings being errors.
# Nothing is run.
# usage: compile_check.sh [output folder]
set -eu

here=$(cd "$(dirname "$0")" && pwd)
nvcc=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
# Orin, Ada, Hopper, Blackwell, Thor (101 before CUDA 13, 110 since), Blackwell for workstations.
wanted=${UNBLEMISH_CUDA_ARCHITECTURES:-87 89 90 100 101 110 120}
if [ ! -x "$nvcc" ]; then
  echo "CUDA kernels NOT COMPILED: nvcc was not found (put it on PATH or set NVCC)."
  exit 0
fi

out=${1:-}
if [ -z "$out" ]; then
  out=$(mktemp -d)
  trap 'rm -rf "$out"' EXIT
fi

mkdir -p "$out"
known=" $("$nvcc" --list-gpu-arch | sed 's/compute_//' | tr '\n' ' ') "
targets= architectures=
for architecture in $wanted; do
  case "$known" in *" $architecture "*) ;; *) continue ;; esac
  targets="$targets -gencode arch=compute_$architecture,code=sm_$architecture"
  architectures="$architectures $architecture"
done
# For chips that come later.
targets="$targets -gencode arch=compute_${architectures##* },code=compute_${architectures##* }"
for source in "$here"/*.cu; do
  # shellcheck disable=SC2086  # the targets are several words
  "$nvcc" -std=c++17 -O3 -I "$here/../include" -Werror all-warnings -Xcompiler -Wall,-Wextra,-Werror \
    $targets -fatbin -o "$out/$(basename "$source" .cu).fatbin" "$source"
done
echo "CUDA kernels compiled for sm:$architectures, PTX ${architectures##* } ($("$nvcc" --version | sed -n 's/.*release \([0-9.]*\),.*/nvcc \1/p'); not run)."
