#!/usr/bin/env bash
# Benchmarks: bench/NAME.py or bench/NAME.cpp. Without a name, every one of them in turn.
set -euo pipefail
source scripts/setup.sh
shopt -s nullglob
if [[ ${1:-} == --help || ${1:-} == -h ]]; then
  echo "./run bench [NAME] [OPTIONS]: without NAME all, one after another; --record writes bench/results/"
  for file in bench/*.py bench/*.cpp; do
    name=$(basename "$file")
    # The first words of a file say what it measures.
    first=$(grep -m1 -oE '^("""|// ).*' "$file" | sed -E 's/^("""|\/\/ )//')
    printf '  %-16s %s\n' "${name%.*}" "$first"
  done
  exit 0
fi
names=()
for file in bench/*.py bench/*.cpp; do
  name=$(basename "$file")
  names+=("${name%.*}")
done
if [ $# -gt 0 ] && [[ $1 != -* ]]; then
  [ -f "bench/$1.py" ] || [ -f "bench/$1.cpp" ] || die "no benchmark '$1'; there are: ${names[*]}" 2
  names=("$1")
  shift
fi
export SUBSPACE_PROGRAM=${SUBSPACE_PROGRAM:-$PWD/build/release/bin/subspace}
for name in "${names[@]}"; do
  say "$name"
  if [ -f "bench/$name.py" ]; then
    "$PYTHON" "bench/$name.py" "$@"
  else
    "build/release/bench/$name" "$@"
  fi
done
