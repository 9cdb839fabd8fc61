#!/usr/bin/env bash
# ./run fuzz TARGET SECONDS: one libFuzzer target, from its seeds; new inputs stay in build/.
# FUZZ_OPTIONS are given to libFuzzer as they are (FUZZ_OPTIONS=-runs=10000000).
set -euo pipefail
source scripts/setup.sh
target=${1:-} seconds=${2:-60}
if [ ! -f "tests/fuzz/${target}_fuzz.cpp" ] || ! [[ $seconds =~ ^[0-9]+$ ]]; then
  targets=$(find tests/fuzz -name '*_fuzz.cpp' -printf '%f\n' | sed 's/_fuzz.cpp//' | sort | tr '\n' ' ')
  die "usage: ./run fuzz TARGET SECONDS; targets: ${targets:-none}" 2
fi
mkdir -p build/fuzz
(
  flock 9
  [ -f build/fuzz/build.ninja ] || cmake --preset fuzz >build/fuzz/configure.log 2>&1 ||
    { cat build/fuzz/configure.log >&2; exit 1; }
  ninja -C build/fuzz "fuzz_$target" >build/fuzz/build.log 2>&1 ||
    { tail -n 40 build/fuzz/build.log >&2; die "building the fuzz target failed"; }
) 9>build/fuzz/.lock
corpus=build/fuzz/corpus-$target
seeds=tests/fuzz/corpus/$target
mkdir -p "$corpus"
folders=("$corpus")
[ -d "$seeds" ] && folders+=("$seeds")
# shellcheck disable=SC2086 # the options are words
if ! build/fuzz/bin/fuzz_"$target" -max_total_time="$seconds" -max_len=65536 -timeout=60 \
  -rss_limit_mb=2048 -print_final_stats=1 -artifact_prefix="$corpus-" ${FUZZ_OPTIONS:-} \
  "${folders[@]}" >"build/fuzz/$target.log" 2>&1; then
  tail -n 60 "build/fuzz/$target.log" >&2
  die "fuzz $target found something; the input is named above"
fi
runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "build/fuzz/$target.log")
say "fuzz $target: ${runs:-?} executions in $seconds s, nothing found"
