#!/bin/sh
# Compile every CUDA kernel for every architecture, warnings being errors. Nothing is run.
# usage: compile_check.sh [output folder]
set -eu

here=$(cd "$(dirname "$0")" && pwd)
nvcc=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
architectures=${UNBLEMISH_CUDA_ARCHITECTURES:-87 89 90 100 120}
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
targets=
for architecture in $architectures; do
  targets="$targets -gencode arch=compute_$architecture,code=sm_$architecture"
done
for source in "$here"/*.cu; do
  # shellcheck disable=SC2086  # the targets are several words
  "$nvcc" -std=c++17 -O3 -I "$here/../include" -Werror all-warnings -Xcompiler -Wall,-Wextra,-Werror \
    $targets -fatbin -o "$out/$(basename "$source" .cu).fatbin" "$source"
done
echo "CUDA kernels compiled for sm: $architectures ($("$nvcc" --version | sed -n 's/.*release \([0-9.]*\),.*/nvcc \1/p'); not run)."
