#!/usr/bin/env bash
# Formatting, the direction of includes, Python and shell syntax, and a short list of clang-tidy
# checks. Everything is looked at before the verdict, so one run shows all there is to mend.
set -uo pipefail
source scripts/setup.sh
bad=0
step() { # NAME COMMAND...
  local name=$1
  shift
  "$@" || { echo "lint: $name failed" >&2; bad=1; }
}

formatting() { git ls-files -z 'src/*.h' 'src/*.cpp' 'src/*.cu' 'tests/*.h' 'tests/*.cpp' 'bench/*.cpp' |
  xargs -0 -r clang-format --dry-run -Werror; }
python_syntax() { git ls-files '*.py' | "$PYTHON" -c 'import ast, sys
for name in sys.stdin.read().split():
    ast.parse(open(name).read(), name)'; }
shell_syntax() { local file; for file in run .ci/run scripts/*.sh; do bash -n "$file" || return 1; done; }
tidy() {
  # Its own compile commands, without torch: a file that includes ATen takes clang-tidy half a
  # minute, and a build by gcc has flags that clang does not know.
  local build=build/lint log
  log=$(mktemp)
  cmake -S . -B "$build" -G Ninja -DCMAKE_CXX_COMPILER=clang++ -DSUBSPACE_TORCH=OFF \
    -DSUBSPACE_TESTS=OFF -DSUBSPACE_BENCH=OFF >"$log" 2>&1 || { cat "$log" >&2; return 1; }
  git ls-files 'src/base/*.cpp' 'src/data/*.cpp' 'src/kernels/*.cpp' 'src/checkpoint/*.cpp' |
    xargs -P "$(nproc)" -n 2 clang-tidy --quiet -p "$build" 2>"$log"
  local status=$?
  # "N warnings generated" is about system headers; real errors of the tool are worth showing.
  [ "$status" -eq 0 ] || grep -vE 'warnings? generated|^Suppressed|^Use -header' "$log" >&2
  rm -f "$log"
  return "$status"
}

step formatting formatting
step "tree check" "$PYTHON" scripts/check_tree.py .
step "Python syntax" python_syntax
step "shell syntax" shell_syntax
step clang-tidy tidy
[ "$bad" -eq 0 ] && say "lint: nothing to complain of"
exit "$bad"
