#!/bin/sh
# Builds the labs (unless their binaries are there) and runs them: run.sh BUILD_FOLDER RESULTS_FOLDER. About 25 s of
# device time, and 40 s of building on two cores. Every program compares its results with ref.c and fails otherwise.
set -e
here=$(cd "$(dirname "$0")" && pwd)
src=$here/../../../src
build=$1 results=$2
mkdir -p "$build"
if ! [ -x "$build/prefill" ]; then
    for f in pack ref; do
        cc -O3 -std=c17 -ffp-contract=off -march=x86-64-v3 -I"$src" -c "$src/ops/$f.c" -o "$build/$f.o"
    done
    link="$build/pack.o $build/ref.o"
    for i in 0 1 2 3; do # a program per format: they compile side by side
        nvcc -O3 -std=c++17 -arch=sm_90 -I"$src" -DFORMAT=$i -o "$build/decode_$i" "$here/decode_lab.cu" $link &
    done
    nvcc -O3 -std=c++17 -arch=sm_90 -I"$src" -o "$build/layer" "$here/layer_lab.cu" $link &
    wait
    nvcc -O3 -std=c++17 -gencode=arch=compute_90a,code=sm_90a -I"$src" -o "$build/prefill" "$here/prefill_lab.cu" $link
fi
if [ "$results" = none ]; then
    exit 0
fi
mkdir -p "$results"
failed=0
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | tee "$results/gpu.log"
timeout 30 "$build/prefill" > "$results/prefill.log" 2>&1 || failed=1
timeout 30 "$build/layer" > "$results/layer.log" 2>&1 || failed=1
for i in 0 1 2 3; do
    timeout 40 "$build/decode_$i" "$results/decode_$i.tsv" > "$results/decode_$i.log" 2>&1 || failed=1
done
cat "$results/prefill.log" "$results/layer.log"
exit $failed
