#!/bin/sh
# Builds the device kernels with nvcc into a library for NVIDIA GPUs, to test them on one.
#
#   kernels/musa/nvidia/build.sh TARGET.so [options for nvcc's compilations...]
#
# The library is for tests: its numbers are those of a MUSA chip with 32 lanes a warp, its speed says
# nothing of one. tests/kernels/musa runs on it wherever torch finds a GPU and nvcc is installed;
# `mtactors serve --device cuda --kernels TARGET.so` runs a model on it. Environment: NVCC (nvcc),
# SM (sm_80: with its PTX, for that GPU and newer ones), MT_MUSA_ARCH (310: whose paths to take).
set -eu

if [ $# -lt 1 ]; then
  sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
target=$1
shift
musa=$(cd "$(dirname "$0")/.." && pwd)
nvcc=${NVCC:-nvcc}
sm=${SM:-sm_80}
objects=$(mktemp -d)
trap 'rm -rf "$objects"' EXIT

# Contraction is off for the same reason as everywhere: the order of operations is written down.
for source in "$musa"/*.mu; do
  object=$objects/$(basename "$source").o
  {
    "$nvcc" -x cu -std=c++17 -O3 -fmad=false -arch="$sm" -DMT_MUSA_ARCH="${MT_MUSA_ARCH:-310}" \
      -I"$musa/.." -I"$musa" -I"$musa/nvidia" -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wextra \
      "$@" -c "$source" -o "$object" >"$object.log" 2>&1 || echo "$source" >>"$objects/failed"
  } &
done
wait
cat "$objects"/*.log
if [ -e "$objects/failed" ]; then
  echo "nvcc failed for" $(cat "$objects/failed") >&2
  exit 1
fi
"$nvcc" -arch="$sm" -shared -o "$target" "$objects"/*.o
