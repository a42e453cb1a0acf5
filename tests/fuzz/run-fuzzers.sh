#!/bin/bash
# run-fuzzers.sh - runs every libFuzzer target of a build for a fixed time, one after the other.
#
#   tests/fuzz/run-fuzzers.sh BUILD_DIR [SECONDS each, default 20]
#
# A target is an executable BUILD_DIR/tests/fuzz/fuzz_NAME. It starts from tests/fuzz/corpus/NAME/ and
# tests/fuzz/NAME.dict where they exist; what it finds stays in BUILD_DIR. Ends with `N passed, N failed`.
set -euo pipefail

if [ $# -lt 1 ] || [ $# -gt 2 ] || ! [ -d "$1" ]; then
    echo "usage: run-fuzzers.sh BUILD_DIR [SECONDS]" >&2
    exit 2
fi
build=$(cd "$1" && pwd)
seconds=${2:-20}
here=$(cd "$(dirname "$0")" && pwd)
work=$build/fuzz-work
passed=0
failed=0

for target in "$build"/tests/fuzz/fuzz_*; do
    if ! [ -f "$target" ] || ! [ -x "$target" ]; then continue; fi
    program=$(basename "$target")
    name=${program#fuzz_}
    mkdir -p "$work/$name/corpus" "$work/$name/faults"
    log=$work/$name/log
    args=(-max_total_time="$seconds" -timeout=10 -rss_limit_mb=4096 -print_final_stats=1
        -artifact_prefix="$work/$name/faults/")
    if [ -f "$here/$name.dict" ]; then args+=(-dict="$here/$name.dict"); fi
    args+=("$work/$name/corpus")
    if [ -d "$here/corpus/$name" ]; then args+=("$here/corpus/$name"); fi

    # Once more than the time allowed, for a target that hangs where libFuzzer's own alarm cannot reach.
    if timeout -k 10 $((2 * seconds + 60)) "$target" "${args[@]}" >"$log" 2>&1 </dev/null; then
        passed=$((passed + 1))
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
        cover=$(grep -o ' cov: [0-9]*' "$log" | tail -n 1 || true)
        echo "$program: ${seconds} s, ${runs:-?} runs,${cover:- no coverage}"
    else
        failed=$((failed + 1))
        tail -n 60 "$log"
        echo "$program: FAILED; inputs that show it are in $work/$name/faults"
    fi
done

if [ $((passed + failed)) -eq 0 ]; then
    echo "run-fuzzers.sh: no fuzz target in $build/tests/fuzz" >&2
    failed=1
fi
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
