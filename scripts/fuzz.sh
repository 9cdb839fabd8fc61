#!/usr/bin/env bash
# ./run fuzz TARGET SECONDS: one libFuzzer target, from its seeds; new inputs stay in build/.
set -euo pipefail
source scripts/setup.sh
target=${1:-} seconds=${2:-60}
[ -f "tests/fuzz/${target}_fuzz.cpp" ] ||
  die "usage: ./run fuzz TARGET SECONDS; targets: $(cd tests/fuzz && ls ./*_fuzz.cpp 2>/dev/null | sed 's,^\./,,; s,_fuzz.cpp,,' | tr '\n' ' ')" 2
mkdir -p build/fuzz
[ -f build/fuzz/build.ninja ] || cmake --preset fuzz >build/fuzz/configure.log 2>&1 ||
  { cat build/fuzz/configure.log >&2; exit 1; }
ninja -C build/fuzz "fuzz_$target" >build/fuzz/build.log 2>&1 ||
  { tail -n 40 build/fuzz/build.log >&2; die "building the fuzz target failed"; }
corpus=build/fuzz/corpus-$target
mkdir -p "$corpus"
seeds=tests/fuzz/corpus/$target
program=$(find build/fuzz -type f -name "fuzz_$target" -perm -u+x | head -n 1)
"$program" -max_total_time="$seconds" -max_len=65536 -timeout=10 -rss_limit_mb=2048 \
  -print_final_stats=1 "${FUZZ_OPTIONS[@]:--verbosity=0}" "$corpus" $( [ -d "$seeds" ] && echo "$seeds" )
