#!/usr/bin/env bash
# Benchmarks: bench/NAME.py. Without a name, every one of them in turn.
set -euo pipefail
source scripts/setup.sh
names=()
if [ $# -gt 0 ] && [[ $1 != -* ]]; then
  names=("$1")
  shift
  [ -f "bench/${names[0]}.py" ] || die "no benchmark '${names[0]}'; there are: $(cd bench && echo *.py)" 2
else
  for file in bench/*.py; do names+=("$(basename "$file" .py)"); done
fi
export SUBSPACE_PROGRAM=${SUBSPACE_PROGRAM:-$PWD/build/release/bin/subspace}
for name in "${names[@]}"; do
  say "$name"
  "$PYTHON" "bench/$name.py" "$@"
done
